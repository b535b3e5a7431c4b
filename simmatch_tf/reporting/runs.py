"""Runs as they stand on disk, and which are one but for their seeds.

Nothing here imports TensorFlow.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf.data import fingerprint
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.reporting import scalars as scalars_lib
from simmatch_tf.training import results, workdir

_SEEDS = ("seed", "split_seed")
_LEAST_PREFIX = 3  # characters of a name that a group's runs share
_LONGEST = 40  # characters of their names, one beside the other
# Dataset, and what a result is of → where the names of these images begin.
_SCORED = {
    ("folder", "test"): "test/",
    ("folder", "validation"): "labeled/",
    ("custom", "test"): "test",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a run is, and what to call it.

    Attributes:
        name: As in legends and tables.
        folder: Its workdir.
        config: Its flags.
    """

    name: str
    folder: workdir.Workdir
    config: config_lib.Config


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run left, finished or not.

    Attributes:
        name: As in legends and tables.
        folder: Its workdir.
        config: Its flags.
        result: What it came to; None as long as it is not finished.
        split: What stands in its split.json; empty if there is none.
        data: The files of its images, from its data.json; None if it keeps
            none: an imported run, or one of an older version.
        scalars: Tag → step → value; empty without event files.
        sessions: What stands in its timing.json.
        evaluation: What `evaluate` found of the result's weights, if it did.
        reached: The last step that is known of.
        steps: Length; None where it is not known.
    """

    name: str
    folder: workdir.Workdir
    config: config_lib.Config
    result: results.Result | None
    split: dict[str, Any]
    data: fingerprint.Fingerprint | None
    scalars: scalars_lib.Scalars
    sessions: list[dict[str, float]]
    evaluation: dict[str, Any] | None
    reached: int
    steps: int | None

    @property
    def record(self) -> str:
        """Whose figures are the result: "student" or "ema"."""
        if self.result is not None:
            return self.result.weights_of_record
        # As the algorithms have it, which cannot be asked without TensorFlow.
        config = self.config
        teacher = getattr(config, "targets_from", None) == "teacher"
        return "student" if teacher else "ema"

    @property
    def record_tag(self) -> str:
        """The scalar that the result is the last of."""
        test = f"test/{self.record}_top1"
        return (
            test if test in self.scalars else test.replace("test", "validation")
        )

    @property
    def seconds(self) -> float | None:
        """What it took so far; None where no time was written."""
        if not self.sessions:
            return None
        return sum(each["seconds"] for each in self.sessions)

    @property
    def views_per_second(self) -> float | None:
        """Views of images that it trained on, each second."""
        if not self.seconds:
            return None
        views = [s["views_per_second"] * s["seconds"] for s in self.sessions]
        return sum(views) / self.seconds

    @property
    def timed(self) -> bool:
        """Whether all of its steps are in its times: a kill leaves none."""
        steps = sum(
            each["last_step"] - each["first_step"] + 1 for each in self.sessions
        )
        return steps >= self.reached


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that are one but for their seeds.

    Attributes:
        name: As in legends and tables.
        runs: At least one, by seed.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> config_lib.Config:
        """The flags, of the first."""
        return self.runs[0].config

    @property
    def finished(self) -> list[Run]:
        """Those that have a result."""
        return [run for run in self.runs if run.result is not None]


def find(words: Sequence[str]) -> list[Place]:
    """Finds runs by the words of a command line.

    Args:
        words: Each a folder, or NAME=FOLDER.

    Raises:
        InputError: One is no run, is named twice, or two have one name.
    """
    given: list[tuple[str | None, str]] = []
    for word in words:
        name, equals, path = word.partition("=")
        if equals and not pathlib.Path(word).expanduser().is_dir():
            if not name.strip():
                raise InputError(f"{word}: a name is wanted before the =")
            given.append((name.strip(), path))
        else:
            given.append((None, word))
    ends = [_end(path) for name, path in given if name is None]
    found: dict[str, Place] = {}
    at: set[str] = set()
    for name, path in given:
        folder = workdir.Workdir(_folder(path))
        if os.path.realpath(folder.path) in at:
            raise InputError(f"{path}: is named twice")
        at.add(os.path.realpath(folder.path))
        name = name or (_end(path) if ends.count(_end(path)) < 2 else path)
        if name in found:
            raise InputError(
                f"{path} and {found[name].folder.path}: both are called "
                f"{name}; give another name, NAME={path}"
            )
        found[name] = Place(name, folder, folder.read_config())
    return list(found.values())


def _folder(path: str) -> str:
    if not path.strip():
        raise InputError(f"{path!r}: name the folder of a run")
    if not pathlib.Path(path).expanduser().is_dir():
        raise InputError(f"{path}: no such folder")
    if not (pathlib.Path(path).expanduser() / workdir.FLAGFILE).is_file():
        raise InputError(f"{path}: no run here ({workdir.FLAGFILE} is missing)")
    return path


def _end(path: str) -> str:
    """The last part of a path."""
    return pathlib.Path(os.path.abspath(os.path.expanduser(path))).name


def read(place: Place) -> Run:
    """Reads what a run left.

    Raises:
        InputError: Its result cannot be read.
    """
    folder = place.folder
    result = results.read(folder.results) if folder.finished() else None
    split = _json(folder.split)
    split = split if isinstance(split, dict) else {}
    scalars = scalars_lib.read(folder.tensorboard)
    if result is not None:
        reached = steps = result.steps
    else:
        reached = max(
            *(max(points) for points in scalars.values()),
            *(_step(path) for path in folder.checkpoints.glob("*.index")),
            0,
            0,
        )
        steps = _steps(place.config, split)
    return Run(
        name=place.name,
        folder=folder,
        config=place.config,
        result=result,
        split=split,
        data=_data(folder.data),
        scalars=scalars,
        sessions=_sessions(folder.timing),
        evaluation=_evaluation(folder.evaluation, result),
        reached=reached,
        steps=steps,
    )


def _json(path: pathlib.Path) -> Any:
    """What stands in a file that may be missing, or torn."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _data(path: pathlib.Path) -> fingerprint.Fingerprint | None:
    try:
        return fingerprint.read(path)
    except (OSError, ValueError):
        return None


