"""The store of finished runs: one small JSON file each, found by its flags.

Nothing here imports TensorFlow.
"""

import dataclasses
import datetime
import json
import pathlib
import platform
import tempfile
from collections.abc import Sequence

from simmatch_tf import config as config_lib
from simmatch_tf import io
from simmatch_tf.experiments import identity, plan
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import results

_ROOM = 8192  # bytes; more than one file takes


@dataclasses.dataclass(frozen=True)
class Finished:
    """The result of a run, and what it was trained on.

    Accuracies are in [0, 1].

    Attributes:
        flags: All flags that decide what is trained, as on a command line.
        top1: Top-1 accuracy of the evaluation weights at the last step.
        top5: Their top-5 accuracy.
        student_top1: Top-1 accuracy of the student at the last step.
        ema_top1: Top-1 accuracy of its EMA.
        weights_of_record: The evaluation weights, "student" or "ema".
        steps: Length of the run.
        labels: Number of labeled images, K.
        unlabeled: Number of unlabeled images.
        test_images: Number of images behind every accuracy.
        scored_on: "test" or "validation".
        seconds: Duration of training and evaluation, without the start.
        at_once: Number of runs that shared the machine.
        processor: Processor of the machine.
        date: Date of its end.
        versions: Package → version.
        data: A digest of the user's own files; see `identity.data`.
        macro_accuracy: Macro-averaged accuracy of the evaluation weights; None
            of a run of an older version.
        baseline: Top-1 accuracy of the best of its baselines; None where none
            was measured.
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
    macro_accuracy: float | None = None
    baseline: float | None = None


class Store:
    """A folder of finished runs, created when the first run is finished."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Names the folder; it need not exist."""
        self.folder = folder

    def check_writable(self) -> None:
        """Creates the folder, and writes a temporary file in it.

        Raises:
            InputError: It cannot be written.
        """
        io.make_folder(self.folder)
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder) as file:
                file.write(bytes(_ROOM))
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot be written ({error.strerror})"
            ) from None

    def find(self, config: config_lib.Config) -> Finished | None:
        """Finds the finished run of these flags, if there is one.

        Raises:
            InputError: Its file cannot be read, is of other flags, as their
                defaults have changed since, or is of other images.
        """
        path = self.folder / identity.name(config)
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text("utf-8"))
            names = [field.name for field in dataclasses.fields(Finished)]
            # Older versions kept more.
            finished = Finished(
                **{k: content[k] for k in names if k in content}
            )
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"{path}: cannot be read as a finished run ({error}); delete "
                "it to run it again"
            ) from None
        now, then = _by_flag(identity.flags(config)), _by_flag(finished.flags)
        # A flag that did not exist then may be at its default now.
        defaults = identity.default_flags(config)
        now = {k: w for k, w in now.items() if k in then or w not in defaults}
        changed = sorted(set(now.values()) ^ set(then.values()))
        if changed:
            raise InputError(
                f"{path}: is of other flags ({' '.join(changed)}: a default "
                "has changed); delete it to run it again"
            )
        data = identity.data(config)
        if None not in (data, finished.data) and data != finished.data:
            raise InputError(
                f"{path}: is of other data: files of --data_dir, "
                "--labels_csv, --labeled_list, --split_file, --class_prior, "
                "--init_from or "
                "--plugin were added, removed or changed since; delete it to "
                "run it again"
            )
        return finished

    def missing(self, cells: Sequence[plan.Cell]) -> list[plan.Cell]:
        """Returns the cells to run; a run of two cells is returned once.

        Raises:
            InputError: As `find`.
        """
        left: dict[str, plan.Cell] = {}
        for cell in cells:
            if self.find(cell.config) is None:
                left.setdefault(identity.name(cell.config), cell)
        return list(left.values())

    def add(
        self, config: config_lib.Config, workdir: pathlib.Path, at_once: int
    ) -> Finished:
        """Adds a run that has just finished.

        Args:
            config: Its flags.
            workdir: Its folder.
            at_once: Number of runs that shared the machine.

        Raises:
            InputError: The folder's files cannot be read, or the store cannot
                be written.
        """
        result = results.read(workdir / "results.json")
        if result.top1 is None:
            raise InputError(
                f"{workdir}: has no result to compare, because there are no "
                "test images; give --validation_fraction, such as 0.2"
            )
        timing = workdir / "timing.json"
        try:
            sessions = json.loads(timing.read_text("utf-8"))
            seconds = sum(each["seconds"] for each in sessions)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{timing}: cannot be read as a run's times ({error}); delete "
                f"{workdir} to run it again"
            ) from None
        finished = Finished(
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
            macro_accuracy=result.macro_accuracy,
            baseline=result.best_baseline,
        )
        io.write_json(
            self.folder / identity.name(config), dataclasses.asdict(finished)
        )
        return finished


def _by_flag(words: list[str]) -> dict[str, str]:
    """Returns flag → word: --x, --nox and --x=1 are all of the flag x."""
    names = config_lib.Config.declared()
    by_flag = {}
    for word in words:
        name = word.removeprefix("--").split("=")[0]
        by_flag[name if name in names else name.removeprefix("no")] = word
    return by_flag


def _processor() -> str:
    """Returns the processor's name, as far as the system tells it."""
    info = pathlib.Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
