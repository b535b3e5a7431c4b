"""Mixed images, and batches whose rows change places."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import losses, mixing
from tests import reference


def test_mix_by_hand():
    x = np.float32([[[0.0]], [[100.0]], [[200.0]]])
    y = np.float32([[1, 0], [0, 1], [0.5, 0.5]])
    # A share below ½ counts as the rest of it: each image keeps the larger.
    images, targets = mixing.mix(x, y, [1, 2, 2], [0.75, 0.25, 0.6])
    np.testing.assert_allclose(images[:, 0, 0], [25, 125, 200])
    np.testing.assert_allclose(
        targets, [[0.75, 0.25], [0.125, 0.875], [0.5, 0.5]]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mix_is_its_equation(dtype):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 255, [6, 2, 3, 1]).astype(dtype)
    y = reference.softmax(rng.normal(size=[6, 4])).astype(dtype)
    order, share = rng.permutation(6), rng.random(6).astype(dtype)
    for order_type in (np.int32, np.int64):
        mixed = mixing.mix(x, y, order.astype(order_type), share)
        wanted = reference.mix(x, y, order, share)
        for ours, theirs in zip(mixed, wanted, strict=True):
            assert ours.dtype == dtype
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    np.testing.assert_allclose(np.sum(mixed[1], 1), 1, rtol=1e-6)


def test_mix_of_bytes_and_of_one_narrow_input_is_float32():
    x = np.uint8([[[[0]]], [[[255]]]])
    y = np.float64([[1, 0], [0, 1]])
    images, targets = mixing.mix(x, y, [1, 0], np.float64([0.5, 0.9]))
    assert images.dtype == targets.dtype == tf.float32
    np.testing.assert_allclose(np.ravel(images), [127.5, 229.5])


def test_mix_has_a_gradient_to_both():
    x, y = tf.constant([[1.0], [3.0]]), tf.constant([[1.0, 0.0], [0.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch([x, y])
        images, targets = mixing.mix(x, y, [1, 1], [0.2, 0.9])
        total = tf.reduce_sum(images) + tf.reduce_sum(targets)
    dx, dy = tape.gradient(total, [x, y])
    np.testing.assert_allclose(dx, [[0.8], [1.2]], rtol=1e-6)
    np.testing.assert_allclose(dy, [[0.8, 0.8], [1.2, 1.2]], rtol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [
        (np.ones([3, 2, 2, 1]), np.ones([2, 4]), [1, 0, 2], [0.5] * 3),
        (np.ones([2, 2, 2, 1]), np.ones([2]), [1, 0], [0.5] * 2),
        (np.ones([2, 2, 2, 1]), np.ones([2, 4]), [1, 0, 2], [0.5] * 2),
        (np.ones([2, 2, 2, 1]), np.ones([2, 4]), [1, 0], 0.5),
        (1.0, np.ones([2, 4]), [1, 0], [0.5] * 2),
    ],
)
def test_what_does_not_fit_is_not_mixed(arguments):
    with pytest.raises(ValueError, match="has shape .* is wanted"):
        mixing.mix(*arguments)
    with pytest.raises(ValueError, match="has shape .* is wanted"):
        tf.function(lambda: mixing.mix(*arguments))()


def test_groups():
    assert mixing.groups(4, 2).numpy().tolist() == [0, 0, 1, 1]
    assert mixing.groups(8, 3).numpy().tolist() == [0, 0, 1, 1, 1, 2, 2, 2]
    assert mixing.groups(2, 3).numpy().tolist() == [1, 2]
    # 64 images in three batches: 21, 21 and 22, as published.
    assert np.bincount(mixing.groups(64, 3)).tolist() == [21, 21, 22]


def test_interleave_by_hand():
    batches = [np.arange(6) + 10 * b for b in range(3)]
    mixed = mixing.interleave(batches, mixing.groups(6, 3))
    wanted = [
        [0, 1, 12, 13, 24, 25],
        [10, 11, 2, 3, 14, 15],
        [20, 21, 22, 23, 4, 5],
    ]
    np.testing.assert_array_equal(mixed, wanted)


@pytest.mark.parametrize(
    ("rows", "count"), [(6, 3), (64, 3), (7, 4), (2, 3), (5, 1), (1, 1)]
)
def test_interleave_is_the_exchange_of_groups_and_undoes_itself(rows, count):
    rng = np.random.default_rng(0)
    for shape in ([rows], [rows, 2], [rows, 3, 3, 1]):
        batches = [rng.random(shape) for _ in range(count)]
        groups = mixing.groups(rows, count)
        mixed = mixing.interleave(batches, groups)
        np.testing.assert_array_equal(mixed, reference.interleave(batches))
        again = mixing.interleave(mixed, groups)
        np.testing.assert_array_equal(again, batches)


def test_parts_of_the_groups_interleave_parts_of_the_batches():
    """What the replicas exchange, each for itself, is the whole exchange."""
    batches = [np.arange(8) + 10 * b for b in range(3)]
    groups = mixing.groups(8, 3)
    whole = mixing.interleave(batches, groups)
    halves = [
        mixing.interleave([batch[half] for batch in batches], groups[half])
        for half in (slice(4), slice(4, 8))
    ]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), whole)


def test_batches_of_different_shapes_are_not_interleaved():
    groups = mixing.groups(4, 2)
    with pytest.raises(ValueError, match="b_1 has shape .* is wanted"):
        mixing.interleave([np.ones([4, 3]), np.ones([4, 2])], groups)
    with pytest.raises(ValueError, match="groups has shape .* is wanted"):
        mixing.interleave([np.ones([3, 2]), np.ones([3, 2])], groups)


def test_consistency_by_hand():
    # Equal logits: (½ - 1)² + (½ - 0)² = ½ of the first, 0 of the second.
    loss = losses.consistency_loss(np.zeros([2, 2]), [[1.0, 0.0], [0.5, 0.5]])
    np.testing.assert_allclose(loss, 0.125)
    # At most 2 / L: all the mass on another class.
    loss = losses.consistency_loss([[50.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]])
    np.testing.assert_allclose(loss, 2 / 3, rtol=1e-6)
