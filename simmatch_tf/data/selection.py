"""Images that a user names: a folder, a pattern, a list, or one file."""

import dataclasses
import glob
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from simmatch_tf.commandline import InputError
from simmatch_tf.data import examination, files, folder

ENDINGS = (*folder.ENDINGS, ".webp")
_PATTERN = ("*", "?", "[")


@dataclasses.dataclass(frozen=True)
class Selection:
    """Files, by name.

    Attributes:
        paths: N absolute paths.
        names: What each is called: its path from the folder, or as listed.
    """

    paths: Sequence[str]
    names: Sequence[str]

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)


def find(images: str) -> Selection:
    """Finds the files that --images names.

    Args:
        images: A folder, whose images in all its folders are meant, but for
            hidden ones; a pattern, such as "photos/**/*.jpg"; an image; or a
            text file with one path a line, from the list's folder on, where
            empty lines and those with # in front do not count.

    Returns:
        The files, by name; of a list, in its order. Files of a pattern or a
        list need not be there, nor be images.

    Raises:
        InputError: There is nothing of the kind.
    """
    path = os.path.expanduser(images)
    if os.path.isdir(path):
        found = _in_folder(path)
    elif os.path.isfile(path):
        if path.lower().endswith(ENDINGS):
            found = Selection([os.path.abspath(path)], [os.path.basename(path)])
        else:
            found = _listed(images, path)
    elif any(sign in path for sign in _PATTERN):
        names = sorted(
            name
            for name in glob.glob(path, recursive=True)
            if not os.path.isdir(name)
        )
        found = Selection([os.path.abspath(name) for name in names], names)
    else:
        raise InputError(f"--images={images}: no such file or folder")
    if not len(found):
        raise InputError(
            f"--images={images}: names no image; images end in "
            + ", ".join(ENDINGS)
        )
    return found


def _in_folder(root: str) -> Selection:
    names = []
    seen = set()
    for place, folders, inside in os.walk(root, followlinks=True):
        # A link to a folder above would go round for ever.
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [f for f in folders if not f.startswith(".")]
        names += [
            os.path.relpath(os.path.join(place, name), root)
            for name in inside
            if not name.startswith(".") and name.lower().endswith(ENDINGS)
        ]
    names.sort()
    root = os.path.abspath(root)
    return Selection([os.path.join(root, name) for name in names], names)


def _listed(images: str, path: str) -> Selection:
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--images={images}: is neither an image nor a list of files, one "
            f"a line ({error})"
        ) from None
    lines = [line.strip() for line in text.splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    root = os.path.dirname(os.path.abspath(path))
    return Selection(
        [os.path.join(root, os.path.expanduser(name)) for name in names], names
    )


def readable(images: str, most: int) -> files.FileImages:
    """The first readable ones, as training would read them.

    Args:
        images: See `find`.
        most: How many at most.

    Raises:
        InputError: None can be read.
    """
    found = find(images)
    paths, orientations, reason = [], [], ""
    with examination.silent_pillow():
        for path in found.paths:
            try:
                orientation, _ = examination.examine(path)
            except ValueError as error:
                reason = reason or f"{files.printable(path)}: {error}"
                continue
            paths.append(path)
            orientations.append(orientation)
            if len(paths) == most:
                break
    if not paths:
        raise InputError(f"--images={images}: none can be read; {reason}")
    return files.FileImages(
        paths=paths,
        labels=np.zeros(len(paths), np.int32),
        names=paths,
        orientations=np.array(orientations, np.uint8),
        channel_mean=[0.0] * 3,
        channel_std=[1.0] * 3,
    )
