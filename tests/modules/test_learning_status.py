"""FlexMatch's û and σ."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import learning_status
from tests import reference
from tests.modules.test_replica import run

N, L = 12, 3


def random(rng, rows):
    """Places, some of them twice, and probabilities that are often sure."""
    p = reference.softmax(3 * rng.normal(size=[rows, L]))
    return rng.integers(0, N, rows), p


def remember(labels, index, p, threshold):
    labels, done = labels.copy(), set()
    for i, row in zip(index, p, strict=True):
        if row.max() >= threshold and i not in done:
            labels[i] = row.argmax()
            done.add(i)
    return labels


def test_by_hand():
    status = learning_status.LearningStatus(L, 10, 0.8)
    np.testing.assert_array_equal(status.thresholds(), [0, 0, 0])
    assert int(status.unused()) == 10
    p = [[0.8, 0.1, 0.1], [0.1, 0.9, 0.0], [0.7, 0.2, 0.1]]
    status.record([4, 0, 7], p)  # the last is not sure enough
    np.testing.assert_array_equal(
        status.labels, [1, -1, -1, -1, 0, -1, -1, -1, -1, -1]
    )
    np.testing.assert_array_equal(status.counts, [1, 1, 0])
    # β = 1 / 8 by the images without a class, M(β) = 1 / 15.
    np.testing.assert_allclose(
        status.thresholds(), [0.8 / 15, 0.8 / 15, 0], rtol=1e-6
    )
    # One changes its class; one that is unsure now keeps it.
    status.record([4, 0], [[0.0, 0.0, 1.0], [0.4, 0.3, 0.3]])
    np.testing.assert_array_equal(status.counts, [0, 1, 1])
    assert int(status.labels[0]) == 1 and int(status.unused()) == 8


def test_without_the_warm_up():
    status = learning_status.LearningStatus(L, 10, 0.8, warmup=False)
    status.record([4], [[0.9, 0.1, 0.0]])
    np.testing.assert_allclose(status.thresholds(), [0.8, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("dtype", [tf.int32, tf.int64])
def test_counts_are_those_of_the_labels(dtype):
    status = learning_status.LearningStatus(L, N, 0.7, dtype="float64")
    record = tf.function(status.record)
    rng, labels = np.random.default_rng(0), -np.ones(N, int)
    for _ in range(20):
        index, p = random(rng, 8)
        record(tf.constant(index, dtype), tf.constant(p))
        labels = remember(labels, index, p, 0.7)
        np.testing.assert_array_equal(status.labels, labels)
        counts = np.bincount(labels[labels >= 0], minlength=L)
        np.testing.assert_array_equal(status.counts, counts)
        np.testing.assert_allclose(
            status.thresholds(),
            reference.flexible(counts, np.sum(labels < 0), 0.7),
        )
    assert (labels >= 0).all() and record.experimental_get_tracing_count() == 1


def test_the_first_confident_row_of_an_image_counts_once():
    status = learning_status.LearningStatus(L, N, 0.8)
    unsure, one, other = [0.5, 0.3, 0.2], [0.0, 0.9, 0.1], [0.1, 0.0, 0.9]
    status.record([3, 3, 3], [unsure, one, other])
    assert int(status.labels[3]) == 1
    np.testing.assert_array_equal(status.counts, [0, 1, 0])
    status.record([3, 3], [unsure, unsure])
    np.testing.assert_array_equal(status.counts, [0, 1, 0])


def test_two_replicas_have_one_status(two_replicas):
    rng = np.random.default_rng(1)
    alone = learning_status.LearningStatus(L, N, 0.7)
    with two_replicas.scope():
        status = learning_status.LearningStatus(L, N, 0.7)

    def record(x):
        status.record(tf.cast(x[:, 0], tf.int64), x[:, 1:])
        return tf.concat([status.labels, status.counts], 0)

    for _ in range(4):
        index, p = random(rng, 8)
        index[6] = index[1]  # an image that is on both
        rows = np.concatenate([index[:, None], p], axis=1).astype(np.float32)
        one, other = run(two_replicas, record, rows)
        alone.record(index, rows[:, 1:])
        wanted = np.concatenate([alone.labels, alone.counts])
        np.testing.assert_array_equal(one, wanted)
        np.testing.assert_array_equal(other, wanted)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="images=0: must be at least 1"):
        learning_status.LearningStatus(L, 0, 0.7)
    status = learning_status.LearningStatus(L, N, 0.7)
    with pytest.raises(ValueError, match="p has shape .* is wanted"):
        status.record([0, 1], np.ones([3, L]))
    with pytest.raises(ValueError, match="p has shape .* is wanted"):
        status.record([0, 1], np.ones([2, L + 1]))
