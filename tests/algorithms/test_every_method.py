"""What holds for every method of the package, whatever it computes."""

import re

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import export, registry, report
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.training import loop
from tests import runs, variants
from tests.algorithms import whole_step
from tests.algorithms.test_simmatch import on_two
from tests.training import test_loop

NAMES = [
    entry.pattern
    for entry in registry.algorithms
    if entry.value.__module__.startswith("simmatch_tf.")
]
# One that mixes the images of all devices; SimMatch, FixMatch and others have
# tests of their own.
FEW = ("mixmatch",)


def batches(algorithm, count, start=0):
    """Batches with the views that a method declares."""
    views = [
        algorithm_lib.View.parse(view).name
        for view in algorithm.unlabeled_views
    ]
    return [
        whole_step.batch(seed, views=views, unlabeled=4)
        for seed in range(start, start + count)
    ]


def make(name, strategy=None, **changes):
    values = {"learning_rate": 0.03, "momentum": 0.9} | changes
    return whole_step.make(name, strategy, **values)


def state(algorithm):
    """Everything that a checkpoint holds."""
    return [np.array(variable) for variable in algorithm_lib.state(algorithm)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", variants.of(NAMES, FEW))
def test_it_goes_on_from_a_checkpoint_to_the_same_bits(name, tmp_path):
    whole, first = make(name), make(name)
    step = tf.function(whole.guarded_step, autograph=False)
    for batch in batches(whole, 4):
        step(batch)
    step = tf.function(first.guarded_step, autograph=False)
    for batch in batches(first, 2):
        step(batch)
    path = tf.train.Checkpoint(algorithm=first).write(str(tmp_path / "save"))
    second = make(name, seed=5)
    assert any(
        (a != b).any() for a, b in zip(state(first), state(second), strict=True)
    )
    # The seed of the run is a flag, and comes back with the flags.
    second.config = first.config
    status = tf.train.Checkpoint(algorithm=second).read(path)
    status.assert_existing_objects_matched().assert_consumed()
    assert_same(state(first), state(second))
    step = tf.function(second.guarded_step, autograph=False)
    for batch in batches(second, 2, start=2):
        step(batch)
    assert_same(state(whole), state(second))


@pytest.mark.parametrize("name", variants.of(NAMES, FEW))
def test_two_replicas_are_as_one(name, two_replicas):
    one, two = make(name), make(name, two_replicas)
    step = tf.function(one.guarded_step, autograph=False)
    for batch in batches(one, 3):
        step(batch)
        on_two(two_replicas, two, batch, 1, guarded=True)
    for a, b in zip(
        algorithm_lib.state(one), algorithm_lib.state(two), strict=True
    ):
        np.testing.assert_allclose(
            np.array(a), np.array(b), rtol=1e-6, atol=1e-8, err_msg=a.name
        )


@pytest.mark.parametrize("name", variants.of(NAMES, FEW))
def test_a_bad_step_is_undone_whole(name):
    algorithm = make(name, on_nonfinite="skip")
    step = tf.function(algorithm.guarded_step, autograph=False)
    good, bad = (
        {
            key: tf.cast(value, tf.float32)
            if value.dtype == tf.uint8
            else value
            for key, value in batch.items()
        }
        for batch in batches(algorithm, 2)
    )
    bad["labeled_weak"] *= np.nan
    step(good)
    before = [np.array(variable) for variable in algorithm._changing()]
    step(bad)
    assert int(algorithm.step) == 2
    assert algorithm.guard.look()[0] == 2
    assert_same(before, [np.array(v) for v in algorithm._changing()])
    step(good)
    after = [np.array(variable) for variable in algorithm._changing()]
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    assert all(np.isfinite(x).all() for x in after if x.dtype.kind == "f")


@pytest.mark.parametrize("name", variants.of(NAMES, FEW))
def test_its_step_compiles_without_a_call_to_the_host(name):
    """As a TPU is given it: StableHLO of static shapes."""
    algorithm = make(name, precision="float32")
    step = tf.function(
        algorithm.guarded_step, autograph=False, jit_compile=True
    )
    (batch,) = batches(algorithm, 1)
    # As a run does by default: some of its steps are logged.
    batch[diagnostics.LOGGED] = tf.constant(True)
    text = step.experimental_get_compiler_ir(batch)(stage="stablehlo")
    assert set(re.findall(r"custom_call @(\w+)", text)) == set()
    assert "tensor<?" not in text
    for word in ("infeed", "outfeed", "send", "recv"):
        assert f"stablehlo.{word}" not in text
    step(batch)
    assert np.isfinite(float(algorithm.record.loss))


@pytest.mark.slow
@pytest.mark.parametrize("name", variants.of(NAMES, ("comatch",)))
def test_a_run_from_start_to_export(name, tmp_path, monkeypatch):
    """Killed, resumed to the same weights, reported, exported."""
    changes = {"algorithm": name, "steps": 4, "eval_every": 2, "log_every": 1}
    changes |= registry.algorithms.find(name)[0].flags.defaults
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    runs.fit(whole, **changes)
    evaluate = loop._Run._evaluate

    def die(self, step, *rest):
        if step == 4:
            raise RuntimeError("killed")
        evaluate(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_evaluate", die)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(killed, **changes)
    runs.fit(killed, **changes)
    assert runs.began_after(killed) == 2
    test_loop.assert_same_run(whole, killed, 4)

    page, exported = tmp_path / "report.html", tmp_path / "exported"
    report.main(report.ReportConfig(runs=(str(whole),), output=str(page)))
    assert name in page.read_text("utf-8")
    export.main(export.ExportConfig(workdir=str(whole), output=str(exported)))
    images = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 1])
    one, other = (
        simmatch_tf.predict(model, images.astype(np.uint8)).probabilities
        for model in (whole, exported / "1")
    )
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
