"""Opens what `train` and `export` wrote: a run's folder, or an export."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf import preflight
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import classifier as classifier_lib
from simmatch_tf.serving import preprocessing, thumbnails, versions
from simmatch_tf.training import checkpoints, initial, inputs, state, workdir

# Files in the assets of an export.
CLASS_NAMES = initial.CLASS_NAMES
LABELED = "labeled_images.json"
PREPROCESSING = "preprocessing.json"
# Calibration errors below this are not worth a note.
_CALIBRATED = 0.05
_NO_MEMORY = (
    "the run has no memory of labeled images, as --algorithm=simmatch has: "
    "nothing can be explained by them"
)
_EMPTY_MEMORY = (
    "the run's memory was not written yet: nothing can be explained by it"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """The classifier of a run.

    Attributes:
        classifier: See `classifier.Classifier`.
        config: The run's flags.
        content: The content of its split file.
        data: The file that lists the images it was begun with.
        step: Training steps done.
        checkpoint: Digest of the checkpoint of that step.
        weights: "student" or "ema": those of the classifier.
        weights_of_record: "student" or "ema": those of the run's result.
        why_no_neighbors: Why nothing can be explained by labeled images, or
            "".
    """

    classifier: classifier_lib.Classifier
    config: config_lib.Config
    content: dict[str, Any]
    data: pathlib.Path
    step: int
    checkpoint: str
    weights: str
    weights_of_record: str
    why_no_neighbors: str


def run(
    path: str | os.PathLike,
    *,
    weights: str | None = None,
    neighbors: int = 5,
    input_dtype: str = "uint8",
) -> Run:
    """Loads the classifier of a run from its last checkpoint.

    Args:
        path: The run's folder.
        weights: "student" or "ema"; default: the weights of record.
        neighbors: See `classifier.Classifier`.
        input_dtype: See `classifier.Classifier`.

    Raises:
        InputError: There is no run or no checkpoint, or they do not belong
            together.
    """
    folder = workdir.Workdir(path)
    config = folder.read_config()
    algorithm, _, step = state.restore(path, state.Custom())
    content = splits.read_content(folder.split)
    weights = weights or algorithm.evaluated_weights
    labeled = _labeled(algorithm, content, config)
    classifier = classifier_lib.Classifier(
        algorithm.networks()[weights],
        content["class_names"],
        preprocessing.Preprocessing(
            tuple(content["image_shape"]), config.eval_resize
        ),
        labeled=labeled,
        neighbors=neighbors,
        input_dtype=input_dtype,
    )
    why_no_neighbors = ""
    if labeled is None:
        why_no_neighbors = _NO_MEMORY
    elif classifier.labeled is None:
        why_no_neighbors = _EMPTY_MEMORY
    return Run(
        classifier=classifier,
        config=config,
        content=content,
        data=folder.data,
        step=step,
        checkpoint=checkpoints.digest(folder.checkpoints, step),
        weights=weights,
        weights_of_record=algorithm.evaluated_weights,
        why_no_neighbors=why_no_neighbors,
    )


def _labeled(
    algorithm: algorithm_lib.Algorithm,
    content: dict[str, Any],
    config: config_lib.Config,
) -> classifier_lib.Labeled | None:
    """Returns the memory slots that were written; None without a memory."""
    memory = getattr(algorithm, "memory", None)
    if memory is None:
        return None
    slots = np.flatnonzero(memory.filled.numpy())
    return classifier_lib.Labeled(
        features=memory.features.numpy()[slots],
        slots=slots,
        labels=memory.labels.numpy()[slots],
        ids=np.array(thumbnails.slot_names(content), object)[slots].tolist(),
        temperature=config.temperature,
        alpha=config.alpha,
    )


@dataclasses.dataclass(frozen=True)
class Export:
    """A loaded SavedModel of `export`.

    Attributes:
        path: The version's folder.
        signatures: Name → function.
        class_names: L names.
        preprocessing: How encoded images become the network's input.
        card: Its model card.
    """

    path: pathlib.Path
    signatures: dict[str, Any]
    class_names: list[str]
    preprocessing: preprocessing.Preprocessing
    card: dict[str, Any]
    # The signatures do not keep the variables alive by themselves.
    _module: Any = dataclasses.field(repr=False)

    @property
    def input_dtype(self) -> str:
        """Data type of the images that `serving_default` takes."""
        function = self.signatures[classifier_lib.SERVED]
        return function.structured_input_signature[1]["images"].dtype.name


def export(path: pathlib.Path) -> Export:
    """Loads an export.

    Args:
        path: The version's folder.

    Raises:
        InputError: It cannot be loaded, or was not written by `export`.
    """
    preflight.silence_onednn()
    try:
        module = tf.saved_model.load(str(path))
    except Exception as error:  # the loader raises errors of many types
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be loaded ({lines[0]})") from error
    try:
        class_names, preprocess = (
            json.loads((path / "assets" / name).read_text("utf-8"))
            for name in (CLASS_NAMES, PREPROCESSING)
        )
        return Export(
            path=path,
            signatures=dict(module.signatures),
            class_names=class_names,
            preprocessing=preprocessing.Preprocessing.from_dict(preprocess),
            card=json.loads((path / versions.CARD).read_text("utf-8")),
            _module=module,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is no export of simmatch_tf.export ({error})"
        ) from None


@dataclasses.dataclass(frozen=True)
class Model:
    """A run or an export, ready to predict.

    Attributes:
        classify: Images [N, H, W, C] → outputs as of `Classifier.classify`.
        explain: Images → outputs as of `Classifier.explain`, or None.
        why_not: Why there is no `explain`.
        neighbors: Number of neighbors that `explain` gives of each image.
        class_names: L names.
        preprocessing: How encoded images become `classify`'s input.
        input_dtype: Data type of the images.
        identity: Tells this model from any other, as a JSON object.
        thumbnails: Memory slots → JPEGs of their labeled images, as far as
            these are known.
        note: A sentence if the confidences are known to be off, or "".
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
    data_dir: str | None = None,
    tfds_dir: str | None = None,
) -> Model:
    """Opens a run or an export.

    Args:
        model: Folder of a run or an export, as in --model.
        weights: "student" or "ema" of a run; default: the weights of record.
        neighbors: Number of neighbors that `explain` gives, of a run.
        data_dir: Present location of a run's --data_dir.
        tfds_dir: Present location of a run's --tfds_dir.

    Raises:
        InputError: It cannot be loaded, or an option does not apply to it.
    """
    kind, path = preflight.kind_of_model("model", model)
    if kind == "workdir":
        return _open_run(path, weights, neighbors, data_dir, tfds_dir)
    if weights is not None:
        raise InputError(
            f"weights={weights}: applies to a run; an export has the weights "
            "it was made with"
        )
    return _open_export(path)


