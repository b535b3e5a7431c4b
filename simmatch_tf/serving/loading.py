"""A classifier from what is on disk: a run's folder, or an export."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import preflight
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import classifier, preprocessing
from simmatch_tf.training import checkpoints, initial, state, workdir

# Files of an export, in its assets.
CLASS_NAMES = initial.CLASS_NAMES
LABELED = "labeled_images.json"
PREPROCESSING = "preprocessing.json"
# Why a run's classifier explains nothing.
WHY_NO_NEIGHBORS = {
    "none": "the run has no memory of labeled images, as --algorithm=simmatch "
    "has: nothing can be explained by them",
    "empty": "the run's memory was not written yet: nothing can be explained "
    "by it",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run's classifier, and where it comes from.

    Attributes:
        classifier: See `classifier.Classifier`.
        config: The run's flags.
        content: What stands in its split's file.
        data: The file that says which images it began with.
        step: Of the checkpoint.
        checkpoint: Its digest.
        weights: "student" or "ema".
        weights_of_record: Likewise: whose figures are the run's result.
        memory: "none" (the run has none), "empty" or "filled".
    """

    classifier: classifier.Classifier
    config: config_lib.Config
    content: dict[str, Any]
    data: pathlib.Path
    step: int
    checkpoint: str
    weights: str
    weights_of_record: str
    memory: str


def run(
    path: str | os.PathLike,
    *,
    weights: str | None = None,
    neighbors: int = 5,
    input_dtype: str = "uint8",
) -> Run:
    """Loads the last checkpoint of a run.

    Args:
        path: The run's folder.
        weights: "student" or "ema"; default: the weights of record.
        neighbors: See `classifier.Classifier`.
        input_dtype: Likewise.

    Raises:
        InputError: There is no run or no checkpoint, or it does not fit.
    """
    folder = workdir.Workdir(path)
    config = folder.read_config()
    restored, _, step = state.restore(path)
    content = splits.read_content(folder.split)
    weights = weights or restored.evaluated_weights
    labeled = _labeled(restored, content, config)
    made = classifier.Classifier(
        restored.networks()[weights],
        content["class_names"],
        preprocessing.Preprocessing.of_run(
            config, tuple(content["image_shape"])
        ),
        labeled=labeled,
        neighbors=neighbors,
        input_dtype=input_dtype,
    )
    memory = "none" if labeled is None else "filled"
    if labeled is not None and made.labeled is None:
        memory = "empty"
    return Run(
        classifier=made,
        config=config,
        content=content,
        data=folder.data,
        step=step,
        checkpoint=checkpoints.digest(folder.checkpoints, step),
        weights=weights,
        weights_of_record=restored.evaluated_weights,
        memory=memory,
    )


def _labeled(
    restored: algorithm_lib.Algorithm,
    content: dict[str, Any],
    config: config_lib.Config,
) -> classifier.Labeled | None:
    """The slots of the memory that were written."""
    memory = getattr(restored, "memory", None)
    if memory is None:
        return None
    slots = np.flatnonzero(memory.filled.numpy())
    return classifier.Labeled(
        features=memory.features.numpy()[slots],
        slots=slots,
        labels=memory.labels.numpy()[slots],
        ids=np.array(ids(content), object)[slots].tolist(),
        temperature=config.temperature,
        alpha=config.alpha,
    )


def labeled_images(made: classifier.Classifier) -> list[dict[str, Any]]:
    """The memory's slots, as they stand in an export's assets."""
    labeled = made.labeled
    return [
        {"slot": int(slot), "id": name, "class": made.class_names[label]}
        for slot, name, label in zip(
            labeled.slots, labeled.ids, labeled.labels, strict=True
        )
    ]


def ids(content: dict[str, Any]) -> list[str]:
    """What the image in each slot of a split's file is called [K]."""
    places = splits.slots(content)
    names = content.get("names") or [str(place) for place in places]
    return [
        name if place >= 0 else classifier.UNKNOWN
        for name, place in zip(names, places, strict=True)
    ]


@dataclasses.dataclass(frozen=True)
class Export:
    """An export, loaded.

    Attributes:
        path: The version's folder.
        signatures: Name → function.
        class_names: L names.
        preprocessing: How encoded images become its input.
        card: Its model card.
    """

    path: pathlib.Path
    signatures: dict[str, Any]
    class_names: list[str]
    preprocessing: preprocessing.Preprocessing
    card: dict[str, Any]
    keep: Any = dataclasses.field(repr=False)

    @property
    def input_dtype(self) -> str:
        """Of the images that `serving_default` takes."""
        spec = self.signatures[classifier.SERVED].structured_input_signature[1]
        return spec["images"].dtype.name


def export(path: pathlib.Path) -> Export:
    """Loads an export.

    Args:
        path: The version's folder.

    Raises:
        InputError: It cannot be loaded, or is none of ours.
    """
    preflight.silence_onednn()
    try:
        loaded = tf.saved_model.load(str(path))
    except Exception as error:  # the loader lets through whatever goes wrong
        lines = str(error).splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be loaded ({lines[0]})") from error
    try:
        content = {
            name: json.loads((path / "assets" / name).read_text("utf-8"))
            for name in (CLASS_NAMES, PREPROCESSING)
        }
        card = json.loads((path / "model_card.json").read_text("utf-8"))
        how = preprocessing.Preprocessing.of_dict(content[PREPROCESSING])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: is no export of simmatch_tf.export ({error})"
        ) from None
    return Export(
        path=path,
        signatures=dict(loaded.signatures),
        class_names=content[CLASS_NAMES],
        preprocessing=how,
        card=card,
        keep=loaded,
    )
