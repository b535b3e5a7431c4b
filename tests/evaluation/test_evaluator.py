import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.data.sources import source
from simmatch_tf.evaluation import evaluator as evaluator_lib


def test_top_k_by_hand():
    logits = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = np.array([0, 1])
    assert evaluator_lib.top_k(logits, labels, 1) == 0.5
    assert evaluator_lib.top_k(logits, labels, 2) == 1.0
    assert evaluator_lib.top_k(logits, np.array([2, 0]), 2) == 0.0
    assert evaluator_lib.top_k(logits, labels, 5) == 1.0


def test_describe_by_hand():
    # Confidences 0.8, 0.8, 0.6 of which right, wrong, right; two bins.
    logits = np.log([[0.8, 0.2, 1e-9], [0.8, 0.2, 1e-9], [0.4, 0.6, 1e-9]])
    found = evaluator_lib.describe(logits, np.array([0, 1, 1]), bins=2)
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["per_class"] == [1.0, 0.5, None]
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    # All in the upper bin: |2/3 - 2.2/3|.
    assert found["calibration_error"] == pytest.approx(0.2 / 3, abs=1e-6)


def test_calibration_separates_bins():
    logits = np.log([[0.55, 0.45], [0.95, 0.05]])
    found = evaluator_lib.describe(logits, np.array([0, 1]), bins=10)
    assert found["calibration_error"] == pytest.approx((0.45 + 0.95) / 2)


def test_two_replicas_keep_the_order(two_replicas):
    x = np.arange(10, dtype=np.uint8).reshape(10, 1, 1, 1)
    images = source.Images(x, np.zeros(10, np.int64))
    with two_replicas.scope():
        weight = tf.Variable(2.0)

    def network(batch, training):
        return {"logits": weight * tf.cast(batch[:, 0, 0, :], tf.float32)}

    evaluator = evaluator_lib.Evaluator(two_replicas, {"x": network}, 4, side=1)
    found = evaluator.logits(images, np.arange(10))["x"]
    np.testing.assert_array_equal(found[:, 0], 2.0 * np.arange(10))
