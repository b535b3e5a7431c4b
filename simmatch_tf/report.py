r"""Writes a page on one or more runs: results, curves, errors, what to try.

python -m simmatch_tf.report runs/digits_40 --output=report.html
python -m simmatch_tf.report SimMatch=runs/a FixMatch=runs/b \
    --output=report.html --figures=figures
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, tables
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError

if TYPE_CHECKING:
    from simmatch_tf.reporting import runs as runs_lib


@dataclasses.dataclass(frozen=True)
class ReportConfig(config_lib.ImageFolders):
    """The flags of `python -m simmatch_tf.report`."""

    positional: ClassVar[tuple[str, ...]] = ("runs",)

    runs: tuple[str, ...] = flag(
        (),
        "Folder of a run, or NAME=FOLDER to give it a name; repeatable. May "
        "be given without --runs=.",
        required="a run's folder: report runs/NAME --output=report.html",
    )
    output: str | None = flag(
        None, "HTML page to write.", required="an .html file"
    )
    figures: str | None = flag(
        None,
        "Folder to write the figures to as PNG files. Default: none are "
        "written.",
    )
    images: int = flag(
        24,
        "Number of misclassified test images to show, and of the least certain "
        "test images. 0 reads no images.",
        low=0,
        high=1000,
    )
    neighbors: int = flag(
        5,
        "Largest number of labeled images shown next to each.",
        low=1,
        high=100,
    )
    batch_size: int = flag(
        256, "Batch size for evaluation, in images.", low=1, rare=True
    )

    def check(self) -> None:
        """The page and the folder must be such as can be written."""
        commandline.check_output_file("output", self.output, (".html", ".htm"))
        commandline.check_output_folder("figures", self.figures)


def main(flags: ReportConfig) -> None:
    """Reads the runs, predicts their test images, and writes the page."""
    from simmatch_tf.reporting import runs as runs_lib

    runs = runs_lib.read(flags.runs)
    # matplotlib takes a second to import: only after the cheap checks.
    from simmatch_tf.reporting import report_page

    groups = runs_lib.group(runs)
    inspections = report_page.Inspections(*_inspect(groups, flags))
    output = io.expand(flags.output)
    io.write_text(output, report_page.page(groups, inspections))
    if flags.figures is not None:
        folder = io.expand(flags.figures)
        names = report_page.save_figures(groups, inspections, folder)
    known = report_page.reports(groups, inspections)
    print(tables.plain(report_page.result(groups, known)))
    notes = (
        report_page.not_compared(groups)
        + report_page.unfinished(groups)
        + report_page.left_out(inspections)
    )
    print("\n".join(["", *notes, f"Written to {output}."]))
    if flags.figures is not None:
        print(f"In {folder}: {', '.join(names) or 'no figure'}.")


def _inspect(
    groups: "Sequence[runs_lib.Group]", flags: ReportConfig
) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """Predicts the test images of finished runs.

    Returns:
        The attributes of `report_page.Inspections`. Each group shows the
        images of its worst run, which has the most errors to look at.
    """
    runs = [run for group in groups for run in group.measured]
    if flags.images == 0:
        return {}, [], {run.name: "--images=0" for run in runs}
    if not runs:
        return {}, [], {}
    preflight.start()  # with the kernels of training
    from simmatch_tf.serving import scoring

    inspector = scoring.Inspector(
        data_dir=flags.data_dir,
        tfds_dir=flags.tfds_dir,
        neighbors=flags.neighbors,
        batch_size=flags.batch_size,
        images=flags.images,
    )
    by_run, shown, skipped = {}, [], {}
    for group in groups:
        worst = min(group.measured, key=lambda r: r.result.top1, default=None)
        for run in group.measured:
            try:
                by_run[run.name] = inspector.inspect(
                    run.folder, run.result, pictures=run is worst
                )
                shown += [run.name] * (run is worst)
            except InputError as error:
                skipped[run.name] = str(error)
    return by_run, shown, skipped


if __name__ == "__main__":
    command.run(main, ReportConfig)
