"""FreeMatch's averages."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import adaptive_thresholds
from tests import reference
from tests.modules.test_replica import run

P = np.array([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0], [0.5, 0.2, 0.3]])


def test_starts_with_equal_shares():
    adaptive = adaptive_thresholds.AdaptiveThresholds(4)
    np.testing.assert_allclose(adaptive.thresholds(), [0.25] * 4, rtol=1e-6)
    np.testing.assert_allclose(adaptive.histogram, [0.25] * 4, rtol=1e-6)


def test_by_hand():
    adaptive = adaptive_thresholds.AdaptiveThresholds(3, 0.5, dtype="float64")
    adaptive.record(P)
    np.testing.assert_allclose(adaptive.threshold, (1 / 3 + 0.7) / 2)
    p_mean = (1 / 3 + np.array([1.3, 1.4, 0.3]) / 3) / 2
    np.testing.assert_allclose(adaptive.p_mean, p_mean)
    np.testing.assert_allclose(adaptive.histogram, [1 / 2, 1 / 3, 1 / 6])
    np.testing.assert_allclose(
        adaptive.thresholds(),
        (1 / 3 + 0.7) / 2 * np.array([2.3, 2.4, 1.3]) / 2.4,
    )


def test_published_momentum():
    adaptive = adaptive_thresholds.AdaptiveThresholds(3, dtype="float64")
    for _ in range(2):
        adaptive.record(P)
    np.testing.assert_allclose(
        adaptive.threshold, 0.7 - (0.7 - 1 / 3) * 0.999**2
    )


@pytest.mark.parametrize("share", [0.0, 0.31, 0.8, 1.0])
@pytest.mark.parametrize("rows", [1, 6])
def test_quantile(share, rows):
    p = reference.softmax(np.random.default_rng(0).normal(size=[rows, 3]))
    adaptive = adaptive_thresholds.AdaptiveThresholds(
        3, 0.0, quantile=share, dtype="float64"
    )
    tf.function(adaptive.record, jit_compile=True)(tf.constant(p))
    np.testing.assert_allclose(
        adaptive.threshold, np.quantile(p.max(axis=1), share)
    )


def test_upper_limit_is_part_of_the_state():
    adaptive = adaptive_thresholds.AdaptiveThresholds(
        3, 0.5, most=0.4, dtype="float64"
    )
    adaptive.record(P)
    assert float(adaptive.threshold) == 0.4
    adaptive.record(np.array([[0.4, 0.3, 0.3]]) * 0.5)  # from 0.4 down
    np.testing.assert_allclose(adaptive.threshold, 0.3)


@pytest.mark.parametrize("quantile", [None, 0.3])
def test_two_replicas_have_one_average(quantile, two_replicas):
    p = reference.softmax(2 * np.random.default_rng(0).normal(size=[6, 4]))
    options = {"quantile": quantile, "dtype": "float64"}
    alone = adaptive_thresholds.AdaptiveThresholds(4, 0.5, **options)
    with two_replicas.scope():
        adaptive = adaptive_thresholds.AdaptiveThresholds(4, 0.5, **options)

    def record(x):
        adaptive.record(x)
        parts = [adaptive.threshold[None], adaptive.p_mean, adaptive.histogram]
        return tf.concat([*parts, adaptive.thresholds()], 0)

    one, other = run(two_replicas, record, p)
    wanted = record_alone(alone, p)
    np.testing.assert_allclose(one, wanted, rtol=1e-12)
    np.testing.assert_array_equal(one, other)


def record_alone(adaptive, p):
    adaptive.record(p)
    values = (
        [float(adaptive.threshold)],
        adaptive.p_mean,
        adaptive.histogram,
        adaptive.thresholds(),
    )
    return np.concatenate(values)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="p has shape .* is wanted"):
        adaptive_thresholds.AdaptiveThresholds(4).record(P)
