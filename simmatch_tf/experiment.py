"""Runs a plan of experiments, and writes its tables and figure.

python -m simmatch_tf.experiment configs/plans/slides_table1_digits.cfg

The same command resumes a plan; finished runs are not run again.
"""

import dataclasses
import sys
from typing import ClassVar

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, registry, signals, tables, terminal
from simmatch_tf.experiments import plan as plan_lib
from simmatch_tf.experiments import runner, summary
from simmatch_tf.experiments import store as store_lib
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError


@dataclasses.dataclass(frozen=True)
class ExperimentConfig(commandline.Flags):
    """The flags of `python -m simmatch_tf.experiment`."""

    positional: ClassVar[tuple[str, ...]] = ("plan",)

    plan: str | None = flag(
        None,
        "The plan, a .cfg file. May be given without --plan=.",
        required="a plan's file: experiment PLAN.cfg",
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
        """Lists of numbers must be such, and folders no files."""
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


def _check_can_score(config: config_lib.Config) -> None:
    """Checks that a run has a result to compare, before any is trained.

    Raises:
        InputError: It has neither test nor validation images.
    """
    can_score = registry.sources.find(config.dataset)[0].facts.get("can_score")
    if can_score is not None and not can_score(config):
        raise InputError(
            f"--data_dir={config.data_dir} has no test images, so that there "
            "is nothing to compare; give --validation_fraction, such as 0.2"
        )


def main(flags: ExperimentConfig) -> int | None:
    """Runs what is left; returns 42 if interrupted, 1 if a run failed."""
    plan = plan_lib.read(flags.plan)
    cells = plan.cells()
    folder = io.expand(flags.workdir or f"runs/{plan.name}")
    store = store_lib.Store(io.expand(flags.results or folder / "finished"))
    summary.check_page(flags.page, plan.name)
    chosen = plan_lib.of_seeds(cells, flags.chosen_seeds())
    if flags.dry_run:
        print(summary.left(plan, chosen, store))
        return None
    if flags.only_tables:
        print(summary.write(plan, cells, store, folder, flags.page))
        return None
    for cell in store.missing(chosen):
        try:
            preflight.check_available(cell.config)
            _check_can_score(cell.config)
        except InputError as error:
            raise InputError(f"{cell.title()}: {error}") from None
    with runner.claim(folder) as lock:
        left = store.missing(chosen)
        if left:
            store.check_writable()
            terminal.say(
                f"{len(left)} runs, {flags.jobs} at once; their output is in "
                f"{folder / 'runs'}"
            )
        shown = bool(left) and flags.progress
        bar = terminal.progress(len(left), "run", shown=shown)

        def done(cell: plan_lib.Cell, finished: store_lib.Finished) -> None:
            top1 = tables.percent(finished.top1)
            seconds = f"{finished.seconds:.0f} s"
            bar.write(f"{cell.title()}: {top1} top-1, {seconds}")
            bar.update()

        interruption, failed = None, {}
        try:
            failed = runner.run(
                left,
                store,
                folder / "runs",
                jobs=flags.jobs,
                gpus=flags.chosen_gpus(),
                lock=lock,
                done=done,
            )
        except signals.Interrupted as error:
            interruption = error
        finally:
            bar.close()
        print(summary.write(plan, cells, store, folder, flags.page))
    for cell, reason in failed.items():
        print(f"failed: {cell.title()}: {reason}", file=sys.stderr)
    if interruption is not None:
        print(interruption, file=sys.stderr)
        return signals.RESUME_ME
    return 1 if failed else None


if __name__ == "__main__":
    command.run(main, ExperimentConfig)
