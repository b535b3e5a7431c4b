"""The result of a run and its files. Nothing here imports TensorFlow."""

import contextlib
import dataclasses
import json
import os
import pathlib
from typing import Any

from simmatch_tf import io
from simmatch_tf.flags.errors import InputError


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a finished run. All accuracies are in [0, 1].

    It depends on the flags alone: two runs on one machine write the same file,
    whether or not they were interrupted.

    Attributes:
        top1: Top-1 accuracy of the weights of record at the last step, on the
            images that `scored_on` names. Without such images this and all
            other accuracies are None.
        top5: Top-5 accuracy, likewise.
        loss: Total loss of the very last training step; None of a run that
            was imported at its end.
        steps: Length of the run.
        weights_of_record: "student" or "ema".
        student: {"last": {"top1", "top5", "macro_accuracy", "step"}, "best":
            {"top1", "step", "chosen_on": "validation" | "test" | None},
            "calibration": {"temperature", "fitted_on", "images",
            "calibration_error", "uncalibrated_error"}}: the temperature that
            confidences are calibrated by, None without one, fitted on this
            number of "validation" or "test" images; the calibration error with
            it, and without. Where the temperature was fitted on the images that
            measure the error, they do so by cross-fitting.
        ema: The same for the EMA teacher.
        algorithm: As in --algorithm.
        dataset: As in --dataset.
        class_names: Names of the L classes.
        labels: Labeled images in training, K.
        validation_labels: Labeled images set aside.
        unlabeled: Unlabeled images.
        scored_on: "test"; or "validation" if the dataset has no test images:
            then the labeled images set aside, which also chose the best step;
            or None if there are neither.
        test_images: Number of images behind each top-1; 0 without any.
        seed: As in --seed.
        split_seed: As in --split_seed.
        versions: Package → version.
        macro_accuracy: The mean of the classes' accuracies, of the same weights
            and images as `top1`; None of a run of an older version.
        class_prior: Class shares [L] that pseudo-labels were aligned with;
            None with equal ones, or without alignment.
        baselines: What scikit-learn's classifiers reach on the same labels
            and images: {"name", "top1", "interval": [low, high]} of each;
            none with --nobaselines, of runs of older versions, and on workers
            other than the chief. See `evaluation.baselines`. Where `scored_on`
            is None, by cross-validation on the labels, which each name says.
        lead: What the weights of record are ahead of the best of them, image
            by image: {"over": its name, "images", "top1": difference,
            "interval": [low, high]}; None without baselines, or without a
            top-1.
    """

    top1: float | None
    top5: float | None
    loss: float | None
    steps: int
    weights_of_record: str
    student: dict[str, Any]
    ema: dict[str, Any]
    algorithm: str
    dataset: str
    class_names: list[str]
    labels: int
    validation_labels: int
    unlabeled: int
    scored_on: str | None
    test_images: int
    seed: int
    split_seed: int
    versions: dict[str, str]
    macro_accuracy: float | None = None
    class_prior: list[float] | None = None
    baselines: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lead: dict[str, Any] | None = None

    @property
    def best_baseline(self) -> float | None:
        """Top-1 accuracy of the best baseline; None without baselines."""
        return max((each["top1"] for each in self.baselines), default=None)

    def write(self, path: pathlib.Path) -> None:
        """Writes results.json, whole or not at all."""
        io.write_json(path, dataclasses.asdict(self))


def read(path: str | os.PathLike) -> Result:
    """Reads results.json.

    Raises:
        InputError: It cannot be read, or is no result.
    """
    try:
        return Result(**json.loads(pathlib.Path(path).read_text("utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read as a result ({error}); delete it and "
            "start the run again: it is written from the last checkpoint"
        ) from None


def add_session(
    path: pathlib.Path,
    *,
    first_step: int,
    last_step: int,
    seconds: float,
    images: int,
) -> None:
    """Adds a session to timing.json.

    Args:
        path: The file.
        first_step: First step of the session.
        last_step: Its last step.
        seconds: Duration of these steps.
        images: Views of images that they were trained on.
    """
    sessions = []
    # A missing file is the first session's; a torn one is no reason to stop.
    with contextlib.suppress(FileNotFoundError, ValueError):
        sessions = json.loads(path.read_text("utf-8"))
    sessions.append(
        {
            "first_step": first_step,
            "last_step": last_step,
            "seconds": round(seconds, 3),
            "views_per_second": round(images / max(seconds, 1e-9), 1),
        }
    )
    io.write_json(path, sessions)
