"""All figures, in one style: charts of runs, comparisons, confusion, transfer.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import functools
import io as io_lib
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib
from matplotlib import lines as lines_lib

from simmatch_tf import io
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import charts, comparison, transfer_table
from simmatch_tf.reporting import runs as runs_lib

# The palette of Okabe and Ito, which readers with any color vision can tell
# apart, without its yellow, which is faint on white.
COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
MOST_CLASSES = 20  # beyond which a confusion matrix cannot be read
_GREY = "#5b6770"
_STYLE = {
    "font.size": 9,
    "figure.titlesize": 10,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 150,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.formatter.limits": (-4, 6),
    "axes.prop_cycle": matplotlib.cycler(color=COLORS),
    "legend.frameon": False,
    # The same runs give the same bytes.
    "svg.hashsalt": "simmatch",
}
_LINE_STYLES = ("-", "--", ":")
_PANEL = (4.2, 2.7)  # inches of a chart's panel
_MOST_POINTS = 500  # of a drawn line; more are not visible
_NOTE = {"color": "grey", "fontsize": 7}
_LONG_TICK = 6  # characters of names that fit side by side
_LONG_CLASS = 14  # characters of a class name
_DARK = 0.55  # share from which text on a cell is white


def color(number: int) -> str:
    """Returns the color of the group of this number."""
    return COLORS[number % len(COLORS)]


def _styled(function: Callable) -> Callable:
    """Makes a function draw in the style of all figures."""

    @functools.wraps(function)
    def draw(*args: Any, **kwargs: Any) -> Any:
        with matplotlib.rc_context(_STYLE):
            return function(*args, **kwargs)

    return draw


def _grid(
    count: int, across: int, width: float, height: float, extra: float = 0
) -> tuple[figure_lib.Figure, list[axes_lib.Axes]]:
    """Makes a figure of `count` panels of a size in inches, `across` a row."""
    down = -(-count // across)
    figure = figure_lib.Figure(figsize=(width * across, height * down + extra))
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels[count:]:
        panel.remove()
    return figure, panels[:count]


def _legend(figure: figure_lib.Figure, keys: Sequence[Any], most: int) -> None:
    """Puts a legend below all panels, with at most `most` columns."""
    figure.legend(
        handles=keys, loc="outside lower center", ncols=min(most, len(keys))
    )


def _save(figure: figure_lib.Figure, path: pathlib.Path) -> None:
    try:
        with io.replacing(path) as temporary:
            figure.savefig(temporary)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror})"
        ) from None


def _svg(figure: figure_lib.Figure) -> bytes:
    file = io_lib.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _plain(name: str) -> str:
    """Returns a name on one line, of which no part is taken for a formula."""
    return io.one_line(name).replace("$", r"\$")


# Charts of scalars over steps ------------------------------------------------


def present(
    chart: charts.Chart, groups: Sequence[runs_lib.Group]
) -> list[charts.Panel]:
    """Returns the panels of a chart for which some run has values."""
    return [
        panel
        for panel in chart.panels
        if any(
            charts.curve(run, tag) is not None
            for group in groups
            for run in group.runs
            for tag in panel.lines
        )
    ]


@_styled
def panel_svg(
    panel: charts.Panel, groups: Sequence[runs_lib.Group], width: int
) -> bytes:
    """Draws one panel as SVG.

    Args:
        panel: A panel with values.
        groups: Groups of runs, each in a color of its own.
        width: Logged steps to average over, as in `charts.smooth`.
    """
    figure, (axes,) = _grid(1, 1, *_PANEL)
    _draw_panel(axes, panel, groups, width)
    return _svg(figure)


@_styled
def save_chart(
    chart: charts.Chart,
    groups: Sequence[runs_lib.Group],
    path: pathlib.Path,
) -> bool:
    """Writes a chart as PNG.

    Returns:
        Whether there is one: False if no run has values for it.

    Raises:
        InputError: The file cannot be written.
    """
    panels = present(chart, groups)
    if not panels:
        return False
    across = len(panels) if len(panels) < 4 else 2
    figure, places = _grid(len(panels), across, *_PANEL, extra=0.5)
    width = charts.window(chart, groups)
    for axes, panel in zip(places, panels, strict=True):
        _draw_panel(axes, panel, groups, width)
    title = chart.title
    if width > 1:
        title += f" (running mean over {width} logged steps)"
    figure.suptitle(title)
    if len(groups) > 1:
        keys = [_key(group.name, color(i)) for i, group in enumerate(groups)]
        _legend(figure, keys, 4)
    _save(figure, path)
    return True


def _key(name: str, shade: str, style: str = "-") -> lines_lib.Line2D:
    """Makes a line of a legend."""
    return lines_lib.Line2D(
        [], [], color=shade, linestyle=style, label=_plain(name)
    )


def _draw_panel(
    axes: axes_lib.Axes,
    panel: charts.Panel,
    groups: Sequence[runs_lib.Group],
    width: int,
) -> None:
    """Draws each group in a color; a single group has a color for each tag."""
    several, keys = len(groups) > 1, []
    for number, (tag, name) in enumerate(panel.lines.items()):
        style = _LINE_STYLES[number] if several else "-"
        drawn = False
        for place, group in enumerate(groups):
            shade = color(place if several else number)
            drawn |= _draw_group(
                axes, panel, group, tag, width, color=shade, linestyle=style
            )
        if drawn:
            shade = "#555555" if several else color(number)
            keys.append(_key(name, shade, style))
    if len(keys) > 1:
        axes.legend(handles=keys, fontsize=8, framealpha=0.7, frameon=True)
    axes.set_title(_plain(panel.title), loc="left")
    axes.set_ylabel(_plain(panel.unit))
    axes.set_xlabel("step")


def _draw_group(
    axes: axes_lib.Axes,
    panel: charts.Panel,
    group: runs_lib.Group,
    tag: str,
    width: int,
    **look: str,
) -> bool:
    """Draws a line for each run, and their mean; False if there is none."""
    if not charts.is_noisy(tag):
        width = 1
    raw = {
        run.name: curve
        for run in group.runs
        if (curve := charts.curve(run, tag, panel.scale)) is not None
    }
    curves = {name: charts.smooth(each, width) for name, each in raw.items()}
    if len(curves) == 1 and width > 1:
        _plot(axes, *raw.values(), alpha=0.25, linewidth=0.7, **look)
    thin = {"alpha": 0.45, "linewidth": 0.8} if len(curves) > 1 else {}
    for each in curves.values():
        _plot(axes, each, **{"linewidth": 1.6, **thin}, **look)
    if len(curves) > 1:
        # An unfinished run would cut off the mean of the others.
        whole = [curves[r.name] for r in group.finished if r.name in curves]
        mean = charts.mean(whole if len(whole) > 1 else [*curves.values()])
        if mean is not None:
            _plot(axes, mean, linewidth=1.8, **look)
    return bool(curves)


def _plot(axes: axes_lib.Axes, curve: charts.Curve, **look: Any) -> None:
    every = max(1, -(-len(curve.steps) // _MOST_POINTS))
    last = len(curve.steps) - 1
    places = [*range(0, last, every), last]  # the last point in any case
    steps = [curve.steps[i] for i in places]
    values = [curve.values[i] for i in places]
    alone = len(steps) - sum(map(math.isnan, values)) < 2
    axes.plot(steps, values, marker="o" if alone else "", markersize=4, **look)


# Comparisons -----------------------------------------------------------------


@_styled
def save_comparison(
    compared: comparison.Comparison, path: pathlib.Path
) -> None:
    """Draws a comparison: one panel a column, one dot a run.

    Args:
        compared: At least one finished run.
        path: A PNG, SVG or PDF file.

    Raises:
        InputError: The file cannot be written.
    """
    columns = compared.columns()
    across = min(len(columns), 5)
    height = 2.6 if compared.curves else 0.8 + 0.36 * len(compared.rows())
    width = max(5.5 / across, 3.2)
    figure, panels = _grid(len(columns), across, width, height, extra=0.4)
    for number, (axes, column) in enumerate(zip(panels, columns, strict=True)):
        if compared.curves:
            _draw_sweep(axes, compared, column)
        else:
            _draw_rows(axes, compared, column, named=number % across == 0)
    figure.suptitle(_plain(compared.title))
    _save(figure, path)


def _draw_rows(
    axes: axes_lib.Axes,
    compared: comparison.Comparison,
    column: str,
    *,
    named: bool,
) -> None:
    """Draws runs as faint dots, their mean ± standard deviation as a bar."""
    rows = compared.rows()
    for place, row in enumerate(rows):
        top1 = [100 * score.top1 for score in compared.at(row, column)]
        if not top1:
            continue
        shade = color(0) if row == compared.reference else _GREY
        axes.plot(top1, [place] * len(top1), "o", color=shade, alpha=0.35)
        axes.errorbar(
            statistics.mean(top1),
            place,
            xerr=statistics.stdev(top1) if len(top1) > 1 else 0,
            fmt="D",
            color=shade,
            capsize=3,
            markersize=5,
        )
        axes.text(
            1.02, place, f"n={len(top1)}", ha="left", va="center",
            transform=axes.get_yaxis_transform(), **_NOTE,
        )  # fmt: skip
    names = [_plain(row) if named else "" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("top-1, %")
    axes.set_title(_plain(column))


def _draw_sweep(
    axes: axes_lib.Axes, compared: comparison.Comparison, column: str
) -> None:
    """Draws top-1 against the values of one list, in the plan's order."""
    rows = compared.rows(column)
    means = {}
    for place, row in enumerate(rows):
        top1 = [100 * score.top1 for score in compared.at(row, column)]
        if not top1:
            continue
        means[place] = statistics.mean(top1)
        axes.plot([place] * len(top1), top1, "o", color=color(0), alpha=0.35)
        axes.text(
            place, 1.01, f"n={len(top1)}", ha="center", va="bottom",
            transform=axes.get_xaxis_transform(), **_NOTE,
        )  # fmt: skip
    axes.plot(
        list(means), list(means.values()), "D-", color=color(0), markersize=5
    )
    axes.set_xticks(range(len(rows)), map(_plain, rows))
    if max(map(len, rows)) > _LONG_TICK:
        axes.tick_params("x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set(horizontalalignment="right", rotation_mode="anchor")
    axes.set_xlabel(_plain(column))
    axes.set_ylabel("top-1, %")


# Confusion -------------------------------------------------------------------


@_styled
def confusion_svg(
    counts: Sequence[Sequence[int]], names: Sequence[str]
) -> bytes:
    """Draws a confusion matrix as SVG.

    Args:
        counts: Images by true and predicted class, at most `MOST_CLASSES` of
            each.
        names: Names of the classes.
    """
    return _svg(_confusion(counts, names))


@_styled
def save_confusion(
    counts: Sequence[Sequence[int]], names: Sequence[str], path: pathlib.Path
) -> None:
    """Writes a confusion matrix as PNG; see `confusion_svg`.

    Raises:
        InputError: The file cannot be written.
    """
    _save(_confusion(counts, names), path)


def _confusion(
    counts: Sequence[Sequence[int]], names: Sequence[str]
) -> figure_lib.Figure:
    """Draws cells in the color of their share of the true class."""
    size = len(counts)
    shares = [[n / max(1, sum(row)) for n in row] for row in counts]
    side = 1.6 + 0.42 * size
    figure, (axes,) = _grid(1, 1, side + 0.9, side)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(counts):
        for predicted, count in enumerate(row):
            if count:
                axes.text(
                    predicted,
                    true,
                    f"{count}",
                    ha="center",
                    va="center",
                    color="white"
                    if shares[true][predicted] > _DARK
                    else "black",
                    fontsize=8 if count < 1000 else 6,
                )
    labels = [_class_label(name) for name in names]
    axes.set_xticks(range(size), labels, rotation=90)
    axes.set_yticks(range(size), labels)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.spines[:].set_visible(True)
    axes.grid(False)
    bar = figure.colorbar(image, shrink=0.7)
    bar.set_label("share of the true class")
    return figure


def _class_label(name: str) -> str:
    name = io.one_line(name)
    if len(name) > _LONG_CLASS:
        name = name[: _LONG_CLASS - 1] + "…"
    return _plain(name)


# Transfer --------------------------------------------------------------------


@_styled
def save_strengths(outcomes: Sequence[Any], path: pathlib.Path) -> None:
    """Draws how linear evaluation chose its regularization strengths.

    A panel a dataset and a curve a model: validation accuracy by strength. A
    dot is the strength chosen, a cross a fit that did not converge.

    Args:
        outcomes: `probes.measuring.Outcome`s of --protocol=linear, at least
            one.
        path: A PNG, SVG or PDF file.

    Raises:
        InputError: The file cannot be written.
    """
    datasets = list(dict.fromkeys(each.dataset for each in outcomes))
    models = list(dict.fromkeys(each.model for each in outcomes))
    across = min(len(datasets), 3)
    width = max(5.5 / across, 3.4)
    figure, panels = _grid(len(datasets), across, width, 2.6, extra=0.5)
    for axes, dataset in zip(panels, datasets, strict=True):
        for each in outcomes:
            if each.dataset == dataset:
                _draw_strengths(axes, each, color(models.index(each.model)))
        axes.set_title(_plain(transfer_table.title(dataset)))
        axes.set_xlabel("strength λ")
        axes.set_ylabel("validation images right, %")
    keys = [_key(model, color(i)) for i, model in enumerate(models)]
    _legend(figure, keys, 3)
    _save(figure, path)


def _draw_strengths(axes: axes_lib.Axes, outcome: Any, shade: str) -> None:
    fits = outcome.details["strengths"]
    for marker, chosen in (
        ("-", fits),
        ("x", [fit for fit in fits if not fit["converged"]]),
        (
            "o",
            [f for f in fits if f["strength"] == outcome.details["strength"]],
        ),
    ):
        axes.semilogx(
            [fit["strength"] for fit in chosen],
            [100 * fit["score"] for fit in chosen],
            marker,
            color=shade,
            markersize=4 if marker == "x" else 6,
        )
