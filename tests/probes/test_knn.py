"""Weighted neighbours against a plain transcription, and by hand."""

import numpy as np

from simmatch_tf.probes import knn


def plain(train, features, k, t):
    x = train[0] / np.linalg.norm(train[0], axis=1, keepdims=True)
    z = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = []
    for cosines in z @ x.T:
        nearest = np.argsort(-cosines, kind="stable")[:k]
        votes = np.bincount(
            train[1][nearest], np.exp(cosines[nearest] / t), train[1].max() + 1
        )
        found.append(votes.argmax())
    return np.array(found)


def test_equals_a_plain_transcription():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 300)
    centers = rng.normal(size=(7, 16))
    train = (centers[labels] + rng.normal(size=(300, 16)), labels)
    features = centers[rng.integers(0, 7, 200)] + rng.normal(size=(200, 16))
    for k, t in ((1, 0.07), (5, 0.07), (20, 0.5), (300, 0.02)):
        found = knn.predict(train, features, neighbors=k, temperature=t)
        np.testing.assert_array_equal(found, plain(train, features, k, t))


def test_near_votes_outweigh_many():
    x = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.1, 1.0]])
    train = (x, np.array([3, 8, 8, 8]))
    nearly = np.array([[1.0, 0.1]], np.float32)
    sharp = knn.predict(train, nearly, neighbors=4, temperature=0.07)
    flat = knn.predict(train, nearly, neighbors=4, temperature=10.0)
    assert (sharp.item(), flat.item()) == (3, 8)


def test_a_low_temperature_does_not_overflow():
    x = np.eye(3)
    found = knn.predict(
        (x, np.arange(3)), 1e4 * x, neighbors=3, temperature=0.005
    )
    np.testing.assert_array_equal(found, [0, 1, 2])
