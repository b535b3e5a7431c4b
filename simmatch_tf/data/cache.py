"""Arrays that are kept in the cache folder, to save time in later runs.

A cache that cannot be read or written is only warned about. Importing this
module does not import TensorFlow.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable

from absl import logging

from simmatch_tf import io
from simmatch_tf.lazy import np


def path(name: str) -> pathlib.Path | None:
    """Returns the path of a file in the cache; None: there is no cache."""
    try:
        return io.cache_folder() / name
    except RuntimeError as error:  # a user without a home
        logging.warning("%s cannot be kept (%s)", name, error)
        return None


def read(
    path: pathlib.Path, select: Callable[[dict], dict]
) -> dict[str, np.ndarray]:
    """Reads arrays from a file in the cache; {} where it cannot be read.

    Args:
        path: The file.
        select: Function from the file's arrays by name, which are read on
            access, to the ones to return. It may raise anything.
    """
    try:
        with open(path, "rb") as file:
            return select(np.load(file, allow_pickle=False))
    except FileNotFoundError:
        return {}
    except Exception as error:  # a damaged file may raise anything
        logging.warning("%s: is made again (%r)", path, error)
        return {}


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays to a file in the cache, if it can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with io.replacing(path) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
    except OSError as error:
        logging.warning("%s: cannot be written (%s)", path, error)