def _step(path: pathlib.Path) -> int:
    """Of a checkpoint: step_00000400.index."""
    number = path.stem.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def _steps(config: config_lib.Config, split: dict[str, Any]) -> int | None:
    """How long a run will be that is not finished."""
    if config.steps is not None:
        return config.steps
    try:
        return config.with_durations(split["unlabeled_images"]).steps
    except (InputError, KeyError, TypeError):
        return None


def _sessions(path: pathlib.Path) -> list[dict[str, float]]:
    """The times of a run; none of a file that is torn."""
    wanted = ("first_step", "last_step", "seconds", "views_per_second")
    found = _json(path)
    if not isinstance(found, list):
        return []
    return [
        each
        for each in found
        if isinstance(each, dict)
        and all(isinstance(each.get(key), int | float) for key in wanted)
    ]


def _evaluation(
    path: pathlib.Path, result: results.Result | None
) -> dict[str, Any] | None:
    """What `evaluate` wrote, if it is of the result's weights."""
    found = _json(path)
    if result is None or not isinstance(found, dict):
        return None
    record = found.get(result.weights_of_record)
    wanted = ("top1", "per_class", "confusion", "calibration_error")
    if not isinstance(record, dict) or not all(key in record for key in wanted):
        return None
    same = (
        found.get("step") == result.steps
        and found.get("class_names") == result.class_names
        and found.get("test_images") == result.test_images
        and "images_changed" not in found
    )
    return record if same else None


def deciding(config: config_lib.Config) -> dict[str, Any]:
    """The flags that decide what is trained, but for the seeds."""
    return {
        name: value
        for name, value in config.values().items()
        if (
            not config.fields()[name].operational
            # Which images these are is said by their folder alone.
            or (name == "data_dir" and config.dataset == "folder")
        )
        and name not in _SEEDS
    }


def data_changes(then: Run, now: Run) -> str:
    """How the data of two runs differ: names, sizes and contents of files.

    Returns:
        A text for people; "" where they are the same, as far as is known: of
        a run without data.json, names and classes are, or nothing.
    """
    if None not in (then.data, now.data):
        return _changes(then.data.files, now.data.files)
    for part in ("train", "test"):
        digests = {run.split.get(f"{part}_sha256") for run in (then, now)}
        if len(digests - {None}) > 1:
            return f"other names or classes of {part} images"
    return ""


def same_scored(finished: Sequence[Run]) -> bool:
    """Whether results are of the same images, as far as is known."""
    sets = {
        (run.config.dataset, run.result.scored_on, run.result.test_images)
        for run in finished
    }
    return len(sets) == 1 and not any(
        _scored_differ(*pair) for pair in itertools.combinations(finished, 2)
    )


