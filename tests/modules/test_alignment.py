import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import alignment
from tests import reference


def test_mean_counts_written_rows_only():
    align = alignment.DistributionAlignment(2, window=3)
    p = np.float32([[0.2, 0.8], [0.4, 0.6]])
    # The first batch is divided by its own mean, (0.3, 0.7).
    np.testing.assert_allclose(
        align(p), reference.align(p, [0.3, 0.7]), rtol=1e-6
    )
    np.testing.assert_allclose(align.mean(), [0.3, 0.7], rtol=1e-6)


def test_window_forgets_the_oldest():
    align = alignment.DistributionAlignment(2, window=2)
    for share in (0.1, 0.2, 0.6):
        align(np.float32([[share, 1 - share]]))
    np.testing.assert_allclose(align.mean(), [0.4, 0.6], rtol=1e-6)
    assert int(align.written) == 3


def test_a_class_never_predicted_gets_nothing():
    align = alignment.DistributionAlignment(3, window=2)
    aligned = align(np.float32([[0.5, 0.5, 0.0]])).numpy()
    np.testing.assert_allclose(aligned, [[0.5, 0.5, 0.0]], rtol=1e-6)


def test_rows_sum_to_one_in_a_graph():
    align = alignment.DistributionAlignment(7, window=4)
    step = tf.function(align)
    rng = np.random.default_rng(0)
    for _ in range(6):
        p = reference.softmax(rng.normal(size=[9, 7])).astype(np.float32)
        np.testing.assert_allclose(np.sum(step(p), 1), 1, rtol=1e-5)


def test_two_replicas_share_one_mean(two_replicas):
    p = reference.softmax(np.random.default_rng(0).normal(size=[6, 4]))
    p = p.astype(np.float32)
    alone = alignment.DistributionAlignment(4, 3)
    wanted = alone(p)
    with two_replicas.scope():
        align = alignment.DistributionAlignment(4, 3)
    parts = two_replicas.experimental_distribute_values_from_function(
        lambda c: tf.constant(np.split(p, 2)[c.replica_id_in_sync_group])
    )
    aligned = tf.function(lambda x: two_replicas.run(align, args=(x,)))(parts)
    aligned = np.concatenate(two_replicas.experimental_local_results(aligned))
    np.testing.assert_allclose(aligned, wanted, rtol=1e-5)
    for copy in two_replicas.experimental_local_results(align.window):
        np.testing.assert_allclose(copy, alone.window, rtol=1e-6)


def test_bad_arguments():
    with pytest.raises(ValueError, match="is wanted"):
        alignment.DistributionAlignment(2, 1)(np.ones([3, 4], np.float32))


def test_prior_by_hand():
    """π p / mean: with the mean (0.3, 0.7) and π = (0.9, 0.1)."""
    align = alignment.DistributionAlignment(2, window=3, prior=[0.9, 0.1])
    p = np.float32([[0.2, 0.8], [0.4, 0.6]])
    ratio = p * [0.9, 0.1] / [0.3, 0.7]
    np.testing.assert_allclose(
        align(p), ratio / ratio.sum(1, keepdims=True), rtol=1e-6
    )


def test_predictions_move_to_the_prior():
    """The mean of what is aligned nears π where predictions are uncertain."""
    prior = np.array([0.6, 0.3, 0.1])
    align = alignment.DistributionAlignment(3, window=1, prior=prior)
    logits = 0.01 * np.random.default_rng(0).normal(size=[500, 3])
    logits += [1.0, 3.0, 2.0]  # far from the prior
    aligned = align(reference.softmax(logits).astype(np.float32))
    np.testing.assert_allclose(np.mean(aligned, 0), prior, atol=1e-3)


def test_equal_prior_changes_no_bit():
    p = reference.softmax(np.random.default_rng(0).normal(size=[50, 3]))
    p = p.astype(np.float32)
    plain = alignment.DistributionAlignment(3, 2)(p)
    equal = alignment.DistributionAlignment(3, 2, prior=[1 / 3] * 3)(p)
    np.testing.assert_array_equal(plain, equal)
    other = alignment.DistributionAlignment(3, 2, prior=[0.34, 0.33, 0.33])(p)
    assert not np.array_equal(plain, other)


@pytest.mark.parametrize("prior", [[0.5, 0.5], [1.0, 0.0, 0.0]])
def test_bad_prior(prior):
    with pytest.raises(ValueError, match="must be 3 shares above 0"):
        alignment.DistributionAlignment(3, 2, prior=prior)


