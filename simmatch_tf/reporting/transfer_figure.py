"""How linear evaluation chose its strengths, as a picture. No TensorFlow."""

import pathlib
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib import axes as axes_lib
from matplotlib import figure as figure_lib

from simmatch_tf.flags.commandline import InputError
from simmatch_tf.reporting import comparison_figure, transfer_table

_WIDE = 3  # panels in one line


def save(outcomes: Sequence[Any], path: pathlib.Path) -> None:
    """Draws validation accuracy by strength, a panel a dataset.

    Args:
        outcomes: `probes.scores.Outcome`s of --protocol=linear, at least
            one.
        path: PNG, SVG or PDF.

    Raises:
        InputError: It cannot be written.
    """
    datasets = list(dict.fromkeys(each.dataset for each in outcomes))
    models = list(dict.fromkeys(each.model for each in outcomes))
    across = min(len(datasets), _WIDE)
    down = -(-len(datasets) // across)
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "simmatch"}):
        page = figure_lib.Figure(
            figsize=(max(5.5, 3.4 * across), 2.6 * down + 0.5),
            dpi=150,
            layout="constrained",
        )
        panels = list(page.subplots(down, across, squeeze=False).flat)
        for panel, dataset in zip(panels, datasets, strict=False):
            own = [each for each in outcomes if each.dataset == dataset]
            _curves(panel, own, models)
            title = comparison_figure.plain(transfer_table.title(dataset))
            panel.set_title(title, fontsize=9)
        for panel in panels[len(datasets) :]:
            panel.remove()
        handles = {}
        for panel in panels[: len(datasets)]:
            lines, names = panel.get_legend_handles_labels()
            handles |= dict(zip(names, lines, strict=True))
        page.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(len(handles), 3),
            frameon=False,
        )
        try:
            page.savefig(path)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror})"
            ) from None


def _curves(
    panel: axes_lib.Axes, outcomes: Sequence[Any], models: Sequence[str]
) -> None:
    """A curve a model; the dot is what was chosen, a cross what was capped."""
    for each in outcomes:
        fits = each.details["strengths"]
        colour = f"C{models.index(each.model) % 10}"
        panel.semilogx(
            [fit["strength"] for fit in fits],
            [100 * fit["score"] for fit in fits],
            color=colour,
            label=comparison_figure.plain(each.model),
        )
        capped = [fit for fit in fits if not fit["converged"]]
        panel.plot(
            [fit["strength"] for fit in capped],
            [100 * fit["score"] for fit in capped],
            "x",
            color=colour,
            markersize=4,
        )
        strength = each.details["strength"]
        (best,) = (fit for fit in fits if fit["strength"] == strength)
        panel.plot(strength, 100 * best["score"], "o", color=colour)
    panel.set_xlabel("strength λ")
    panel.set_ylabel("validation images right, %")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.25)
