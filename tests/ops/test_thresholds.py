"""Thresholds and weights: numbers by hand, limits, and shapes."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import thresholds
from tests import reference


def test_flexible_by_hand():
    """β = (1, 1/2, 0) of the best class, M = (1, 1/3, 0)."""
    np.testing.assert_allclose(
        thresholds.flexible([8, 4, 0], 2, 0.9), [0.9, 0.3, 0.0], rtol=1e-6
    )
    # 16 unused images: β = (1/2, 1/4, 0), M = (1/3, 1/7, 0).
    np.testing.assert_allclose(
        thresholds.flexible([8, 4, 0], 16, 0.9),
        [0.3, 0.9 / 7, 0.0],
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        thresholds.flexible([8, 4, 0], 16, 0.9, warmup=False),
        [0.9, 0.3, 0.0],
        rtol=1e-6,
    )


@pytest.mark.parametrize("warmup", [True, False])
def test_flexible_at_the_start(warmup):
    values = thresholds.flexible([0, 0], 7, 0.95, warmup)
    np.testing.assert_array_equal(values, [0, 0])
    none = thresholds.flexible([0, 0], 0, 0.95, warmup)
    np.testing.assert_array_equal(none, [0, 0])


def test_self_adaptive_by_hand():
    np.testing.assert_allclose(
        thresholds.self_adaptive(0.8, [0.5, 0.25, 0.0]),
        [0.8, 0.4, 0.0],
        rtol=1e-6,
    )
    zeros = thresholds.self_adaptive(0.8, [0.0, 0.0])
    np.testing.assert_array_equal(zeros, [0, 0])


def test_truncated_gaussian_by_hand():
    """σ = 0.2 / 2: one deviation below gives e^-1/2, two give e^-2."""
    np.testing.assert_allclose(
        thresholds.truncated_gaussian([0.9, 0.7, 0.6, 0.5], 0.7, 0.04),
        [1.0, 1.0, np.exp(-0.5), np.exp(-2.0)],
        rtol=1e-5,
    )
    # As the paper writes it, σ = 0.2.
    np.testing.assert_allclose(
        thresholds.truncated_gaussian([0.5], 0.7, 0.04, n_sigma=1.0),
        [np.exp(-0.5)],
        rtol=1e-5,
    )


def test_gaussian_without_variance():
    """All are equally confident but for one: it does not count."""
    c = tf.constant([0.9, 0.9, 0.1])
    with tf.GradientTape() as tape:
        tape.watch(c)
        weights = thresholds.truncated_gaussian(c, 0.9, 0.0)
    np.testing.assert_array_equal(weights, [1, 1, 0])
    assert np.isfinite(tape.gradient(weights, c)).all()


RNG = np.random.default_rng(0)
CASES = {
    "flexible": (
        thresholds.flexible,
        reference.flexible,
        (RNG.integers(0, 50, 6).astype(np.float64), np.float64(30), 0.95),
    ),
    "flexible, no warm-up": (
        lambda *a: thresholds.flexible(*a, warmup=False),
        lambda *a: reference.flexible(*a, warmup=False),
        (RNG.integers(0, 50, 6).astype(np.float64), np.float64(90), 0.95),
    ),
    "self_adaptive": (
        thresholds.self_adaptive,
        reference.self_adaptive,
        (np.float64(0.7), RNG.uniform(size=6)),
    ),
    "truncated_gaussian": (
        thresholds.truncated_gaussian,
        reference.truncated_gaussian,
        (RNG.uniform(size=9), np.float64(0.6), np.float64(0.03)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_transcription(name):
    ours, theirs, arguments = CASES[name]
    wanted = theirs(*arguments)
    # A Python number is of no type, and neither decides that of the result.
    value = ours(*arguments)
    assert value.dtype == tf.float64
    np.testing.assert_allclose(value, wanted, rtol=1e-12)
    single = [np.float32(a) if isinstance(a, np.ndarray) else a
              for a in arguments]  # fmt: skip
    for call in (ours, tf.function(ours)):
        value = call(*single)
        assert value.dtype == tf.float32
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-6)
    compiled = tf.function(ours, jit_compile=True)
    np.testing.assert_allclose(compiled(*single), wanted, rtol=1e-4, atol=1e-6)


def test_integers_and_numbers():
    value = thresholds.flexible(np.array([3, 1]), np.int64(1), 0.5)
    assert value.dtype == tf.float32
    value = thresholds.self_adaptive(tf.constant(0.5), np.array([0.5, 0.5]))
    assert value.dtype == tf.float32
    value = thresholds.truncated_gaussian(np.array([0.5]), 0.6, 0.1)
    assert value.dtype == tf.float64


@pytest.mark.parametrize(
    "call",
    [
        lambda: thresholds.flexible([[1.0]], 1.0, 0.5),
        lambda: thresholds.flexible([1.0], [1.0], 0.5),
        lambda: thresholds.self_adaptive([0.5], [0.5, 0.5]),
        lambda: thresholds.self_adaptive(0.5, [[0.5, 0.5]]),
        lambda: thresholds.truncated_gaussian(0.5, 0.5, 1.0),
        lambda: thresholds.truncated_gaussian([0.5], [0.5], 1.0),
        lambda: thresholds.truncated_gaussian([0.5], 0.5, [1.0]),
    ],
)
def test_shapes_that_do_not_fit(call):
    with pytest.raises(ValueError, match="has shape .* is wanted"):
        call()


def test_a_deviation_of_nothing():
    with pytest.raises(ValueError, match="n_sigma=0: must be above 0"):
        thresholds.truncated_gaussian([0.5], 0.5, 1.0, 0)
