"""Writes a page on one run or several: results, curves, errors, what next.

python -m simmatch_tf.report runs/digits_40 --output=report.html
python -m simmatch_tf.report SimMatch=runs/a FixMatch=runs/b \
    --output=report.html --figures=figures
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from simmatch_tf import config as config_lib
from simmatch_tf import preflight
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import InputError, flag
from simmatch_tf.reporting import runs as runs_lib
from simmatch_tf.reporting import tables

if TYPE_CHECKING:
    from simmatch_tf.serving import scoring


@dataclasses.dataclass(frozen=True)
class ReportConfig(config_lib.ImageFolders):
    """The flags of `python -m simmatch_tf.report`."""

    positional: ClassVar[tuple[str, ...]] = ("runs",)

    runs: tuple[str, ...] = flag(
        (),
        "Folder of a run, or NAME=FOLDER to give it a name; repeatable. May "
        "be given without --runs=.",
    )
    output: str | None = flag(None, "HTML page to write.")
    figures: str | None = flag(
        None,
        "Folder to write the figures to as PNG files. Default: none are "
        "written.",
    )
    images: int = flag(
        24,
        "Number of wrong and of least certain test images to show. 0 reads no "
        "images.",
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
        """Runs and a page are needed."""
        if not self.runs:
            raise InputError("no run is named: report WORKDIR … --output=…")
        if not (self.output or "").strip():
            raise InputError(f"--output={self.output}: name an .html file")
        commandline.check_output_file("output", self.output, (".html", ".htm"))
        commandline.check_output_folder("figures", self.figures)
        if self.figures is None:
            return
        path = pathlib.Path(self.figures).expanduser()
        if not path.is_dir() and not path.absolute().parent.is_dir():
            raise InputError(
                f"--figures={self.figures}: must be in a folder that exists"
            )


def main(flags: ReportConfig) -> None:
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


def make_inspector(flags: ReportConfig) -> "scoring.Inspector":
    """Returns what looks at test images as the flags say."""
    from simmatch_tf.serving import scoring

    return scoring.Inspector(
        data_dir=flags.data_dir,
        tfds_dir=flags.tfds_dir,
        neighbors=flags.neighbors,
        batch_size=flags.batch_size,
        images=flags.images,
    )


def _look(
    groups: Sequence[runs_lib.Group], flags: ReportConfig
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
                inspector = make_inspector(flags)
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
    command.run(main, ReportConfig)
