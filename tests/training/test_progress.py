import re
import sys

import pytest

from simmatch_tf import terminal
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.training import duration, progress
from tests import runs


def test_plain_lines_where_there_is_no_terminal(capsys):
    shown = progress.Progress(5, 10, bar=True)
    shown.advance(6, None)
    shown.advance(
        7, {"loss/total": 1.5, "pseudo_label/mask_rate": 0.25, "x": 1.0}
    )
    shown.advance(8, {"loss/total": 1.0, "pseudo_label/mask_rate": 0.5})
    shown.close()
    meaning, line, another = capsys.readouterr().err.strip().splitlines()
    assert meaning.startswith("mask: share of pseudo-labels")  # once
    assert another.startswith("step 8/10: loss 1.000, mask 50%")
    assert line.startswith("step 7/10: loss 1.500, mask 25% (")
    assert line.endswith("s left)") and "steps/s" in line


def test_losses_of_any_method_are_shown(capsys):
    shown = progress.Progress(0, 10, bar=True)
    shown.advance(
        5,
        {
            "loss/contrastive": 0.5,
            "loss/weighted_u": 9.0,
            "loss/u": 0.25,
            "loss/total": 1.5,
            "pseudo_label/mask_rate": 0.25,
        },
    )
    shown.close()
    line = capsys.readouterr().err
    assert ": loss 1.500, L_u 0.250, L_contrastive 0.500, mask 25% (" in line


