"""Runs side by side: means, spreads, paired differences; as text and figure.

Nothing here imports TensorFlow.
"""

import csv
import dataclasses
import io
import math
import pathlib
import re
import shutil
import statistics
from collections.abc import Sequence

from simmatch_tf import io as io_lib

_CONFIDENCE = 0.95
# Two differences that happen to be equal would have an interval of no width.
_PAIRS = 3


@dataclasses.dataclass(frozen=True)
class Score:
    """One run. Accuracies are in [0, 1].

    Attributes:
        row: Of the table.
        column: Likewise.
        seed: Of the labels and of everything else.
        top1: Of the weights of record.
        student_top1: Of the student.
        ema_top1: Of its EMA.
        steps: Length of the run.
        seconds: What it took.
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
    """Runs, and the table they belong in.

    Attributes:
        title: Of the figure.
        places: (row, column) of each place, in order; one column is "".
        reference: The row that others are compared with; None: none.
        curves: Whether each column is a list of values of its own.
        scores: The runs that are finished.
    """

    title: str
    places: tuple[tuple[str, str], ...]
    reference: str | None
    curves: bool
    scores: tuple[Score, ...]

    def rows(self, column: str | None = None) -> list[str]:
        """The rows, of one column or of all, each once."""
        rows = [r for r, c in self.places if column in (None, c)]
        return list(dict.fromkeys(rows))

    def columns(self) -> list[str]:
        """The columns, each once."""
        return list(dict.fromkeys(column for _, column in self.places))

    def at(self, row: str, column: str) -> list[Score]:
        """The runs of one place, by seed."""
        found = [s for s in self.scores if (s.row, s.column) == (row, column)]
        return sorted(found, key=lambda score: score.seed)


@dataclasses.dataclass(frozen=True)
class Lead:
    """The reference's top-1 less another row's, run by run of equal seed.

    Attributes:
        n: Pairs.
        mean: Of the differences.
        low: Of the 95 % interval by Student's t; None of one pair or two.
        high: Likewise.
    """

    n: int
    mean: float
    low: float | None
    high: float | None


def lead(reference: Sequence[Score], others: Sequence[Score]) -> Lead | None:
    """Compares runs that share their seed; None if none do."""
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
    from scipy import stats  # takes a second

    half = stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1)
    half *= statistics.stdev(differences) / math.sqrt(n)
    return Lead(n, mean, mean - half, mean + half)


def wilson(share: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy that so many images gave.

    It says what the number of images allows; how runs differ it does not.

    Args:
        share: Of the images that are right, in [0, 1].
        images: Their number n, at least 1.

    Returns:
        Its ends, in [0, 1]: the accuracies p with
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
    """The ends of `wilson` in per cent."""
    low, high = wilson(share, images)
    return f"[{100 * low:.1f}, {100 * high:.1f}]"


def spread(scores: Sequence[Score]) -> str:
    """Mean ± sample standard deviation of top-1 in per cent, and n."""
    if not scores:
        return "–"
    top1 = [100 * score.top1 for score in scores]
    text = f"{statistics.mean(top1):.1f}"
    if len(top1) > 1:
        text += f" ± {statistics.stdev(top1):.1f}"
    return f"{text} ({len(top1)})"


def lead_text(found: Lead | None) -> str:
    """Mean, interval and pairs of a lead, in per cent."""
    if found is None:
        return "–"
    text = f"{100 * found.mean:+.1f}"
    if found.low is not None:
        text += f" [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
    return f"{text} ({found.n})"


def markdown(found: Comparison) -> str:
    """The tables. Each figure has its n behind it."""
    if found.curves:
        tables = [_curve(found, column) for column in found.columns()]
    elif len(found.columns()) == 1:
        tables = [_list(found)]
    else:
        tables = [_matrix(found)]
        if found.reference:
            tables.append(_leads(found))
    return "\n\n".join(tables)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""

    def text(line: Sequence[str]) -> str:
        return f"| {' | '.join(map(escape, line))} |"

    rule = f"| {' | '.join(['---'] * len(head))} |"
    return "\n".join([text(head), rule, *map(text, rows)])


def escape(text: str) -> str:
    """A name as Markdown shows it: none of its characters means anything."""
    text = re.sub(r"([\\`*|])", r"\\\1", io_lib.one_line(text))
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _list(found: Comparison) -> str:
    """One column: all that is known of each row."""
    column = found.columns()[0]
    head = ["", "steps", "top-1, % (runs)", "worst", "student / EMA"]
    if found.reference:
        head.append(f"lead of {found.reference}, 95 %")
    head.append("s a run")
    rows = []
    for row in found.rows():
        scores = found.at(row, column)
        if not scores:
            rows.append([row, *["–"] * (len(head) - 1)])
            continue
        student = statistics.mean(100 * s.student_top1 for s in scores)
        ema = statistics.mean(100 * s.ema_top1 for s in scores)
        line = [
            row,
            str(scores[0].steps),
            spread(scores),
            f"{100 * min(s.top1 for s in scores):.1f}",
            f"{student:.1f} / {ema:.1f}",
        ]
        if found.reference:
            own = row == found.reference
            reference = found.at(found.reference, column)
            line.append("" if own else lead_text(lead(reference, scores)))
        line.append(f"{statistics.mean(s.seconds for s in scores):.0f}")
        rows.append(line)
    return table(head, rows)


def _matrix(found: Comparison) -> str:
    columns = found.columns()
    return table(
        ["top-1, % (runs)", *columns],
        [
            [row, *(spread(found.at(row, column)) for column in columns)]
            for row in found.rows()
        ],
    )


def _leads(found: Comparison) -> str:
    columns = found.columns()
    return table(
        [f"lead of {found.reference}, 95 %", *columns],
        [
            [f"over {row}"]
            + [
                lead_text(
                    lead(
                        found.at(found.reference, column), found.at(row, column)
                    )
                )  # fmt: skip
                for column in columns
            ]
            for row in found.rows()
            if row != found.reference
        ],
    )


def _curve(found: Comparison, column: str) -> str:
    rows = found.rows(column)
    return table(
        [column, *rows],
        [["top-1, % (runs)", *(spread(found.at(row, column)) for row in rows)]],
    )


def table_csv(found: Comparison) -> str:
    """One line a place: n, mean, standard deviation, lead of the reference."""
    head = "row column n top1 std worst seconds lead lead_low lead_high pairs"
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head.split())
    for row, column in found.places:
        scores = found.at(row, column)
        top1 = [score.top1 for score in scores]
        line = [row, column, len(top1)]
        if top1:
            std = statistics.stdev(top1) if len(top1) > 1 else None
            seconds = statistics.mean(score.seconds for score in scores)
            line += [statistics.mean(top1), std, min(top1), seconds]
        else:
            line += [None] * 4
        against = None
        if found.reference not in (None, row):
            against = lead(found.at(found.reference, column), scores)
        if against:
            line += [against.mean, against.low, against.high, against.n]
        else:
            line += [None] * 4
        writer.writerow(line)
    return out.getvalue()


def runs_csv(found: Comparison) -> str:
    """One line a run."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = [field.name for field in dataclasses.fields(Score)]
    writer.writerow(names)
    for row, column in found.places:
        for score in found.at(row, column):
            writer.writerow([getattr(score, name) for name in names])
    return out.getvalue()


def place(page: str, name: str) -> tuple[int, int]:
    """Where a page has room for a table: from <!-- NAME --> to <!-- /NAME -->.

    Args:
        page: Its text.
        name: Of the table.

    Raises:
        ValueError: The marks are not there, once each and in order.
    """
    marks = [f"<!-- {name} -->", f"<!-- /{name} -->"]
    places = [page.find(mark) for mark in marks]
    once = all(page.count(mark) == 1 for mark in marks)
    if not once or places[0] > places[1]:
        raise ValueError(
            f"must have the lines {marks[0]} and {marks[1]}, once each"
        )
    return places[0] + len(marks[0]), places[1]


def put_between(path: pathlib.Path, name: str, text: str) -> None:
    """Puts a table into a page, whole or not at all; see `place`."""
    path = path.resolve()
    with path.open(encoding="utf-8", newline="") as file:
        page = file.read()
    line_end = "\r\n" if "\r\n" in page else "\n"
    start, end = place(page, name)
    new = f"\n{text}\n".replace("\n", line_end)
    new = f"{page[:start]}{new}{page[end:]}"
    if new == page:
        return
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.write_text(new, encoding="utf-8", newline="")
        shutil.copymode(path, aside)
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
