"""Compares an export with the training network on real images."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf import io
from simmatch_tf.data import decoding, files, records, selection, viewing
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.evaluation import metrics
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import classifier as classifier_lib
from simmatch_tf.serving import preprocessing

# Largest difference of probabilities and embeddings, and of features relative
# to the largest feature.
TOLERANCE = 1e-5
# Number of images to compare on.
IMAGES = 32


@dataclasses.dataclass(frozen=True)
class Examples:
    """Real images, decoded and as files.

    Attributes:
        pixels: uint8 [N, H, W, C], as evaluation decodes them.
        encoded: Files of the same images, N strings.
    """

    pixels: np.ndarray
    encoded: list[bytes]


def of_source(
    images: source_lib.Images | source_lib.Encoded,
    *,
    side: int,
    resize: int | None,
) -> Examples:
    """Takes at most `IMAGES` images of a set, evenly spread.

    Args:
        images: The set.
        side: See `decoding.centre_crops`.
        resize: See `decoding.centre_crops`.
    """
    count = min(IMAGES, len(images))
    indices = np.linspace(0, len(images) - 1, count).round().astype(np.int64)
    indices = tf.constant(indices)
    if isinstance(images, records.RecordImages):
        images = _UprightRecords(images)
    pixels = decoding.centre_crops(images, indices, side=side, resize=resize)
    if images.encoded:
        encoded = [images.read(index)[0].numpy() for index in indices]
    else:
        encoded = [
            tf.io.encode_png(image).numpy() for image in images.fetch(indices)
        ]
    return Examples(pixels.numpy(), encoded)


class _UprightRecords:
    """Records, turned by their EXIF orientation as exports turn images.

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


def of_files(images: str, preprocess: preprocessing.Preprocessing) -> Examples:
    """Takes the first `IMAGES` readable images among a user's files.

    Files in color are decoded as evaluation does. Networks for grey images are
    only ever evaluated on images in memory, so grey files can only be decoded
    by the export's own preprocessing.

    Args:
        images: A folder, a pattern or a list; see `selection.find`.
        preprocess: How files become the network's input.

    Raises:
        InputError: None of them can be read.
    """
    chosen = _readable(images)
    height, width, channels = preprocess.image_shape
    if channels == 3 and height == width:
        return of_source(chosen, side=height, resize=preprocess.resize)
    encoded = [pathlib.Path(path).read_bytes() for path in chosen.paths]
    pixels = [preprocess.decode(tf.constant(data)).numpy() for data in encoded]
    return Examples(np.stack(pixels), encoded)


def _readable(images: str) -> files.FileImages:
    """Returns the first readable files and their orientations.

    Raises:
        InputError: None can be read.
    """
    paths, orientations, reason = [], [], ""
    with viewing.silent_pillow():
        for path in selection.find(images).paths:
            try:
                orientation_tag = files.examine(path).orientation
            except ValueError as error:
                reason = reason or f"{io.printable(path)}: {error}"
                continue
            paths.append(path)
            orientations.append(orientation_tag)
            if len(paths) == IMAGES:
                break
    if not paths:
        raise InputError(
            f"--images={images}: no image can be read, such as {reason}"
        )
    return files.FileImages(
        paths=paths,
        labels=np.zeros(len(paths), np.int32),
        names=paths,
        orientations=np.array(orientations, np.uint8),
    )


def reference(
    classifier: classifier_lib.Classifier, pixels: np.ndarray
) -> dict[str, dict[str, np.ndarray]]:
    """Computes the outputs of all signatures from the training network.

    Everything after the network itself is computed here in float64, without
    the functions that are exported.

    Args:
        classifier: Its network, class names and memory are used.
        pixels: uint8 [N, H, W, C].

    Returns:
        Signature → output → values.
    """
    out = classifier.network(tf.constant(pixels), training=False)
    out = {name: np.asarray(value, np.float64) for name, value in out.items()}
    temperature = classifier.temperature or 1.0
    p = metrics.softmax(out["logits"] / temperature)
    order = np.argsort(-p, axis=1, kind="stable")[:, : classifier_lib.LISTED]
    classes = {
        "probabilities": p,
        "scores": np.take_along_axis(p, order, axis=1),
    }
    expected = {
        classifier_lib.SERVED: classes,
        "classify_bytes": classes,
        "embed": {
            name: out[name] for name in classifier_lib.EMBED if name in out
        },
    }
    if classifier.labeled is not None:
        neighbors = _neighbors(
            classifier, metrics.softmax(out["logits"]), out["embeddings"]
        )
        expected["explain"] = {**classes, **neighbors}
    return expected


