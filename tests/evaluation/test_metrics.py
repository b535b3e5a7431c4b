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


def test_macro_accuracy_counts_each_class_once():
    """Three of four right in class 0, none of one in class 2; 1 is empty."""
    logits = np.eye(3)[[0, 0, 0, 1, 1]]
    labels = np.array([0, 0, 0, 0, 2])
    assert metrics.macro_accuracy(logits, labels) == pytest.approx(0.375)
    figures = metrics.accuracy({"ema": logits}, labels)["ema"]
    assert figures["top1"] == pytest.approx(0.6)
    assert figures["macro_accuracy"] == pytest.approx(0.375)
    assert (
        metrics.describe(logits, labels)["macro_accuracy"]
        == (figures["macro_accuracy"])
    )


def drawn(images, classes=4, factor=1.0, seed=0):
    """Logits, `factor` times those that the labels are drawn from."""
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.normal(size=[images, classes])
    labels = [generator.choice(classes, p=p) for p in metrics.softmax(logits)]
    return (factor * logits).astype(np.float32), np.array(labels)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_factor(factor):
    logits, labels = drawn(5000, factor=factor)
    temperature = metrics.fit_temperature(logits, labels)
    assert temperature == pytest.approx(factor, rel=0.06)
    figures = metrics.describe(logits, labels, temperature=temperature)
    assert figures["calibration_error"] < 0.03
    assert figures["temperature"] == temperature
    plain = metrics.describe(logits, labels)
    assert figures["uncalibrated_error"] == plain["calibration_error"]
    if factor == 3.0:
        assert plain["calibration_error"] > 0.15
    # No temperature changes what is most likely.
    for name in ("top1", "top5", "macro_accuracy", "confusion"):
        assert figures[name] == plain[name]


def test_temperature_by_hand():
    """Two classes, logits ±1: 3 of 4 right is a confidence of 3/4 at 1/ln 3.

    Many images leave the prior on log T no weight.
    """
    logits = np.tile([[0.0, 1.0]], [4000, 1])
    labels = np.tile([1, 1, 1, 0], 1000)
    temperature = metrics.fit_temperature(logits, labels)
    assert temperature == pytest.approx(1 / np.log(3), rel=1e-3)


@pytest.mark.parametrize("right", [True, False])
def test_temperature_of_equal_outcomes_is_finite(right):
    logits = np.tile([[0.0, 2.0]], [50, 1])
    temperature = metrics.fit_temperature(logits, np.full(50, int(right)))
    assert (0.2 < temperature < 1) if right else (1 < temperature < 20)
    assert metrics.fit_temperature(1e4 * logits, np.zeros(50, int)) <= 20


def test_temperature_is_one_unless_the_images_tell():
    """Of 2 log(likelihood ratio) above 3.84."""
    logits = np.tile([[0.0, 2.0]], [10, 1])
    # 10 images, all right: 2 · 10 · log(1 + exp(-2)) = 2.5 at most.
    assert metrics.fit_temperature(logits, np.ones(10, int)) == 1.0
    temperature = metrics.fit_temperature(
        np.tile(logits, [2, 1]), np.ones(20, int)
    )
    assert temperature < 0.8
    # A network that is calibrated is left alone, in 19 of 20 cases.
    left = [
        metrics.fit_temperature(*drawn(50, seed=seed)) == 1.0
        for seed in range(40)
    ]
    assert sum(left) >= 35
    # One that is far off is not.
    assert metrics.fit_temperature(*drawn(50, factor=4.0)) > 2


def test_cross_fitting_uses_other_images():
    logits, labels = drawn(53, factor=3.0)
    scaled = metrics.cross_fitted(logits, labels)
    # Sorted by class, image 7 is the 2nd of five: no image at such a place
    # fitted its temperature.
    order = np.argsort(labels, kind="stable")
    place = np.empty(53, int)
    place[order] = np.arange(53)
    others = place % 5 != place[7] % 5
    temperature = metrics.fit_temperature(logits[others], labels[others])
    np.testing.assert_allclose(scaled[7], logits[7] / temperature)
    figures = metrics.calibration(
        logits, labels, temperature=2.0, fitted_on_these=True
    )
    assert figures["calibration_error"] == metrics.calibration_error(
        metrics.cross_fitted(logits, labels), labels
    )
    assert figures["temperature"] == 2.0


def test_cross_fitting_leaves_each_part_its_share_of_each_class():
    """Classes in turn, as in digits: every fifth image is of one class.

    Class 0 is too sure, the others not sure enough. Were class 0 a part of its
    own, its temperature would be that of the others alone, below 1.
    """
    labels = np.tile(np.arange(5), 100)
    logits = np.eye(5)[labels] * 4.0
    sure = np.flatnonzero(labels == 0)
    logits[sure] = np.eye(5)[[1]] * 20.0  # wrong, all of them
    scaled = metrics.cross_fitted(logits, labels)
    temperature = metrics.fit_temperature(logits, labels)
    assert temperature > 5
    np.testing.assert_allclose(scaled, logits / temperature, rtol=0.02)


def test_a_temperature_is_fitted_on_a_choice_of_many_images(monkeypatch):
    logits, labels = drawn(300, factor=3.0)
    order = np.argsort(labels, kind="stable")
    expected = metrics.fit_temperature(logits[order[::2]], labels[order[::2]])
    whole = metrics.fit_temperature(logits, labels)
    monkeypatch.setattr(metrics, "MOST_TO_CALIBRATE", 150)
    # The places 0, 2.007, 4.01 … 299 are rounded: nearly every second one.
    chosen = metrics.fit_temperature(logits, labels)
    assert chosen != whole
    assert chosen == pytest.approx(expected, rel=0.1)


def test_describe_fit():
    assert metrics.describe_fit("validation", 50, "test") == (
        "on 50 validation images"
    )
    assert metrics.describe_fit("test", 2000, "test") == (
        "on 2,000 test images, error by cross-fitting"
    )
