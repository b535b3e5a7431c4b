"""Plain-text tables for the terminal. Nothing here imports TensorFlow."""

import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

from simmatch_tf import io
from simmatch_tf.reporting import comparison
from simmatch_tf.training import results

TOP = 5  # of top-5
_MANY = 100  # classes beyond which only the worst are shown
_WORST = 20
_WIDE = 15  # classes beyond which a confusion matrix is not for a terminal


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns: the first to the left, the others to the right."""
    rows = [[*map(io.one_line, row)] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [
            cell.rjust(width)
            for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def result(found: results.Result) -> str:
    """The table that ends a run."""
    rows = [["weights", "top-1", "95 %", "top-5", "best top-1", "at step"]]
    for name in ("student", "ema"):
        figures = getattr(found, name)
        mark = " *" if name == found.weights_of_record else ""
        last, best = figures["last"], figures["best"]
        rows.append(
            [
                name + mark,
                _percent(last["top1"]),
                comparison.wilson_text(last["top1"], found.test_images),
                _percent(last["top5"]),
                _percent(best["top1"]),
                str(best["step"]),
            ]
        )
    if not shows_top5(len(found.class_names)):
        rows = [row[:3] + row[4:] for row in rows]
    chosen_on = found.student["best"]["chosen_on"]
    return (
        f"{found.algorithm} on {found.dataset}: {found.labels} labels, "
        f"{found.steps} steps, seed {found.seed}, split seed "
        f"{found.split_seed}\n\n{table(rows)}\n\n"
        f"* the result: last checkpoint, {found.test_images} "
        f"{found.scored_on} images.\n"
        f"  95 %: the interval that so many images allow (Wilson).\n"
        f"  Best is chosen on the {chosen_on} images."
    )


def shows_top5(classes: int) -> bool:
    """Whether top-5 says anything: of five classes it is always 100 %."""
    return classes > TOP


def next_steps(workdir: pathlib.Path) -> str:
    """What a finished run left, and what can be done with it."""
    given = shlex.quote(str(workdir))
    # A folder of its own: versions of one model only go into one.
    exports = shlex.quote(f"exports/{workdir.absolute().name or 'run'}")
    shown = "tensorboard/, " if (workdir / "tensorboard").is_dir() else ""
    module = "  python -m simmatch_tf."
    lines = [
        f"In {workdir}: {shown}checkpoints/, results.json. Next:",
        f"{module}report {given} --output=report.html",
        f"{module}evaluate --workdir={given}",
        f"{module}export --workdir={given} --output={exports}",
    ]
    if shown:
        lines.insert(2, f"  tensorboard --logdir={given}")
    return "\n".join(lines)


def evaluation(report: dict[str, Any]) -> str:
    """The table of `evaluate`: a run's two networks side by side."""
    names = [name for name in ("student", "ema") if name in report]
    rows = [
        ["", *(n + (" *" if n == report["weights_of_record"] else "")
               for n in names)]
    ]  # fmt: skip
    images = report["test_images"]
    rows += [
        ["top-1", *(_percent(report[n]["top1"]) for n in names)],
        [
            "95 % interval (Wilson)",
            *(comparison.wilson_text(report[n]["top1"], images) for n in names),
        ],
        ["top-5", *(_percent(report[n]["top5"]) for n in names)],
        [
            "calibration error",
            *(_percent(report[n]["calibration_error"]) for n in names),
        ],
    ]
    if not shows_top5(len(report["class_names"])):
        rows = [row for row in rows if row[0] != "top-5"]
    shown = range(len(report["class_names"]))
    if len(shown) > _MANY:  # the file has them all
        record = report[report["weights_of_record"]]["per_class"]
        shown = sorted(
            (i for i in shown if record[i] is not None), key=record.__getitem__
        )[:_WORST]
    for label in shown:
        class_name = report["class_names"][label]
        rows.append(
            [
                f"class {class_name}",
                *(_percent(report[n]["per_class"][label]) for n in names),
            ]
        )
    text = (
        f"Step {report['step']}, {report['test_images']} "
        f"{report['scored_on']} images, * weights of record\n\n{table(rows)}"
    )
    class_names = [str(name) for name in report["class_names"]]
    if len(class_names) <= _WIDE:
        record = report["weights_of_record"]
        rows = [["true \\ predicted", *class_names]]
        for name, counts in zip(
            class_names, report[record]["confusion"], strict=True
        ):
            rows.append([name, *(str(count or ".") for count in counts)])
        text += f"\n\nConfusion of {record}:\n\n{table(rows)}"
    return text
