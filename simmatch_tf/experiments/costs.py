"""What is left of a plan, and what it costs: from finished runs, or a step."""

import dataclasses
import statistics

from tqdm import auto

from simmatch_tf import preflight
from simmatch_tf.experiments import finished, identity, plan

# Pixels of a measured batch; a processor has neither memory nor time for whole
# ones: WRN-28-8 takes 1.5 s for each labeled CIFAR image.
_PIXELS = 50_000
_ROUNDS = 5
_ENOUGH_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one place of a plan's table.

    Attributes:
        row: See `plan.Cell`.
        column: Likewise.
        runs: Its runs.
        left: Those that are not finished, and not of a place before.
        steps: Of each.
        seconds: Of each.
        measured: "runs", if finished ones took that long; "step", if a step
            was taken.
    """

    row: str
    column: str
    runs: int
    left: int
    steps: int
    seconds: float
    measured: str


def of(
    cells: list[plan.Cell], store: finished.Store, *, progress: bool = False
) -> list[Cost]:
    """The cost of each place, in the plan's order.

    Args:
        cells: Of the plan.
        store: Of finished runs.
        progress: A bar, where there is a terminal.

    Raises:
        InputError: A dataset's size cannot be told.
    """
    places: dict[tuple[str, str], list[plan.Cell]] = {}
    for cell in cells:
        places.setdefault((cell.row, cell.column), []).append(cell)
    known: dict[tuple, float] = {}
    counted: set[str] = set()
    costs = []
    bar = auto.tqdm(
        places.items(),
        desc="a step of each",
        leave=False,
        disable=None if progress else True,
    )
    for (row, column), these in bar:
        found = [store.find(cell.config) for cell in these]
        have = [each for each in found if each is not None]
        if have:
            steps = have[0].steps
            seconds = statistics.mean(each.seconds for each in have)
        else:
            preflight.start()
            from simmatch_tf.training import rehearsal

            config = these[0].config
            outline = rehearsal.outline(config)
            steps = outline.steps
            shape = outline.work()
            if shape not in known:
                known[shape] = rehearsal.seconds_per_step(
                    config,
                    outline,
                    pixels=_PIXELS,
                    rounds=_ROUNDS,
                    patience=_ENOUGH_SECONDS,
                )
            seconds = steps * known[shape]
        names = {
            identity.name(cell.config)
            for cell, each in zip(these, found, strict=True)
            if each is None
        }
        left = len(names - counted)
        counted |= names
        costs.append(
            Cost(
                row,
                column,
                runs=len(these),
                left=left,
                steps=steps,
                seconds=seconds,
                measured="runs" if have else "step",
            )
        )
    return costs
