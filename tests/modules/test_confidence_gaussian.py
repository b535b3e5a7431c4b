"""SoftMatch's averages and weights."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import confidence_gaussian
from tests import reference
from tests.modules.test_replica import run

P = np.array([[0.7, 0.3, 0.0], [0.1, 0.9, 0.0], [0.5, 0.2, 0.3]])


def test_by_hand():
    gaussian = confidence_gaussian.ConfidenceGaussian(3, 0.5, dtype="float64")
    np.testing.assert_allclose(gaussian.p_mean, [1 / 3] * 3)
    assert float(gaussian.variance) == 1
    gaussian.record(P)
    # Confidences 0.7, 0.9, 0.5: their variance is 0.08 / 2.
    np.testing.assert_allclose(gaussian.mean, (1 / 3 + 0.7) / 2)
    np.testing.assert_allclose(gaussian.variance, (1 + 0.04) / 2)
    np.testing.assert_allclose(
        gaussian.p_mean, (1 / 3 + np.array([1.3, 1.4, 0.3]) / 3) / 2
    )


def test_weights_are_aligned():
    """A class that is rare among the predictions counts more."""
    gaussian = confidence_gaussian.ConfidenceGaussian(2, dtype="float64")
    gaussian.p_mean.assign([0.8, 0.2])
    gaussian.mean.assign(0.9)
    gaussian.variance.assign(0.04)
    # (0.6, 0.4) / (0.8, 0.2) is (3, 8) / 11; (0.4, 0.6) is (1, 6) / 7.
    distances = np.array([0.9 - 8 / 11, 0.9 - 6 / 7])
    np.testing.assert_allclose(
        gaussian.weights([[0.6, 0.4], [0.4, 0.6]]),
        np.exp(-(distances**2) / (2 * 0.1**2)),
        rtol=1e-6,
    )
    assert float(gaussian.weights([[0.1, 0.9]])[0]) == 1


def test_a_single_image_has_no_variance():
    gaussian = confidence_gaussian.ConfidenceGaussian(3, 0.0)
    gaussian.record(P[:1])
    assert float(gaussian.variance) == 0
    gaussian.p_mean.assign([1 / 3] * 3)
    np.testing.assert_array_equal(
        gaussian.weights([[0.75, 0.25, 0.0], [0.6, 0.2, 0.2]]), [1, 0]
    )


def test_two_replicas_have_one_gaussian(two_replicas):
    """The variance is that of all images, not the mean of two variances."""
    p = reference.softmax(2 * np.random.default_rng(0).normal(size=[6, 4]))
    alone = confidence_gaussian.ConfidenceGaussian(4, 0.5, dtype="float64")
    with two_replicas.scope():
        gaussian = confidence_gaussian.ConfidenceGaussian(
            4, 0.5, dtype="float64"
        )

    def record(x):
        gaussian.record(x)
        return tf.concat(
            [gaussian.mean[None], gaussian.variance[None], gaussian.p_mean], 0
        )

    one, other = run(two_replicas, record, p)
    alone.record(p)
    wanted = [float(alone.mean), float(alone.variance), *alone.p_mean.numpy()]
    np.testing.assert_allclose(one, wanted, rtol=1e-12)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("call", ["record", "weights"])
def test_what_does_not_fit(call):
    gaussian = confidence_gaussian.ConfidenceGaussian(4)
    with pytest.raises(ValueError, match="p has shape .* is wanted"):
        getattr(gaussian, call)(P)
