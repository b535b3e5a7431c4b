"""Image files on this machine: the walk through folders, and --images.

Importing this module does not import TensorFlow.
"""

import collections
import dataclasses
import glob
import os
import pathlib
from collections.abc import Container, Iterable, Iterator, Sequence

from simmatch_tf import io, terminal
from simmatch_tf.flags.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_PATTERN = ("*", "?", "[")
# Folders that Synology, QNAP, Windows, macOS and Linux create on their own, for
# thumbnails, deleted files or older versions.
_SYSTEM_FOLDERS = frozenset(
    ("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot")
    + ("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found")
)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Image files that the user names.

    Attributes:
        paths: N absolute paths.
        names: N names for reports: the path from the folder, or as listed.
    """

    paths: Sequence[str]
    names: Sequence[str]

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self.paths)


class Walker:
    """Finds the images below a folder.

    Images are recognized by the ending of their name. Names that begin with a
    dot are left out, and so are folders that systems create on their own.
    Symbolic links are followed, but each folder is visited once.

    Attributes:
        left_out: Files that are no images, as paths from the folder.
        systems: Number of folders that are left out, by name.
    """

    def __init__(self, root: str, endings: Sequence[str] = ENDINGS) -> None:
        """Prepares a walk.

        Args:
            root: The folder.
            endings: Of the images' names, in lower case.
        """
        self._root, self._endings = root, tuple(endings)
        self.left_out: list[str] = []
        self.systems: collections.Counter = collections.Counter()

    def images(self, top: str = "", skip: Container[str] = ()) -> list[str]:
        """Returns the images in a folder and below it, in no set order.

        Args:
            top: Path of the folder from the walker's; it need not exist.
            skip: Paths of folders that are left out, with all in them.

        Returns:
            Their paths from the walker's folder.

        Raises:
            InputError: A folder cannot be read, or a link leads nowhere.
        """
        folders = self.folders(top, skip)
        return [name for _, images in folders for name in images]

    def folders(
        self, top: str = "", skip: Container[str] = ()
    ) -> Iterator[tuple[str, list[str]]]:
        """Yields each folder and the images in it; see `images`."""
        visited = set()
        # Links wait until all real folders are done: a folder that can be
        # reached both ways has the name that does not go through a link.
        folders, links = collections.deque([top]), collections.deque()
        while folders or links:
            path = folders.popleft() if folders else links.popleft()
            try:
                status = os.stat(self._absolute(path))
            except FileNotFoundError:
                if dead_link(self._absolute(path)):
                    raise self._unreadable(path) from None
                continue
            except OSError as error:
                raise self._unreadable(path, error) from None
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            inside, images = self.list(path)
            yield path, images
            for name, is_link in sorted(inside):
                if name not in skip:
                    (links if is_link else folders).append(name)

    def list(self, path: str) -> tuple[list[tuple[str, bool]], list[str]]:
        """Lists a folder.

        Args:
            path: From the walker's folder.

        Returns:
            The folders in it, each with whether it is a link; and the images
            in it. All are paths from the walker's folder.

        Raises:
            InputError: It cannot be read, or a link in it leads nowhere.
        """
        folders, images = [], []
        try:
            with os.scandir(self._absolute(path)) as entries:
                for entry in entries:
                    name = f"{path}/{entry.name}" if path else entry.name
                    if entry.name.startswith("."):
                        continue
                    if is_folder(entry):
                        if entry.name in _SYSTEM_FOLDERS:
                            self.systems[entry.name] += 1
                        else:
                            folders.append((name, entry.is_symlink()))
                    elif entry.name.lower().endswith(self._endings):
                        images.append(name)
                    elif dead_link(entry.path):
                        raise self._unreadable(name)
                    else:
                        self.left_out.append(name)
        except OSError as error:
            raise self._unreadable(path, error) from None
        return folders, sorted(images)

    def warn(self, given: str, kinds: str | None = None) -> None:
        """Warns about what was left out.

        Args:
            given: Name of the folder in messages.
            kinds: Which files were left out; default: their `endings`.
        """
        if self.left_out:
            terminal.warn(
                f"{given}: {len(self.left_out)} files are left out, as their "
                f"names do not end in {' '.join(self._endings)}: "
                + (kinds or endings(self.left_out))
            )
        if self.systems:
            counts = sorted(self.systems.items())
            terminal.warn(
                f"{given}: folders in which a system keeps thumbnails or "
                "deleted files are left out: "
                + ", ".join(f"{count} {name}" for name, count in counts)
            )

    def _absolute(self, path: str) -> str:
        return os.path.join(self._root, path)

    def _unreadable(
        self, path: str, error: OSError | None = None
    ) -> InputError:
        reason = dead_link(self._absolute(path))
        if not reason and error is not None:
            reason = f"cannot be read ({error.strerror or error})"
        return InputError(f"{io.printable(self._absolute(path))}: {reason}")


def endings(paths: Iterable[str]) -> str:
    """Counts the endings of paths: "2 .tif, 1 .heic"."""
    counts = collections.Counter(
        os.path.splitext(io.printable(path))[1].lower() or "without ending"
        for path in paths
    )
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {ending}" for ending, count in ordered)


def is_folder(entry: os.DirEntry) -> bool:
    """Returns whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def dead_link(path: str) -> str:
    """Explains a symbolic link whose target is missing.

    It may be the folder of a drive that is not mounted, with all its images.

    Args:
        path: Of any file.

    Returns:
        A message that follows the path; "" where nothing is wrong.
    """
    if not os.path.islink(path):
        return ""
    try:
        os.stat(path)
    except OSError as error:
        target = io.printable(os.readlink(path))
        return (
            f"is a link to {target}, which cannot be found "
            f"({error.strerror or error}); mount or restore that, or remove "
            "the link"
        )
    return ""


