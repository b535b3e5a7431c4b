import numpy as np
import tensorflow as tf

from simmatch_tf.data.sources import source
from simmatch_tf.evaluation import evaluator as evaluator_lib


def _numbered(count: int) -> source.Images:
    """Images of one pixel, which is the image's number."""
    x = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    return source.Images(x, np.zeros(count, np.int64))


def test_two_replicas_keep_the_order(two_replicas):
    with two_replicas.scope():
        weight = tf.Variable(2.0)

    def network(batch, training):
        assert not training
        numbers = tf.cast(batch[:, 0, 0, :], tf.float16)
        return {
            "logits": weight * tf.cast(numbers, tf.float32),
            "features": tf.concat([numbers, -numbers], axis=1),
        }

    evaluator = evaluator_lib.Evaluator(two_replicas, {"x": network}, 4, side=1)
    logits = evaluator.logits(_numbered(10), np.arange(10))["x"]
    np.testing.assert_array_equal(logits[:, 0], 2.0 * np.arange(10))
    chosen = np.array([7, 1, 4, 0, 2])
    features = evaluator.features("x", _numbered(10), chosen)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, np.stack([chosen, -chosen], 1))


def test_outputs_come_in_batches_without_padding():
    shapes = []

    def forward(batch):
        shapes.append(batch.shape[0])
        pixels = batch[:, 0, 0, 0]
        return {"pixels": pixels, "pairs": tf.stack([pixels, pixels], axis=1)}

    chosen = np.array([7, 1, 4, 0, 2])
    parts = list(
        evaluator_lib.outputs(
            forward, _numbered(10), chosen, batch_size=2, side=1
        )
    )
    assert shapes == [2, 2, 2]
    assert [len(part["pairs"]) for part in parts] == [2, 2, 1]
    pixels = np.concatenate([part["pixels"] for part in parts])
    np.testing.assert_array_equal(pixels, chosen)


def test_outputs_of_no_images_are_none():
    nothing = np.array([], np.int64)
    assert not list(
        evaluator_lib.outputs(
            lambda x: x, _numbered(1), nothing, batch_size=2, side=1
        )
    )
