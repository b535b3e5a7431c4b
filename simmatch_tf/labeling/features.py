"""Features of image files: by their pixels, or by a network.

Importing this module does not import TensorFlow; only the functions that run a
network do.
"""

import concurrent.futures
import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from simmatch_tf import terminal
from simmatch_tf.data import cache, duplicates, picking, viewing
from simmatch_tf.evaluation import baselines
from simmatch_tf.flags.errors import InputError

# Version of the thumbnails and features of pixels in the cache.
_VERSION = 1
_BLOCK = 500


@dataclasses.dataclass(frozen=True)
class Thumbnails:
    """Small pictures of N files.

    Attributes:
        pixels: uint8 [N, 32, 32, 3]; zeros for unreadable files.
        reasons: Index of an unreadable file → why it cannot be read.
    """

    pixels: np.ndarray
    reasons: dict[int, str]


def thumbnails(paths: Sequence[str]) -> Thumbnails:
    """Returns whole images in 32×32 pixels, upright, and keeps them.

    The cache knows the files by path, size and times.

    Args:
        paths: N absolute paths.
    """
    side = duplicates.SIDE
    place = cache.path(f"thumbnails-{_digest(paths)}.npz")
    kept = cache.read(place) if place is not None else {}
    pixels = kept.get("pixels", np.zeros([len(paths), side, side, 3], np.uint8))
    good = kept.get("good", np.zeros(len(paths), bool))
    missing = np.flatnonzero(~good)
    reasons: dict[int, str] = {}

    def read(index: int) -> None:
        try:
            picture = viewing.picture(paths[index], 2 * side)
        except ValueError as error:
            reasons[index] = str(error)
            return
        small = picture.resize((side, side), PIL.Image.Resampling.BILINEAR)
        pixels[index], good[index] = np.asarray(small), True

    with (
        viewing.silent_pillow(),
        terminal.progress(len(missing), "image", title="reading") as bar,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        for _ in pool.map(read, missing.tolist()):
            bar.update(1)
    if place is not None and len(reasons) < len(missing):
        cache.write(place, {"pixels": pixels, "good": good})
    return Thumbnails(pixels, dict(sorted(reasons.items())))


def of_pixels(pixels: np.ndarray) -> np.ndarray:
    """Returns features that need no network.

    They tell images apart by shape and color, and know nothing of classes. They
    are kept in the cache.

    Args:
        pixels: uint8 [N, 32, 32, 3].

    Returns:
        float32 [N, D]; see `baselines.handmade` and `picking.principal`.
    """
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    key = baselines.key(
        _VERSION,
        digest,
        *map(importlib.metadata.version, ("scikit-image", "scikit-learn")),
    )
    place = cache.path(f"pixels-{key}.npz")
    kept = cache.read(place) if place is not None else {}
    if "features" in kept:
        return kept["features"]
    blocks = range(0, len(pixels), _BLOCK)
    rows = []
    with terminal.progress(len(pixels), "image", title="features") as bar:
        for start in blocks:
            rows.append(baselines.handmade(pixels[start : start + _BLOCK]))
            bar.update(len(rows[-1]))
    features = picking.principal(np.concatenate(rows))
    if place is not None:
        cache.write(place, {"features": features})
    return features


def of_network(
    model: str,
    library: str | None,
    folder: str,
    paths: Sequence[str],
    *,
    weights: str | None,
    image_size: int | None,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray, dict[int, str]]:
    """Returns features of a network, and keeps them in the cache.

    Args:
        model: A run, an export, or LIBRARY:NAME.
        library: The library of such a name; None for a folder.
        folder: The images' folder.
        paths: N absolute paths.
        weights: File of such a network, "random", or None for the published
            ones.
        image_size: Side of its images; None: the network's own.
        batch_size: Images in a batch.

    Returns:
        Indices of the readable files, int [n]; their features, float32 [n, D];
        and index of an unreadable file → why it cannot be used.

    Raises:
        InputError: The model cannot be loaded, or no file be used.
    """
    from simmatch_tf.data import files
    from simmatch_tf.data.sources import source as source_lib
    from simmatch_tf.probes import encoders, features

    (encoder,) = encoders.load(_Models(model, library, image_size, weights))
    inspection = files.inspect(paths, cache=files.cache_path(folder))
    good = np.setdiff1d(np.arange(len(paths)), sorted(inspection.reasons))
    if not len(good):
        raise InputError(
            f"{folder}: none of {len(paths)} images can be used, the first "
            f"because it {inspection.reasons[0]}"
        )
    names = [paths[index] for index in good]
    images = files.FileImages(
        names,
        np.full(len(good), -1, np.int32),
        names,
        inspection.contents.orientations[good],
        inspection.contents.digests[good],
    )
    values = features.extract(
        encoder,
        _Set(os.path.basename(folder), images, source_lib.digest(images)),
        "images",
        batch_size=batch_size,
        progress=True,
    )
    return good, np.asarray(values), inspection.reasons


def uncertainty(
    model: str, paths: Sequence[str], *, batch_size: int
) -> np.ndarray:
    """Returns how uncertain a trained classifier is of images.

    Args:
        model: A run or an export.
        paths: N absolute paths.
        batch_size: Images in a batch.

    Returns:
        1 − the margin between the two most probable classes, float32 [N],
        0 … 1.

    Raises:
        InputError: The model cannot be loaded, or an image be read.
    """
    from simmatch_tf.serving import prediction

    predicted = prediction.predict(model, list(paths), batch_size=batch_size)
    ordered = np.sort(predicted.probabilities, axis=1)
    return np.clip(1 - (ordered[:, -1] - ordered[:, -2]), 0, 1)


@dataclasses.dataclass(frozen=True)
class _Models:
    """One model, as `encoders.load` takes the flags of `transfer`."""

    model: str
    library: str | None
    image_size: int | None
    weights: str | None = None
    random_backbone: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        return self.model

    def named_models(self) -> list["_Models"]:
        return [self]


@dataclasses.dataclass(frozen=True)
class _Set:
    """Images, as `probes.features.extract` takes those of a task."""

    name: str
    images: Any
    digest: str

    @property
    def digests(self) -> dict[str, str]:
        return {"images": self.digest}


def _digest(paths: Sequence[str]) -> str:
    """A digest of the files' paths, sizes and times."""
    digest = hashlib.sha256(f"{_VERSION} {PIL.__version__}".encode())
    for path in paths:
        digest.update(os.fsencode(path) + b"\0")
        try:
            status = os.stat(path)
        except OSError:
            continue  # it is reported when it is read
        times = status.st_size, status.st_mtime_ns, status.st_ctime_ns
        digest.update(repr(times).encode())
    return digest.hexdigest()[:32]