def find(images: str) -> Selection:
    """Finds the files that --images names.

    Args:
        images: A folder, whose images at any depth are meant; a pattern, such
            as "photos/**/*.jpg"; an image; or a text file with one path a
            line, relative to that file's folder. Empty lines and those that
            begin with # are ignored.

    Returns:
        The files, sorted by name; of a list, in its order. Files of a pattern
        or a list need not exist, nor be images.

    Raises:
        InputError: Nothing is named, or a folder cannot be read.
    """
    path = str(io.expand(images)) if images.startswith("~") else images
    if os.path.isdir(path):
        walker = Walker(path)
        names = sorted(walker.images())
        walker.warn(f"--images={io.printable(path)}")
        paths = [os.path.join(os.path.abspath(path), name) for name in names]
        chosen = Selection(paths, names)
    elif os.path.isfile(path):
        if path.lower().endswith(ENDINGS):
            name = os.path.basename(path)
            chosen = Selection([os.path.abspath(path)], [name])
        else:
            chosen = _listed(images, path)
    elif any(sign in path for sign in _PATTERN):
        names = sorted(set(_matching(path)))
        chosen = Selection([os.path.abspath(name) for name in names], names)
    elif os.path.exists(path):
        raise InputError(f"--images={images}: is no regular file")
    else:
        raise InputError(f"--images={images}: no such file or folder")
    if not len(chosen):
        raise InputError(
            f"--images={images}: names no image; images end in "
            + ", ".join(ENDINGS)
        )
    return chosen


def _matching(pattern: str) -> Iterator[str]:
    """Yields the files that match a pattern; ** stands for any folders."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from (p for p in glob.iglob(pattern) if not os.path.isdir(p))
        return
    stars = parts.index("**")
    before, behind = parts[:stars], parts[stars + 1 :]
    # Python's own ** follows links in circles.
    for root in sorted(glob.glob(os.sep.join([*before, ""]))) or [""]:
        if not root and before:
            return  # there is no such folder
        for folder, _ in Walker(root or os.curdir).folders():
            folder = os.path.join(root, folder).rstrip(os.sep)
            folder = [glob.escape(folder)] if folder or before else []
            yield from _matching(os.sep.join([*folder, *(behind or "*")]))


def _listed(images: str, path: str) -> Selection:
    """Returns the files that a list names."""
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"--images={images}: cannot be read ({error.strerror})"
        ) from None
    encoding, mark = io.encoding(content)
    try:
        # As the system has names: they need not be UTF-8, and may contain odd
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
    return Selection([os.path.join(root, io.expand(n)) for n in names], names)
