"""Runs as they stand on disk, and which of them differ in their seeds alone.

Nothing here imports TensorFlow.
"""

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from google.protobuf import message
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow
from tensorboard.util import tensor_util

from simmatch_tf import config as config_lib
from simmatch_tf import io, registry
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import fingerprint
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import results, workdir

# Tag → step → value.
Scalars = dict[str, dict[int, float]]

_SEEDS = ("seed", "split_seed")
_LEAST_PREFIX = 3  # characters that the names of a group's runs must share
_LONGEST = 40  # characters of a group's name that lists its runs
# (dataset, "test" or "validation") → how the names of these images begin.
_SCORED = {
    ("folder", "test"): "test/",
    ("folder", "validation"): "labeled/",
    ("custom", "test"): "test",
}


@dataclasses.dataclass(frozen=True)
class Place:
    """A folder of a run, and the run's name.

    Attributes:
        name: Name for legends and tables.
        folder: Its workdir.
        config: Its flags.
    """

    name: str
    folder: workdir.Workdir
    config: config_lib.Config


@dataclasses.dataclass(frozen=True)
class Run(Place):
    """What a run has written, finished or not.

    Attributes:
        result: Its result; None until it is finished.
        split: Content of its split.json; empty if there is none.
        data: The files of its images, from its data.json. None if it has none:
            an imported run, or one of an older version.
        scalars: Its TensorBoard scalars; empty without event files.
        sessions: Content of its timing.json.
        evaluation: What `evaluate` measured of the result's weights, if it
            was run.
        reached: The last step that anything was written of.
        steps: Length of the run; None where it is not known.
    """

    result: results.Result | None
    split: dict[str, Any]
    data: fingerprint.Fingerprint | None
    scalars: Scalars
    sessions: list[dict[str, float]]
    evaluation: dict[str, Any] | None
    reached: int
    steps: int | None

    @property
    def algorithm(self) -> type[algorithm_lib.Algorithm]:
        """The class of its algorithm."""
        return registry.algorithms.find(self.config.algorithm)[0].value

    @property
    def record(self) -> str:
        """The network whose accuracy is the result: "student" or "ema"."""
        if self.result is not None:
            return self.result.weights_of_record
        if isinstance(self.algorithm.evaluated_weights, str):
            return self.algorithm.evaluated_weights
        # A property, which in SimMatch and FixMatch depends on this flag.
        teacher = getattr(self.config, "targets_from", None) == "teacher"
        return "student" if teacher else "ema"

    @property
    def record_tag(self) -> str:
        """The scalar whose last value is the result."""
        tags = [f"{part}/{self.record}_top1" for part in ("test", "validation")]
        return tags[0] if tags[0] in self.scalars else tags[1]

    @property
    def seconds(self) -> float | None:
        """Duration so far in seconds; None where no time was written."""
        if not self.sessions:
            return None
        return sum(each["seconds"] for each in self.sessions)

    @property
    def views_per_second(self) -> float | None:
        """Views of images that it trained on per second."""
        if not self.seconds:
            return None
        views = [s["views_per_second"] * s["seconds"] for s in self.sessions]
        return sum(views) / self.seconds

    @property
    def timed(self) -> bool:
        """Whether its times cover all of its steps: a killed start has none."""
        steps = sum(
            each["last_step"] - each["first_step"] + 1 for each in self.sessions
        )
        return steps >= self.reached


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        name: Name for legends and tables.
        runs: At least one, in the order of their seeds.
    """

    name: str
    runs: tuple[Run, ...]

    @property
    def config(self) -> config_lib.Config:
        """The flags of the first run."""
        return self.runs[0].config

    @property
    def finished(self) -> list[Run]:
        """The runs that have a result."""
        return [run for run in self.runs if run.result is not None]


# Finding and reading runs ----------------------------------------------------


def find(words: Sequence[str]) -> list[Place]:
    """Finds the runs that a command line names.

    Args:
        words: FOLDER or NAME=FOLDER each.

    Raises:
        InputError: A folder holds no run or is given twice, or two runs have
            the same name.
    """
    given: list[tuple[str | None, str]] = []
    for word in words:
        name, equals, path = word.partition("=")
        if equals and not io.expand(word).is_dir():
            if not name.strip():
                raise InputError(f"{word}: must have a name before the =")
            given.append((name.strip(), path))
        else:
            given.append((None, word))
    ends = [_end(path) for name, path in given if name is None]
    places: dict[str, Place] = {}
    seen: set[str] = set()
    for name, path in given:
        folder = workdir.Workdir(_checked(path))
        real = os.path.realpath(folder.path)
        if real in seen:
            raise InputError(f"{path}: is given twice")
        seen.add(real)
        name = name or (_end(path) if ends.count(_end(path)) < 2 else path)
        if name in places:
            raise InputError(
                f"{path} and {places[name].folder.path}: are both called "
                f"{name}; give another name, NAME={path}"
            )
        places[name] = Place(name, folder, folder.read_config())
    return list(places.values())


def _checked(path: str) -> str:
    """Returns the path if it is a run's folder."""
    if not path.strip():
        raise InputError(f"{path!r}: must be the folder of a run")
    if not io.expand(path).is_dir():
        raise InputError(f"{path}: no such folder")
    if not (io.expand(path) / workdir.FLAGFILE).is_file():
        raise InputError(f"{path}: no run here ({workdir.FLAGFILE} is missing)")
    return path


