"""Small pictures of labeled images, for pages that show what a model saw."""

import contextlib
import io
import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
import tensorflow as tf
from absl import logging

from simmatch_tf import io as io_lib
from simmatch_tf.data import decoding, files, fingerprint, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import loading

FILE = "assets.extra/labeled_thumbnails.zip"
SIDE = 96
_QUALITY = 85
_AT_ONCE = 256


def jpeg(pixels: np.ndarray) -> bytes:
    """A thumbnail as JPEG; small images are enlarged without smoothing.

    Args:
        pixels: uint8 [H, W, 1 or 3].
    """
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    return encode(PIL.Image.fromarray(pixels))


def encode(image: PIL.Image.Image) -> bytes:
    """See `jpeg`."""
    longest = max(image.size)
    size = [max(1, round(SIDE * side / longest)) for side in image.size]
    how = PIL.Image.Resampling.BICUBIC
    if longest < SIDE:
        how = PIL.Image.Resampling.NEAREST
    file = io.BytesIO()
    image.convert("RGB").resize(size, how).save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def of_slots(
    run: loading.Run, source: source_lib.Source, slots: Sequence[int]
) -> dict[int, bytes]:
    """Thumbnails of labeled images, as their dataset has them.

    What the dataset has no more as the run began with it is left out, and a
    warning says so.

    Args:
        run: Whose memory it is.
        source: The run's dataset.
        slots: Which of the memory's.

    Returns:
        Slot → JPEG, without those whose image is not known.
    """
    if run.content["labeled"] is None:
        return {}
    labeled = _places(run, source)
    gone = [slot for slot in slots if labeled[slot] < 0]
    if gone:
        logging.warning(
            "%d of %d labeled images are not shown: the dataset has them no "
            "more as the run began with them (such as %s)",
            *(len(gone), len(slots), loading.ids(run.content)[gone[0]]),
        )
    slots = [slot for slot in slots if labeled[slot] >= 0]
    how = run.classifier.preprocessing
    found = {}
    for start in range(0, len(slots), _AT_ONCE):
        part = list(slots[start : start + _AT_ONCE])
        images = decoding.centre_crops(
            source.train,
            tf.constant([labeled[slot] for slot in part], tf.int64),
            side=how.image_shape[0],
            resize=how.resize,
        )
        for slot, pixels in zip(part, images.numpy(), strict=True):
            found[slot] = jpeg(pixels)
    return found


def _places(run: loading.Run, source: source_lib.Source) -> np.ndarray:
    """Where the image of each slot is in the dataset now [K]; -1: nowhere."""
    content, here = run.content, source.train.names
    then, changed = _changes(run, source)
    names = list(map(io_lib.nfc, content.get("names") or ()))
    if not names or here is None:
        same = splits.is_of(content, source) and not changed
    else:
        # Otherwise a file holds many images.
        same = not changed or then.issuperset(names)
    if not same:
        return np.full(len(content["labels"]), -1)
    if not names or here is None:
        return splits.slots(content)
    numbers = {io_lib.nfc(name): number for number, name in enumerate(here)}
    for name in changed:
        numbers.pop(name, None)
    return np.array([numbers.get(name, -1) for name in names])


def _changes(
    run: loading.Run, source: source_lib.Source
) -> tuple[set[str], set[str]]:
    """The files that a run began with, and those of other content now."""
    try:
        then = fingerprint.read(run.data)
    except (OSError, ValueError):
        return set(), set()  # an imported run, or an older one
    changes = fingerprint.compare(then, source.fingerprint())
    return set(then.files), set(changes.changed)


def of_files(paths: Mapping[int, str]) -> dict[int, bytes]:
    """Thumbnails of whole image files as they are seen, where they can be read.

    Args:
        paths: Any number → path.
    """
    found = {}
    with files.silent_pillow():
        for number, path in paths.items():
            # Whatever Pillow cannot show is shown as an empty place.
            with contextlib.suppress(Exception):
                found[number] = encode(files.small(path, 2 * SIDE))
    return found


def keep(folder: pathlib.Path, pictures: dict[int, bytes]) -> None:
    """Writes thumbnails into an export.

    Raises:
        InputError: They cannot be written.
    """
    path = folder / FILE
    try:
        path.parent.mkdir(exist_ok=True)
        with zipfile.ZipFile(path, "w") as file:
            for slot, picture in pictures.items():
                file.writestr(f"{slot}.jpg", picture)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror})"
        ) from None


def kept(folder: pathlib.Path, slots: Sequence[int]) -> dict[int, bytes]:
    """Thumbnails from an export, of those slots that have one."""
    try:
        with zipfile.ZipFile(folder / FILE) as file:
            there = set(file.namelist())
            return {
                slot: file.read(f"{slot}.jpg")
                for slot in slots
                if f"{slot}.jpg" in there
            }
    except (OSError, zipfile.BadZipFile):
        return {}
