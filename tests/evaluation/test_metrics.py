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


# ------------------------------------------------------------- intervals ---


def test_wilson_by_hand():
    # Half of 96 with z² = 3.8415: middle 1/2, half √(24 + 0.9604) z / 99.84.
    low, high = metrics.wilson(0.5, 96)
    assert low == pytest.approx(0.40192, abs=1e-5)
    assert high == pytest.approx(0.59808, abs=1e-5)
    assert metrics.wilson(0.0, 10)[0] == 0
    assert metrics.wilson(1.0, 10)[1] == pytest.approx(1)


def test_lead_by_hand():
    # b = 3, c = 1, n = 10: (3.5 - 1.5) / 12 ± 1.95996 √(5 - 4/12) / 12.
    right = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 1], bool)
    other = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0, 1], bool)
    difference, (low, high) = metrics.lead(right, other)
    assert difference == pytest.approx(0.2)
    half = 1.959964 * np.sqrt(5 - 4 / 12) / 12
    assert low == pytest.approx(2 / 12 - half, abs=1e-6)
    assert high == pytest.approx(2 / 12 + half, abs=1e-6)
    difference, (low, high) = metrics.lead(other, right)
    assert difference == pytest.approx(-0.2)
    assert (low, high) == pytest.approx((-2 / 12 - half, -2 / 12 + half))


def test_lead_of_equal_classifiers_is_not_certain():
    right = np.array([True, False, True])
    difference, (low, high) = metrics.lead(right, right)
    assert difference == 0 and low < 0 < high


def test_lead_covers_the_true_difference():
    random = np.random.default_rng(0)
    inside = 0
    for _ in range(1_000):
        draws = random.random(300)
        # Right alone: 14 % and 8 %; the rest of the images alike.
        right, other = draws < 0.54, (draws > 0.14) & (draws < 0.62)
        _, (low, high) = metrics.lead(right, other)
        inside += low <= 0.06 <= high
    assert 0.93 < inside / 1_000 < 0.97