def _end(path: str) -> str:
    """Returns the last part of a path."""
    return pathlib.Path(os.path.abspath(io.expand(path))).name


def read(place: Place) -> Run:
    """Reads what a run has written.

    Raises:
        InputError: Its result cannot be read.
    """
    folder = place.folder
    result = results.read(folder.results) if folder.finished() else None
    split = _json(folder.split)
    split = split if isinstance(split, dict) else {}
    scalars = read_scalars(folder.tensorboard)
    if result is not None:
        reached = steps = result.steps
    else:
        written = [max(points) for points in scalars.values()]
        written += map(_step, folder.checkpoints.glob("*.index"))
        reached = max(written, default=0)
        steps = workdir.length(place.config, split)
    try:
        data = fingerprint.read(folder.data)
    except (OSError, ValueError):
        data = None
    return Run(
        place.name,
        folder,
        place.config,
        result=result,
        split=split,
        data=data,
        scalars=scalars,
        sessions=_sessions(folder.timing),
        evaluation=_evaluation(folder.evaluation, result),
        reached=reached,
        steps=steps,
    )


def _json(path: pathlib.Path) -> Any:
    """Reads a file that may be missing or torn."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _step(path: pathlib.Path) -> int:
    """Returns the step of a checkpoint, as in step_00000400.index."""
    number = path.stem.rpartition("_")[2]
    return int(number) if number.isdecimal() else 0


def _sessions(path: pathlib.Path) -> list[dict[str, float]]:
    """Reads the times of a run; none from a torn file."""
    keys = ("first_step", "last_step", "seconds", "views_per_second")
    sessions = _json(path)
    if not isinstance(sessions, list):
        return []
    return [
        each
        for each in sessions
        if isinstance(each, dict)
        and all(isinstance(each.get(key), int | float) for key in keys)
    ]


def _evaluation(
    path: pathlib.Path, result: results.Result | None
) -> dict[str, Any] | None:
    """Reads what `evaluate` wrote, if it is of the result's weights."""
    report = _json(path)
    if result is None or not isinstance(report, dict):
        return None
    record = report.get(result.weights_of_record)
    keys = ("top1", "per_class", "confusion", "calibration_error")
    if not isinstance(record, dict) or not all(key in record for key in keys):
        return None
    same = (
        report.get("step") == result.steps
        and report.get("class_names") == result.class_names
        and report.get("test_images") == result.test_images
        and "images_changed" not in report
    )
    return record if same else None


# Scalars ---------------------------------------------------------------------


def read_scalars(folder: pathlib.Path) -> Scalars:
    """Reads the scalars of all event files of a run.

    A run that is killed goes on from its last checkpoint in a new file. What
    an earlier file has from that step on was undone, and is left out.

    Args:
        folder: The folder of the event files; it need not exist.

    Returns:
        The steps of each tag in order. Values may be NaN or infinite.
    """
    scalars: Scalars = {}
    for path in sorted(folder.glob("*tfevents*"), key=_begun):
        new = _scalars_of(path)
        if not new:
            continue
        first = min(min(points) for points in new.values())
        for points in scalars.values():
            for step in [step for step in points if step >= first]:
                del points[step]
        for tag, points in new.items():
            scalars.setdefault(tag, {}).update(points)
    return {
        tag: dict(sorted(points.items()))
        for tag, points in sorted(scalars.items())
        if points
    }


def _begun(path: pathlib.Path) -> tuple[int, str]:
    """Returns when events.out.tfevents.SECONDS.HOST.… was begun."""
    seconds = path.name.partition("tfevents.")[2].partition(".")[0]
    return int(seconds) if seconds.isdecimal() else 0, path.name


def _scalars_of(path: pathlib.Path) -> Scalars:
    """Reads the scalars of one file, as far as it can be read."""
    scalars: Scalars = {}
    for record in _records(path):
        try:
            event = event_pb2.Event.FromString(record)
        except message.DecodeError:
            break
        for value in event.summary.value:
            number = _number(value)
            if number is not None:
                scalars.setdefault(value.tag, {})[event.step] = number
    return scalars


