"""Runs a plan of experiments, and writes its table and figure.

python -m simmatch_tf.experiment configs/plans/slides_table1_digits.cfg

Started again, it goes on; what is finished is not run again.
"""

import dataclasses
import pathlib
import sys
from typing import ClassVar

from tqdm import auto

from simmatch_tf import preflight, signals, terminal
from simmatch_tf.experiments import finished, grid, plan, summary
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import InputError, flag


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(commandline.Flags):
    """The flags of `python -m simmatch_tf.experiment`."""

    positional: ClassVar[tuple[str, ...]] = ("plan",)

    plan: str | None = flag(
        None,
        "The plan, a .cfg file. May be given without --plan=.",
    )
    workdir: str | None = flag(
        None,
        "Folder for table.md, table.csv, runs.csv, table.png and the folders "
        "of the runs. Default: runs/NAME_OF_THE_PLAN.",
    )
    results: str | None = flag(
        None,
        "Folder of finished runs, one small file each; a run found there is "
        "not run again. Default: finished/ in the workdir.",
    )
    seeds: str | None = flag(
        None,
        "Seeds of the plan to run now, such as 0,1,2. Default: all. The table "
        "always has every finished run.",
    )
    jobs: int = flag(1, "Number of runs at once.", low=1, high=1024)
    gpus: str | None = flag(
        None,
        "Numbers of the GPUs to use, such as 0,1,2,3, divided equally among "
        "the --jobs. Default: each run sees all GPUs.",
    )
    page: str | None = flag(
        None,
        "Markdown file to insert the table into, between the comments "
        "<!-- PLAN --> and <!-- /PLAN -->.",
    )
    dry_run: bool = flag(
        False, "Print which runs are left and how long they take, then exit."
    )
    only_tables: bool = flag(
        False, "Write the tables of the finished runs, then exit."
    )
    progress: bool = flag(True, "Show a progress bar.")

    def check(self) -> None:
        """A plan is needed; lists of numbers must be such."""
        if self.plan is None:
            raise InputError("no plan is named: experiment PLAN.cfg …")
        for name in ("workdir", "results"):
            commandline.check_output_folder(name, getattr(self, name))
        self.chosen_seeds()
        if len(self.chosen_gpus()) % self.jobs:
            raise InputError(
                f"--gpus={self.gpus} and --jobs={self.jobs}: each run needs "
                "GPUs of its own, and all as many"
            )
        if self.only_tables and self.dry_run:
            raise InputError("--only_tables and --dry_run: one of them")

    def chosen_seeds(self) -> tuple[int, ...]:
        """Returns the numbers of --seeds."""
        return (
            ()
            if self.seeds is None
            else commandline.numbers("--seeds", self.seeds)
        )

    def chosen_gpus(self) -> tuple[int, ...]:
        """Returns the numbers of --gpus."""
        return (
            ()
            if self.gpus is None
            else commandline.numbers("--gpus", self.gpus)
        )


def main(flags: ExperimentConfig) -> int | None:
    """Runs what is left; 42 if it was interrupted, 1 if a run failed."""
    what = plan.read(flags.plan)
    cells = what.cells()
    folder = pathlib.Path(flags.workdir or f"runs/{what.name}").expanduser()
    store = finished.Store(
        pathlib.Path(flags.results or folder / "finished").expanduser()
    )
    summary.check_page(flags.page, what.name)
    chosen = plan.of_seeds(cells, flags.chosen_seeds())
    if flags.dry_run:
        print(summary.costs(what, chosen, store, progress=flags.progress))
        return None
    if flags.only_tables:
        print(summary.write(what, cells, store, folder, flags.page))
        return None
    for cell in finished.missing(chosen, store):
        _check_available(cell)
    with grid.claim(folder) as lock:
        left = finished.missing(chosen, store)
        if left:
            store.check_writable()
            terminal.say(
                f"{len(left)} runs, {flags.jobs} at once; what they say is in "
                f"{folder / 'runs'}"
            )
        # None: not where there is no terminal.
        hidden = None if left and flags.progress else True
        bar = auto.tqdm(total=len(left), unit="run", disable=hidden)

        def done(cell: plan.Cell, found: finished.Finished) -> None:
            bar.write(summary.line(cell, found))
            bar.update()

        stopped, failed = None, {}
        try:
            failed = grid.run(
                left, store, folder / "runs", jobs=flags.jobs,
                gpus=flags.chosen_gpus(), lock=lock, done=done,
            )  # fmt: skip
        except signals.Interrupted as stop:
            stopped = stop
        finally:
            bar.close()
        print(summary.write(what, cells, store, folder, flags.page))
    for cell, why in failed.items():
        print(f"failed: {summary.title(cell)}: {why}", file=sys.stderr)
    if stopped is not None:
        print(stopped, file=sys.stderr)
        return signals.RESUME_ME
    return 1 if failed else None


def _check_available(cell: plan.Cell) -> None:
    """Checks that a run has what it needs; see `preflight.check_available`."""
    try:
        preflight.check_available(cell.config)
    except InputError as error:
        raise InputError(f"{summary.title(cell)}: {error}") from None


if __name__ == "__main__":
    command.run(main, ExperimentConfig)
