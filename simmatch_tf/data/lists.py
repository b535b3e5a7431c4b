"""Lists of labeled images: one file name or index a line.

The form in which the published splits of ImageNet come.
"""

import collections
import os
import pathlib
from collections.abc import Callable

import numpy as np

from simmatch_tf import io
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.commandline import InputError


def read(
    path: pathlib.Path, source: source_lib.Source, *, in_order: bool = False
) -> np.ndarray:
    """Reads a list of labeled images: one file name or index a line.

    Args:
        path: The file.
        source: The dataset.
        in_order: See `find`.

    Raises:
        InputError: It cannot be read, or a line is no labeled image's.
    """
    lines = io.read_text(path, f"--labeled_list={path}").splitlines()
    return find(lines, source, f"--labeled_list={path}", in_order=in_order)


def find(
    names: list[str],
    source: source_lib.Source,
    of: str,
    *,
    in_order: bool = False,
) -> np.ndarray:
    """Finds images by file name (with or without folders) or index.

    Args:
        names: One a line; empty ones are left out.
        source: The dataset.
        of: What the names are from, for messages.
        in_order: As they are listed, instead of sorted.

    Returns:
        Indices into the training images, [n] int64.

    Raises:
        InputError: A name is of no image, of several, of an image whose class
            is not known, or there twice; or there are none.
    """
    look_up = _look_up(source)
    found: dict[int, int] = {}
    for number, line in enumerate(names, 1):
        name = line.strip()
        if not name:
            continue
        place = f"{of}, line {number}: {name!r}"
        index = look_up(name, place)
        if source.train.labels[index] < 0:
            raise InputError(f"{place} has no known class")
        if index in found:
            raise InputError(f"{place} is the image of line {found[index]}")
        found[index] = number
    if not found:
        raise InputError(f"{of}: names no image")
    return np.asarray(list(found) if in_order else sorted(found), np.int64)


def _look_up(source: source_lib.Source) -> Callable[[str, str], int]:
    """From a name, and where it stands, to an index."""
    names = source.train.names or ()
    # As equal ones compare equal; messages show them as they are.
    composed = [io.nfc(name) for name in names]
    # By the last part of the path: lists often leave out folders, or have more
    # of them than the data.
    by_last: dict[str, list[int]] = {}
    stems = collections.defaultdict(list)
    for index, name in enumerate(composed):
        last = name.rpartition("/")[2]
        by_last.setdefault(last, []).append(index)
        stems[os.path.splitext(last)[0]].append(index)

    def fits(index: int, name: str) -> bool:
        one, other = f"/{composed[index]}", f"/{name}"
        return one.endswith(other) or other.endswith(one)

    def look_up(name: str, place: str) -> int:
        name = io.nfc(name.replace("\\", "/"))
        same = by_last.get(name.rpartition("/")[2], ())
        found = [i for i in same if fits(i, name)]
        if len(found) > 1:  # "a/x.jpg" may end others' paths, too
            found = [i for i in found if composed[i] == name] or found
        if len(found) > 1:
            raise InputError(f"{place} is the name of several images")
        if found:
            return found[0]
        if name.isdecimal() and len(name) < 19:
            if names:
                _check_index(place, name, [names[i] for i in stems[name]])
            if int(name) >= len(source.train):
                raise InputError(
                    f"{place}: {source.name} has {len(source.train)} training "
                    "images (indices from 0)"
                )
            return int(name)
        what = "no training image of" if names else "not an index into"
        raise InputError(
            f"{place} is {what} {source.name}"
            + (f"; its names are like {names[0]!r}" if names else "")
        )

    return look_up


def _check_index(place: str, number: str, named: list[str]) -> None:
    """Refuses a number that may be an image's name without its ending.

    Args:
        place: Where it stands, for the message.
        number: As it stands there.
        named: Names of the images that have it as their name.

    Raises:
        InputError: It has leading zeros, as names have and indices have not,
            or there are such images.
    """
    if named:
        raise InputError(
            f"{place} may be the image {named[0]!r} or the index "
            f"{int(number)}; write the image's name, with its ending"
        )
    if number != str(int(number)):
        raise InputError(
            f"{place} is the name of no image, and an index has no zeros in "
            "front; write the image's name, with its ending"
        )
