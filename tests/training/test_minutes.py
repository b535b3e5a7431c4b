"""Runs of --minutes: bit for bit those of the steps that were measured."""

import json

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import signals
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import duration, loop, measurement
from simmatch_tf.training import workdir as workdir_lib
from tests import runs
from tests.training import test_loop

MINUTES = {"steps": None, "minutes": 1.0, "eval_every": None}


@pytest.fixture
def six_steps(monkeypatch):
    """Whatever is measured, the plan is that of `runs.SMALL`."""
    plans = []

    def plan(config, costs, left, **words):
        plans.append((costs, left))
        return duration.Plan(6, 3, 2)

    monkeypatch.setattr(duration, "plan", plan)
    return plans


@pytest.mark.slow
def test_the_same_run_as_with_as_many_steps(
    finished_run, tmp_path, six_steps, capsys
):
    workdir = tmp_path / "run"
    result = runs.fit(workdir, **MINUTES)
    assert result == finished_run[1]
    test_loop.assert_same_run(finished_run[0], workdir, 6)
    models = [simmatch_tf.load(path) for path in (finished_run[0], workdir)]
    for own, other in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_array_equal(own.numpy(), other.numpy())
    ((costs, left),) = six_steps
    for name in ("step", "evaluation", "checkpoint", "picture"):
        assert 0 < getattr(costs, name) < 60
    assert left < 60
    # Nothing of the measurement stays.
    assert {p.name for p in workdir.iterdir()} == {
        p.name for p in finished_run[0].iterdir()
    }
    (session,) = json.loads((workdir / "timing.json").read_text())
    assert (session["first_step"], session["last_step"]) == (1, 6)
    # The same command shows the result; the flagfile has the steps.
    assert runs.fit(workdir, **MINUTES) == result
    config = workdir_lib.Workdir(workdir).read_config()
    assert (config.minutes, config.measured_steps) == (1.0, 6)
    assert (config.eval_every, config.checkpoint_every) == (3, 2)
    with pytest.raises(InputError, match="--minutes is 1.0 there and 2.0 here"):
        runs.fit(workdir, **{**MINUTES, "minutes": 2.0})
    with pytest.raises(InputError, match="--steps is None there and 6 here"):
        runs.fit(workdir)
    assert len(six_steps) == 1


@pytest.mark.slow
def test_minutes_have_room_for_the_start_of_the_baselines(
    tmp_path, six_steps, monkeypatch
):
    monkeypatch.setattr(measurement._Measurement, "_baselines", lambda *_: 600)
    runs.fit(tmp_path, **{**MINUTES, "minutes": 20.0})
    ((_, left),) = six_steps
    assert left < 600


@pytest.mark.slow
def test_the_baseline_that_is_kept_is_measured_before_the_speed(
    first_weights, tmp_path, six_steps, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    flags = {"baselines": True, "init_from": str(first_weights)}
    workdir, measure, known = tmp_path / "run", measurement.measure, []

    def watch(parts, *arguments, **words):
        known.append(parts.baselines.measured)
        assert not parts.baselines.expected()
        # Until the length is known, the folder stays as it was.
        assert not (workdir / "baselines.json").exists()
        return measure(parts, *arguments, **words)

    with monkeypatch.context() as patch:
        patch.setattr(measurement, "measure", watch)
        runs.fit(workdir, **MINUTES, **flags)
    ((*_, kept),) = known
    assert kept.classifier is not None
    runs.fit(tmp_path / "steps", **flags)
    test_loop.assert_same_run(workdir, tmp_path / "steps", 6)
    models = [
        simmatch_tf.load(path, weights="baseline")
        for path in (workdir, tmp_path / "steps")
    ]
    for own, other in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_array_equal(own.numpy(), other.numpy())

    def files():
        return {
            path: path.read_bytes()
            for path in workdir.rglob("*")
            if path.is_file() and path.name != "lock"
        }

    # A run that has no room for a step leaves another one's baseline, too.
    before = files()
    monkeypatch.setattr(duration, "plan", lambda *_, **__: None)
    with pytest.raises(InputError, match="--minutes"):
        runs.fit(workdir, **MINUTES, **flags, labels=30, overwrite=True)
    assert files() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"steps_per_loop": 3, "memory_placement": "sharded", "devices": 2,
         "strategy": "mirrored"},
        {"targets_from": "teacher", "schedule": "half_cosine"},
        {"summaries": False, "on_nonfinite": "skip", "warmup_epochs": 0.02},
    ],
)  # fmt: skip
def test_in_other_ways(changes, tmp_path, six_steps):
    runs.fit(tmp_path / "a", **{**MINUTES, **changes})
    runs.fit(tmp_path / "b", **changes)
    test_loop.assert_same_run(tmp_path / "a", tmp_path / "b", 6)


