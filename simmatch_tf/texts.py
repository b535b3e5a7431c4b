"""Text files that people write, whatever their editor saves; and names.

Nothing here imports TensorFlow.
"""

import codecs
import os
import pathlib
import re
import unicodedata

from simmatch_tf.flags.errors import InputError

# UTF-32's little-endian mark begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

# What breaks a line, or is no character at all.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def encoding(content: bytes) -> tuple[str | None, int]:
    """What a byte-order mark says, and the mark's length; None, 0: no mark."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name, len(mark)
    return None, 0


def read(path: pathlib.Path, given: str) -> str:
    """Reads a text file: UTF-8, or what its byte-order mark says.

    Args:
        path: The file.
        given: How to call it in a message, such as "--flagfile=x.cfg".

    Returns:
        Its text, without the mark.

    Raises:
        InputError: It cannot be read, or is no such text.
    """
    try:
        content = path.read_bytes()
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
    """A name in Unicode's composed form: equal names are equal strings.

    Archives made on macOS hold é as e and an accent (NFD).
    """
    return unicodedata.normalize("NFC", name)


def one_line(text: str) -> str:
    r"""The text, line breaks, tabs and the like written as \n, \t, …."""
    return _CONTROLS.sub(lambda found: repr(found[0])[1:-1], text)


def printable(path: str) -> str:
    r"""The path, bytes that are no UTF-8 written as \xff: fit for a file."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path).decode(errors="backslashreplace")
    return path