def test_two_replicas_share_one_prior(two_replicas):
    p = reference.softmax(np.random.default_rng(0).normal(size=[6, 4]))
    p, prior = p.astype(np.float32), [0.4, 0.3, 0.2, 0.1]
    wanted = alignment.DistributionAlignment(4, 3, prior=prior)(p)
    with two_replicas.scope():
        align = alignment.DistributionAlignment(4, 3, prior=prior)
    parts = two_replicas.experimental_distribute_values_from_function(
        lambda c: tf.constant(np.split(p, 2)[c.replica_id_in_sync_group])
    )
    aligned = tf.function(lambda x: two_replicas.run(align, args=(x,)))(parts)
    aligned = np.concatenate(two_replicas.experimental_local_results(aligned))
    np.testing.assert_allclose(aligned, wanted, rtol=1e-5)


def test_past_batches_by_hand():
    """The window of 4 starts full of ½; a batch is recorded after its use."""
    align = alignment.PastAlignment(2, window=4, prior=[0.9, 0.1])
    p = np.float32([[0.2, 0.8], [0.4, 0.6]])
    np.testing.assert_allclose(align.mean(), [0.5, 0.5])
    for mean in ([0.5, 0.5], [(3 * 0.5 + 0.3) / 4, (3 * 0.5 + 0.7) / 4]):
        ratio = p * (np.array([0.9, 0.1]) + 1e-6) / (np.array(mean) + 1e-6)
        np.testing.assert_allclose(
            align(p), ratio / ratio.sum(1, keepdims=True), rtol=1e-6
        )
    for _ in range(2):
        align(p)
    np.testing.assert_allclose(align.mean(), [0.3, 0.7], rtol=1e-6)


def test_epsilon_bounds_both_shares():
    """Neither a prior of 0 nor a mean of 0 gives 0 / 0."""
    align = alignment.PastAlignment(3, window=1, prior=[0.0, 0.5, 0.5])
    align(np.float32([[0.0, 1.0, 0.0]]))
    aligned = align(np.float32([[0.2, 0.4, 0.4]])).numpy()
    ratio = np.array([0.2, 0.4, 0.4]) * [1e-6, 0.5, 0.5] / [1e-6, 1, 1e-6]
    np.testing.assert_allclose(aligned, ratio[None] / ratio.sum(), rtol=1e-4)
    with pytest.raises(ValueError, match="must be 2 shares above 0"):
        alignment.PastAlignment(2, 1, prior=[-0.5, 1.5])


def test_past_batches_of_two_replicas(two_replicas):
    p = reference.softmax(np.random.default_rng(0).normal(size=[6, 4]))
    p = p.astype(np.float32)
    alone = alignment.PastAlignment(4, 3)
    wanted = [alone(p), alone(p)]
    with two_replicas.scope():
        align = alignment.PastAlignment(4, 3)
    parts = two_replicas.experimental_distribute_values_from_function(
        lambda c: tf.constant(np.split(p, 2)[c.replica_id_in_sync_group])
    )
    step = tf.function(lambda x: two_replicas.run(align, args=(x,)))
    for each in wanted:
        aligned = two_replicas.experimental_local_results(step(parts))
        np.testing.assert_allclose(np.concatenate(aligned), each, rtol=1e-5)
    for copy in two_replicas.experimental_local_results(align.window):
        np.testing.assert_allclose(copy, alone.window, rtol=1e-6)


def test_moving_average_is_read_before_the_batch():
    align = alignment.AverageAlignment(2, 0.9, "float64")
    np.testing.assert_allclose(align.mean(), [0.5, 0.5])
    p = np.array([[0.2, 0.8], [0.4, 0.6]])
    np.testing.assert_allclose(align(p), p, rtol=1e-12)
    np.testing.assert_allclose(align.mean(), [0.48, 0.52])
    ratio = p / (np.array([0.48, 0.52]) + 1e-6)
    wanted = ratio / ratio.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(align(p), wanted, rtol=1e-12)
    np.testing.assert_allclose(align.mean(), [0.462, 0.538])
    assert int(align.written) == 2


def test_moving_average_aims_at_a_prior():
    prior = [0.75, 0.25, 0.0]
    align = alignment.AverageAlignment(3, 0.9, "float64", prior)
    p = np.full([1, 3], 1 / 3)
    shares = np.array(prior) + 1e-6
    np.testing.assert_allclose(align(p)[0], shares / shares.sum(), rtol=1e-9)


def test_two_replicas_share_one_moving_average(two_replicas):
    p = reference.softmax(np.random.default_rng(0).normal(size=[6, 4]))
    alone = alignment.AverageAlignment(4, 0.5, "float64")
    alone(p)
    with two_replicas.scope():
        align = alignment.AverageAlignment(4, 0.5, "float64")
    parts = two_replicas.experimental_distribute_values_from_function(
        lambda c: tf.constant(np.split(p, 2)[c.replica_id_in_sync_group])
    )
    tf.function(lambda x: two_replicas.run(align, args=(x,)))(parts)
    for copy in two_replicas.experimental_local_results(align.window):
        np.testing.assert_allclose(copy, alone.window, rtol=1e-12)