@pytest.mark.slow
def test_killed_before_and_after_the_steps_were_fixed(
    finished_run, tmp_path, six_steps, monkeypatch
):
    workdir = tmp_path / "run"

    def die(*arguments, **words):
        raise RuntimeError("killed")

    # While it measures: nothing is fixed, so it measures again.
    with monkeypatch.context() as patch:
        patch.setattr(measurement._Measurement, "_checkpoint", die)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(workdir, **MINUTES)
    assert not (workdir / "flags.cfg").exists()
    # With the steps fixed, and before the first checkpoint.
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_save", die)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(workdir, **MINUTES)
    assert workdir_lib.Workdir(workdir).read_config().measured_steps == 6
    # From then on nothing is measured, with whatever flags that do not matter.
    monkeypatch.setattr(measurement, "measure", die)
    evaluate = loop._Run._evaluate

    def die_at_3(self, step):
        evaluate(self, step)
        if step == 3:
            die()

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_evaluate", die_at_3)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(workdir, **MINUTES, log_every=1)
    runs.fit(workdir, **MINUTES)
    assert runs.began_after(workdir) == 2
    test_loop.assert_same_run(finished_run[0], workdir, 6)
    again = simmatch_tf.Config.from_flagfile(
        workdir / "flags.cfg", workdir=tmp_path / "again"
    )
    simmatch_tf.fit(again)
    test_loop.assert_same_run(finished_run[0], tmp_path / "again", 6)
    # Other flags, --overwrite, or other minutes are measured anew.
    for place, changes in (
        (workdir, {"overwrite": True}),
        (workdir, {"overwrite": True, "seed": 1}),
        (tmp_path / "new", {}),
    ):
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(place, **{**MINUTES, **changes})
    assert json.loads((workdir / "results.json").read_text())["steps"] == 6


@pytest.mark.slow
def test_stopped_while_it_measures(tmp_path, monkeypatch):
    request = signals.Request()
    request.signal = "SIGTERM"
    config = runs.config(tmp_path, **MINUTES)
    with (
        pytest.raises(signals.Interrupted, match="SIGTERM while the speed was"),
        workdir_lib.claim(config) as folder,
    ):
        loop._Run(folder, config, None, request, 0.0)
    assert {path.name for path in tmp_path.iterdir()} == {"lock"}


@pytest.mark.slow
def test_no_room_for_a_step(tmp_path):
    workdir = tmp_path / "run"
    with pytest.raises(
        InputError, match=r"--minutes=0\.1: .*no time for a step: give at least"
    ):
        runs.fit(workdir, **{**MINUTES, "minutes": 0.1})
    assert not workdir.exists()


def test_the_length_that_a_workdir_knows(tmp_path):
    folder = workdir_lib.Workdir(tmp_path)
    config = runs.config(tmp_path, **MINUTES)
    assert folder.planned(config) is config
    planned = duration.with_length(config, duration.Plan(50, 7, 9))
    folder.write_flags(planned)
    known = folder.planned(runs.config(tmp_path, **MINUTES))
    assert (known.measured_steps, known.eval_every) == (50, 7)
    # Some were given: those of SMALL.
    assert known.checkpoint_every == 2
    for changes in ({"minutes": 2.0}, {"seed": 3}, {"overwrite": True}):
        other = runs.config(tmp_path, **{**MINUTES, **changes})
        assert folder.planned(other) is other
    folder.flagfile.write_text("--no such flag")
    assert folder.planned(config) is config  # nothing is lost: it starts anew
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000002.index").write_text("")
    with pytest.raises(InputError, match="flags.cfg"):
        folder.planned(config)


def test_names_of_layers_are_as_without_a_measurement():
    from simmatch_tf import runtime

    def name():
        return tf.keras.layers.Dense(1).name

    first = name()
    with runtime.names_apart():
        inside = [name(), name()]
    number = int(first.removeprefix("dense").removeprefix("_") or 0)
    assert inside == [f"dense_{number + 1}", f"dense_{number + 2}"]
    assert name() == f"dense_{number + 1}"
