"""Arrays that are kept in the cache folder, to save time in later runs.

A cache that cannot be read or written is only warned about. Importing this
module does not import TensorFlow.
"""

from __future__ import annotations

import pathlib

from simmatch_tf import io, terminal
from simmatch_tf.lazy import np


def path(name: str) -> pathlib.Path | None:
    """Returns the path of a file in the cache; None: there is no cache."""
    try:
        return io.cache_folder() / name
    except RuntimeError as error:  # a user without a home
        terminal.warn(f"{name} cannot be kept ({error})")
        return None


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays in a file of the cache; {} where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return dict(np.load(file, allow_pickle=False))
    except FileNotFoundError:
        return {}
    except Exception as error:  # a damaged file may raise anything
        terminal.warn(f"{path}: is made again ({error!r})")
        return {}


def write(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays to a file in the cache, if it can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with io.replacing(path) as temporary:
            with open(temporary, "wb") as file:
                np.savez(file, **arrays)
    except OSError as error:
        terminal.warn(f"{path}: cannot be written ({error})")
