"""Losses of other methods than SimMatch: by hand, limits, gradients."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import losses
from tests import reference

N, L = 7, 4
RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.normal(size=[N, L])
TARGET = reference.softmax(RNG.normal(size=[N, L]))
TARGET[0] = [0.0, 1.0, 0.0, 0.0]
WEIGHT = np.array([0.3, 0.0, 1.0, 0.7, 1.0, 0.0, 0.2])
KEPT = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
P_MEAN = np.array([0.4, 0.3, 0.2, 0.1])
HISTOGRAM = np.array([0.1, 0.2, 0.3, 0.4])
CASES = {
    "weighted cross-entropy": (
        losses.weighted_cross_entropy,
        reference.weighted_cross_entropy,
        (TARGET, WEIGHT),
    ),
    "fairness": (
        losses.fairness_loss,
        reference.fairness_loss,
        (KEPT, P_MEAN, HISTOGRAM),
    ),
    "fairness, all kept": (
        losses.fairness_loss,
        reference.fairness_loss,
        (np.ones(N), P_MEAN, HISTOGRAM),
    ),
}


def value_and_gradients(function, *arguments):
    tensors = [tf.constant(x) for x in arguments]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        value = function(*tensors)
    return value, tape.gradient(value, tensors)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    ours, theirs, others = CASES[name]
    wanted = theirs(LOGITS, *others)
    slope = reference.gradient(lambda x: theirs(x, *others), LOGITS)
    value, gradients = value_and_gradients(ours, LOGITS, *others)
    assert value.dtype == tf.float64
    np.testing.assert_allclose(value, wanted, rtol=1e-10)
    np.testing.assert_allclose(gradients[0], slope, atol=1e-8)
    # Targets, weights and averages have none.
    assert all(g is None for g in gradients[1:])
    single = [np.float32(x) for x in (LOGITS, *others)]
    value, gradients = value_and_gradients(ours, *single)
    assert value.dtype == tf.float32
    np.testing.assert_allclose(value, wanted, rtol=1e-4)
    np.testing.assert_allclose(gradients[0], slope, atol=1e-4)


def test_weighted_cross_entropy_by_hand():
    """Logits (log 3, 0): p = (3/4, 1/4); divided by both images."""
    logits = np.log([[3.0, 1.0], [3.0, 1.0]])
    target = [[1.0, 0.0], [0.0, 1.0]]
    np.testing.assert_allclose(
        losses.weighted_cross_entropy(logits, target, [1.0, 0.5]),
        (np.log(4 / 3) + 0.5 * np.log(4)) / 2,
        rtol=1e-6,
    )
    none = losses.weighted_cross_entropy(logits, target, [0.0, 0.0])
    assert float(none) == 0


def test_fairness_by_hand():
    """p̄ = (1/2, 1/2), h̄ = (1/2, 1/2), so N(p̄ / h̄) is uniform."""
    logits = np.log([[3.0, 1.0], [1.0, 3.0]])
    uniform = losses.fairness_loss(logits, [1, 1], [0.9, 0.1], [0.5, 0.5])
    np.testing.assert_allclose(uniform, np.log(0.5), rtol=1e-6)
    # Of three images two are of the first class: p̄ = (7, 5) / 12 and
    # h̄ = (2, 1) / 3, N(p̄ / h̄) = (7, 10) / 17; N(p̃ / h̃) = (3, 1) / 4.
    logits = np.log([[3.0, 1.0], [3.0, 1.0], [1.0, 3.0]])
    skewed = losses.fairness_loss(logits, [1, 1, 1], [0.6, 0.4], [0.3, 0.6])
    np.testing.assert_allclose(
        skewed, (3 * np.log(7 / 17) + np.log(10 / 17)) / 4, rtol=1e-5
    )


def test_a_class_that_no_kept_image_has():
    """Its log is that of 1e-12, a constant."""
    logits = np.array([[3.0, 0.0], [2.0, 0.0]])
    value, (slope,) = value_and_gradients(
        lambda x: losses.fairness_loss(x, [1, 1], [0.5, 0.5], [0.5, 0.5]),
        logits,
    )
    np.testing.assert_allclose(value, 0.5 * np.log(1e-12), rtol=1e-5)
    np.testing.assert_allclose(slope, np.zeros([2, 2]), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fairness_of_nothing(dtype):
    value, (slope,) = value_and_gradients(
        lambda x: losses.fairness_loss(x, np.zeros(N), P_MEAN, HISTOGRAM),
        LOGITS.astype(dtype),
    )
    assert float(value) == 0
    np.testing.assert_array_equal(slope, np.zeros([N, L]))


def test_averages_with_zeros_are_finite():
    value, (slope,) = value_and_gradients(
        lambda x: losses.fairness_loss(
            x, KEPT, [0.5, 0.5, 0.0, 0.0], [0.0, 0.5, 0.5, 0.0]
        ),
        50 * LOGITS,  # probabilities of 0 and 1
    )
    assert np.isfinite(value) and np.isfinite(slope).all()


def test_a_threshold_for_each_image():
    p = np.array([[0.6, 0.4], [0.6, 0.4], [0.2, 0.8]])
    logits = np.log([[1.0, 3.0]] * 3)
    loss, kept = losses.unsupervised_loss(
        logits, p, np.array([0.6, 0.7, 0.0]), hard=True
    )
    np.testing.assert_array_equal(kept, [1, 0, 1])
    np.testing.assert_allclose(loss, (np.log(4) + np.log(4 / 3)) / 3, rtol=1e-6)
    # Of one type, whatever that of the thresholds is.
    for threshold in (tf.constant(0.7), tf.constant(0.7, tf.float64), 0.7):
        _, kept = losses.unsupervised_loss(logits, p, threshold)
        np.testing.assert_array_equal(kept, [0, 0, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda: losses.weighted_cross_entropy(LOGITS, TARGET[:2], WEIGHT),
        lambda: losses.weighted_cross_entropy(LOGITS, TARGET, WEIGHT[:2]),
        lambda: losses.weighted_cross_entropy(LOGITS[0], TARGET, WEIGHT),
        lambda: losses.fairness_loss(LOGITS, KEPT[:2], P_MEAN, HISTOGRAM),
        lambda: losses.fairness_loss(LOGITS, KEPT, P_MEAN[:2], HISTOGRAM),
        lambda: losses.fairness_loss(LOGITS, KEPT, P_MEAN, HISTOGRAM[:2]),
        lambda: losses.fairness_loss(LOGITS, KEPT[:, None], P_MEAN, HISTOGRAM),
        lambda: losses.unsupervised_loss(LOGITS, TARGET, WEIGHT[:2]),
        lambda: losses.unsupervised_loss(LOGITS, TARGET, WEIGHT[:, None]),
    ],
)
def test_shapes_that_do_not_fit(call):
    with pytest.raises(ValueError, match="has shape .* is wanted"):
        call()
