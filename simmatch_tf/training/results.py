"""What a run came to, and its file. Nothing here imports TensorFlow."""

import dataclasses
import json
import os
import pathlib
from typing import Any

from simmatch_tf import io
from simmatch_tf.flags.commandline import InputError


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a finished run. All accuracies are in [0, 1].

    Everything in it is decided by the flags: two runs of one machine write
    the same file, whether or not they were killed on the way.

    Attributes:
        top1: Of the weights of record at the last step, on the images that
            `scored_on` names.
        top5: Likewise.
        loss: Total loss of the very last training step; None of an imported
            run that was at its end.
        steps: Length of the run.
        weights_of_record: "student" or "ema".
        student: {"last": {"top1", "top5", "step"}, "best": {"top1", "step",
            "chosen_on": "validation" | "test"}}.
        ema: The same of the EMA teacher.
        algorithm: As in --algorithm.
        dataset: As in --dataset.
        class_names: L names.
        labels: Labeled images in training, K.
        validation_labels: Labeled images set aside.
        unlabeled: Unlabeled images.
        scored_on: "test", or "validation" where the dataset has no test
            images: labeled images set aside, which chose the best step, too.
        test_images: Images behind every top-1.
        seed: As in --seed.
        split_seed: As in --split_seed.
        versions: Package → version.
    """

    top1: float
    top5: float
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
    scored_on: str
    test_images: int
    seed: int
    split_seed: int
    versions: dict[str, str]

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
    """Adds to timing.json when a run ran, and how fast."""
    sessions = []
    if path.is_file():
        try:
            sessions = json.loads(path.read_text("utf-8"))
        except ValueError:
            sessions = []  # a torn file of times is no reason to stop
    sessions.append(
        {
            "first_step": first_step,
            "last_step": last_step,
            "seconds": round(seconds, 3),
            "views_per_second": round(images / max(seconds, 1e-9), 1),
        }
    )
    io.write_json(path, sessions)
