"""Every equation against the NumPy float64 transcription, value and gradient.

`CASES` has one entry a function: the call of ours, the reference's, and which
argument the gradient is taken by.
"""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import contrastive, losses, mixing, propagation, targets
from tests import reference

N, K, D, L = 5, 12, 8, 4


def unit(rng, rows):
    z = rng.normal(size=[rows, D])
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "z": unit(rng, N),
        "memory": unit(rng, K),
        "valid": np.arange(K) % 3 > 0,
        "labels": rng.integers(L, size=K),
        "y": rng.integers(L, size=N),
        "p": reference.softmax(rng.normal(size=[N, L])).astype(np.float32),
        "q": reference.softmax(rng.normal(size=[N, K])).astype(np.float32),
        "logits": rng.normal(size=[N, L]).astype(np.float32),
        "mean": rng.uniform(0.1, 1, size=L).astype(np.float32),
        "weight": rng.uniform(0, 2, size=N).astype(np.float32),
        "order": rng.permutation(N),
        "share": rng.uniform(size=N).astype(np.float32),
        "bank_p": reference.softmax(rng.normal(size=[K, L])).astype(np.float32),
        "z_2": unit(rng, N),
        # Of two classes, one of them twice: edges, and none.
        "sharp": np.eye(L, dtype=np.float32)[[0, 1, 0, 1, 2]] * 0.9 + 0.025,
    }


