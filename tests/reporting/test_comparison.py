import csv
import dataclasses
import io

import pytest

from simmatch_tf.evaluation import metrics
from simmatch_tf.reporting import comparison


def score(row, seed, top1, column="", seconds=10.0):
    return comparison.Score(
        row, column, seed, top1, top1 - 0.01, top1, 100, seconds
    )


COMPARED = comparison.Comparison(
    title="digits",
    places=(("FixMatch", ""), ("SimMatch", ""), ("None", "")),
    reference="SimMatch",
    curves=False,
    scores=(
        score("FixMatch", 0, 0.90),
        score("FixMatch", 1, 0.80),
        score("FixMatch", 3, 0.10),  # no pair
        score("SimMatch", 1, 0.86),
        score("SimMatch", 0, 0.92),
        score("SimMatch", 2, 0.95),  # no pair
    ),
)


def test_lead_pairs_runs_of_equal_seeds():
    """Differences of 2 and 6 points."""
    lead = comparison.lead(
        COMPARED.at("SimMatch", ""), COMPARED.at("FixMatch", "")
    )
    assert lead.n == 2
    assert lead.mean == pytest.approx(0.04)
    assert lead.low is lead.high is None  # too few


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [
        # From tables of Wilson's interval.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (60, 60, 0.9398, 1.0),
        (1, 1, 0.2065, 1.0),
    ],
)
def test_interval_of_an_accuracy(right, images, low, high):
    interval = metrics.wilson(right / images, images)
    assert interval == pytest.approx((low, high), abs=1e-4)
    # Its ends are where the share is 1.96 deviations away.
    for end in interval:
        if 0 < end < 1:
            deviation = (end * (1 - end) / images) ** 0.5
            assert abs(right / images - end) == pytest.approx(
                1.959964 * deviation, rel=1e-5
            )


def test_lead_of_three_pairs():
    """Differences of 1, 2 and 3 points: 2 ± 4.3027·1/√3."""
    ours = [score("a", i, 0.5 + d) for i, d in enumerate((0.01, 0.02, 0.03))]
    theirs = [score("b", i, 0.5) for i in range(3)]
    lead = comparison.lead(ours, theirs)
    assert lead.low == pytest.approx(0.02 - 0.024841, abs=1e-6)
    table = dataclasses.replace(COMPARED, scores=tuple(ours + theirs))
    table = dataclasses.replace(
        table, places=(("a", ""), ("b", "")), reference="a"
    )
    assert "| +2.0 [-0.5, +4.5] (3) |" in comparison.markdown(table)
    assert comparison.lead(ours[:1], theirs[1:]) is None


def test_one_column():
    head, _, *lines = comparison.markdown(COMPARED).split("\n")
    assert head.startswith("|  | steps | top-1, % (runs) | worst |")
    assert "lead of SimMatch, 95 %" in head
    # Of 90, 80 and 10: mean 60, deviation 43.6.
    assert "| FixMatch | 100 | 60.0 ± 43.6 (3) | 10.0 |" in lines[0]
    assert "| +4.0 (2) | 10 |" in lines[0]
    assert (
        "| SimMatch | 100 | 91.0 ± 4.6 (3) | 86.0 | 90.0 / 91.0 |  |"
        in (lines[1])
    )
    assert lines[2] == "| None | – | – | – | – | – | – |"


def test_columns():
    compared = dataclasses.replace(
        COMPARED,
        places=tuple((r, c) for r in ("A", "B") for c in ("20", "40")),
        reference="B",
        scores=(score("A", 0, 0.5, "40"), score("B", 0, 0.75, "40")),
    )
    table, leads = comparison.markdown(compared).split("\n\n")
    assert table.split("\n") == [
        "| top-1, % (runs) | 20 | 40 |",
        "| --- | --- | --- |",
        "| A | – | 50.0 (1) |",
        "| B | – | 75.0 (1) |",
    ]
    assert leads.split("\n")[2:] == ["| over A | – | +25.0 (1) |"]


