"""Seconds of a run, and the steps that fit into minutes; worked by hand."""

import dataclasses
import re
import time

import pytest

import simmatch_tf
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import duration
from tests import runs

COSTS = duration.Costs(
    step=0.5, log=0.25, evaluation=3.0, checkpoint=1.0, picture=2.0
)
OPEN = {"steps": None, "eval_every": None, "checkpoint_every": None}


def config(**changes):
    return runs.config("unused", **changes)


def test_seconds_of_a_run():
    c = config(
        steps=100, log_every=30, eval_every=50, checkpoint_every=40,
        picture_every=60,
    ).with_durations(1400)  # fmt: skip
    # 100 steps; logs at 30, 60, 90, 100; evaluations at 50, 100; checkpoints
    # at 40, 80, 100; pictures at 60, 100.
    whole = 100 * 0.5 + 4 * 0.25 + 2 * 3 + 3 * 1 + 2 * 2
    assert duration.seconds(COSTS, c, 0) == whole
    # From step 60 on: logs at 90, 100; 100; 80, 100; 100.
    assert duration.seconds(COSTS, c, 60) == 40 * 0.5 + 2 * 0.25 + 3 + 2 + 2
    assert duration.seconds(COSTS, c, 100) == 0
    no_pictures = dataclasses.replace(c, summaries=False, picture_every=None)
    assert duration.seconds(COSTS, no_pictures, 0) == whole - 4
    cooled = dataclasses.replace(c, schedule="cooldown")  # from step 80 on
    assert duration.seconds(COSTS, cooled, 0) == whole + 1
    assert duration.seconds(COSTS, cooled, 80) == duration.seconds(COSTS, c, 80)


