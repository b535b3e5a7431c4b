"""Files: read as text, written whole or not at all, locked, and cached.

The only module that replaces files, locks them or knows the cache folder.
Nothing here imports TensorFlow.
"""

import codecs
import contextlib
import fcntl
import json
import os
import pathlib
import re
import threading
import unicodedata
from collections.abc import Iterator
from typing import IO, Any

from simmatch_tf.flags.errors import InputError

# The mark of little-endian UTF-32 begins as that of UTF-16 does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Characters that break a line, and lone surrogates.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def expand(path: str | os.PathLike) -> pathlib.Path:
    """Returns the path with a leading ~ replaced by the home folder.

    A name such as ~draft.png, which begins with no user's name, stays as it is.
    """
    return pathlib.Path(os.path.expanduser(path))


def cache_folder() -> pathlib.Path:
    """Returns $XDG_CACHE_HOME/simmatch_tf, by default ~/.cache/simmatch_tf.

    Raises:
        RuntimeError: The user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(base).expanduser() / "simmatch_tf"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Replaces a file by a new one, whole or not at all.

    Args:
        path: The file; it need not exist, its folder must.

    Yields:
        A path in the same folder and with the same suffix, to be written in
        the body. It takes the file's name when the body ends, and is removed
        when the body raises.

    Raises:
        OSError: The file cannot be replaced.
    """
    path = pathlib.Path(path)
    unique = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f".tmp-{unique}-{path.name}")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    r"""Writes a UTF-8 text file, whole or not at all, with \n as line end.

    Lone surrogates, which stand for bytes of a file name that are not UTF-8,
    are written as \udcff.

    Raises:
        InputError: It cannot be written.
    """
    content = text.encode("utf-8", errors="backslashreplace")
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error})"
        ) from None


def write_json(path: str | os.PathLike, content: Any) -> None:
    """Writes a JSON file, whole or not at all.

    Raises:
        InputError: It cannot be written.
    """
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def make_folder(path: pathlib.Path, given: str = "") -> None:
    """Creates a folder, and those above it, where they are missing.

    Args:
        path: The folder.
        given: The name it has in messages, such as "--output=x".

    Raises:
        InputError: It cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{given or path}: cannot be written ({error.strerror})"
        ) from None


def lock(file: IO | int, *, wait: bool = False) -> bool:
    """Locks an open file or folder for this process and its children.

    The system frees the lock when all that have the file open have closed it,
    also by dying.

    Args:
        file: The open file, or its descriptor.
        wait: Wait until no other process holds it.

    Returns:
        Whether this process now holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def claim(file: IO, folder: str | os.PathLike, holder: str) -> None:
    """Locks a folder by a file in it that names the process holding the lock.

    Args:
        file: A text file open for appending and reading.
        folder: The folder, for the message.
        holder: What else may hold it, such as "a live run"; for the message.

    Raises:
        InputError: Another process holds the lock.
    """
    if not lock(file):
        file.seek(0)
        process = file.read().strip() or "unknown"
        raise InputError(
            f"--workdir={folder}: in use by {holder} (process {process})"
        )
    file.truncate(0)
    # On a full disk the lock holds all the same. Written without a buffer, so
    # that nothing is left to write when the file is closed.
    with contextlib.suppress(OSError):
        os.write(file.fileno(), f"{os.getpid()}\n".encode())


def encoding(content: bytes) -> tuple[str | None, int]:
    """Returns the encoding and length of a byte-order mark, or (None, 0)."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name, len(mark)
    return None, 0


def read_text(path: str | os.PathLike, given: str) -> str:
    """Reads a text file in UTF-8, or in the encoding of its byte-order mark.

    Args:
        path: The file.
        given: The name it has in messages, such as "--flagfile=x.cfg".

    Returns:
        Its text, without the mark.

    Raises:
        InputError: It cannot be read, or is not such a text.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{given}: cannot be read ({error.strerror or error})"
        ) from None
    name, length = encoding(content)
    try:
        text = content[length:].decode(name or "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{given}: is no text in {(name or 'utf-8').upper()} (byte "
            f"{error.start + length + 1} is not right); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise InputError(
            f"{given}: has zero bytes in it, so it is no text, or UTF-16 "
            "without a byte-order mark; save it as UTF-8"
        )
    return text


def nfc(name: str) -> str:
    """Returns the name in Unicode's composed form (NFC).

    Archives made on macOS hold é as e and an accent (NFD): without this, equal
    names would be different strings.
    """
    return unicodedata.normalize("NFC", name)


def one_line(text: str) -> str:
    r"""Returns the text with line breaks, tabs and the like as \n, \t, …."""
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


def printable(path: str) -> str:
    r"""Returns the path with bytes that are not UTF-8 written as \xff."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path).decode(errors="backslashreplace")
    return path
