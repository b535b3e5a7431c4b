"""A step with a number that is not finite: found, named, undone."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import simmatch
from simmatch_tf.modules import guard, replica
from simmatch_tf.ops import losses
from tests.algorithms.test_simmatch import batch, fill, make


@pytest.fixture
def factor(monkeypatch):
    """What L_s is multiplied by, on each of two replicas."""
    factors = tf.Variable([1.0, 1.0])
    true = losses.supervised_loss

    def loss(logits, labels):
        return true(logits, labels) * factors[replica.number()]

    monkeypatch.setattr(simmatch.losses, "supervised_loss", loss)
    return factors


@pytest.fixture
def bad_gradient(monkeypatch):
    """Whether the gradient of L_s is NaN, the loss itself being finite."""
    bad = tf.Variable(False)
    true = losses.supervised_loss

    @tf.custom_gradient
    def spoil(x):
        return x, lambda g: tf.where(bad, np.nan, g)

    monkeypatch.setattr(
        simmatch.losses, "supervised_loss", lambda *a: spoil(true(*a))
    )
    return bad


def state(algorithm):
    return [np.array(v) for v in algorithm._changing()]


def assert_same(before, after):
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", ["teacher", "student"])
def test_a_skipped_step_changes_nothing_but_the_counts(form, factor):
    algorithm = make(targets_from=form, on_nonfinite="skip")
    fill(algorithm)
    step = tf.function(algorithm.guarded_step, autograph=False)
    step(batch(0))
    before = state(algorithm)
    assert len(before) > 20
    factor.assign([np.nan, np.nan])
    step(batch(1))
    assert_same(before, state(algorithm))
    assert int(algorithm.step) == 2
    assert int(algorithm.optimizer.iterations.numpy()) == 2
    assert algorithm.guard.look() == (2, "loss/s")
    assert algorithm.guard.look() is None
    assert int(algorithm.guard.in_a_row) == int(algorithm.guard.total) == 1
    factor.assign([1.0, 1.0])
    step(batch(2))
    after = state(algorithm)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    assert all(np.isfinite(x).all() for x in after if x.dtype.kind == "f")
    assert int(algorithm.guard.in_a_row) == 0
    assert not algorithm.guard.gave_up()


def test_skipping_is_as_if_the_step_had_another_number(factor):
    """What comes after a skipped step is what comes without it."""
    one = make(on_nonfinite="skip", schedule="constant")
    other = make(on_nonfinite="skip", schedule="constant")
    for algorithm in (one, other):
        fill(algorithm)
    for algorithm, seeds in ((one, (0, None, 1)), (other, (0, 1))):
        step = tf.function(algorithm.guarded_step, autograph=False)
        for seed in seeds:
            factor.assign([1.0 if seed is not None else np.inf] * 2)
            step(batch(seed or 0))
    # Slots know when they were written, and there that is a step earlier.
    written = other.memory.written
    written.assign(written + tf.cast(written > 1, tf.int64))
    assert_same(state(one), state(other))


def test_ten_in_a_row_are_too_many(factor):
    algorithm = make(on_nonfinite="skip")
    step = tf.function(algorithm.guarded_step, autograph=False)
    factor.assign([np.inf, np.inf])
    for number in range(guard.GIVES_UP_AFTER):
        assert not algorithm.guard.gave_up(), number
        step(batch())
    assert algorithm.guard.gave_up()
    factor.assign([1.0, 1.0])
    step(batch())
    assert algorithm.guard.gave_up()  # until someone has looked


def test_stop_names_the_first_step_and_tensor(factor):
    algorithm = make()
    step = tf.function(algorithm.guarded_step, autograph=False)
    step(batch())
    assert algorithm.guard.look() is None
    factor.assign([np.nan, np.nan])
    step(batch())
    step(batch())
    assert algorithm.guard.look() == (2, "loss/s")
    assert int(algorithm.guard.total) == 2


def test_a_gradient_that_is_not_finite(bad_gradient):
    algorithm = make(on_nonfinite="skip")
    step = tf.function(algorithm.guarded_step, autograph=False)
    before = state(algorithm)
    bad_gradient.assign(True)
    assert np.isfinite(step(batch())["loss/total"])
    number, name = algorithm.guard.look()
    assert number == 1
    assert name.startswith("gradient of") and "logits" in name
    assert_same(before, state(algorithm))


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_one_replica_s_trouble_is_everyone_s(placement, factor, two_replicas):
    with two_replicas.scope():
        algorithm = make(
            on_nonfinite="skip", batch_size=8, memory_placement=placement
        )
    inputs = batch()

    def share(context):
        number = context.replica_id_in_sync_group
        return {k: tf.split(v, 2)[number] for k, v in inputs.items()}

    def copies():
        return [
            np.array(copy)
            for variable in algorithm._changing()
            for copy in two_replicas.experimental_local_results(variable)
        ]

    shares = two_replicas.experimental_distribute_values_from_function(share)
    step = tf.function(
        lambda b: two_replicas.run(algorithm.guarded_step, args=(b,)),
        autograph=False,
    )
    step(shares)
    before = copies()
    factor.assign([1.0, np.nan])
    step(shares)
    assert_same(before, copies())
    assert algorithm.guard.look() == (2, "loss/s")
    assert len(algorithm.shards()) == (placement == "sharded")
    factor.assign([1.0, 1.0])
    step(shares)
    changed = [(a != b).any() for a, b in zip(before, copies(), strict=True)]
    assert changed[-1] and changed[-2]  # the memory's rows, if it is sharded


@pytest.fixture
def half():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy(before)


def test_float16_lowers_its_scale_and_loses_no_step(half):
    algorithm = make(precision="mixed_float16", on_nonfinite="stop")
    step = tf.function(algorithm.guarded_step, autograph=False)
    algorithm.loss_scale.scale.assign(2.0**24)
    before = state(algorithm)
    metrics = step(batch())
    assert metrics["loss_scale"] == 2.0**23
    assert_same(before, state(algorithm))
    for _ in range(24):
        step(batch())
    after = state(algorithm)
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    assert all(np.isfinite(x).all() for x in after if x.dtype.kind == "f")
    # An overflow is not a broken step.
    assert algorithm.guard.look() is None and int(algorithm.guard.total) == 0
    assert 1.0 <= float(algorithm.loss_scale.scale) < 2.0**23


def test_float16_with_a_broken_loss_stops(half, factor):
    algorithm = make(precision="mixed_float16")
    step = tf.function(algorithm.guarded_step, autograph=False)
    factor.assign([np.nan, np.nan])
    step(batch())
    assert algorithm.guard.look() == (1, "loss/s")
