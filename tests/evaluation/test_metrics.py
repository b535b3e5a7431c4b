import numpy as np
import pytest

from simmatch_tf.evaluation import metrics


def test_top_k_by_hand():
    logits = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    labels = np.array([0, 1])
    assert metrics.top_k(logits, labels, 1) == 0.5
    assert metrics.top_k(logits, labels, 2) == 1.0
    assert metrics.top_k(logits, np.array([2, 0]), 2) == 0.0
    assert metrics.top_k(logits, labels, 5) == 1.0


def test_softmax_of_large_logits_is_finite():
    p = metrics.softmax(np.array([[1000.0, 1000.0], [0.0, np.log(3)]]))
    np.testing.assert_allclose(p, [[0.5, 0.5], [0.25, 0.75]])


def test_describe_by_hand():
    # Confidences 0.8, 0.8, 0.6 of which right, wrong, right; two bins.
    logits = np.log([[0.8, 0.2, 1e-9], [0.8, 0.2, 1e-9], [0.4, 0.6, 1e-9]])
    figures = metrics.describe(logits, np.array([0, 1, 1]), bins=2)
    assert figures["top1"] == pytest.approx(2 / 3)
    assert figures["per_class"] == [1.0, 0.5, None]
    assert figures["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    # All in the upper bin: |2/3 - 2.2/3|.
    assert figures["calibration_error"] == pytest.approx(0.2 / 3, abs=1e-6)


def test_calibration_separates_bins():
    logits = np.log([[0.55, 0.45], [0.95, 0.05]])
    figures = metrics.describe(logits, np.array([0, 1]), bins=10)
    assert figures["calibration_error"] == pytest.approx((0.45 + 0.95) / 2)
