"""Flagfiles: searched in the current folder and the package, and read."""

import pathlib
import re
from collections.abc import Sequence

from simmatch_tf import io
from simmatch_tf.flags.errors import InputError, nearest

# Name of the flagfile that a run keeps in its folder.
OF_RUN = "flags.cfg"
PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def find(name: str, given: str = "", folder: str = "configs") -> pathlib.Path:
    """Finds a flagfile in the current folder or in the package.

    Args:
        name: Its path.
        given: Its name in messages; default: --flagfile=NAME.
        folder: Folder of the flagfiles that come with the package.

    Raises:
        InputError: It is in neither place.
    """
    path = io.expand(name)
    # A checkout has configs/ beside the package, a wheel inside it.
    for candidate in (path, PACKAGE.parent / path, PACKAGE / path):
        if candidate.is_file():
            return candidate
    shipped = [
        f"{folder}/{p.name}"
        for place in (PACKAGE.parent, PACKAGE)
        for p in sorted((place / folder).glob("*.cfg"))
    ]
    given = given or f"--flagfile={name}"
    raise InputError(f"{given}: no such file" + nearest(name, shipped))


class FileWord(str):
    """A word of a command line that comes from a flagfile."""


def expand(
    argv: Sequence[str],
    alternatives: Sequence[Sequence[str]] = (),
    inside: tuple[pathlib.Path, ...] = (),
) -> list[str]:
    """Replaces every --flagfile=FILE by the words in FILE.

    absl's own reader knows the current folder only; this one also finds the
    files that came with the package. As with absl's, what comes later wins,
    also over its alternatives in the files before: --epochs replaces a
    recipe's --steps.

    Args:
        argv: The words of a command line.
        alternatives: Groups of flags that exclude each other.
        inside: Files that are being read.

    Returns:
        The words, those in files as `FileWord`s. A `FileWord` in `argv` is
        treated as one of an earlier file.

    Raises:
        InputError: A file is missing, unreadable, or names itself.
    """
    result, files, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        if isinstance(word, FileWord):
            files, result = [*files, *result, word], []
            continue
        match = re.fullmatch(r"--?flagfile(?:=(.*))?", word)
        if not match or "--" in result:
            dropped = _alternatives(word, alternatives)
            files = [w for w in files if name_of(w) not in dropped]
            result.append(word)
            continue
        name = match[1] if match[1] is not None else (rest or [""]).pop(0)
        words, path = _read(name, inside)
        words = expand(words, alternatives, (*inside, path))
        # Words before a file are treated as words of an earlier file.
        files, result = files + result, []
        for later in words:
            dropped = _alternatives(later, alternatives)
            files = [w for w in files if name_of(w) not in dropped]
        files += map(FileWord, words)
    return files + result


def name_of(word: str) -> str:
    """Returns the name of the flag that a word gives, or "".

    Of --noNAME it is noNAME: only the flag's declaration tells which is meant.
    """
    match = re.match(r"--?([\w.]+)", word)
    return match[1] if match else ""


def value_of(name: str, words: Sequence[str]) -> list[str]:
    """Returns the values that words of a command line give to a flag."""
    pattern = rf"(?:^|\0)--?{re.escape(name)}[=\0]([^\0]*)"
    return re.findall(pattern, "\0".join(words))


def _alternatives(word: str, groups: Sequence[Sequence[str]]) -> set[str]:
    """Returns the flags that the flag of a word excludes."""
    name = name_of(word)
    return {other for g in groups if name in g for other in g} - {name}


def _read(
    name: str, inside: tuple[pathlib.Path, ...]
) -> tuple[list[str], pathlib.Path]:
    """Returns the words in a flagfile, and its path."""
    path = find(name)
    if path.resolve() in inside:
        raise InputError(f"--flagfile={name}: the file includes itself")
    lines = io.read_text(path, f"--flagfile={name}").splitlines()
    words = [line.strip() for line in lines if line.strip()]
    words = [word for word in words if not word.startswith(("#", "//"))]
    for line in words:
        if not line.startswith("-"):
            raise InputError(
                f"--flagfile={name}: {line!r} is neither a flag nor a "
                "comment (comments stand on lines of their own)"
            )
    return words, path.resolve()


def last(argv: Sequence[str]) -> pathlib.Path | None:
    """Returns the last flagfile in `argv`."""
    names = value_of("flagfile", argv)
    return pathlib.Path(names[-1]) if names else None
