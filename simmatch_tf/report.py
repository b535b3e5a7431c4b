"""Writes a page on one run or several: results, curves, errors, what next.

python -m simmatch_tf.report runs/digits_40 --output=report.html
python -m simmatch_tf.report SimMatch=runs/a FixMatch=runs/b \
    --output=report.html --figures=figures
"""

import pathlib
from collections.abc import Sequence

from simmatch_tf import command_flags, preflight
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.reporting import runs as runs_lib
from simmatch_tf.reporting import tables


def main(flags: command_flags.ReportConfig) -> None:
    """Reads the runs, looks at their test images, and writes the page."""
    places = runs_lib.find(flags.runs)
    # Seconds to import, so only now that all that is cheap is checked.
    from simmatch_tf.reporting import predictions, report_page, report_tables

    groups = runs_lib.group([runs_lib.read(place) for place in places])
    looked = report_page.Looked(*_look(groups, flags))
    output = pathlib.Path(flags.output).expanduser()
    predictions.write(output, report_page.page(groups, looked), "output")
    folder = flags.figures and pathlib.Path(flags.figures).expanduser()
    written = folder and report_page.save_figures(groups, looked, folder)
    found = report_tables.result(groups, report_page.reports(groups, looked))
    print(tables.table([found.head, *found.rows]))
    said = report_tables.not_compared(groups)
    said += report_tables.unfinished(groups)
    for name, why in looked.why_not.items():
        said.append(f"{name}: no test images are shown: {why}")
    print("\n".join(["", *said, f"Written to {output}."]))
    if folder is not None:
        print(f"In {folder}: {', '.join(written) or 'no figure'}.")


def _look(
    groups: Sequence[runs_lib.Group], flags: command_flags.ReportConfig
) -> tuple[dict, list[str], dict[str, str]]:
    """Scores the finished runs; see `report_page.Looked`.

    The images of each group's worst run are shown: most is to be seen there.
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
                preflight.start()  # by the kernels of training
                from simmatch_tf.serving import scoring

                inspector = scoring.Inspector(
                    images=flags.images,
                    neighbors=flags.neighbors,
                    batch_size=flags.batch_size,
                    moved=flags.moved,
                )
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
