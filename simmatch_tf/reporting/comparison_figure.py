"""Runs side by side, as a picture. Nothing here imports TensorFlow."""

import pathlib
import statistics

import matplotlib
from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib

from simmatch_tf import io
from simmatch_tf.reporting import comparison

_COLOUR, _OWN_COLOUR = "#5b6770", "#1f6fb4"
_WIDE = 5  # columns in one line
_SMALL = {"color": "grey", "fontsize": 7}
_LONG = 6  # characters of a value's name that do not stand side by side


def save(found: comparison.Comparison, path: pathlib.Path) -> None:
    """Draws a comparison: a panel a column, each run a dot.

    Args:
        found: With at least one run.
        path: PNG, SVG or PDF.
    """
    columns = found.columns()
    across = min(len(columns), _WIDE)
    down = -(-len(columns) // across)
    tall = 2.6 if found.curves else 0.8 + 0.36 * len(found.rows())
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "simmatch"}):
        page = figure_lib.Figure(
            figsize=(max(5.5, 3.2 * across), tall * down + 0.4),
            dpi=150,
            layout="constrained",
        )
        panels = page.subplots(down, across, squeeze=False).flat
        for number, (panel, column) in enumerate(
            zip(panels, columns, strict=False)
        ):
            if found.curves:
                _curve(panel, found, column)
            else:
                _dots(panel, found, column, named=number % across == 0)
            panel.spines[["top", "right"]].set_visible(False)
            panel.grid(alpha=0.25)
        for panel in list(panels)[len(columns) :]:
            panel.remove()
        page.suptitle(plain(found.title), fontsize=10)
        page.savefig(path)


def _dots(
    panel: axes_lib.Axes,
    found: comparison.Comparison,
    column: str,
    *,
    named: bool,
) -> None:
    """A line a row: faint dots the runs, a bar the mean ± deviation."""
    rows = found.rows()
    for place, row in enumerate(rows):
        scores = [100 * score.top1 for score in found.at(row, column)]
        if not scores:
            continue
        colour = _OWN_COLOUR if row == found.reference else _COLOUR
        std = statistics.stdev(scores) if len(scores) > 1 else 0
        panel.plot(scores, [place] * len(scores), "o", color=colour, alpha=0.35)
        panel.errorbar(
            statistics.mean(scores), place, xerr=std, fmt="D", color=colour,
            capsize=3, markersize=5,
        )  # fmt: skip
        panel.text(
            1.02, place, f"n={len(scores)}", ha="left", va="center",
            transform=panel.get_yaxis_transform(), **_SMALL,
        )  # fmt: skip
    names = [plain(row) if named else "" for row in rows]
    panel.set_yticks(range(len(rows)), names)
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.set_xlabel("top-1, %")
    panel.set_title(plain(column), fontsize=9)


def _curve(
    panel: axes_lib.Axes, found: comparison.Comparison, column: str
) -> None:
    """Top-1 against the values of one list, in the plan's order."""
    rows = found.rows(column)
    places, means = [], []
    for place, row in enumerate(rows):
        scores = [100 * score.top1 for score in found.at(row, column)]
        if not scores:
            continue
        places.append(place)
        means.append(statistics.mean(scores))
        panel.plot(
            [place] * len(scores), scores, "o", color=_OWN_COLOUR, alpha=0.35
        )
        panel.text(
            place, 1.01, f"n={len(scores)}", ha="center", va="bottom",
            transform=panel.get_xaxis_transform(), **_SMALL,
        )  # fmt: skip
    panel.plot(places, means, "D-", color=_OWN_COLOUR, markersize=5)
    panel.set_xticks(range(len(rows)), map(plain, rows))
    if max(map(len, rows)) > _LONG:
        panel.tick_params("x", labelrotation=30)
        for label in panel.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    panel.set_xlabel(plain(column))
    panel.set_ylabel("top-1, %")


def plain(name: str) -> str:
    """A name on one line, of which no part is taken for a formula."""
    return io.one_line(name).replace("$", r"\$")
