"""Finished runs of experiments: one small JSON file each, found by its flags.

Nothing here imports TensorFlow.
"""

import dataclasses
import datetime
import functools
import json
import math
import pathlib
import platform
import tempfile
from collections.abc import Sequence

from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf import io
from simmatch_tf.data.sources import tfds
from simmatch_tf.experiments import identity, plan
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.training import results

# Bytes: more than a finished run takes.
_ROOM = 8192


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a run came to, and from what. Accuracies are in [0, 1].

    Attributes:
        flags: All that decide what is trained, as words of a command line.
        top1: Of the weights of record at the last step.
        top5: Likewise.
        student_top1: Of the student at the last step.
        ema_top1: Of its EMA.
        weights_of_record: "student" or "ema".
        steps: Length of the run.
        labels: Labeled images, K.
        unlabeled: Unlabeled images.
        test_images: Images behind every top-1.
        scored_on: "test" or "validation".
        seconds: Training and evaluation, without the start.
        at_once: Runs that shared the machine.
        processor: Of the machine.
        date: Of its end.
        versions: Package → version.
        data: A digest of the user's own files; see `identity.data`.
        records: Of a dataset of TFDS, its files; see `identity.records`.
            Results of older versions do not say.
    """

    flags: list[str]
    top1: float
    top5: float
    student_top1: float
    ema_top1: float
    weights_of_record: str
    steps: int
    labels: int
    unlabeled: int
    test_images: int
    scored_on: str
    seconds: float
    at_once: int
    processor: str
    date: str
    versions: dict[str, str]
    data: str | None = None
    records: dict[str, list[str | None]] | None = None

    def check(self) -> None:
        """Checks what is computed with.

        Raises:
            ValueError: A value is none that a run comes to.
        """
        for name in ("top1", "student_top1", "ema_top1"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or not 0 <= value <= 1:
                raise ValueError(f"{name}: {value!r} is no accuracy in [0, 1]")
        for name in ("steps", "seconds"):
            value = getattr(self, name)
            if not isinstance(value, float | int) or not 0 < value < math.inf:
                raise ValueError(f"{name}: {value!r} is no positive number")
        words = self.flags
        if not isinstance(words, list) or not all(
            isinstance(word, str) for word in words
        ):
            raise ValueError(f"flags: {words!r} is no list of words")
        files = {} if self.records is None else self.records
        if not isinstance(files, dict) or not all(
            isinstance(state, list) and len(state) == 2
            for state in files.values()
        ):
            raise ValueError(f"records: {files!r} is no list of files")


class Store:
    """A folder of finished runs."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Names the folder; it is made when the first run is finished."""
        self.folder = folder

    def check_writable(self) -> None:
        """Makes the folder, and a file in it.

        Raises:
            InputError: It cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                file.write(bytes(_ROOM))
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror})"
            ) from None

    def find(self, config: config_lib.Config) -> Finished | None:
        """The finished run of these flags, if there is one.

        Raises:
            InputError: Its file cannot be read, or is of other flags, as their
                defaults have changed since, or of other images.
        """
        path = self.folder / identity.name(config)
        if not path.is_file():
            return None
        try:
            found = Finished(**json.loads(path.read_text("utf-8")))
            found.check()
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read as a finished run ({error}); delete "
                "it, and it is run again"
            ) from None
        now, then = _by_flag(identity.flags(config)), _by_flag(found.flags)
        # What did not exist then is no difference at its default.
        usual = identity.usual(config)
        now = {k: w for k, w in now.items() if k in then or w not in usual}
        changed = sorted(set(now.values()) ^ set(then.values()))
        if changed:
            raise InputError(
                f"{path}: is of other flags ({' '.join(changed)}: a default "
                "has changed); delete it, and it is run again"
            )
        if not identity.is_same(found.data, identity.data(config)):
            raise InputError(
                f"{path}: is of other data: files that --data_dir, "
                "--labeled_list, --split_file or --init_from name have come, "
                "gone or changed since; delete it, and it is run again"
            )
        if found.records is not None:
            _check_records(path, config, found.records)
        return found

    def keep(
        self, config: config_lib.Config, workdir: pathlib.Path, at_once: int
    ) -> Finished:
        """Writes down a run that has just been finished.

        Args:
            config: Its flags.
            workdir: Its folder.
            at_once: Runs that shared the machine.

        Raises:
            InputError: The folder's files cannot be read, or the store's not
                written.
        """
        result = results.read(workdir / "results.json")
        timing = workdir / "timing.json"
        try:
            sessions = json.loads(timing.read_text("utf-8"))
            seconds = sum(each["seconds"] for each in sessions)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{timing}: cannot be read as a run's times ({error}); delete "
                f"{workdir}, and it is run again"
            ) from None
        found = Finished(
            flags=identity.flags(config),
            top1=result.top1,
            top5=result.top5,
            student_top1=result.student["last"]["top1"],
            ema_top1=result.ema["last"]["top1"],
            weights_of_record=result.weights_of_record,
            steps=result.steps,
            labels=result.labels,
            unlabeled=result.unlabeled,
            test_images=result.test_images,
            scored_on=result.scored_on,
            seconds=round(seconds, 1),
            at_once=at_once,
            processor=_processor(),
            date=datetime.date.today().isoformat(),
            versions=result.versions,
            data=identity.data(config, workdir / "data.json"),
            records=identity.records_of_run(config, workdir / "data.json"),
        )
        io.write_json(
            self.folder / identity.name(config), dataclasses.asdict(found)
        )
        return found


def missing(cells: Sequence[plan.Cell], store: Store) -> list[plan.Cell]:
    """The cells that are to be run, each run once though it has two places."""
    left = {}
    for cell in cells:
        if store.find(cell.config) is None:
            left.setdefault(identity.name(cell.config), cell)
    return list(left.values())


def _check_records(
    path: pathlib.Path,
    config: config_lib.Config,
    then: dict[str, list[str | None]],
) -> None:
    """Checks that a dataset of TFDS is the one that a run was trained on.

    Raises:
        InputError: Its files are others.
    """
    now = identity.records(config, then)
    root = tfds.data_dir(config.tfds_dir)
    if now is None:
        _warn_once(
            f"--dataset={config.dataset} is not prepared in {root}; whether "
            f"the results in {path.parent} are of the same is not checked"
        )
        return
    changed = [
        name
        for name, (sizes, content) in then.items()
        if now[name][0] != sizes
        or (None not in (content, now[name][1]) and now[name][1] != content)
    ]
    if changed:
        raise InputError(
            f"{path}: is of other data than --dataset={config.dataset} has in "
            f"{root}: files have other sizes or records, or are gone "
            f"({', '.join(changed)}). Delete it, and it is run again; or give "
            "another --results"
        )


@functools.cache
def _warn_once(text: str) -> None:
    """Warns of what is the same for all cells of a plan."""
    logging.warning("%s", text)


def _by_flag(words: list[str]) -> dict[str, str]:
    """Flag → word: --x, --nox and --x=1 are all of the flag x."""
    names = config_lib.Config.declared()
    found = {}
    for word in words:
        name = word.removeprefix("--").split("=")[0]
        found[name if name in names else name.removeprefix("no")] = word
    return found


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
