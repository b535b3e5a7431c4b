"""Runs as they stand on disk, and which of them differ in their seeds alone.

Nothing here imports TensorFlow.
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import message
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow
from tensorboard.util import tensor_util

from simmatch_tf import config as config_lib
from simmatch_tf import io, registry, terminal
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import fingerprint, layout
from simmatch_tf.flags.errors import InputError
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.training import results, workdir

# Tag → step → value.
Scalars = dict[str, dict[int, float]]

_SEEDS = ("seed", "split_seed")
_LEAST_PREFIX = 3  # characters that the names of a group's runs must share
_LONGEST = 40  # characters of a group's name that lists its runs


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has written, finished or not.

    Attributes:
        name: Name for legends and tables.
        folder: Its workdir.
        config: Its flags.
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

    name: str
    folder: workdir.Workdir
    config: config_lib.Config
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
    def classes(self) -> diagnosis.Classes | None:
        """Its classes, and how often they are labeled; None if not known."""
        names, labels = (self.split.get(n) for n in ("class_names", "labels"))
        if not names or not labels:
            return None
        return diagnosis.Classes(
            tuple(names),
            tuple(
                map(collections.Counter(labels).__getitem__, range(len(names)))
            ),
            self.split.get("class_prior"),
        )

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

    @property
    def measured(self) -> list[Run]:
        """Those of the finished runs whose accuracy is known."""
        return [run for run in self.finished if run.result.top1 is not None]


# Finding and reading runs ----------------------------------------------------


def read(words: Sequence[str]) -> list[Run]:
    """Reads the runs that a command line names.

    Args:
        words: FOLDER or NAME=FOLDER each.

    Raises:
        InputError: A folder holds no run or is given twice, two runs have the
            same name, or a result cannot be read.
    """
    given: list[tuple[str | None, str]] = []
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or io.expand(word).is_dir():
            name, path = None, word
        elif not name.strip():
            raise InputError(f"{word}: must have a name before the =")
        given.append((name and name.strip(), path))
    ends = [_end(path) for name, path in given if name is None]
    folders: dict[str, workdir.Workdir] = {}
    for name, path in given:
        folder = workdir.Workdir(_checked(path))
        if any(os.path.samefile(folder.path, f.path) for f in folders.values()):
            raise InputError(f"{path}: is given twice")
        name = name or (_end(path) if ends.count(_end(path)) < 2 else path)
        if name in folders:
            raise InputError(
                f"{path} and {folders[name].path}: are both called {name}; "
                f"give another name, NAME={path}"
            )
        folders[name] = folder
    return [_read(name, folder) for name, folder in folders.items()]


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


def _read(name: str, folder: workdir.Workdir) -> Run:
    """Reads what a run has written."""
    config = folder.read_config()
    result = results.read(folder.results) if folder.finished() else None
    split = _json(folder.split) or {}
    scalars = read_scalars(folder.tensorboard)
    if result is not None:
        reached = steps = result.steps
    else:
        written = [max(points) for points in scalars.values()]
        written += map(_step, folder.checkpoints.glob("*.index"))
        reached = max(written, default=0)
        steps = workdir.length(config, split)
    try:
        data = fingerprint.read(folder.data)
    except (OSError, ValueError):
        data = None
    return Run(
        name,
        folder,
        config,
        result=result,
        split=split,
        data=data,
        scalars=scalars,
        sessions=_json(folder.timing) or [],
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


def _evaluation(
    path: pathlib.Path, result: results.Result | None
) -> dict[str, Any] | None:
    """Reads what `evaluate` wrote, if it is of the result's weights."""
    report = _json(path)
    if result is None or report is None or "images_changed" in report:
        return None
    for key, value in (
        ("step", result.steps),
        ("class_names", result.class_names),
        ("test_images", result.test_images),
    ):
        if report.get(key) != value:
            return None
    return report.get(result.weights_of_record)


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
                    terminal.warn(
                        f"{path}: is damaged; curves end there ({error})"
                    )
                return
            yield reader.record()


def _number(value: summary_pb2.Summary.Value) -> float | None:
    """Returns the number in a value; None if it is no scalar."""
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


def data_changes(then: Run, now: Run, *, scored: bool = False) -> str:
    """Says how the data of two runs differ: names, sizes, contents of files.

    Args:
        then: A run.
        now: Another run; of the same dataset and scored set, if `scored`.
        scored: Compare only the images that the results are measured on.

    Returns:
        A text for people, or "" where no difference is known. Of a run
        without data.json, only names and classes can be compared, if at all.
    """
    scored_on = then.result.scored_on if scored else None
    if None not in (then.data, now.data):
        names = then.data.files.keys() | now.data.files.keys()
        if scored_on and then.config.dataset == "folder":
            names = layout.scored_names(names, scored_on)
        elif (then.config.dataset, scored_on) == ("custom", "test"):
            names = {"test"}
        # That a flag names a file in one run alone is a difference of flags.
        common = then.data.files.keys() & now.data.files.keys()

        def compared(files: fingerprint.Files) -> fingerprint.Fingerprint:
            chosen = {
                name: (size, 0, digest)  # whenever they were written
                for name, (size, _, digest) in files.items()
                if name in names
                and (name[:2] != "--" or (name in common and not scored))
            }
            return fingerprint.Fingerprint(chosen)

        return fingerprint.compare(
            compared(then.data.files), compared(now.data.files)
        ).text()
    for part in ("train", "test"):
        digests = {run.split.get(f"{part}_sha256") for run in (then, now)}
        if scored_on in (None, part) and len(digests - {None}) > 1:
            return f"other names or classes of {part} images"
    return ""


def same_scored(finished: Sequence[Run]) -> bool:
    """Whether results are of the same images, as far as is known."""
    kinds = {
        (run.config.dataset, run.result.scored_on, run.result.test_images)
        for run in finished
    }
    return len(kinds) == 1 and not any(
        data_changes(*pair, scored=True)
        for pair in itertools.combinations(finished, 2)
    )


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
    # How many steps its minutes were is a measurement, not a choice.
    config = dataclasses.replace(config, measured_steps=None)
    fields = config.fields()
    return {
        name: value
        for name, value in config.values().items()
        if (
            not fields[name].operational
            # Only these say which images and classes they are.
            or (name in ("data_dir", *config_lib.TABLES) and value is not None)
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


def separated_by_data(groups: Sequence[Group]) -> list[str]:
    """Returns a sentence for each group that only data keep from another."""
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
