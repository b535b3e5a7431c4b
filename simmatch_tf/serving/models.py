"""What predicts: a run or an export, opened."""

import contextlib
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from simmatch_tf import availability
from simmatch_tf import config as config_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import (
    card,
    classifier,
    loading,
    preprocessing,
    thumbnails,
)
from simmatch_tf.training import inputs, workdir

# Calibration errors below this are not worth a note.
_CALIBRATED = 0.05


@dataclasses.dataclass(frozen=True)
class Model:
    """What predicts: of a run or of an export.

    Attributes:
        classify: Images [N, H, W, C] → as `Classifier.classify`.
        explain: Likewise as `Classifier.explain`, or None.
        why_not: Why there is no `explain`.
        neighbors: How many neighbours it gives.
        class_names: L names.
        preprocessing: How files become images.
        input_dtype: Of the images.
        identity: What tells it from others.
        thumbnails: Slots → pictures of the labeled images, as far as known.
        note: That its confidences are known to be off, or "".
    """

    classify: Callable[..., dict[str, tf.Tensor]]
    explain: Callable[..., dict[str, tf.Tensor]] | None
    why_not: str
    neighbors: int
    class_names: list[str]
    preprocessing: preprocessing.Preprocessing
    input_dtype: str
    identity: dict[str, Any]
    thumbnails: Callable[[Sequence[int]], dict[int, bytes]]
    note: str = ""


def open_model(
    model: str,
    *,
    weights: str | None = None,
    neighbors: int | None = None,
    moved: Callable[[config_lib.Config], config_lib.Config] = lambda run: run,
) -> Model:
    """Loads a run or an export.

    Args:
        model: As in --model.
        weights: Of a run, as in --weights.
        neighbors: Of a run, as in --neighbors.
        moved: Gives the run's flags the places of its images.

    Raises:
        InputError: It cannot be loaded.
    """
    kind, path = availability.kind_of_model("model", model)
    if kind == "workdir":
        return _of_run(path, weights, neighbors, moved)
    if weights is not None:
        raise InputError(
            f"weights={weights}: is for a run; an export has its own"
        )
    return _of_export(path)


def _of_run(
    path: pathlib.Path,
    weights: str | None,
    neighbors: int | None,
    moved: Callable[[config_lib.Config], config_lib.Config],
) -> Model:
    if weights not in (None, "student", "ema"):
        raise InputError(f"weights={weights!r}: must be student or ema")
    run = loading.run(path, weights=weights, neighbors=neighbors or 5)
    made = run.classifier
    if (neighbors or 0) > made.neighbors:
        raise InputError(
            f"--neighbors={neighbors}: the run's memory holds "
            f"{made.neighbors} labeled images"
        )

    def pictures(slots: Sequence[int]) -> dict[int, bytes]:
        try:
            source = inputs.make_source(moved(run.config))
        except InputError as error:
            logging.warning("no pictures of the labeled images: %s", error)
            return {}
        return thumbnails.of_slots(run, source, slots)

    explains, measured = made.labeled is not None, None
    # A damaged file of results is no reason not to predict.
    with contextlib.suppress(InputError):
        measured = card.accuracy(run, workdir.Workdir(path))
    return Model(
        classify=made.classify,
        explain=made.explain if explains else None,
        why_not=loading.WHY_NO_NEIGHBORS.get(run.memory, ""),
        neighbors=made.neighbors,
        class_names=made.class_names,
        preprocessing=made.preprocessing,
        input_dtype=made.input_dtype,
        identity={
            "run": os.path.realpath(path),
            "checkpoint": run.checkpoint,
            "step": run.step,
            "weights": run.weights,
        },
        thumbnails=pictures,
        note=_note(measured),
    )


def _of_export(path: pathlib.Path) -> Model:
    found = loading.export(path)
    explain = found.signatures.get("explain")
    neighbors = 0
    if explain is not None:
        neighbors = explain.structured_outputs["similarities"].shape[1]
    return Model(
        classify=found.signatures[classifier.SERVED],
        explain=explain,
        why_not=f"{path} was exported without explain: the run's memory of "
        "labeled images was empty, or it has none",
        neighbors=neighbors,
        class_names=found.class_names,
        preprocessing=found.preprocessing,
        input_dtype=found.input_dtype,
        identity={
            "export": os.path.realpath(path),
            "date": found.card["date"],
        },
        thumbnails=functools.partial(thumbnails.kept, path),
        note=_note(
            card.evaluated(
                found.card["accuracy"],
                path / workdir.EVALUATION,
                found.card["model"]["weights"],
                found.card["model"]["step"],
            )
        ),
    )


def _note(accuracy: dict[str, Any] | None) -> str:
    """Of confidences whose calibration error was measured, and is large."""
    error = (accuracy or {}).get("calibration_error")
    if error is None or error < _CALIBRATED:
        return ""
    return (
        f"Confidences are off by {error:.1%} on average: the calibration error "
        f"of {accuracy['images']:,} {accuracy['scored_on']} images."
    )
