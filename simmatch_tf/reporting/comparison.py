"""Runs side by side: means, spreads and paired differences, as text and CSV.

Nothing here imports TensorFlow.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from simmatch_tf import tables

UNKNOWN = "–"
_CONFIDENCE = 0.95
# Two differences that happen to be equal would have an interval of width 0.
_PAIRS = 3


@dataclasses.dataclass(frozen=True)
class Score:
    """One finished run. Accuracies are in [0, 1].

    Attributes:
        row: Its row in the table.
        column: Its column in the table.
        seed: Seed of the labels and of everything else; runs are paired by it.
        top1: Top-1 accuracy of the evaluation weights.
        student_top1: Top-1 accuracy of the student.
        ema_top1: Top-1 accuracy of the student's EMA.
        steps: Length of the run.
        seconds: Duration of the run.
    """

    row: str
    column: str
    seed: int
    top1: float
    student_top1: float
    ema_top1: float
    steps: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Finished runs, and the table that they belong in.

    Attributes:
        title: Title of the figure.
        places: (row, column) of each cell, in order; a single column is "".
        reference: The row that others are compared with, if any.
        curves: Whether each column is a sweep over values of its own.
        scores: The runs that are finished.
    """

    title: str
    places: tuple[tuple[str, str], ...]
    reference: str | None
    curves: bool
    scores: tuple[Score, ...]

    def rows(self, column: str | None = None) -> list[str]:
        """Returns the rows of one column or of all, each once."""
        rows = [r for r, c in self.places if column in (None, c)]
        return list(dict.fromkeys(rows))

    def columns(self) -> list[str]:
        """Returns the columns, each once."""
        return list(dict.fromkeys(column for _, column in self.places))

    def at(self, row: str, column: str) -> list[Score]:
        """Returns the runs of one cell, by seed."""
        scores = [s for s in self.scores if (s.row, s.column) == (row, column)]
        return sorted(scores, key=lambda score: score.seed)

    def lead(self, row: str, column: str) -> "Lead | None":
        """Returns the lead of the reference over a row, if there is one."""
        if self.reference in (None, row):
            return None
        return lead(self.at(self.reference, column), self.at(row, column))


