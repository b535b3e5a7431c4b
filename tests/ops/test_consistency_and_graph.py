"""Losses without labels by hand, their edges, and what they refuse."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import contrastive, losses, propagation

# Two images on the axes, and one on the first axis again.
Z = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
P = np.array([[1, 0], [0, 1], [0.8, 0.2]], np.float32)


def test_consistency_by_hand():
    # Probabilities 1/2, 1/2 and 1, 0: squares 1/4 and 1/4, and 0.
    loss = losses.consistency_loss([[0, 0], [200, 0]], [[1, 0], [1, 0]])
    np.testing.assert_allclose(loss, 0.5 / 4)
    # The mean over classes: the same difference among 4 classes is half of it.
    four = losses.consistency_loss(
        [[0, 0, -200, -200], [200, 0, 0, 0]], [[1, 0, 0, 0], [1, 0, 0, 0]]
    )
    np.testing.assert_allclose(four, 0.5 / 8)


def test_neighbors_by_hand():
    # exp(1 / T) = 3 to 1: shares 3/4 and 1/4 of the two in the bank.
    t = 1 / np.log(3)
    smoothed = propagation.neighbor_smooth(
        P[:1], Z[:1], Z[:2], [[0, 1], [1, 0]], t, 0.6
    )
    np.testing.assert_allclose(smoothed, [[0.7, 0.3]], rtol=1e-6)
    whole = propagation.neighbor_smooth(P, Z, Z[:2], P[:2], t, 1.0)
    np.testing.assert_array_equal(whole, P)


def test_graph_by_hand():
    # Edges: each image with itself; 0 and 2 by 0.8, which is T_c.
    t = 1 / np.log(3)
    z_1, z_2 = Z[[0, 1, 1]], Z[[0, 0, 1]]
    c = np.log([[3 / 7, 3 / 7, 1 / 7], [1 / 5, 1 / 5, 3 / 5]])[[0, 1, 1]]
    rows = [-(c[0, 0] + 0.8 * c[0, 2]) / 1.8, -c[1, 1]]
    rows += [-(0.8 * c[2, 0] + c[2, 2]) / 1.8]
    loss = contrastive.graph_loss(z_1, z_2, P, t, np.float32(0.8))
    np.testing.assert_allclose(loss, np.mean(rows), rtol=1e-6)
    # Above it they have none.
    alone = contrastive.graph_loss(z_1, z_2, P, t, 0.81)
    np.testing.assert_allclose(alone, -np.trace(c) / 3, rtol=1e-6)
    assert abs(np.mean(rows) + np.trace(c) / 3) > 0.1


def test_pseudo_labels_that_agree_in_doubt_have_no_edge_by_themselves():
    """p·p of an even p is 1/L, but an image is always its own neighbor."""
    even = np.full([3, 2], 0.5, np.float32)
    loss = contrastive.graph_loss(Z, Z, even, 1.0, 0.6)
    sharp = contrastive.graph_loss(Z, Z, [[1, 0], [0, 1], [0, 0]], 1.0, 0.6)
    np.testing.assert_allclose(loss, sharp, rtol=1e-6)


def test_rows_of_the_queue_that_are_not_valid_do_nothing():
    queue = np.array([[0, 1], [np.nan, np.nan], [1, 0]], np.float32)
    queue_p = np.array([[0, 1], [np.nan, 2], [1, 0]], np.float32)
    z = tf.constant(Z)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = contrastive.graph_loss(
            z,
            Z,
            P,
            0.2,
            0.5,
            queue=queue,
            queue_p=queue_p,
            valid=[True, False, True],
        )
    wanted = contrastive.graph_loss(
        Z, Z, P, 0.2, 0.5, queue=queue[::2], queue_p=queue_p[::2]
    )
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert np.isfinite(tape.gradient(loss, z)).all()
    none = contrastive.graph_loss(
        Z, Z, P, 0.2, 0.5, queue=queue, queue_p=queue_p, valid=[False] * 3
    )
    without = contrastive.graph_loss(Z, Z, P, 0.2, 0.5)
    np.testing.assert_allclose(none, without, rtol=1e-6)


@pytest.mark.parametrize("t", [0.005, 0.1, 10.0])
def test_gradients_are_finite_with_zeros_and_none_goes_to_targets(t):
    z_1, z_2, p = map(tf.constant, (Z, -Z, P))
    logits = tf.constant([[500.0, -500.0], [0, 0], [1, 2]])
    with tf.GradientTape() as tape:
        tape.watch([z_1, z_2, p, logits])
        graph = contrastive.graph_loss(z_1, z_2, p, t, 0.8)
        smoothed = propagation.neighbor_smooth(p, z_1, Z, P, t, 0.9)
        loss = graph + tf.reduce_sum(tf.square(smoothed))
        loss += losses.consistency_loss(logits, [[0, 1], [1, 0], [1, 0]])
    for gradient in tape.gradient(loss, [z_1, z_2, p, logits]):
        assert np.isfinite(gradient).all()
    bank, bank_p = tf.constant(Z), tf.constant(P)
    with tf.GradientTape() as tape:
        tape.watch([p, bank, bank_p])
        loss = contrastive.graph_loss(
            Z, Z, p, t, 0.8, queue=bank, queue_p=bank_p
        )
        loss += losses.consistency_loss(logits, p)
        loss += tf.reduce_sum(
            propagation.neighbor_smooth(P, Z, bank, bank_p, t, 0.9)[:, 0]
        )
    assert tape.gradient(loss, [p, bank, bank_p]) == [None] * 3


def test_precision():
    half = [tf.cast(x, tf.float16) for x in (Z, P)]
    results = [
        losses.consistency_loss(*half),
        propagation.neighbor_smooth(half[1], half[0], *half, 0.1, 0.9),
        contrastive.graph_loss(half[0], *half, 0.1, 0.8),
    ]
    assert {x.dtype for x in results} == {tf.float32}
    z, p = np.float64(Z), np.float64(P)
    results = [
        losses.consistency_loss(z, p),
        propagation.neighbor_smooth(p, z, z, p, 0.1, 0.9),
        contrastive.graph_loss(z, z, p, 0.1, 0.8),
        contrastive.graph_loss(z, z, p, 0.1, 0.8, queue=z, queue_p=p),
    ]
    assert {x.dtype for x in results} == {tf.float64}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.consistency_loss(P, P[:2]), "target has shape"),
        (
            lambda: propagation.neighbor_smooth(P, Z, Z, P[:2], 0.1, 0.9),
            "bank_p has shape",
        ),
        (
            lambda: propagation.neighbor_smooth(P, Z, Z, P, 0.0, 0.9),
            "temperature=0.0",
        ),
        (
            lambda: propagation.neighbor_smooth(P, Z, Z, P, 0.1, 1.5),
            "alpha=1.5",
        ),
        (
            lambda: contrastive.graph_loss(Z, Z[:2], P, 0.1, 0.8),
            "z_2 has shape",
        ),
        (lambda: contrastive.graph_loss(Z, Z, P[0], 0.1, 0.8), "p has shape"),
        (
            lambda: contrastive.graph_loss(Z, Z, P, -1.0, 0.8),
            "temperature=-1.0",
        ),
        (lambda: contrastive.graph_loss(Z, Z, P, 0.1, 1.1), "threshold=1.1"),
        (
            lambda: contrastive.graph_loss(Z, Z, P, 0.1, 0.8, queue=Z),
            "give both",
        ),
        (
            lambda: contrastive.graph_loss(
                Z, Z, P, 0.1, 0.8, queue=Z, queue_p=P[:2]
            ),
            "queue_p has shape",
        ),
        (
            lambda: contrastive.graph_loss(
                Z, Z, P, 0.1, 0.8, queue=Z, queue_p=P, valid=[True]
            ),
            "valid has shape",
        ),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()