I = inputs()  # noqa: E741
CASES = {
    "similarity": (
        lambda z: propagation.instance_similarity(z, I["memory"], 0.1),
        lambda z: reference.instance_similarity(z, I["memory"], 0.1),
        I["z"],
    ),
    "similarity, some slots": (
        lambda z: propagation.instance_similarity(
            z, I["memory"], 0.1, I["valid"]
        ),
        lambda z: reference.instance_similarity(
            z, I["memory"], 0.1, I["valid"]
        ),
        I["z"],
    ),
    "unfold": (
        lambda p: propagation.unfold(p, I["labels"]),
        lambda p: reference.unfold(p, I["labels"]),
        I["p"],
    ),
    "scale by q": (
        lambda q: propagation.scale(q, propagation.unfold(I["p"], I["labels"])),
        lambda q: reference.scale(q, reference.unfold(I["p"], I["labels"])),
        I["q"],
    ),
    "scale by p": (
        lambda p: propagation.scale(I["q"], propagation.unfold(p, I["labels"])),
        lambda p: reference.scale(I["q"], reference.unfold(p, I["labels"])),
        I["p"],
    ),
    "aggregate": (
        lambda q: propagation.aggregate(q, I["labels"], L),
        lambda q: reference.aggregate(q, I["labels"], L),
        I["q"],
    ),
    "smooth": (
        lambda p: propagation.smooth(p, I["q"][:, :L], 0.9),
        lambda p: reference.smooth(p, I["q"][:, :L], 0.9),
        I["p"],
    ),
    "align": (
        lambda p: targets.align(p, I["mean"]),
        lambda p: reference.align(p, I["mean"]),
        I["p"],
    ),
    "sharpen": (
        lambda p: targets.sharpen(p, 0.4),
        lambda p: reference.sharpen(p, 0.4),
        I["p"],
    ),
    "smooth by a temperature": (
        lambda p: targets.sharpen(p, 3.0),
        lambda p: reference.sharpen(p, 3.0),
        I["p"],
    ),
    "weighted cross-entropy": (
        lambda x: losses.weighted_cross_entropy(x, I["p"], I["weight"]),
        lambda x: reference.weighted_cross_entropy(x, I["p"], I["weight"]),
        I["logits"],
    ),
    "KL": (
        lambda x: losses.kl_loss(x, I["p"]),
        lambda x: reference.kl_loss(x, I["p"]),
        I["logits"],
    ),
    "KL, weighted": (
        lambda x: losses.kl_loss(x, I["p"], I["weight"]),
        lambda x: reference.kl_loss(x, I["p"], I["weight"]),
        I["logits"],
    ),
    "entropy": (
        losses.entropy_loss,
        reference.entropy_loss,
        I["logits"],
    ),
    "L_s": (
        lambda x: losses.supervised_loss(x, I["y"]),
        lambda x: reference.supervised_loss(x, I["y"]),
        I["logits"],
    ),
    "L_u": (
        lambda x: losses.unsupervised_loss(x, I["p"], 0.5)[0],
        lambda x: reference.unsupervised_loss(x, I["p"], 0.5)[0],
        I["logits"],
    ),
    "L_in": (
        lambda z: losses.instance_loss(z, I["memory"], I["q"], 0.1),
        lambda z: reference.instance_loss(z, I["memory"], I["q"], 0.1),
        I["z"],
    ),
    "L_in, some slots": (
        lambda z: losses.instance_loss(z, I["memory"], I["q"], 0.1, I["valid"]),
        lambda z: reference.instance_loss(
            z, I["memory"], I["q"], 0.1, I["valid"]
        ),
        I["z"],
    ),
    "consistency": (
        lambda x: losses.consistency_loss(x, I["p"]),
        lambda x: reference.consistency_loss(x, I["p"]),
        I["logits"],
    ),
    "mixed x": (
        lambda x: mixing.mix(x, I["p"], I["order"], I["share"])[0],
        lambda x: reference.mix(x, I["p"], I["order"], I["share"])[0],
        I["z"],
    ),
    "mixed y": (
        lambda y: mixing.mix(I["z"], y, I["order"], I["share"])[1],
        lambda y: reference.mix(I["z"], y, I["order"], I["share"])[1],
        I["p"],
    ),
    "neighbors, by p": (
        lambda p: propagation.neighbor_smooth(
            p, I["z"], I["memory"], I["bank_p"], 0.2, 0.9
        ),
        lambda p: reference.neighbor_smooth(
            p, I["z"], I["memory"], I["bank_p"], 0.2, 0.9
        ),
        I["p"],
    ),
    "neighbors, by z": (
        lambda z: propagation.neighbor_smooth(
            I["p"], z, I["memory"], I["bank_p"], 0.2, 0.3
        ),
        lambda z: reference.neighbor_smooth(
            I["p"], z, I["memory"], I["bank_p"], 0.2, 0.3
        ),
        I["z"],
    ),
    "graph, by z_1": (
        lambda z: contrastive.graph_loss(z, I["z_2"], I["sharp"], 0.2, 0.7),
        lambda z: reference.graph_loss(z, I["z_2"], I["sharp"], 0.2, 0.7),
        I["z"],
    ),
    "graph, by z_2": (
        lambda z: contrastive.graph_loss(I["z"], z, I["sharp"], 0.2, 0.7),
        lambda z: reference.graph_loss(I["z"], z, I["sharp"], 0.2, 0.7),
        I["z_2"],
    ),
    "graph with a queue": (
        lambda z: contrastive.graph_loss(
            z,
            I["z_2"],
            I["p"],
            0.2,
            0.25,
            queue=I["memory"],
            queue_p=I["bank_p"],
            valid=I["valid"],
        ),
        lambda z: reference.graph_loss(
            z,
            I["z_2"],
            I["p"],
            0.2,
            0.25,
            I["memory"][I["valid"]],
            I["bank_p"][I["valid"]],
        ),
        I["z"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value(name):
    ours, theirs, x = CASES[name]
    for call in (ours, tf.function(ours)):
        value = call(tf.constant(x))
        assert value.dtype == tf.float32
        np.testing.assert_allclose(value, theirs(x), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours(x), ours(tf.constant(x)))


@pytest.mark.parametrize("name", CASES)
def test_gradient(name):
    ours, theirs, x = CASES[name]
    # A weighted sum, so that every output's gradient counts.
    weights = np.random.default_rng(1).normal(size=np.shape(theirs(x)))
    tensor = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(tensor)
        total = tf.reduce_sum(ours(tensor) * np.float32(weights))
    wanted = reference.gradient(lambda v: np.sum(theirs(v) * weights), x)
    scale = max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(
        tape.gradient(total, tensor) / scale, wanted / scale, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_label_types(dtype):
    labels, y = I["labels"].astype(dtype), I["y"].astype(dtype)
    propagation.unfold(I["p"], labels)
    propagation.aggregate(I["q"], labels, L)
    losses.supervised_loss(I["logits"], y)


@pytest.mark.parametrize("t", [0.005, 0.02, 0.1, 1.0, 10.0])
def test_any_temperature(t):
    q = propagation.instance_similarity(I["z"], I["memory"], t)
    wanted = reference.softmax(np.float64(I["z"]) @ I["memory"].T / t)
    np.testing.assert_allclose(q, wanted, atol=1e-4)
    np.testing.assert_allclose(np.sum(q, axis=1), 1, rtol=1e-5)
    loss = losses.instance_loss(I["z"], I["memory"], I["q"], t)
    logits = np.float64(I["z"]) @ I["memory"].T / t
    top = logits.max(axis=1)
    log_sum = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    wanted = np.mean(log_sum - (I["q"] * logits).sum(axis=1))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_bfloat16_inputs_give_float32():
    z = tf.cast(I["z"], tf.bfloat16)
    q = propagation.instance_similarity(z, I["memory"], 0.1)
    assert q.dtype == tf.float32
    loss = losses.instance_loss(z, I["memory"], q, 0.1)
    assert loss.dtype == tf.float32 and np.isfinite(loss)
    logits = tf.cast(I["logits"], tf.bfloat16)
    assert losses.supervised_loss(logits, I["y"]).dtype == tf.float32


def test_l_u_counts_by_hand():
    # Two images, ln 2 each; the first is confident enough, the second not.
    loss, mask = losses.unsupervised_loss(
        np.zeros([2, 2]), [[0.95, 0.05], [0.94, 0.06]], 0.95
    )
    np.testing.assert_array_equal(mask, [1, 0])
    np.testing.assert_allclose(loss, np.log(2) / 2, rtol=1e-6)
    assert mask.dtype == tf.float32


def test_targets_carry_no_gradient():
    p, q = tf.constant(I["p"]), tf.constant(I["q"])
    memory = tf.constant(I["memory"])
    with tf.GradientTape() as tape:
        tape.watch([p, q, memory])
        loss = losses.unsupervised_loss(I["logits"], p, 0.0)[0]
        loss += losses.instance_loss(I["z"], memory, q, 0.1)
        loss += losses.consistency_loss(I["logits"], p)
    assert tape.gradient(loss, [p, q, memory]) == [None, None, None]