def _neighbors(
    classifier: classifier_lib.Classifier, p: np.ndarray, z: np.ndarray
) -> dict[str, np.ndarray]:
    labeled = classifier.labeled
    cosines = z @ labeled.features.astype(np.float64).T
    q = metrics.softmax(cosines / labeled.temperature)
    aggregated = np.zeros_like(p)
    np.add.at(aggregated.T, labeled.labels, q.T)
    nearest = np.argsort(-cosines, axis=1, kind="stable")
    nearest = nearest[:, : classifier.neighbors]
    return {
        "similarities": np.take_along_axis(cosines, nearest, axis=1),
        "weights": np.take_along_axis(q, nearest, axis=1),
        "aggregated": aggregated,
        "propagated": labeled.alpha * p + (1 - labeled.alpha) * aggregated,
    }


def inputs(
    signature: str, examples: Examples, dtype: str
) -> dict[str, tf.Tensor]:
    """Returns the examples as arguments of a signature.

    Args:
        signature: Its name.
        examples: The images.
        dtype: Data type of decoded images.
    """
    if signature == "classify_bytes":
        return {"image_bytes": tf.constant(examples.encoded)}
    return {"images": tf.constant(examples.pixels.astype(dtype))}


def compare(
    classifier: classifier_lib.Classifier,
    signatures: Mapping[str, Any],
    examples: Examples,
) -> dict[str, float]:
    """Compares every signature on all examples, and on the first alone.

    Args:
        classifier: The classifier that was exported.
        signatures: Signatures of the export, loaded again.
        examples: The images.

    Returns:
        "SIGNATURE/OUTPUT" → the largest difference; that of features is
        relative to the largest feature.

    Raises:
        InputError: A difference is above `TOLERANCE`, or a signature is
            missing.
    """
    expected = reference(classifier, examples.pixels)
    if set(expected) != set(signatures):
        raise InputError(
            f"the export has the signatures {sorted(signatures)}, but must "
            f"have {sorted(expected)}; nothing was written"
        )
    differences: dict[str, float] = {}
    first = Examples(examples.pixels[:1], examples.encoded[:1])
    for signature, outputs in expected.items():
        for part in (examples, first):
            arguments = inputs(signature, part, classifier.input_dtype)
            values = signatures[signature](**arguments)
            for key, wanted in outputs.items():
                name = f"{signature}/{key}"
                wanted = wanted[: len(part.encoded)]
                difference = _difference(key, wanted, values[key].numpy())
                differences[name] = max(difference, differences.get(name, 0.0))
    for name, difference in differences.items():
        check(name, difference)
    return differences


def check(name: str, difference: float, tolerance: float = TOLERANCE) -> None:
    """Checks the difference of an output.

    Args:
        name: Name of the output.
        difference: The largest difference.
        tolerance: The largest difference allowed.

    Raises:
        InputError: The difference is above the tolerance, or NaN.
    """
    if not difference <= tolerance:
        raise InputError(
            f"the export differs from the training network: {name} by "
            f"{difference:.2g}, but must differ by at most {tolerance:.0e}; "
            "nothing was written"
        )


def _difference(key: str, wanted: np.ndarray, value: np.ndarray) -> float:
    if wanted.shape != value.shape:
        return float("inf")
    scale = max(1.0, np.abs(wanted).max()) if key == "features" else 1.0
    return float(np.abs(wanted - value).max() / scale)
