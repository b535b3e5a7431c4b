"""User-facing errors."""

import difflib
import re
from collections.abc import Iterable


class InputError(ValueError):
    """An error that the user can correct; commands print its message alone."""


def nearest(value: str, names: Iterable[str]) -> str:
    """Returns the end of a message about an unknown name: similar names.

    Args:
        value: The unknown name.
        names: The known names.
    """
    names = list(names)
    close = difflib.get_close_matches(value, names, 3, 0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known: {', '.join(names)}"


def reason(error: Exception) -> str:
    """Returns one line of TensorFlow's message, without names of operations."""
    text = re.sub(r"\{\{.*?\}\} ?| \[Op:.*", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # What aborted a collective operation stands behind where it happened.
    causes = [line for line in lines if "aborted by" in line]
    return (causes or lines or [repr(error)])[0]