@dataclasses.dataclass(frozen=True)
class Lead:
    """The reference's top-1 minus another row's, over runs of equal seeds.

    Attributes:
        n: Number of pairs.
        mean: Mean difference.
        low: Lower end of its 95 % interval by Student's t; None of fewer than
            three pairs.
        high: Upper end.
    """

    n: int
    mean: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Mean and interval in per cent, and the number of pairs."""
        text = f"{100 * self.mean:+.1f}"
        if self.low is not None:
            text += f" [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"
        return f"{text} ({self.n})"


def lead(reference: Sequence[Score], others: Sequence[Score]) -> Lead | None:
    """Compares runs of equal seeds; None if there are none."""
    by_seed = {score.seed: score.top1 for score in others}
    differences = [
        score.top1 - by_seed[score.seed]
        for score in reference
        if score.seed in by_seed
    ]
    if not differences:
        return None
    n, mean = len(differences), statistics.mean(differences)
    if n < _PAIRS:
        return Lead(n, mean, None, None)
    from scipy import stats  # takes a second to import

    half = stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1)
    half *= statistics.stdev(differences) / math.sqrt(n)
    return Lead(n, mean, mean - half, mean + half)


def wilson(share: float, images: int) -> tuple[float, float]:
    """Computes the 95 % interval of an accuracy measured on some images.

    It covers the choice of the images, not how runs differ.

    Args:
        share: Share of the images that are right, in [0, 1].
        images: Number n of images, at least 1.

    Returns:
        The ends of the interval, in [0, 1]: the accuracies p with
        |share - p| ≤ z √(p (1 - p) / n), z = 1.96.

    References:
        Wilson, "Probable inference, the law of succession, and statistical
        inference", Journal of the American Statistical Association, 1927.
    """
    z = statistics.NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    size = images + z * z
    middle = (share * images + z * z / 2) / size
    half = z * math.sqrt(images * share * (1 - share) + z * z / 4) / size
    # Rounding must not lead beyond the ends.
    return max(0.0, middle - half), min(1.0, middle + half)


def wilson_text(share: float, images: int) -> str:
    """Returns the ends of `wilson` in per cent, as "[95.5, 98.6]"."""
    low, high = wilson(share, images)
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def spread(scores: Sequence[Score]) -> str:
    """Returns mean ± sample standard deviation of top-1 in per cent, and n."""
    if not scores:
        return UNKNOWN
    top1 = [100 * score.top1 for score in scores]
    text = f"{statistics.mean(top1):.1f}"
    if len(top1) > 1:
        text += f" ± {statistics.stdev(top1):.1f}"
    return f"{text} ({len(top1)})"


def worst(scores: Sequence[Score]) -> str:
    """Returns the least top-1 in per cent."""
    if not scores:
        return UNKNOWN
    return f"{100 * min(score.top1 for score in scores):.1f}"


def networks(scores: Sequence[Score]) -> str:
    """Returns the mean top-1 of student and EMA in per cent."""
    if not scores:
        return UNKNOWN
    student = statistics.mean(100 * score.student_top1 for score in scores)
    ema = statistics.mean(100 * score.ema_top1 for score in scores)
    return f"{student:.1f} / {ema:.1f}"


def markdown(compared: Comparison) -> str:
    """Writes the tables in Markdown. Each mean has its n in parentheses."""
    columns, rows = compared.columns(), compared.rows()
    reference = compared.reference
    if compared.curves:
        parts = [_sweep(compared, column) for column in columns]
    elif len(columns) == 1:
        parts = [_details(compared)]
    else:
        parts = [[["top-1, % (runs)", *columns]]]
        parts[0] += [
            [row, *(spread(compared.at(row, column)) for column in columns)]
            for row in rows
        ]
        if reference:
            parts.append([[f"lead of {reference}, 95 %", *columns]])
            parts[1] += [
                [f"over {row}"]
                + [
                    str(compared.lead(row, column) or UNKNOWN)
                    for column in columns
                ]
                for row in rows
                if row != reference
            ]
    return "\n\n".join(map(tables.markdown, parts))


def _details(compared: Comparison) -> list[list[str]]:
    """Returns the table of a single column: all that is known of each row."""
    (column,) = compared.columns()
    head = ["", "steps", "top-1, % (runs)", "worst", "student / EMA"]
    if compared.reference:
        head.append(f"lead of {compared.reference}, 95 %")
    lines = [[*head, "s a run"]]
    for row in compared.rows():
        scores = compared.at(row, column)
        if not scores:
            lines.append([row, *[UNKNOWN] * (len(lines[0]) - 1)])
            continue
        steps = str(scores[0].steps)
        line = [row, steps, spread(scores), worst(scores), networks(scores)]
        if compared.reference:
            own = row == compared.reference
            line.append(
                "" if own else str(compared.lead(row, column) or UNKNOWN)
            )
        line.append(f"{statistics.mean(s.seconds for s in scores):.0f}")
        lines.append(line)
    return lines


def _sweep(compared: Comparison, column: str) -> list[list[str]]:
    """Returns the table of one sweep, its values side by side."""
    rows = compared.rows(column)
    top1 = [spread(compared.at(row, column)) for row in rows]
    return [[column, *rows], ["top-1, % (runs)", *top1]]


def table_csv(compared: Comparison) -> str:
    """Returns one line a cell: n, mean, deviation, lead of the reference."""
    head = "row column n top1 std worst seconds lead lead_low lead_high pairs"
    lines = [head.split()]
    for row, column in compared.places:
        scores = compared.at(row, column)
        top1 = [score.top1 for score in scores]
        line = [row, column, len(top1), *[None] * 8]
        if top1:
            seconds = statistics.mean(score.seconds for score in scores)
            std = statistics.stdev(top1) if len(top1) > 1 else None
            line[3:7] = statistics.mean(top1), std, min(top1), seconds
        if against := compared.lead(row, column):
            line[7:] = against.mean, against.low, against.high, against.n
        lines.append(line)
    return tables.comma_separated(lines)


def runs_csv(compared: Comparison) -> str:
    """Returns one line per run."""
    names = [field.name for field in dataclasses.fields(Score)]
    lines = [
        [getattr(score, name) for name in names]
        for place in compared.places
        for score in compared.at(*place)
    ]
    return tables.comma_separated([names, *lines])
