"""User-facing errors, and what may have been meant by an unknown name."""

import difflib
from collections.abc import Sequence


class InputError(ValueError):
    """An error that the user can correct; commands print it without a trace."""


def close(
    value: str, names: Sequence[str], *, count: int = 1, cutoff: float = 0.7
) -> list[str]:
    """Returns the names most like a value, at most `count`, best first.

    Args:
        value: The name that was given.
        names: Names that exist.
        count: Number of names to return at most.
        cutoff: Least similarity, in [0, 1].
    """
    return difflib.get_close_matches(value, names, count, cutoff)


def nearest(value: str, names: Sequence[str]) -> str:
    """Returns the end of a message on an unknown name: what may be meant."""
    if names_like := close(value, names, count=3, cutoff=0.5):
        return f"; did you mean {' or '.join(names_like)}?"
    return f"; known: {', '.join(names)}"
