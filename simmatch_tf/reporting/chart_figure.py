"""Charts of runs as pictures. Nothing here imports TensorFlow."""

import io
import math
import pathlib
from collections.abc import Sequence

import matplotlib
from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib
from matplotlib import lines as lines_lib

from simmatch_tf.reporting import charts, comparison_figure
from simmatch_tf.reporting import runs as runs_lib

# Of Okabe and Ito: told apart by the colour-blind, too. Without their yellow,
# which is faint on white.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)
_STYLES = ("-", "--", ":")
_WIDE, _TALL = 4.2, 2.7  # inches of a panel
_MOST = 500  # points of a line: more are not seen
_RC = {
    "font.size": 9,
    "svg.hashsalt": "simmatch",
    "axes.formatter.limits": (-4, 6),
}


def colour(number: int) -> str:
    """Of a group."""
    return COLOURS[number % len(COLOURS)]


def present(
    chart: charts.Chart, groups: Sequence[runs_lib.Group]
) -> list[charts.Panel]:
    """The panels of a chart for which some run has values."""
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


def svg(
    panel: charts.Panel, groups: Sequence[runs_lib.Group], width: int
) -> bytes:
    """A panel by itself, as SVG.

    Args:
        panel: With values.
        groups: Each in a colour.
        width: See `charts.smooth`.
    """
    with matplotlib.rc_context(_RC):
        page = figure_lib.Figure(figsize=(_WIDE, _TALL), layout="constrained")
        draw(page.subplots(), panel, groups, width)
        file = io.BytesIO()
        # The same bytes for the same runs.
        page.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def save(
    chart: charts.Chart,
    groups: Sequence[runs_lib.Group],
    path: pathlib.Path,
) -> bool:
    """Writes a chart as PNG; False if no run has values for it."""
    panels = present(chart, groups)
    if not panels:
        return False
    across = len(panels) if len(panels) < 4 else 2
    down = -(-len(panels) // across)
    width = charts.window(chart, groups)
    with matplotlib.rc_context(_RC):
        page = figure_lib.Figure(
            figsize=(_WIDE * across, _TALL * down + 0.5),
            dpi=150,
            layout="constrained",
        )
        places = page.subplots(down, across, squeeze=False).flat
        for place, panel in zip(places, panels, strict=False):
            draw(place, panel, groups, width)
        for place in list(places)[len(panels) :]:
            place.remove()
        title = chart.title
        if width > 1:
            title += f" (running mean over {width} logged steps)"
        if len(groups) > 1:
            keys = [
                lines_lib.Line2D(
                    [],
                    [],
                    color=colour(i),
                    label=comparison_figure.plain(g.name),
                )
                for i, g in enumerate(groups)
            ]
            page.legend(
                handles=keys,
                loc="outside lower center",
                ncols=min(4, len(keys)),
                frameon=False,
            )
        page.suptitle(title, fontsize=10)
        page.savefig(path)
    return True


def draw(
    axes: axes_lib.Axes,
    panel: charts.Panel,
    groups: Sequence[runs_lib.Group],
    width: int,
) -> None:
    """Draws a panel: a colour a group, or a line where there is one group."""
    several, named = len(groups) > 1, []
    for number, (tag, name) in enumerate(panel.lines.items()):
        style = _STYLES[number] if several else "-"
        seen = False
        for place, group in enumerate(groups):
            shade = colour(place if several else number)
            seen |= _draw_group(
                axes, panel, group, tag, width, color=shade, linestyle=style
            )
        if seen:
            shade = "#555555" if several else colour(number)
            named.append(
                lines_lib.Line2D(
                    [],
                    [],
                    color=shade,
                    linestyle=style,
                    label=comparison_figure.plain(name),
                )
            )
    if len(named) > 1:
        axes.legend(handles=named, fontsize=8, framealpha=0.7)
    axes.set_title(comparison_figure.plain(panel.title), fontsize=9, loc="left")
    axes.set_ylabel(comparison_figure.plain(panel.unit))
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def _draw_group(
    axes: axes_lib.Axes,
    panel: charts.Panel,
    group: runs_lib.Group,
    tag: str,
    width: int,
    **look: str,
) -> bool:
    """A line a run, and their mean; False if there is none."""
    if not charts.is_noisy(tag):
        width = 1
    raw = {
        run.name: found
        for run in group.runs
        if (found := charts.curve(run, tag, panel.scale)) is not None
    }
    found = {name: charts.smooth(each, width) for name, each in raw.items()}
    if len(found) == 1 and width > 1:
        _plot(axes, *raw.values(), alpha=0.25, linewidth=0.7, **look)
    thin = {"alpha": 0.45, "linewidth": 0.8} if len(found) > 1 else {}
    for each in found.values():
        _plot(axes, each, **{"linewidth": 1.6, **thin}, **look)
    if len(found) > 1:
        # One that is under way would cut off the mean of the others.
        whole = [found[r.name] for r in group.finished if r.name in found]
        many = whole if len(whole) > 1 else list(found.values())
        average = charts.mean(many)
        if average is not None:
            _plot(axes, average, linewidth=1.8, **look)
    return bool(found)


def _plot(axes: axes_lib.Axes, found: charts.Curve, **look) -> None:
    every = max(1, -(-len(found.steps) // _MOST))
    last = len(found.steps) - 1
    places = [*range(0, last, every), last]  # the last in any case
    steps = [found.steps[i] for i in places]
    values = [found.values[i] for i in places]
    alone = len(steps) - sum(map(math.isnan, values)) < 2
    axes.plot(steps, values, marker="o" if alone else "", markersize=4, **look)


def words(panel: charts.Panel, groups: Sequence[runs_lib.Group]) -> str:
    """A panel in words, for those who do not see it: its last values."""
    said = []
    for group in groups:
        for tag, name in panel.lines.items():
            found = [charts.curve(r, tag, panel.scale) for r in group.runs]
            last = [
                value
                for each in found
                if each is not None
                for value in [v for v in each.values if not math.isnan(v)][-1:]
            ]
            if last:
                label = " ".join(filter(None, (group.name, name)))
                average = math.fsum(last) / len(last)
                said.append(f"{label} {average:.4g}")
    unit = f", {panel.unit}" if panel.unit else ""
    return f"{panel.title}{unit}, over steps. Last: {'; '.join(said)}."