def _records(path: pathlib.Path) -> Iterator[bytes]:
    """Yields the whole records of a file, whose last one may be incomplete."""
    try:
        # TensorBoard's own loader would import TensorFlow, which takes seconds.
        reader = pywrap_tensorflow.PyRecordReader_New(str(path))
    except (errors.OpError, OSError):
        return
    with reader.file_handle:
        while True:
            try:
                reader.GetNext()
            except (errors.OutOfRangeError, OSError):
                return
            except errors.DataLossError as error:
                # A live run may still be writing the last record.
                if "truncated" not in str(error):
                    logging.warning(
                        "%s: is damaged; curves end there (%s)", path, error
                    )
                return
            yield reader.record()


def _number(value: summary_pb2.Summary.Value) -> float | None:
    """Returns the number in a value; None if it is no scalar."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor"):
        return None
    try:
        array = tensor_util.make_ndarray(value.tensor)
    except (TypeError, ValueError):  # a tensor of another kind
        return None
    if array.size != 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(()))


# The data of runs ------------------------------------------------------------


def data_changes(then: Run, now: Run) -> str:
    """Says how the data of two runs differ: names, sizes, contents of files.

    Returns:
        A text for people, or "" where no difference is known. Of a run
        without data.json, only names and classes can be compared, if at all.
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
    kinds = {
        (run.config.dataset, run.result.scored_on, run.result.test_images)
        for run in finished
    }
    return len(kinds) == 1 and not any(
        _scored_differ(*pair) for pair in itertools.combinations(finished, 2)
    )


def _scored_differ(one: Run, other: Run) -> bool:
    """Whether two results of one dataset are known to be of other images."""
    scored_on = one.result.scored_on
    if None not in (one.data, other.data):
        prefix = _SCORED.get((one.config.dataset, scored_on), "")
        scored = [
            {
                name: state
                for name, state in run.data.files.items()
                if name.startswith(prefix) and not name.startswith("--")
            }
            for run in (one, other)
        ]
        return bool(_changes(*scored))
    digests = {run.split.get("test_sha256") for run in (one, other)}
    return scored_on == "test" and len(digests - {None}) > 1


def _changes(then: fingerprint.Files, now: fingerprint.Files) -> str:
    """Says how files differ, whenever they were written."""

    def missing(files: fingerprint.Files, others: fingerprint.Files):
        # A file that a flag names is missing where the flag is.
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


# Groups ----------------------------------------------------------------------


def group(runs: Sequence[Run]) -> list[Group]:
    """Groups runs that differ in their seeds alone, in the given order.

    A run on other data belongs to another group. So does a second run of equal
    seeds: it is the same run, and would count twice in means.
    """
    groups: list[list[Run]] = []
    for run in runs:
        for members in groups:
            if _belongs(run, members):
                members.append(run)
                break
        else:
            groups.append([run])
    named: dict[str, Group] = {}
    for members in groups:
        members.sort(key=_seeds)
        name = _name([run.name for run in members], named)
        named[name] = Group(name, tuple(members))
    return list(named.values())


def _belongs(run: Run, members: Sequence[Run]) -> bool:
    """Whether a run differs from others in its seeds alone."""
    return (
        _deciding(run.config) == _deciding(members[0].config)
        and _seeds(run) not in map(_seeds, members)
        and not any(data_changes(member, run) for member in members)
    )


def _deciding(config: config_lib.Config) -> dict[str, Any]:
    """Returns the flags that decide what is trained, but for the seeds."""
    config = config.absolute()
    fields = config.fields()
    return {
        name: value
        for name, value in config.values().items()
        if (
            not fields[name].operational
            # Only the folder says which images these are.
            or (name == "data_dir" and value is not None)
        )
        and name not in _SEEDS
    }


def _seeds(run: Run) -> tuple[int, ...]:
    return tuple(getattr(run.config, name) for name in _SEEDS)


def _name(names: Sequence[str], taken: dict[str, Group]) -> str:
    """Names a group by what its runs' names begin with, if that is enough."""
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
    """Returns the flags in which groups differ, each with a value a group."""
    flags = [_deciding(each.config) for each in groups]
    names = dict.fromkeys(name for each in flags for name in each)
    values = {name: [each.get(name) for each in flags] for name in names}
    return {k: v for k, v in values.items() if any(x != v[0] for x in v)}


def data_differences(groups: Sequence[Group]) -> list[str] | None:
    """Says how the data of groups differ from the first of the same dataset.

    Returns:
        A text a group; None where no data are known to differ.
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


def separated_by_data(groups: Sequence[Group]) -> list[str]:
    """Returns a sentence a group that only its data keep from another."""
    sentences = []
    for number, each in enumerate(groups):
        for other in groups[:number]:
            changes = data_changes(other.runs[0], each.runs[0])
            if changes and not differences([other, each]):
                sentences.append(
                    f"{each.name} is not grouped with {other.name}: its data "
                    f"are others: {changes}."
                )
                break
    return sentences
