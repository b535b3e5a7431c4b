"""Whether an export gives what the training network gives."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf import io
from simmatch_tf.data import decoding, files, records, selection
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import classifier as classifier_lib
from simmatch_tf.serving import preprocessing

# Of probabilities and embeddings; features may be of any size, so of theirs.
TOLERANCE = 1e-5
IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Examples:
    """Real images, as a network takes them and as files.

    Attributes:
        pixels: uint8 [N, H, W, C], as evaluation makes them.
        encoded: bytes [N], of the same images.
    """

    pixels: np.ndarray
    encoded: list[bytes]


def examples(
    images: source_lib.Images | source_lib.Encoded,
    places: np.ndarray,
    *,
    side: int,
    resize: int | None,
) -> Examples:
    """Takes images, evenly spread.

    Args:
        images: The set.
        places: Which of them may be taken [n], n at least 1.
        side: See `decoding.centre_crops`.
        resize: Likewise.
    """
    count = min(IMAGES, len(places))
    places = places[np.linspace(0, len(places) - 1, count).round().astype(int)]
    chosen = tf.constant(places, tf.int64)
    if isinstance(images, records.RecordImages):
        images = _AsSeen(images)
    pixels = decoding.centre_crops(images, chosen, side=side, resize=resize)
    if images.encoded:
        encoded = [images.read(place)[0].numpy() for place in chosen]
    else:
        encoded = [
            tf.io.encode_png(image).numpy() for image in images.fetch(chosen)
        ]
    return Examples(pixels.numpy(), encoded)


class _AsSeen:
    """Records as viewers show them: so their bytes are served.

    Training and evaluation take them as stored.
    """

    encoded, names = True, None

    def __init__(self, images: records.RecordImages) -> None:
        self._images, self.labels = images, images.labels

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        encoded, _ = self._images.read(index)
        return encoded, decoding.exif_orientation(encoded)


def readable(images: str, most: int) -> files.FileImages:
    """The first readable ones, as training would read them.

    Args:
        images: See `selection.find`.
        most: How many at most.

    Raises:
        InputError: None can be read.
    """
    found = selection.find(images)
    paths, orientations, reason = [], [], ""
    with files.silent_pillow():
        for path in found.paths:
            try:
                turn = files.examine(path).orientation
            except ValueError as error:
                reason = reason or f"{io.printable(path)}: {error}"
                continue
            paths.append(path)
            orientations.append(turn)
            if len(paths) == most:
                break
    if not paths:
        raise InputError(f"--images={images}: none can be read; {reason}")
    return files.FileImages(
        paths=paths,
        labels=np.zeros(len(paths), np.int32),
        names=paths,
        orientations=np.array(orientations, np.uint8),
    )


def of_files(
    images: files.FileImages, how: preprocessing.Preprocessing
) -> Examples:
    """Takes a user's files, in colour decoded as evaluation does.

    Networks for grey images are evaluated on images in memory alone: for them
    there is no other way from a file to pixels than that of the export.

    Args:
        images: Readable ones.
        how: How they become the network's input.
    """
    height, width, channels = how.image_shape
    if channels == 3 and height == width:
        places = np.arange(len(images))
        return examples(images, places, side=height, resize=how.resize)
    encoded = [pathlib.Path(path).read_bytes() for path in images.paths]
    pixels = [how.decode(tf.constant(data)).numpy() for data in encoded]
    return Examples(np.stack(pixels), encoded)


def reference(
    made: classifier_lib.Classifier, pixels: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """What the training network says, by signature, without its functions.

    Args:
        made: Its network, class names and memory count.
        pixels: uint8 [N, H, W, C].
    """
    out = made.network(tf.constant(pixels), training=False)
    out = {name: np.asarray(value, np.float64) for name, value in out.items()}
    p = _softmax(out["logits"])
    order = np.argsort(-p, axis=1, kind="stable")[:, : classifier_lib.LISTED]
    found = {
        "probabilities": p,
        "scores": np.take_along_axis(p, order, axis=1),
    }
    wanted = {
        classifier_lib.SERVED: found,
        "classify_bytes": found,
        "embed": {k: v for k, v in out.items() if k != "logits"},
    }
    if made.labeled is not None:
        wanted["explain"] = {**found, **_neighbors(made, p, out["embeddings"])}
    return wanted


def _neighbors(
    made: classifier_lib.Classifier, p: np.ndarray, z: np.ndarray
) -> dict[str, np.ndarray]:
    labeled = made.labeled
    cosines = z @ labeled.features.astype(np.float64).T
    q = _softmax(cosines / labeled.temperature)
    aggregated = np.zeros_like(p)
    np.add.at(aggregated.T, labeled.labels, q.T)
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : made.neighbors]
    return {
        "similarities": np.take_along_axis(cosines, nearest, axis=1),
        "weights": np.take_along_axis(q, nearest, axis=1),
        "aggregated": aggregated,
        "propagated": labeled.alpha * p + (1 - labeled.alpha) * aggregated,
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def inputs(signature: str, shown: Examples, dtype: str) -> dict[str, tf.Tensor]:
    """The examples as a signature takes them."""
    if signature == "classify_bytes":
        return {"image_bytes": tf.constant(shown.encoded)}
    return {"images": tf.constant(shown.pixels.astype(dtype))}


def compare(
    made: classifier_lib.Classifier,
    signatures: Mapping[str, Any],
    shown: Examples,
) -> dict[str, float]:
    """Runs every signature on the examples, and on the first alone.

    Args:
        made: The classifier that was exported.
        signatures: Of the export, loaded again.
        shown: The examples.

    Returns:
        "SIGNATURE/OUTPUT" → the largest difference, of features relative to
        the largest of them.

    Raises:
        InputError: One is above `TOLERANCE`, or an output is missing.
    """
    wanted = reference(made, shown.pixels)
    if set(wanted) != set(signatures):
        raise InputError(
            f"the export has the signatures {sorted(signatures)}, but "
            f"{sorted(wanted)} are wanted; nothing was written"
        )
    gaps = {}
    for name, outputs in wanted.items():
        first = Examples(shown.pixels[:1], shown.encoded[:1])
        for part in (shown, first):
            found = signatures[name](**inputs(name, part, made.input_dtype))
            for key, values in outputs.items():
                gap = _gap(key, values[: len(part.encoded)], found[key].numpy())
                where = f"{name}/{key}"
                gaps[where] = max(gap, gaps.get(where, 0.0))
    for where, gap in gaps.items():
        check(where, gap)
    return gaps


def check(where: str, gap: float, tolerance: float = TOLERANCE) -> None:
    """Refuses a difference.

    Raises:
        InputError: It is above the tolerance, or NaN.
    """
    if not gap <= tolerance:
        raise InputError(
            f"the export differs from the training network: {where} by "
            f"{gap:.2g}, but {tolerance:.0e} is allowed; nothing was written"
        )


def _gap(key: str, wanted: np.ndarray, found: np.ndarray) -> float:
    if wanted.shape != found.shape:
        return float("inf")
    scale = max(1.0, np.abs(wanted).max()) if key == "features" else 1.0
    return float(np.abs(wanted - found).max() / scale)
