"""The page of `report`, and its figures. Imports no TensorFlow."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from simmatch_tf.flags.commandline import InputError
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.reporting import (
    chart_figure,
    charts,
    confusion_figure,
    predictions,
    report_tables,
)
from simmatch_tf.reporting import runs as runs_lib


@dataclasses.dataclass(frozen=True)
class Looked:
    """What is known of runs' test images.

    Attributes:
        found: Run → what it makes of them, a `serving.scoring.Inspection`.
        shown: The runs whose images are on the page.
        why_not: Run → why it is not in `found`.
    """

    found: Mapping[str, Any]
    shown: Sequence[str]
    why_not: Mapping[str, str]


def reports(
    groups: Sequence[runs_lib.Group], looked: Looked
) -> report_tables.Reports:
    """What is known of each run's test images: just found, or on file."""
    known = {}
    for group in groups:
        for run in group.finished:
            if run.name in looked.found:
                known[run.name] = looked.found[run.name].report
            elif run.evaluation is not None:
                known[run.name] = run.evaluation
    return known


def findings(groups: Sequence[runs_lib.Group]) -> list[dict[str, Any]]:
    """Known patterns, each once a group: its runs, and the first's finding."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for group in groups:
        for run in group.runs:
            shown = diagnosis.find(run.config, run.scalars, **_length(run))
            for each in shown:
                seen = found.setdefault(
                    (group.name, each.name), {"finding": each, "runs": []}
                )
                seen["runs"].append(run.name)
    return list(found.values())


def not_judged(groups: Sequence[runs_lib.Group]) -> list[str]:
    """What could not be looked at, for lack of values: a sentence a run."""
    said = []
    for group in groups:
        for run in group.runs:
            found = diagnosis.not_judged(
                run.config, run.scalars, **_length(run)
            )
            names = ", ".join(name.replace("_", " ") for name in found)
            if names:
                said.append(f"{run.name} has too few values to tell: {names}.")
    return said


def _length(run: runs_lib.Run) -> dict[str, int]:
    # Of one that is under way, and whose length is not known, what shows now.
    return {"step": run.reached, "steps": run.steps or run.reached}


def page(groups: Sequence[runs_lib.Group], looked: Looked) -> str:
    """A page that needs no other file, and no network.

    Args:
        groups: The runs.
        looked: What is known of their test images.

    Returns:
        HTML. Every name in it comes from data, so all are escaped.
    """
    known = reports(groups, looked)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("simmatch_tf.reporting"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=", ".join(group.name for group in groups),
        groups=groups,
        colours=[chart_figure.colour(i) for i in range(len(groups))],
        what=report_tables.what(groups),
        differences=report_tables.differences(groups),
        result=report_tables.result(groups, known),
        scored=_scored(groups),
        not_compared=report_tables.not_compared(groups),
        unfinished=report_tables.unfinished(groups),
        findings=findings(groups),
        not_judged=not_judged(groups),
        charts=_charts(groups),
        without_scalars=[
            run.name for g in groups for run in g.runs if not run.scalars
        ],
        confusions=_confusions(groups, known),
        images=[
            (name, number, looked.found[name])
            for number, name in enumerate(looked.shown)
        ],
        left_out=_left_out(groups, looked, known),
        each_run=report_tables.each_run(groups),
        sessions=report_tables.sessions(groups),
        untimed=[
            run.name
            for group in groups
            for run in group.runs
            if run.sessions and not run.timed
        ],
        versions=report_tables.versions(groups),
        flags=[(g.name, g.config.to_flagfile()) for g in groups],
        data=predictions.data,
    )


def _scored(groups: Sequence[runs_lib.Group]) -> str:
    """The images that the results are of."""
    found = {
        f"{run.result.test_images:,} {run.result.scored_on} images of "
        f"{run.config.dataset}"
        for group in groups
        for run in group.finished
    }
    return "; ".join(sorted(found))


def _charts(groups: Sequence[runs_lib.Group]) -> list[dict[str, Any]]:
    """The charts that have values: their panels as pictures."""
    made = []
    for chart in charts.CHARTS:
        panels = chart_figure.present(chart, groups)
        if not panels:
            continue
        width = charts.window(chart, groups)
        pictures = [
            (
                predictions.data(
                    chart_figure.svg(panel, groups, width), "svg+xml"
                ),
                chart_figure.words(panel, groups),
            )
            for panel in panels
        ]
        made.append({"chart": chart, "pictures": pictures, "width": width})
    return made


def _confusions(
    groups: Sequence[runs_lib.Group], known: report_tables.Reports
) -> list[dict[str, Any]]:
    """What is taken for what, a group each."""
    made = []
    for group in groups:
        counts = report_tables.confusion(group, known)
        if counts is None:
            continue
        names = group.finished[0].result.class_names
        picture = None
        if len(names) <= confusion_figure.MOST:
            picture = predictions.data(
                confusion_figure.svg(counts, names), "svg+xml"
            )
        made.append(
            {
                "name": group.name,
                "runs": sum(run.name in known for run in group.finished),
                "picture": picture,
                "pairs": report_tables.pairs(counts, names),
                "worst": report_tables.worst(counts, names),
            }
        )
    return made


def _left_out(
    groups: Sequence[runs_lib.Group],
    looked: Looked,
    known: report_tables.Reports,
) -> list[str]:
    """What is not on the page, and why: a sentence each."""
    said = []
    for group in groups:
        for run in group.finished:
            why = looked.why_not.get(run.name)
            if why is None:
                continue
            what = "no test images are shown"
            if run.name not in known:
                what += ", and calibration and confusion are not known"
            said.append(f"{run.name}: {what}: {why}.")
    return said


def save_figures(
    groups: Sequence[runs_lib.Group], looked: Looked, folder: pathlib.Path
) -> list[str]:
    """Writes the figures as PNG files.

    Args:
        groups: The runs.
        looked: What is known of their test images.
        folder: It is made where it is not there.

    Returns:
        The files' names.

    Raises:
        InputError: They cannot be written.
    """
    known = reports(groups, looked)
    written = []
    try:
        folder.mkdir(exist_ok=True)
        for chart in charts.CHARTS:
            path = folder / f"{chart.name}.png"
            if chart_figure.save(chart, groups, path):
                written.append(path.name)
        for group in groups:
            counts = report_tables.confusion(group, known)
            names = counts and group.finished[0].result.class_names
            if not counts or len(names) > confusion_figure.MOST:
                continue
            path = folder / _file_name(group.name, written)
            confusion_figure.save(counts, names, path)
            written.append(path.name)
    except OSError as error:
        raise InputError(
            f"--figures={folder}: cannot be written ({error.strerror})"
        ) from None
    return written


def _file_name(name: str, taken: Sequence[str]) -> str:
    """Of a group's confusion matrix: what no system takes amiss."""
    plain = re.sub(r"[^\w.-]+", "_", name).strip("._") or "run"
    found, number = f"confusion_{plain}.png", 2
    while found in taken:
        found, number = f"confusion_{plain}_{number}.png", number + 1
    return found