def _scored_differ(one: Run, other: Run) -> bool:
    """Whether two results of one dataset are known to be of other images."""
    scored_on = one.result.scored_on
    if None not in (one.data, other.data):
        place = _SCORED.get((one.config.dataset, scored_on), "")
        chosen = [
            {
                name: state
                for name, state in run.data.files.items()
                if name.startswith(place) and not name.startswith("--")
            }
            for run in (one, other)
        ]
        return bool(_changes(*chosen))
    digests = {run.split.get("test_sha256") for run in (one, other)}
    return scored_on == "test" and len(digests - {None}) > 1


def _changes(then: fingerprint.Files, now: fingerprint.Files) -> str:
    """How files differ, whenever they were written."""

    def missing(files: fingerprint.Files, others: fingerprint.Files):
        # A file that a flag names is missing without the flag.
        names = files.keys() - others.keys()
        return sorted(name for name in names if not name.startswith("--"))

    def differ(name: str) -> bool:
        (old_size, _, old), (size, _, digest) = then[name], now[name]
        return old_size != size or (None not in (old, digest) and old != digest)

    return fingerprint.Changes(
        new=missing(now, then),
        gone=missing(then, now),
        changed=sorted(filter(differ, then.keys() & now.keys())),
        touched=(),
    ).text()


def group(found: Sequence[Run]) -> list[Group]:
    """Puts runs together that are one but for their seeds, in their order.

    A run on other data is another run. A second run of equal seeds is the same
    run: it would count twice in means, so it is put apart.
    """
    groups: list[list[Run]] = []
    for run in found:
        for members in groups:
            if _belongs(run, members):
                members.append(run)
                break
        else:
            groups.append([run])
    taken: set[str] = set()
    made = []
    for members in groups:
        members.sort(key=lambda r: (r.config.seed, r.config.split_seed))
        name = _name([run.name for run in members], taken)
        taken.add(name)
        made.append(Group(name, tuple(members)))
    return made


def _belongs(run: Run, members: Sequence[Run]) -> bool:
    """Whether a run is one with others but for its seeds."""
    return (
        deciding(run.config.absolute())
        == deciding(members[0].config.absolute())
        and _seeds(run) not in map(_seeds, members)
        and not any(data_changes(member, run) for member in members)
    )


def _seeds(run: Run) -> tuple[int, ...]:
    return tuple(getattr(run.config, name) for name in _SEEDS)


def _name(names: Sequence[str], taken: set[str]) -> str:
    """What to call runs together: what their names begin with."""
    if len(names) == 1:
        return names[0]
    shared = os.path.commonprefix(list(names)).rstrip("0123456789")
    shared = shared.rstrip(" _-=.,/").removesuffix("seed").rstrip(" _-=.,/")
    if len(shared) >= _LEAST_PREFIX and shared not in taken:
        return shared
    whole = ", ".join(names)
    if len(whole) <= _LONGEST:
        return whole
    return f"{names[0]} and {len(names) - 1} more"


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """The flags in which groups differ: flag → the value in each."""
    flags = [deciding(each.config.absolute()) for each in groups]
    names = dict.fromkeys(name for each in flags for name in each)
    values = {name: [each.get(name) for each in flags] for name in names}
    return {k: v for k, v in values.items() if any(x != v[0] for x in v)}


def data_differences(groups: Sequence[Group]) -> list[str] | None:
    """How the data of groups differ from those of the first of each dataset.

    Returns:
        A text for each group; None where no data are known to differ.
    """
    firsts: dict[str, Run] = {}
    texts, differ = [], False
    for each in groups:
        run = each.runs[0]
        first = firsts.setdefault(run.config.dataset, run)
        changes = data_changes(first, run)
        differ = differ or bool(changes)
        if changes:
            texts.append(changes)
        elif run.data is None:
            texts.append("not known")
        elif run is first or first.data is None:
            count = len(run.data.files)
            texts.append(f"{count:,} file{'s' * (count != 1)}")
        else:
            texts.append("the same")
    return texts if differ else None


def of_other_data(groups: Sequence[Group]) -> list[str]:
    """A sentence for each group that other data alone keep from another's."""
    said = []
    for number, each in enumerate(groups):
        for other in groups[:number]:
            changes = data_changes(other.runs[0], each.runs[0])
            if changes and not differences([other, each]):
                said.append(
                    f"{each.name} is not put together with {other.name}: it is "
                    f"on other data: {changes}."
                )
                break
    return said
