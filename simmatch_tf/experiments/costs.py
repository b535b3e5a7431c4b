"""What is left of a plan, and what it costs: from finished runs, or a step."""

import dataclasses
import statistics

from simmatch_tf.experiments import finished, plan

# Pixels of a measured batch; a processor's memory is not for whole ones.
_PIXELS = 150_000
_ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one place of a plan's table.

    Attributes:
        row: See `plan.Cell`.
        column: Likewise.
        runs: Its runs.
        left: Those that are not finished.
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


def of(cells: list[plan.Cell], store: finished.Store) -> list[Cost]:
    """The cost of each place, in the plan's order.

    Args:
        cells: Of the plan.
        store: Of finished runs.

    Raises:
        InputError: A dataset's size cannot be told.
    """
    places: dict[tuple[str, str], list[plan.Cell]] = {}
    for cell in cells:
        places.setdefault((cell.row, cell.column), []).append(cell)
    known: dict[tuple, float] = {}
    costs = []
    for (row, column), these in places.items():
        found = [store.find(cell.config) for cell in these]
        have = [each for each in found if each is not None]
        if have:
            steps = have[0].steps
            seconds = statistics.mean(each.seconds for each in have)
        else:
            from simmatch_tf.training import rehearsal

            config = these[0].config
            outline = rehearsal.outline(config)
            steps = outline.steps
            shape = outline.work()
            if shape not in known:
                known[shape] = rehearsal.seconds_per_step(
                    config, outline, pixels=_PIXELS, rounds=_ROUNDS
                )
            seconds = steps * known[shape]
        costs.append(
            Cost(
                row,
                column,
                runs=len(these),
                left=len(these) - len(have),
                steps=steps,
                seconds=seconds,
                measured="runs" if have else "step",
            )
        )
    return costs