def _open_run(
    path: pathlib.Path,
    weights: str | None,
    neighbors: int | None,
    data_dir: str | None,
    tfds_dir: str | None,
) -> Model:
    if weights not in (None, "student", "ema"):
        raise InputError(f"weights={weights!r}: must be student or ema")
    opened = run(path, weights=weights, neighbors=neighbors or 5)
    classifier = opened.classifier
    if (neighbors or 0) > classifier.neighbors:
        raise InputError(
            f"--neighbors={neighbors}: must be at most the number of labeled "
            f"images in the run's memory, which is {classifier.neighbors}"
        )

    def labeled_images(slots: Sequence[int]) -> dict[int, bytes]:
        try:
            moved = opened.config.moved(data_dir, tfds_dir)
            source = inputs.make_source(moved)
        except InputError as error:
            logging.warning("no pictures of the labeled images: %s", error)
            return {}
        return thumbnails.of_slots(
            source,
            slots,
            content=opened.content,
            data=opened.data,
            preprocess=classifier.preprocessing,
        )

    accuracy = None
    # Damaged results do not keep a run from predicting.
    with contextlib.suppress(InputError):
        accuracy = versions.accuracy(
            workdir.Workdir(path), opened.weights, opened.step
        )
    return Model(
        classify=classifier.classify,
        explain=classifier.explain if classifier.labeled is not None else None,
        why_not=opened.why_no_neighbors,
        neighbors=classifier.neighbors,
        class_names=classifier.class_names,
        preprocessing=classifier.preprocessing,
        input_dtype=classifier.input_dtype,
        identity={
            "run": os.path.realpath(path),
            "checkpoint": opened.checkpoint,
            "step": opened.step,
            "weights": opened.weights,
        },
        thumbnails=labeled_images,
        note=_note(accuracy),
    )


def _open_export(path: pathlib.Path) -> Model:
    opened = export(path)
    explain = opened.signatures.get("explain")
    neighbors = 0
    if explain is not None:
        neighbors = explain.structured_outputs["similarities"].shape[1]
    return Model(
        classify=opened.signatures[classifier_lib.SERVED],
        explain=explain,
        why_not=f"{path} was exported without explain: the run's memory of "
        "labeled images was empty, or it has none",
        neighbors=neighbors,
        class_names=opened.class_names,
        preprocessing=opened.preprocessing,
        input_dtype=opened.input_dtype,
        identity={
            "export": os.path.realpath(path),
            "date": opened.card["date"],
        },
        thumbnails=functools.partial(thumbnails.read_archive, path),
        note=_note(
            versions.with_calibration(
                opened.card["accuracy"],
                path / workdir.EVALUATION,
                opened.card["model"]["weights"],
                opened.card["model"]["step"],
            )
        ),
    )


def _note(accuracy: dict[str, Any] | None) -> str:
    """Says how far confidences are off, if that was measured and is large."""
    error = (accuracy or {}).get("calibration_error")
    if error is None or error < _CALIBRATED:
        return ""
    return (
        f"Confidences are off by {error:.1%} on average: the calibration error "
        f"of {accuracy['images']:,} {accuracy['scored_on']} images."
    )
