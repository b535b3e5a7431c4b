"""User-facing errors, and what may have been meant by an unknown name."""

import difflib
import re
import traceback
from collections.abc import Iterable, Sequence

# A name is suggested if its likeness, in [0, 1], is within this of the best.
_MARGIN = 0.12


class InputError(ValueError):
    """An error that the user can correct; commands print it without a trace."""


class PluginError(InputError):
    """An error in a plugin, about which --help has nothing to say."""


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


def nearest(value: str, names: Iterable[str], *, prefix: str = "") -> str:
    """Returns the end of a message about an unknown name: similar names.

    Args:
        value: The unknown name.
        names: The known names.
        prefix: What stands before each name where it is given, such as "--".
    """
    names = list(names)
    if names_like := close(value, names, count=3, cutoff=0.5):
        # Others are guesses only if they are nearly as similar as the best.
        likeness = {name: _likeness(value, name) for name in names_like}
        least = max(likeness.values()) - _MARGIN
        shown = [f"{prefix}{n}" for n, x in likeness.items() if x >= least]
        return f"; did you mean {' or '.join(shown)}?"
    return f"; known: {', '.join(names)}"


def _likeness(value: str, name: str) -> float:
    # `difflib.get_close_matches` compares them in this order.
    return difflib.SequenceMatcher(None, name, value).ratio()


def reason(error: Exception) -> str:
    """Returns one line of TensorFlow's message, without names of operations."""
    text = re.sub(r"\{\{.*?\}\} ?| \[Op:.*", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # What aborted a collective operation stands behind where it happened.
    causes = [line for line in lines if "aborted by" in line]
    return (causes or lines or [repr(error)])[0]


def line_in(file: str, error: BaseException) -> int | None:
    """Returns the last line of a file that an error's traceback names.

    Args:
        file: Path of the file, as Python names it.
        error: The error, after it was raised.
    """
    if isinstance(error, SyntaxError) and error.filename == file:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return lines[-1] if lines else None
