"""Writes a page on one or more runs: results, curves, errors, what to try next.

python -m simmatch_tf.report runs/digits_40 --output=report.html
python -m simmatch_tf.report SimMatch=runs/a FixMatch=runs/b \
    --output=report.html --figures=figures
"""

from collections.abc import Sequence
from typing import Any

from simmatch_tf import command_flags, io, preflight, tables
from simmatch_tf.flags import commandline
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import runs as runs_lib


def main(flags: command_flags.ReportConfig) -> None:
    """Reads the runs, predicts their test images, and writes the page."""
    places = runs_lib.find(flags.runs)
    # matplotlib takes a second to import: only after the cheap checks.
    from simmatch_tf.reporting import report_page

    groups = runs_lib.group([runs_lib.read(place) for place in places])
    inspections = report_page.Inspections(*_inspect(groups, flags))
    output = io.expand(flags.output)
    io.write_text(output, report_page.page(groups, inspections))
    folder = io.expand(flags.figures) if flags.figures else None
    if folder is not None:
        names = report_page.save_figures(groups, inspections, folder)
    known = report_page.reports(groups, inspections)
    print(tables.plain(report_page.result(groups, known)))
    notes = report_page.not_compared(groups) + report_page.unfinished(groups)
    for name, reason in inspections.why_not.items():
        notes.append(f"{name}: no test images are shown: {reason}")
    print("\n".join(["", *notes, f"Written to {output}."]))
    if folder is not None:
        print(f"In {folder}: {', '.join(names) or 'no figure'}.")


def _inspect(
    groups: Sequence[runs_lib.Group], flags: command_flags.ReportConfig
) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Predicts the test images of finished runs.

    Returns:
        The attributes of `report_page.Inspections`. Each group shows the
        images of its worst run, which has the most errors to look at.
    """
    found, shown, why_not = {}, [], {}
    inspector = None
    for group in groups:
        worst = min(group.finished, key=lambda r: r.result.top1, default=None)
        for run in group.finished:
            if flags.images == 0:
                why_not[run.name] = "--images=0"
                continue
            if inspector is None:
                preflight.start()  # with the kernels of training
                from simmatch_tf.serving import inspection

                inspector = inspection.Inspector(flags)
            try:
                found[run.name] = inspector.inspect(
                    run.folder, run.result, pictures=run is worst
                )
            except InputError as error:
                why_not[run.name] = str(error)
        if worst is not None and worst.name in found:
            shown.append(worst.name)
    return found, shown, why_not


if __name__ == "__main__":
    commandline.run(main, command_flags.ReportConfig)