def test_curves():
    compared = dataclasses.replace(
        COMPARED,
        places=(("0.1", "t"), ("0.2", "t"), ("1", "alpha")),
        reference=None,
        curves=True,
        scores=(score("0.2", 0, 0.5, "t"),),
    )
    one, other = comparison.markdown(compared).split("\n\n")
    assert one.split("\n")[0] == "| t | 0.1 | 0.2 |"
    assert one.split("\n")[2] == "| top-1, % (runs) | – | 50.0 (1) |"
    assert other.split("\n")[0] == "| alpha | 1 |"


def test_csv():
    rows = list(csv.DictReader(io.StringIO(comparison.table_csv(COMPARED))))
    assert [row["n"] for row in rows] == ["3", "3", "0"]
    assert float(rows[0]["lead"]) == pytest.approx(0.04)
    assert rows[1]["lead"] == rows[2]["top1"] == ""
    runs = list(csv.DictReader(io.StringIO(comparison.runs_csv(COMPARED))))
    assert [(r["row"], r["seed"]) for r in runs[:3]] == [
        ("FixMatch", "0"),
        ("FixMatch", "1"),
        ("FixMatch", "3"),
    ]
    assert float(runs[-1]["top1"]) == 0.95


def test_markdown_escapes_names():
    name = r"a|b <!-- c --> *d* `e` \f & g_h"
    compared = dataclasses.replace(
        COMPARED, places=((name, ""),), reference=None
    )
    row = comparison.markdown(compared).split("\n")[2]
    assert row.startswith(r"| a\|b &lt;!-- c --> \*d\* \`e\` \\f &amp; g_h | ")


# ------------------------------------------------------------- baselines ---


def with_baselines(compared, values):
    scores = tuple(
        dataclasses.replace(each, baseline=values[each.row])
        for each in compared.scores
    )
    return dataclasses.replace(compared, scores=scores)


def test_details_have_the_best_baseline():
    values = {"SimMatch": 0.5, "FixMatch": None}
    text = comparison.markdown(with_baselines(COMPARED, values))
    head, _, *lines = text.splitlines()
    place = head.split(" | ").index("best baseline, % (runs)")
    cells = {line.split(" | ")[0]: line.split(" | ")[place] for line in lines}
    assert cells["| SimMatch"] == "50.0 ± 0.0 (3)"
    assert cells["| FixMatch"] == cells["| None"] == comparison.UNKNOWN
    assert "baseline" not in comparison.markdown(COMPARED)


@pytest.mark.parametrize("other", [0.5, 0.4])
def test_columns_have_one_line_of_baselines_if_rows_agree(other):
    scores = [
        dataclasses.replace(score(row, 0, 0.9, column), baseline=value)
        for row, column, value in (
            ("A", "20", 0.5),
            ("B", "20", other),
            ("A", "40", 0.6),
            ("B", "40", 0.6),
        )
    ]
    places = tuple((each.row, each.column) for each in scores)
    compared = comparison.Comparison("", places, None, False, tuple(scores))
    _, table = comparison.markdown(compared).split("\n\n")
    lines = table.splitlines()
    assert lines[0] == "| best baseline, % (runs) | 20 | 40 |"
    if other == 0.5:
        assert lines[2:] == ["| of all rows | 50.0 (1) | 60.0 (1) |"]
    else:
        assert lines[2:] == [
            "| A | 50.0 (1) | 60.0 (1) |",
            "| B | 40.0 (1) | 60.0 (1) |",
        ]


def test_sweeps_have_a_line_of_baselines():
    compared = comparison.Comparison(
        "",
        (("0.1", "t"), ("0.2", "t")),
        None,
        True,
        (dataclasses.replace(score("0.1", 0, 0.9, "t"), baseline=0.5),),
    )
    assert comparison.markdown(compared).splitlines()[2:] == [
        "| top-1, % (runs) | 90.0 (1) | – |",
        "| best baseline, % (runs) | 50.0 (1) | – |",
    ]


def test_csv_has_baselines():
    values = {"SimMatch": 0.5, "FixMatch": None}
    compared = with_baselines(COMPARED, values)
    cells = csv.DictReader(io.StringIO(comparison.table_csv(compared)))
    assert [row["baseline"] for row in cells] == ["", "0.5", ""]
    rows = csv.DictReader(io.StringIO(comparison.runs_csv(compared)))
    assert {row["row"]: row["baseline"] for row in rows} == {
        "FixMatch": "",
        "SimMatch": "0.5",
    }
