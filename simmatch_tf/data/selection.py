"""Images that a user names: a folder, a pattern, a list, or one file.

Nothing here imports TensorFlow.
"""

import collections
import dataclasses
import glob
import os
import pathlib
from collections.abc import Iterator, Sequence

from absl import logging

from simmatch_tf import io
from simmatch_tf.data.sources import listing
from simmatch_tf.flags.commandline import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
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
            hidden ones and those of `listing.SYSTEM_FOLDERS`; a pattern, such
            as "photos/**/*.jpg"; an image; or a text file with one path a
            line, from the list's folder on, where empty lines and those with
            # in front do not count.

    Returns:
        The files, by name; of a list, in its order. Files of a pattern or a
        list need not be there, nor be images.

    Raises:
        InputError: There is nothing of the kind, or a folder cannot be read.
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
        names = sorted(set(_matching(path)))
        found = Selection([os.path.abspath(name) for name in names], names)
    elif os.path.exists(path):
        raise InputError(f"--images={images}: is no regular file")
    else:
        raise InputError(f"--images={images}: no such file or folder")
    if not len(found):
        raise InputError(
            f"--images={images}: names no image; images end in "
            + ", ".join(ENDINGS)
        )
    return found


def _in_folder(root: str) -> Selection:
    names, left_out = [], collections.Counter()
    systems = collections.Counter()
    for place in _folders(root, systems):
        for path in _visible(os.path.join(glob.escape(place), "*")):
            if path.lower().endswith(ENDINGS):
                names.append(os.path.relpath(path, root))
            elif dead := listing.dead_link(path):
                raise InputError(f"{io.printable(path)}: {dead}")
            else:
                ending = os.path.splitext(path)[1].lower()
                left_out[ending or "without ending"] += 1
    names.sort()
    if systems:
        logging.warning(
            "--images=%s: %s",
            io.printable(root),
            listing.systems_left_out(systems),
        )
    if left_out:
        logging.warning(
            "--images=%s: %d files are left out, as their names do not end in "
            "%s: %s",
            io.printable(root),
            left_out.total(),
            " ".join(ENDINGS),
            ", ".join(f"{n} {ending}" for ending, n in left_out.most_common()),
        )
    root = os.path.abspath(root)
    return Selection([os.path.join(root, name) for name in names], names)


def _matching(pattern: str) -> Iterator[str]:
    """Files of a pattern, in which ** stands for any folders."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from _visible(pattern)
        return
    stars = parts.index("**")
    before, behind = parts[:stars], parts[stars + 1 :]
    # Python's own search goes round where links do.
    for root in sorted(glob.glob(os.sep.join([*before, ""]))) or [""]:
        if not root and before:
            return  # there is no such folder
        for place in _folders(root or os.curdir):
            place = place.rstrip(os.sep) if before else os.path.relpath(place)
            place = [] if place == os.curdir else [glob.escape(place)]
            yield from _matching(os.sep.join([*place, *(behind or "*")]))


def _folders(
    root: str, systems: collections.Counter | None = None
) -> Iterator[str]:
    """A folder and all below it, once each.

    Hidden ones and those of the system are left out; `systems` counts these.

    Raises:
        InputError: One cannot be read.
    """
    seen = set()
    for place, folders, _ in os.walk(root, onerror=_refuse, followlinks=True):
        # A link to a folder above would go round for ever.
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if systems is not None:
            systems.update(listing.SYSTEM_FOLDERS.intersection(folders))
        folders[:] = sorted(
            folder
            for folder in folders
            if not folder.startswith(".")
            and folder not in listing.SYSTEM_FOLDERS
        )
        yield place


def _refuse(error: OSError) -> None:
    raise InputError(
        f"{io.printable(error.filename)}: cannot be read ({error.strerror})"
    )


def _visible(pattern: str) -> Iterator[str]:
    """Files of a pattern without **, but for hidden ones."""
    yield from (p for p in glob.iglob(pattern) if not os.path.isdir(p))


def _listed(images: str, path: str) -> Selection:
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"--images={images}: cannot be read ({error.strerror})"
        ) from None
    encoding, mark = io.encoding(content)
    try:
        # As the system has names: they need not be UTF-8, nor without odd
        # blanks.
        text = (
            os.fsdecode(content[mark:])
            if encoding in (None, "utf-8")
            else content[mark:].decode(encoding)
        )
    except UnicodeDecodeError:
        text = "\0"  # no text of that encoding
    if "\0" in text:
        raise InputError(
            f"--images={images}: is neither an image nor a list of files, one "
            f"a line; images end in {', '.join(ENDINGS)}"
        )
    lines = [line.strip("\r\t ") for line in text.split("\n")]
    names = [line for line in lines if line and not line.startswith("#")]
    root = os.path.dirname(os.path.abspath(path))
    return Selection(
        [os.path.join(root, os.path.expanduser(name)) for name in names], names
    )
