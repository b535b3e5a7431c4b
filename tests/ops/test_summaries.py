"""Figures of a batch, by hand."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import summaries


def test_entropy():
    p = [[1.0, 0.0, 0.0, 0.0], [0.25] * 4, [0.5, 0.5, 0.0, 0.0]]
    np.testing.assert_allclose(
        summaries.entropy(p), np.log([1, 4, 2]), atol=1e-6
    )
    assert summaries.entropy(tf.constant(p, tf.float64)).dtype == tf.float32
    with pytest.raises(ValueError, match="p has shape"):
        summaries.entropy([0.5, 0.5])


def test_histogram():
    values = tf.constant([0.0, 0.24, 0.25, 0.99, 1.0])
    np.testing.assert_allclose(
        summaries.histogram(values, 4), [0.4, 0.2, 0, 0.4], atol=1e-6
    )
    with pytest.raises(ValueError, match="bins=0: must be at least 1"):
        summaries.histogram(values, 0)


def test_shares():
    np.testing.assert_allclose(
        summaries.shares([2, 0, 2, 2], 4), [0.25, 0, 0.75, 0]
    )


def test_class_similarity():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=[12, 5])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = rng.integers(0, 3, 12)
    valid = rng.random(12) < 0.8
    # A slot that does not count may hold anything finite.
    rows[~valid] = 7.0
    pairs = {True: [], False: []}
    for i in np.flatnonzero(valid):
        for j in np.flatnonzero(valid):
            if i != j:
                pairs[bool(labels[i] == labels[j])].append(rows[i] @ rows[j])
    similarity = summaries.class_similarity(
        tf.constant(rows), tf.constant(labels), tf.constant(valid), 4
    )
    np.testing.assert_allclose(
        similarity, [np.mean(pairs[True]), np.mean(pairs[False])], rtol=1e-5
    )


def test_class_similarity_without_pairs():
    similarity = summaries.class_similarity(
        tf.eye(2), tf.constant([0, 1]), tf.constant([True, False]), 2
    )
    np.testing.assert_array_equal(similarity, [0, 0])
