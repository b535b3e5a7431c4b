"""Runs a plan of experiments, and writes its table and figure.

python -m simmatch_tf.experiment configs/plans/slides_table1_digits.cfg

Started again, it goes on; what is finished is not run again.
"""

import pathlib
import sys

from tqdm import auto

from simmatch_tf import command_flags, signals, terminal
from simmatch_tf.experiments import finished, grid, plan, summary
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError


def main(flags: command_flags.ExperimentConfig) -> int | None:
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
    """Checks that a run has what it needs; see `Config.check_available`."""
    try:
        cell.config.check_available()
    except InputError as error:
        raise InputError(f"{summary.title(cell)}: {error}") from None


if __name__ == "__main__":
    commandline.run(main, command_flags.ExperimentConfig)
