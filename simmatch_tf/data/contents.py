"""What tells sets of images apart: what is in them, wherever they are."""

import concurrent.futures
import hashlib
import os
from collections.abc import Sequence

import numpy as np

from simmatch_tf import io
from simmatch_tf.data import files, records
from simmatch_tf.data import fingerprint as fingerprint_lib
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.commandline import InputError


def digest(images: source_lib.Images | source_lib.Encoded) -> str:
    """A digest of the images in their order; their classes are not in it.

    Args:
        images: Of images in files every file is read; of those in record
            files, the record files.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: A file cannot be read.
    """
    found = hashlib.sha256()
    if isinstance(images, files.FileImages):
        parts = _of_files(images.paths)
        found.update(np.asarray(images.orientations, np.uint8).tobytes())
    elif isinstance(images, records.RecordImages):
        index = images.index
        used = np.unique(index.shard)
        parts = _of_files([index.files[place] for place in used])
        found.update(_places(images))
    else:
        pixels = np.ascontiguousarray(images.images)
        parts = [repr(pixels.shape).encode(), hashlib.sha256(pixels).digest()]
    for part in parts:
        found.update(part)
    return found.hexdigest()


def identity(source: source_lib.Source) -> str:
    """A digest of the images to train on and of the test images.

    Of images in memory it is one of the pixels, however they are stored. Of
    images in files it is one of what `fingerprint` knows of the files, without
    their times: none is read again.

    Args:
        source: Its classes and names are not in the digest.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: A file cannot be read.
    """
    found, encoded = hashlib.sha256(), False
    for name, images in (("train", source.train), ("test", source.test)):
        found.update(name.encode())
        if images is None:
            continue
        encoded |= images.encoded
        if not images.encoded:
            found.update(digest(images).encode())
        elif isinstance(images, records.RecordImages):
            found.update(_places(images))
    if encoded:
        states = [
            (name, size, content)
            for name, (size, _, content) in fingerprint(source).files.items()
        ]
        found.update(repr(sorted(states)).encode())
    return found.hexdigest()


def _places(images: records.RecordImages) -> bytes:
    """Where in their files the images are."""
    index = images.index
    # Numbered by what is used: a file more or less changes nothing.
    shards = np.searchsorted(np.unique(index.shard), index.shard)
    offsets = np.asarray(index.offset, np.int64)
    return shards.tobytes() + offsets.tobytes() + images.feature.encode()


def fingerprint(source: source_lib.Source) -> fingerprint_lib.Fingerprint:
    """What tells a dataset from others.

    Raises:
        InputError: A file cannot be read.
    """
    if source.origin is not None:
        return source.origin()
    sets = {
        "train": source.train,
        "validation": source.validation,
        "test": source.test,
    }
    return fingerprint_lib.Fingerprint(
        {
            name: _state(images)
            for name, images in sets.items()
            if images is not None
        }
    )


def _state(
    images: source_lib.Images | source_lib.Encoded,
) -> tuple[int, int, str]:
    """Size and digest of a set; of one in files without reading these."""
    found = hashlib.sha256(images.labels.astype("<i4").tobytes())
    found.update(repr(images.names and list(images.names)).encode())
    if not images.encoded:
        found.update(digest(images).encode())
        return images.images.nbytes, 0, found.hexdigest()
    paths = getattr(images, "paths", None)
    if paths is None:
        paths = images.index.files
    try:
        size = sum(os.stat(path).st_size for path in set(paths))
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror})"
        ) from None
    return size, 0, found.hexdigest()


def _of_files(paths: Sequence[str]) -> list[bytes]:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_of_file, paths))


def _of_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise InputError(
            f"{io.printable(path)}: cannot be read ({error.strerror})"
        ) from None
