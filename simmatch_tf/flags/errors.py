"""What the user can put right, and how it is said."""

import difflib
import re
from collections.abc import Sequence


class InputError(ValueError):
    """Something the user can put right; commands print it bare."""


def nearest(value: str, names: Sequence[str]) -> str:
    """The end of a message on an unknown name: what may have been meant."""
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
