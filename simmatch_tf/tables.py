"""Tables as plain text and as Markdown, and how numbers are written in them.

The only module that writes tables. It imports nothing above `io`.
"""

import csv
import io as io_lib
import re
from collections.abc import Sequence

from simmatch_tf import io

# What Markdown would take for a sign of its own. An underscore within a word
# and a bracket that begins no link mean nothing.
_SIGNS = re.compile(r"[\\`*|]|\](?=[\[(])|(?<!\w)_|_(?!\w)")


def plain(rows: Sequence[Sequence[str]]) -> str:
    """Writes a table for the terminal.

    Args:
        rows: Cells by row, all rows of one length; the first row is the head.

    Returns:
        Lines without a line break at the end. The first column is aligned to
        the left, the others to the right.
    """
    rows = [[*map(io.one_line, row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in [*rows[:1], ["-" * width for width in widths], *rows[1:]]:
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Writes a table in Markdown, its cells escaped; see `plain`."""
    lines = [f"| {' | '.join(map(escape, row))} |" for row in rows]
    lines.insert(1, f"| {' | '.join(['---'] * len(rows[0]))} |")
    return "\n".join(lines)


def comma_separated(rows: Sequence[Sequence]) -> str:
    """Writes a table as CSV, one line per row; None is an empty cell."""
    text = io_lib.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def escape(text: str) -> str:
    """Escapes a text so that Markdown shows it as it is, on one line."""
    text = _SIGNS.sub(r"\\\g<0>", io.one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def percent(share: float | None, digits: int = 2) -> str:
    """Writes a share in [0, 1] in per cent; "-" where it is not known."""
    return "-" if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float) -> str:
    """Writes a time in the unit that suits it, such as "3 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"
