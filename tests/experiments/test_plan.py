import pathlib

import pytest

from simmatch_tf.experiments import plan
from simmatch_tf.flags.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
PLAN = """
[plan]
title = Some
base = --flagfile=configs/digits_40.cfg --steps=5
seeds = 0 3
columns = labels
reference = SimMatch, few

[method]
# A comment.
FixMatch = --algorithm=fixmatch --threshold=0.5
SimMatch =

[labels]
20 = --labels=20
40 =

[steps]
few = --steps=2
more =
"""


def read(tmp_path, text):
    path = tmp_path / "some.cfg"
    path.write_text(text)
    return plan.read(str(path))


def test_cells_combine_one_value_of_each_list(tmp_path):
    parsed_plan = read(tmp_path, PLAN)
    assert parsed_plan.name == "some"
    cells = parsed_plan.cells()
    assert len(cells) == 2 * 2 * 2 * 2
    # The first seed first, so that a grid that is stopped has of everything.
    assert [cell.seed for cell in cells] == [0] * 8 + [3] * 8
    first = cells[0]
    assert (first.row, first.column) == ("FixMatch, few", "20")
    assert first.config.algorithm == "fixmatch"
    assert first.config.threshold == 0.5
    assert (first.config.labels, first.config.steps) == (20, 2)
    last = cells[-1]
    assert (last.row, last.column) == ("SimMatch, more", "40")
    assert (last.config.labels, last.config.steps) == (40, 5)
    assert last.config.seed == last.config.split_seed == 3


def test_a_method_need_not_have_all_flags_of_the_base(tmp_path):
    text = PLAN.replace("--steps=5", "--temperature=0.2 --steps=5")
    text = text.replace("FixMatch = --algorithm=fixmatch --threshold=0.5", "")
    text = text.replace(
        "SimMatch =\n", "SimMatch =\nNone = --algorithm=supervised"
    )
    cells = read(tmp_path, text).cells()
    assert {cell.config.algorithm for cell in cells} == {
        "simmatch",
        "supervised",
    }
    assert cells[0].config.temperature == 0.2
    assert not hasattr(cells[-1].config, "temperature")
    text = text.replace("supervised", "supervised --temperature=0.2")
    with pytest.raises(InputError, match="--temperature=0.2: is for --algo"):
        read(tmp_path, text).cells()


def test_one_at_a_time(tmp_path):
    text = PLAN.replace("columns = labels", "vary = one at a time")
    parsed_plan = read(tmp_path, text.replace("reference = SimMatch, few", ""))
    assert [(row, column) for row, column, _ in parsed_plan.places()] == [
        ("FixMatch", "method"),
        ("SimMatch", "method"),
        ("20", "labels"),
        ("40", "labels"),
        ("few", "steps"),
        ("more", "steps"),
    ]
    same = [
        c.config for c in parsed_plan.cells()[:6] if c.row in ("SimMatch", "40")
    ]
    assert same[0] == same[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[plan]", "[paln]", "has no section .plan."),
        ("title =", "titel =", "titel: is unknown; did you mean title"),
        ("seeds = 0 3", "seeds = 0 x", "seeds=0 x: must be numbers from 0"),
        ("seeds = 0 3", "seeds = 3 3", "seeds=3 3: one of them is twice"),
        ("columns = labels", "columns = label", "did you mean labels"),
        (
            "reference = SimMatch, few",
            "reference = SimMatch",
            "name of a row; did",
        ),
        ("20 = --labels=20", "20 = labels=20", "'labels=20' is not a flag"),
        ("20 = --labels=20", "20 = --seed=2", "--seed=2 must not be in a plan"),
        (
            "20 = --labels=20",
            "20 = --labels=21",
            "few, 20: --labels=21: not",
        ),
        ("20 = --labels=20", "20 = --lables=20", "few, 20: .*lables"),
        ("20 = --labels=20", "20 = '", "No closing quotation"),
        ("40 =", "20 =", "cannot be read as a plan .*already exists"),
        ("seeds = 0 3", "vary = at random", "vary=at random: must be 'all tog"),
        ("seeds = 0 3", "vary = one at a time", "columns=labels: needs vary"),
        (
            "columns = labels",
            "vary = one at a time",
            "reference=SimMatch, few: needs vary",
        ),
        ("seeds = 0 3", f"seeds = {'9' * 5000}", "must be numbers from 0"),
        ("40 =", "40 = --overwrite", "--overwrite must not be in a plan"),
        ("40 =", "40 = --flagfile=FILE", "few, 40: --overwrite: must not be"),
        (
            "40 =",
            "40 = --schedule=cooldown --extend_steps=5",
            "few, 40: --extend_steps: must not be in a plan",
        ),
        # Devices decide no result; the base has 40 labels.
        (
            "40 =",
            "30 = --devices=2\n40 =",
            "30 and .*few, 40: are the same run",
        ),
    ],
)
def test_wrong_plans(tmp_path, old, new, message):
    assert old in PLAN
    (tmp_path / "own.cfg").write_text("--overwrite\n")
    new = new.replace("FILE", str(tmp_path / "own.cfg"))
    with pytest.raises(InputError, match=message):
        read(tmp_path, PLAN.replace(old, new, 1)).cells()


def test_seeds_with_commas_after_a_byte_order_mark(tmp_path):
    text = "\ufeff" + PLAN.strip().replace("seeds = 0 3", "seeds = 0,1, 2")
    assert read(tmp_path, text).seeds == (0, 1, 2)


def test_a_plan_in_utf_16(tmp_path):
    path = tmp_path / "plan.cfg"
    path.write_text(PLAN, encoding="utf-16")
    assert plan.read(str(path)).seeds == (0, 3)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="plan.cfg: is no text in UTF-16"):
        plan.read(str(path))


def test_two_places_of_one_name(tmp_path):
    text = "[plan]\n[m]\na, b =\na = --steps=1\n[n]\nc =\nb, c = --labels=20\n"
    with pytest.raises(InputError, match="two places .* called 'a, b, c'"):
        read(tmp_path, text)


def test_nothing_varies(tmp_path):
    with pytest.raises(InputError, match="nothing is varied"):
        read(tmp_path, "[plan]\ntitle = x\n")
    with pytest.raises(InputError, match="nothing is varied"):
        read(tmp_path, "[plan]\n[method]\n")


def test_a_missing_plan():
    with pytest.raises(InputError, match="did you mean configs/plans/slides_t"):
        plan.read("configs/plans/slides_table_5.cfg")


SHIPPED = sorted((ROOT / "configs" / "plans").glob("*.cfg"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_plans(path):
    """They can be read, and state their name and number of runs."""
    shipped_plan = plan.read(str(path))
    cells = shipped_plan.cells()
    text = path.read_text()
    assert f"simmatch_tf.experiment configs/plans/{path.name}" in text
    total = len({cell.config for cell in cells})
    if path.stem == "slides_imagenet":
        assert "8 runs of 400 epochs and 6 of 100" in text and total == 14
    else:
        assert f"# {total} runs of " in text
