"""Runs side by side: means, spreads and paired differences, as text and CSV.

Nothing here imports TensorFlow.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from simmatch_tf import tables
from simmatch_tf.evaluation import metrics

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
        baseline: Top-1 accuracy of the best of its baselines; None where none
            was measured.
        macro_accuracy: Macro-averaged accuracy of the evaluation weights; None
            of a run of an older version.
        test_images: Number of images behind each accuracy; None where it is
            not known.
    """

    row: str
    column: str
    seed: int
    top1: float
    student_top1: float
    ema_top1: float
    steps: int
    seconds: float
    baseline: float | None = None
    macro_accuracy: float | None = None
    test_images: int | None = None


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

    @property
    def has_baselines(self) -> bool:
        """Whether any run has baselines."""
        return any(score.baseline is not None for score in self.scores)

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
            text += f" {interval_text((self.low, self.high), '+')}"
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


def wilson_text(share: float, images: int) -> str:
    """Returns the ends of Wilson's interval in per cent, as "[95.5, 98.6]"."""
    return interval_text(metrics.wilson(share, images))


def interval_text(interval: Sequence[float], sign: str = "") -> str:
    """Returns the ends of an interval in per cent, "+" gives their signs."""
    low, high = (f"{100 * end:{sign}.1f}" for end in interval)
    return f"[{low}, {high}]"


def spread(scores: Sequence[Score], value: str = "top1") -> str:
    """Returns mean ± sample standard deviation in per cent, and their number.

    Args:
        scores: The runs.
        value: "top1", or "baseline" of those runs that have one.
    """
    values = [getattr(score, value) for score in scores]
    values = [100 * each for each in values if each is not None]
    if not values:
        return UNKNOWN
    text = f"{statistics.mean(values):.1f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.1f}"
    return f"{text} ({len(values)})"


def worst(scores: Sequence[Score]) -> str:
    """Returns the least top-1 in per cent."""
    if not scores:
        return UNKNOWN
    return f"{100 * min(score.top1 for score in scores):.1f}"


def macro(scores: Sequence[Score]) -> str:
    """Returns the mean macro-averaged accuracy in per cent."""
    values = [score.macro_accuracy for score in scores]
    if not values or None in values:
        return UNKNOWN
    return f"{100 * statistics.mean(values):.1f}"


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
        if compared.has_baselines:
            parts.append(_baselines(compared))
    return "\n\n".join(map(tables.markdown, parts))


def _baselines(compared: Comparison) -> list[list[str]]:
    """Returns the table of the best baselines; one line if all rows agree."""
    columns = compared.columns()
    lines = {
        row: [spread(compared.at(row, c), "baseline") for c in columns]
        for row in compared.rows()
    }
    if len({*map(tuple, lines.values())}) == 1:
        lines = {"of all rows": next(iter(lines.values()))}
    head = ["best baseline, % (runs)", *columns]
    return [head, *([row, *line] for row, line in lines.items())]


def _details(compared: Comparison) -> list[list[str]]:
    """Returns the table of a single column: all that is known of each row."""
    (column,) = compared.columns()
    head = ["", "steps", "top-1, % (runs)", "worst", "student / EMA"]
    if compared.has_baselines:
        head.append("best baseline, % (runs)")
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
        if compared.has_baselines:
            line.append(spread(scores, "baseline"))
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
    lines = {"top-1, % (runs)": "top1"}
    if compared.has_baselines:
        lines["best baseline, % (runs)"] = "baseline"
    return [
        [column, *rows],
        *(
            [title, *(spread(compared.at(row, column), value) for row in rows)]
            for title, value in lines.items()
        ),
    ]


def table_csv(compared: Comparison) -> str:
    """Returns one line a cell: n, mean, deviation, lead, best baseline.

    `low` and `high` are Wilson's interval of the mean for this number of
    images, however many runs were scored on them.
    """
    head = "row column n top1 std worst seconds lead lead_low lead_high pairs"
    head += " baseline macro_accuracy low high"
    lines = [head.split()]
    for row, column in compared.places:
        scores = compared.at(row, column)
        top1 = [score.top1 for score in scores]
        line = [row, column, len(top1), *[None] * 12]
        if top1:
            seconds = statistics.mean(score.seconds for score in scores)
            std = statistics.stdev(top1) if len(top1) > 1 else None
            line[3:7] = statistics.mean(top1), std, min(top1), seconds
        if against := compared.lead(row, column):
            line[7:11] = against.mean, against.low, against.high, against.n
        known = [s.baseline for s in scores if s.baseline is not None]
        if known:
            line[11] = statistics.mean(known)
        macro = [score.macro_accuracy for score in scores]
        if macro and None not in macro:
            line[12] = statistics.mean(macro)
        images = [score.test_images for score in scores]
        if images and None not in images:
            line[13:] = metrics.wilson(statistics.mean(top1), min(images))
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
