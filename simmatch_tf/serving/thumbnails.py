"""Small pictures of labeled images and of files, for HTML pages."""

import contextlib
import io
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf

from simmatch_tf import io as io_lib
from simmatch_tf import terminal
from simmatch_tf.data import decoding, files, fingerprint, splits, viewing
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.serving import classifier, preprocessing

# Archive of an export's thumbnails, in its folder.
ARCHIVE = "assets.extra/labeled_thumbnails.zip"
SIDE = 96
_QUALITY = 85
_BATCH_SIZE = 256


def jpeg(image: np.ndarray | PIL.Image.Image) -> bytes:
    """Returns a thumbnail as JPEG; small images are enlarged unsmoothed.

    Args:
        image: A Pillow image, or pixels uint8 [H, W, 1 or 3].
    """
    if isinstance(image, np.ndarray):
        grey = image.shape[-1] == 1
        image = PIL.Image.fromarray(image[..., 0] if grey else image)
    longest = max(image.size)
    size = [max(1, round(SIDE * side / longest)) for side in image.size]
    method = PIL.Image.Resampling.BICUBIC
    if longest < SIDE:
        method = PIL.Image.Resampling.NEAREST
    file = io.BytesIO()
    image = image.convert("RGB").resize(size, method)
    image.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def of_files(paths: Mapping[int, str]) -> dict[int, bytes]:
    """Returns thumbnails of image files, upright and uncropped.

    Args:
        paths: Any number → path.

    Returns:
        Number → JPEG, without the files that cannot be read.
    """
    pictures = {}
    with viewing.silent_pillow():
        for number, path in paths.items():
            # What Pillow cannot show leaves an empty place on the page.
            with contextlib.suppress(Exception):
                pictures[number] = jpeg(files.small(path, 2 * SIDE))
    return pictures


def slot_names(content: dict[str, Any]) -> list[str]:
    """Returns the name of the image in each memory slot [K].

    Args:
        content: The content of a run's split file.
    """
    indices = splits.slots(content)
    names = content.get("names") or [str(index) for index in indices]
    return [
        name if index >= 0 else classifier.UNKNOWN
        for name, index in zip(names, indices, strict=True)
    ]


def of_slots(
    source: source_lib.Source,
    slots: Sequence[int],
    *,
    content: dict[str, Any],
    data: pathlib.Path,
    preprocess: preprocessing.Preprocessing,
) -> dict[int, bytes]:
    """Returns thumbnails of labeled images as the dataset has them now.

    Images that are gone or have changed since the run was begun are left out
    with a warning.

    Args:
        source: The run's dataset.
        slots: Memory slots of the images.
        content: The content of the run's split file.
        data: The file that lists the images that the run was begun with.
        preprocess: How the run's network sees images.

    Returns:
        Slot → JPEG, without the slots whose image is unknown.
    """
    if content["labeled"] is None:
        return {}
    indices = _current_indices(source, content, data)
    missing = [slot for slot in slots if indices[slot] < 0]
    if missing:
        terminal.warn(
            f"{len(missing)} of {len(slots)} labeled images are not shown: "
            "they are no longer in the dataset as the run began with them "
            f"(such as {slot_names(content)[missing[0]]})"
        )
    slots = [slot for slot in slots if indices[slot] >= 0]
    pictures = {}
    for start in range(0, len(slots), _BATCH_SIZE):
        part = slots[start : start + _BATCH_SIZE]
        images = decoding.centre_crops(
            source.train,
            tf.constant(indices[part], tf.int64),
            side=preprocess.image_shape[0],
            resize=preprocess.resize,
        )
        pictures |= zip(part, map(jpeg, images.numpy()), strict=True)
    return pictures


def _current_indices(
    source: source_lib.Source, content: dict[str, Any], data: pathlib.Path
) -> np.ndarray:
    """Returns each slot's index in the present dataset [K]; -1 if missing."""
    names = list(map(io_lib.nfc, content.get("names") or ()))
    current_names = source.train.names
    changed, recorded = set(), set()
    # The run may have been imported, or be of an older version.
    with contextlib.suppress(OSError, ValueError):
        origin = fingerprint.read(data)
        recorded = set(origin.files)
        changed = set(fingerprint.compare(origin, source.fingerprint()).changed)
    if not names or current_names is None:
        if splits.is_of(content, source) and not changed:
            return splits.slots(content)
    # Unless names are those of files, a file holds many images.
    elif not changed or recorded.issuperset(names):
        numbers = {
            io_lib.nfc(name): number
            for number, name in enumerate(current_names)
            if io_lib.nfc(name) not in changed
        }
        return np.array([numbers.get(name, -1) for name in names])
    return np.full(len(content["labels"]), -1)


def write_archive(folder: pathlib.Path, pictures: Mapping[int, bytes]) -> None:
    """Writes thumbnails into the folder of an export.

    Args:
        folder: The version's folder.
        pictures: Slot → JPEG.
    """
    path = folder / ARCHIVE
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for slot, picture in pictures.items():
            file.writestr(f"{slot}.jpg", picture)


def read_archive(
    folder: pathlib.Path, slots: Sequence[int]
) -> dict[int, bytes]:
    """Reads thumbnails from the folder of an export.

    Returns:
        Slot → JPEG, of those slots that have one.
    """
    try:
        with zipfile.ZipFile(folder / ARCHIVE) as file:
            present = set(file.namelist())
            return {
                slot: file.read(f"{slot}.jpg")
                for slot in slots
                if f"{slot}.jpg" in present
            }
    except (OSError, zipfile.BadZipFile):
        return {}