@pytest.mark.parametrize("left", [20.0, 33.3, 100.0, 600.0, 36_000.0])
@pytest.mark.parametrize("changes", [{}, {"schedule": "cooldown"}])
def test_the_longest_run_that_fits(left, changes):
    c = config(minutes=1.0, **OPEN, **changes)
    planned = duration.plan(c, COSTS, left, unlabeled_images=1400)
    # Two seconds and a hundredth are kept free, and two checkpoints.
    room = (left - 2 - 2) * 0.99
    resolved = duration.with_length(c, planned).with_durations(1400)
    assert resolved.steps == planned.steps
    taken = duration.seconds(COSTS, resolved, 0)
    assert taken <= room
    # What is left over is less than an evaluation, a checkpoint and a picture.
    assert room - taken < 3 + 1 + 2 + 1
    # Evaluations take at most a tenth of the time, and are at most eight.
    count = -(-planned.steps // planned.eval_every)
    assert count == 1 or (count <= 8 and 3 * count <= 0.1 * room)
    assert count == min(8, max(1, int(0.1 * room / 3)))


def test_checkpoints_of_a_long_run():
    """Ten hours: one each ten minutes, not each hour and a quarter."""
    c = config(minutes=600.0, **OPEN)
    planned = duration.plan(c, COSTS, 36_000.0, unlabeled_images=1400)
    assert 59 <= planned.steps / planned.checkpoint_every <= 60
    # But they never take more than a twentieth of the time.
    slow = dataclasses.replace(COSTS, checkpoint=60.0)
    planned = duration.plan(c, slow, 36_000.0, unlabeled_images=1400)
    assert planned.steps / planned.checkpoint_every <= 30


def test_given_intervals_are_kept_and_paid_for():
    c = config(minutes=1.0, steps=None, eval_every=2, checkpoint_every=1000)
    few = duration.plan(c, COSTS, 100.0, unlabeled_images=1400)
    assert (few.eval_every, few.checkpoint_every) == (2, 1000)
    many = duration.plan(config(minutes=1.0, **OPEN), COSTS, 100.0,
                         unlabeled_images=1400)  # fmt: skip
    assert many.steps > 3 * few.steps


def test_no_room_for_a_step():
    c = config(minutes=0.1, **OPEN)
    assert duration.plan(c, COSTS, 4.0, unlabeled_images=1400) is None
    assert duration.plan(c, COSTS, -3.0, unlabeled_images=1400) is None
    error = duration.too_short(c, COSTS, 10.0, 1)
    # 10 + 2 + 3 + 3 = 18; and half a second: 18.87 s with the reserve.
    assert str(error) == (
        "--minutes=0.1: the start, the compilation, an evaluation and the end "
        "of this run take 18 s here, a step 0.5 s, which leaves no time for a "
        "step: give at least --minutes=0.4"
    )
    longer = config(
        schedule="cooldown", extend_minutes=0.1, minutes=5.0, steps=None,
        measured_steps=20,
    )  # fmt: skip
    error = duration.too_short(longer, COSTS, 10.0, 5)
    assert "no time for the 5 steps from before the cool-down" in str(error)
    assert str(error).endswith("give at least --extend_minutes=0.4")


def test_what_is_advised_has_room():
    c = config(minutes=0.1, **OPEN)
    text = str(duration.too_short(c, COSTS, 10.0, 1))
    least = float(text.rpartition("=")[2])
    planned = duration.plan(c, COSTS, 60 * least - 10, unlabeled_images=1400)
    assert planned is not None


def test_other_flags_must_fit_the_measured_steps():
    c = config(minutes=1.0, warmup_steps=500, **OPEN)
    with pytest.raises(
        InputError,
        match=r"--warmup_steps=500: must be below the .* steps of --minutes=1$",
    ):
        duration.plan(c, COSTS, 100.0, unlabeled_images=1400)
    c = config(minutes=1.0, profile="400:9", **OPEN)
    with pytest.raises(InputError, match="400:9: ends after the .* steps of"):
        duration.plan(c, COSTS, 100.0, unlabeled_images=1400)


def test_an_extension_begins_where_the_cooldown_did():
    c = config(
        minutes=1.0, steps=None, measured_steps=100, schedule="cooldown",
        extend_minutes=1.0, eval_every=50, checkpoint_every=50,
    )  # fmt: skip
    planned = duration.plan(c, COSTS, 60.0, unlabeled_images=1400, start=80)
    resolved = duration.with_length(c, planned)
    assert resolved.extended_steps == planned.steps
    assert resolved.measured_steps == 100
    taken = duration.seconds(COSTS, resolved.with_durations(1400), 80)
    assert 0 <= (60 - 4) * 0.99 - taken < 7


def test_durations_in_words(monkeypatch):
    for seconds, text in (
        (9.4, "9 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3660, "1 h 01 min"),
        (90_000, "25 h 00 min"),
    ):
        assert duration.written(seconds).startswith(f"{text}, at about ")
    assert re.search(r"about \d\d:\d\d(:\d\d)?$", duration.written(1.0))
    noon = time.mktime((2026, 11, 29, 12, 0, 0, 0, 0, -1))
    monkeypatch.setattr(duration.time, "time", lambda: noon)
    assert duration.written(90) == "1 min 30 s, at about 12:01:30"
    assert duration.written(86_400) == "24 h 00 min, at about 2026-11-30 12:00"


@pytest.mark.parametrize(
    ("steps", "side", "backbone", "words"),
    [
        (299, 224, "keras_applications:ResNet50", (
            "299 steps", "--image_size=112", "--minutes=16 ",
        )),
        (30, 224, "keras_applications:Xception", (
            "--image_size=112", "--minutes=26 ",  # 15 + 270 · 2 s · 1.2
        )),
        (30, 128, "keras_cv:mit_b0", ("--image_size=64",)),
        (30, 96, "keras_cv:mit_b0", ("with a smaller --backbone than",)),
        (30, 32, "wrn_28_2", ("with a smaller --backbone than wrn_28_2;",)),
        (300, 224, "keras_applications:ResNet50", ()),
    ],
)  # fmt: skip
def test_few_steps_are_told_with_what_would_help(steps, side, backbone, words):
    config = simmatch_tf.Config(
        labels=40, minutes=15.0, backbone=backbone, image_size=None
    )
    text = duration.few_steps(config, duration.Plan(steps, 1, 1), side, 2.0)
    assert (text is None) == (not words)
    for word in words:
        assert word in text
    if side <= 96 and words:
        assert "--image_size" not in text
