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
