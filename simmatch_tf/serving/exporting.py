"""From a run to a version that a server loads."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf import availability, terminal
from simmatch_tf import config as config_lib
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import card as card_lib
from simmatch_tf.serving import (
    classifier,
    conversion,
    loading,
    thumbnails,
    verification,
    versions,
    warmup,
)
from simmatch_tf.training import inputs, workdir

# Thumbnails of the labeled images are kept in an export up to so many.
_MOST_THUMBNAILS = 10_000
# A server sees these batches before the first request comes.
_WARMUP_BATCHES = (1, 8, 32)


@dataclasses.dataclass(frozen=True)
class Written:
    """What an export came to.

    Attributes:
        path: The version's folder.
        card: Its model card.
        notes: What was left out, and why.
    """

    path: pathlib.Path
    card: dict[str, Any]
    notes: list[str]


def write(
    folder: str,
    output: str,
    *,
    weights: str | None = None,
    kind: str = "saved_model",
    input_dtype: str = "uint8",
    neighbors: int = 5,
    keep_thumbnails: bool = True,
    images: str | None = None,
    data_dir: str | None = None,
    tfds_dir: str | None = None,
) -> Written:
    """Exports a run: writes, loads again, compares, gives it its number.

    Args:
        folder: Of the run.
        output: Folder of the model's versions.
        weights: "student" or "ema"; None: the weights of record.
        kind: "saved_model", "litert" or "onnx".
        input_dtype: "uint8" or "float32", of the pixel values 0 to 255.
        neighbors: Labeled images that `explain` gives.
        keep_thumbnails: Whether pictures of the labeled images are kept.
        images: Images to compare by, as in --images; None: the dataset's.
        data_dir: Where the run's --data_dir is now; None: as it was.
        tfds_dir: Likewise its --tfds_dir.

    Raises:
        InputError: The run or images cannot be loaded, the export cannot be
            written, or it differs from the training network. Nothing is left
            behind.
    """
    terminal.say(f"loading {folder}")
    run = loading.run(
        folder,
        weights=weights,
        neighbors=neighbors,
        input_dtype=input_dtype,
    )
    moved = run.config.moved(data_dir, tfds_dir)
    source, shown = _examples(images, run, moved)
    terminal.say(f"writing a version in {output}, and comparing it")
    with versions.new(output) as aside:
        card = card_lib.make(run, workdir.Workdir(folder))
        card["format"] = kind
        if kind == "saved_model":
            found, notes = _saved_model(aside.path, neighbors, run, shown)
            if keep_thumbnails:
                notes += _thumbnails(aside.path, run, source)
        else:
            found = conversion.write(aside.path, kind, run, shown)
            notes = []
        card |= found
        card_lib.write(aside.path, card)
    return Written(aside.path, card, notes)


def _examples(
    paths: str | None, run: loading.Run, config: config_lib.Config
) -> tuple[source_lib.Source | None, verification.Examples]:
    """The run's dataset, and images to compare by."""
    how = run.classifier.preprocessing
    size = {"side": how.image_shape[0], "resize": how.resize}
    if paths is not None:
        images = verification.readable(paths, verification.IMAGES)
        return None, verification.of_files(images, how)
    terminal.say(f"reading the images of {config.dataset}")
    try:
        source = inputs.make_source(config)
    except InputError as error:
        raise InputError(f"{error}{availability.GIVE_IMAGES}") from None
    images = source.test or source.train
    places = np.arange(len(images))
    return source, verification.examples(images, places, **size)


def _saved_model(
    folder: pathlib.Path,
    neighbors: int,
    run: loading.Run,
    shown: verification.Examples,
) -> tuple[dict[str, Any], list[str]]:
    """Writes a SavedModel and all that belongs to it; loads and compares it.

    Returns:
        What it adds to the model card; notes.
    """
    made, notes = run.classifier, []
    # Of the classes and names a program needs; see `tf.saved_model.Asset`.
    texts = {
        loading.CLASS_NAMES: made.class_names,
        loading.PREPROCESSING: made.preprocessing.as_dict(),
    }
    if made.labeled is not None:
        texts[loading.LABELED] = loading.labeled_images(made)
        if neighbors > made.neighbors:
            notes.append(
                f"--neighbors={neighbors}: explain gives all "
                f"{made.neighbors} labeled images of the memory"
            )
    else:
        notes.append(loading.WHY_NO_NEIGHBORS[run.memory])
    aside = folder / "texts"
    aside.mkdir()
    assets = []
    for name, content in texts.items():
        path = aside / name
        path.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        assets.append(tf.saved_model.Asset(str(path)))
    made.assets = assets
    signatures = made.signatures()
    try:
        tf.saved_model.save(made, str(folder), signatures=signatures)
    except tf.errors.OpError as error:  # a full disk
        raise InputError(
            f"{folder.parent}: cannot be written ({error.message})"
        ) from None
    for path in aside.iterdir():
        path.unlink()
    aside.rmdir()
    if warmup.available():
        warmup.write(folder, run.config.dataset, _requests(made, shown))
    else:
        notes.append(
            "no warm-up requests: pip install 'simmatch_tf[serving]' has what "
            "is needed to write them"
        )
    loaded = tf.saved_model.load(str(folder))
    gaps = verification.compare(made, loaded.signatures, shown)
    found = {
        "interface": _interface(loaded.signatures),
        "verified": {"images": len(shown.encoded), "largest_difference": gaps},
    }
    return found, notes


def _requests(
    made: classifier.Classifier, shown: verification.Examples
) -> dict[str, list[dict[str, tf.Tensor]]]:
    """Warm-up: every signature, at several sizes of a batch."""
    requests = {}
    for signature in made.signatures():
        requests[signature] = [
            {
                key: tf.gather(tensor, tf.range(size) % len(shown.encoded))
                for key, tensor in verification.inputs(
                    signature, shown, made.input_dtype
                ).items()
            }
            for size in _WARMUP_BATCHES
        ]
    return requests


def _interface(signatures: Mapping[str, Any]) -> dict[str, Any]:
    """Names, types and shapes of every signature."""

    def fields(specs: Mapping[str, tf.TensorSpec]) -> dict[str, Any]:
        return {
            key: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
            for key, spec in sorted(specs.items())
        }

    return {
        name: {
            "inputs": fields(function.structured_input_signature[1]),
            "outputs": fields(function.structured_outputs),
        }
        for name, function in signatures.items()
    }


def _thumbnails(
    folder: pathlib.Path,
    run: loading.Run,
    source: source_lib.Source | None,
) -> list[str]:
    """Keeps small pictures of the labeled images, for `predict --html`."""
    labeled = run.classifier.labeled
    if labeled is None:
        return []
    if source is None:
        return ["no thumbnails of the labeled images: --images was given"]
    if len(labeled.slots) > _MOST_THUMBNAILS:
        return [
            f"no thumbnails of the labeled images: {len(labeled.slots)} are "
            f"more than {_MOST_THUMBNAILS}"
        ]
    thumbnails.keep(
        folder, thumbnails.of_slots(run, source, labeled.slots.tolist())
    )
    return []