class _Clock:
    """In place of the module `time`: stands until it is moved."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    time = monotonic


@pytest.mark.parametrize("live", [False, True])
def test_compilation_is_no_step_in_the_time_left(live, capsys, monkeypatch):
    """30 s compile the first step; the others take 1 s: 8 of them are left."""
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: live, raising=False)
    shown = progress.Progress(0, 10, bar=live)
    bar = shown._bar
    if live:
        monkeypatch.setattr(bar, "_time", clock.time)
        bar.start_t = clock.now
    with shown.steps(1, compiled=False):
        clock.now += 30
    shown.advance(1, {"loss/total": 1.5})
    with shown.steps(1, compiled=True):
        clock.now += 1
    shown.advance(2, {"loss/total": 1.5})
    if live:
        bar.refresh()
        rate = bar.format_dict
        left = (rate["total"] - rate["n"]) * (
            rate["elapsed"] / (rate["n"] - rate["initial"])
        )
        assert left == 8 and "00:08 left" in capsys.readouterr().err
    else:
        compiling, first, second = capsys.readouterr().err.splitlines()
        assert compiling == "compiling the step"
        assert first == "step 1/10: loss 1.500"  # nothing is known yet
        assert second == "step 2/10: loss 1.500 (1.00 steps/s, 8 s left)"
    shown.close()


def test_quiet(capsys, monkeypatch):
    monkeypatch.setattr(terminal, "quiet", lambda: True)
    shown = progress.Progress(0, 10, bar=True)
    shown.advance(1, {"loss/total": 1.5})
    shown.say("nothing")
    shown.close()
    assert capsys.readouterr().err == ""


def test_a_bar_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    shown = progress.Progress(5, 10, bar=True)
    shown.advance(7, {"loss/total": 1.5})
    shown.close()
    out = capsys.readouterr().err
    assert "7/10" in out and "loss 1.500" in out


FOUND = diagnosis.Finding("x", "It is so. " * 12, "Why.", "Turn --alpha.")


def test_live_lines_fit_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    shown = progress.Progress(0, 1_048_576, bar=True)
    shown.say("a path/" + "x" * 90 + " " + "word " * 30)
    shown.evaluated(500_000, "validation", {"ema": {"top1": 0.12345}}, "ema")
    tags = ("loss/total", "loss/s", "loss/u", "loss/in")
    values = dict.fromkeys(tags, 123.4567)
    values |= {"pseudo_label/mask_rate": 1.0, "pseudo_label/accuracy_all": 1.0}
    shown.advance(1_000_000, values)
    shown.warn([FOUND])
    shown.close()
    out = capsys.readouterr().err
    assert (
        "1000000/1048576" in out
        and "mask 100%  right 100%  validation 12.3%" in out
    )
    assert "warning: It is so." in out
    for line in re.split(r"[\r\n]", re.sub(r"\x1b\[.", "", out)):
        # A path is not cut: that it can be copied is worth more.
        assert len(line) <= 80 or "xxx" in line, line


@pytest.mark.parametrize(
    ("verbosity", "says", "warns"), [(0, True, True), (-1, False, True),
    (-2, False, False)],
)  # fmt: skip
def test_verbosity(verbosity, says, warns, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "_verbosity", lambda: verbosity)
    shown = progress.Progress(0, 10, bar=True)
    shown.say("something")
    shown.warn([FOUND])
    shown.close()
    out = capsys.readouterr().err
    assert ("something" in out) == says and ("warning: " in out) == warns


def test_what_is_still_to_come_is_in_the_time_left(capsys, monkeypatch):
    """Steps of 1 s, evaluations of 10 s, checkpoints of 3 s."""
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    config = runs.config(
        "unused", steps=100, eval_every=40, checkpoint_every=50, log_every=20,
        summaries=False,
    )  # fmt: skip
    shown = progress.Progress(
        0, 100, bar=False, config=config, evaluation_steps=5.0
    )
    clock.now += 7  # the input is set up
    with shown.steps(1, compiled=False):
        clock.now += 30
    shown.advance(1, None)
    shown.foretell()  # nothing was timed yet

    def to(step):
        clock.now += step - shown.done
        shown.advance(step, None)
        shown.foretell()

    to(3)
    with shown.aside("log"):
        clock.now += 9  # imports
    to(4)
    # 96 steps; evaluations at 40, 80, 100 of 5 steps each; of checkpoints at
    # 50 and 100 nothing is known yet.
    assert "ends in about 1 min 51 s, at about" in capsys.readouterr().err
    to(40)
    with shown.aside("evaluation"):
        clock.now += 10
    to(50)
    with shown.aside("checkpoint"):
        clock.now += 3
    with shown.aside("log"):
        clock.now += 0.5
    shown.advance(50, {"loss/total": 1.0})
    # 50 steps, two evaluations, a checkpoint, and logs at 60, 80, 100.
    line = capsys.readouterr().err
    assert line == "step 50/100: loss 1.000 (1.00 steps/s, 74 s left)\n"
    shown.close()


def test_the_end_is_foretold_from_what_was_measured(capsys, monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    config = runs.config("unused", steps=100, eval_every=50, summaries=False)
    costs = duration.Costs(step=7.0, evaluation=20.0, checkpoint=0.0, log=0.0)
    shown = progress.Progress(0, 100, bar=False, config=config, costs=costs)
    with shown.steps(1, compiled=False):
        clock.now += 30
    shown.advance(1, None)
    clock.now += 10
    shown.advance(2, None)  # slower than measured, and not logged yet
    shown.foretell()
    clock.now += 8
    shown.advance(20, None)
    shown.foretell()  # only once
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "compiling the step"
    assert err[1].startswith("ends in about 17 min 00 s")  # 98 · 10 + 2 · 20
    assert len(err) == 2
    shown.close()


@pytest.mark.parametrize("live", [False, True])
def test_steps_beside_other_work_are_forgotten(live, capsys, monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: live, raising=False)
    shown = progress.Progress(0, 100, bar=live)
    bar = shown._bar
    if live:
        monkeypatch.setattr(bar, "_time", clock.time)
        bar.start_t = clock.now
    clock.now += 30
    with shown.steps(1, compiled=False):
        clock.now += 50
    shown.advance(1, None)
    clock.now += 57  # 19 steps of 3 s
    shown.advance(20, None)
    shown.time_anew()
    shown.foretell()  # no step was timed since
    if live:
        bar.refresh()
        assert bar.format_dict["n"] == bar.format_dict["initial"] == 20
        assert bar.format_dict["elapsed"] == 0
    clock.now += 20  # 20 of 1 s
    shown.advance(40, {"loss/total": 1.0})
    if live:
        bar.refresh()
        rate = bar.format_dict
        steps = rate["n"] - rate["initial"]
        assert (steps, rate["elapsed"]) == (20, 20)
        assert "1.00step/s, 01:00 left" in capsys.readouterr().err
    else:
        line = capsys.readouterr().err.splitlines()[-1]
        assert line == "step 40/100: loss 1.000 (1.00 steps/s, 60 s left)"
    shown.close()
