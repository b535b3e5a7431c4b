"""What crosses replicas."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import replica


def run(strategy, function, values):
    """`function` on each replica's share of `values`; results in order."""

    def share(context):
        number = context.replica_id_in_sync_group
        return tf.split(values, 2)[number]

    shares = strategy.experimental_distribute_values_from_function(share)
    results = tf.function(
        lambda x: strategy.run(function, args=(x,)), autograph=False
    )(shares)
    return [x.numpy() for x in strategy.experimental_local_results(results)]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "int64"])
def test_shuffled_rows_come_home(dtype, two_replicas):
    # 3 · 5 bytes a row are no whole number of words.
    rows = np.random.default_rng(0).integers(0, 256, [8, 3, 5, 1])
    rows = rows.astype(dtype)

    def there_and_back(x):
        shuffled, back = replica.shuffle(x, tf.constant([3, 4]))
        return tf.stack([shuffled, back(shuffled)])

    one, other = run(two_replicas, there_and_back, rows)
    np.testing.assert_array_equal(np.concatenate([one[1], other[1]]), rows)
    moved = np.concatenate([one[0], other[0]])
    assert (moved != rows).any()
    # Every row is on one of them, once, and some have changed the replica.
    order = [int(np.flatnonzero((rows == r).all((1, 2, 3)))[0]) for r in moved]
    assert sorted(order) == list(range(8))
    assert any(place >= 4 for place in order[:4])


def test_the_seed_decides(two_replicas):
    rows = np.arange(16.0).reshape(16, 1)
    moved_by_seed = {}
    for seed in (1, 1, 2):
        one, other = run(
            two_replicas,
            lambda x, seed=seed: replica.shuffle(x, tf.constant([0, seed]))[0],
            rows,
        )
        moved = np.concatenate([one, other])
        if seed in moved_by_seed:
            np.testing.assert_array_equal(moved, moved_by_seed[seed])
        moved_by_seed[seed] = moved
    assert (moved_by_seed[1] != moved_by_seed[2]).any()


def test_rows_of_an_index_that_occurs_twice(two_replicas):
    indices = np.array([4, 1, 4, 0, 1, 2], np.int64)
    rows = np.arange(12.0).reshape(6, 2)
    wanted = np.array([[6, 7], [2, 3], [10, 11], [-1, -1], [0, 1]])

    def made():
        return replica.variable(-np.ones([5, 2]), "table", tf.float32)

    with two_replicas.scope():
        two = made()
    values = np.concatenate([indices[:, None], rows], axis=1)

    def write(x):
        replica.write_rows(two, tf.cast(x[:, 0], tf.int64), x[:, 1:])
        return two.read_value()

    for table in run(two_replicas, write, values):
        np.testing.assert_array_equal(table, wanted)
    one = made()
    replica.write_rows(one, indices, rows)
    np.testing.assert_array_equal(one, wanted)
    with pytest.raises(
        ValueError, match="rows has shape .6, 1.: must be .6, 2"
    ):
        replica.write_rows(one, indices, rows[:, :1])


def test_alone_nothing_moves():
    x = tf.reshape(tf.range(6), [3, 2])
    shuffled, back = replica.shuffle(x, tf.constant([0, 0]))
    np.testing.assert_array_equal(shuffled, x)
    np.testing.assert_array_equal(back(x), x)
    assert int(replica.number()) == 0 and int(replica.sum(tf.constant(3))) == 3


def test_sum_mean_and_number(two_replicas):
    def all_three(x):
        total = tf.reduce_sum(x)
        number = tf.cast(replica.number(), tf.float32)
        return tf.stack([replica.sum(total), replica.mean(total), number])

    one, other = run(two_replicas, all_three, np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(one, [6, 3, 0])
    np.testing.assert_array_equal(other, [6, 3, 1])


def test_gradient_of_what_is_gathered(two_replicas):
    """Each replica uses all rows; every row gets what all make of it."""
    x = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])

    def function(own):
        with tf.GradientTape() as tape:
            tape.watch(own)
            rows = replica.all_gather(own)  # [4, 2]
            factor = 1.0 + tf.cast(replica.number(), rows.dtype)
            loss = factor * tf.reduce_sum(rows[:, 0] * rows[::-1, 1])
        gradient = tape.gradient(loss, own)
        assert gradient.shape == own.shape  # static, as XLA needs it
        return gradient

    ones = run(two_replicas, function, tf.constant(x))
    # d/dx of (1 + 2) Σ_i x_i0 x_(3-i)1
    wanted = 3 * x[::-1, ::-1]
    np.testing.assert_allclose(np.concatenate(ones), wanted)
