"""User-facing errors."""

import difflib
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
