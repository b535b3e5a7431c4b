"""A confusion matrix as a picture. Nothing here imports TensorFlow."""

import io
import pathlib
from collections.abc import Sequence

import matplotlib
from matplotlib import figure as figure_lib

from simmatch_tf import io as io_lib
from simmatch_tf.reporting import comparison_figure

MOST = 20  # classes beyond which a matrix is not read any more
_LONG = 14  # characters of a class's name
_DARK = 0.55  # share from which on text on a cell is white


def svg(counts: Sequence[Sequence[int]], names: Sequence[str]) -> bytes:
    """Draws a confusion matrix.

    Args:
        counts: [true class][predicted class], at most `MOST` of each.
        names: Of the classes.
    """
    file = io.BytesIO()
    _draw(counts, names, file, format="svg", metadata={"Date": None})
    return file.getvalue()


def save(
    counts: Sequence[Sequence[int]], names: Sequence[str], path: pathlib.Path
) -> None:
    """The same as a PNG file."""
    _draw(counts, names, path)


def _draw(
    counts: Sequence[Sequence[int]],
    names: Sequence[str],
    where: io.BytesIO | pathlib.Path,
    **how,
) -> None:
    """A cell's colour is its share of the true class, its text the count."""
    size = len(counts)
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    side = 1.6 + 0.42 * size
    rc = {"font.size": 9, "svg.hashsalt": "simmatch"}
    with matplotlib.rc_context(rc):
        page = figure_lib.Figure(
            figsize=(side + 0.9, side), dpi=150, layout="constrained"
        )
        axes = page.subplots()
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for true, row in enumerate(counts):
            for taken, count in enumerate(row):
                if not count:
                    continue
                white = shares[true][taken] > _DARK
                axes.text(
                    taken, true, f"{count}", ha="center", va="center",
                    color="white" if white else "black",
                    fontsize=8 if count < 1000 else 6,
                )  # fmt: skip
        labels = [_short(name) for name in names]
        axes.set_xticks(range(size), labels, rotation=90)
        axes.set_yticks(range(size), labels)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        bar = page.colorbar(image, shrink=0.7)
        bar.set_label("share of the true class")
        page.savefig(where, **how)


def _short(name: str) -> str:
    name = io_lib.one_line(name)
    if len(name) > _LONG:
        name = name[: _LONG - 1] + "…"
    return comparison_figure.plain(name)
