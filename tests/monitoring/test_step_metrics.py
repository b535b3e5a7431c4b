"""From what a step gives to tags and numbers, by hand."""

import numpy as np
import pytest

from simmatch_tf.monitoring import step_metrics
from tests import runs

CONFIG = runs.config("unused", lambda_u=2.0, lambda_in=3.0)


def test_weighted_losses():
    made = step_metrics.Figures(CONFIG, 16)
    values = made.of_step({"loss/s": 1.0, "loss/u": 0.5, "loss/in": 0.25}, None)
    assert values == {
        "loss/s": 1.0,
        "loss/u": 0.5,
        "loss/in": 0.25,
        "loss/weighted_u": 1.0,
        "loss/weighted_in": 0.75,
    }
    assert made.of_step({"loss/s": 1.0}, None) == {"loss/s": 1.0}


def test_accuracies_are_of_known_images():
    made = step_metrics.Figures(CONFIG, 16)
    means = {
        "known": 0.8, "right": 0.6, "kept": 0.4, "kept_right": 0.1,
        "sure": 0.0, "sure_right": 0.0,
    }  # fmt: skip
    values = made.of_step({}, means)
    assert values == pytest.approx(
        {
            "pseudo_label/accuracy": 0.25,
            "pseudo_label/accuracy_all": 0.75,
            "pseudo_label/sure": 0.0,
        }
    )
    # None is sure: what share of none is right has no value.
    assert "pseudo_label/sure_accuracy" not in values


def test_balance_waits_for_enough_labels():
    made = step_metrics.Figures(CONFIG, 13)
    # Ten of each of two classes are two steps of 13.
    one, other = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert "pseudo_label/balance" not in made.of_step({}, {"classes": one})
    values = made.of_step({}, {"classes": other})
    assert values["pseudo_label/balance"] == pytest.approx(1.0)
    values = made.of_step({}, {"classes": other})
    assert values["pseudo_label/balance"] == pytest.approx(0.5)
    np.testing.assert_array_equal(made.classes, other)


def test_divergence():
    assert step_metrics.divergence(np.full(7, 1 / 7)) == pytest.approx(0)
    assert step_metrics.divergence([1.0, 0, 0, 0]) == pytest.approx(np.log(4))
    assert step_metrics.divergence([0.5, 0.5, 0, 0]) == pytest.approx(np.log(2))


def test_a_finding_is_told_once():
    made = step_metrics.Figures(CONFIG, 16)
    for step in range(1, 11):
        made.keep(step, {"pseudo_label/mask_rate": 0.0})
    assert [f.name for f in made.findings(6)] == ["no_pseudo_labels"]
    assert made.findings(6) == []


def test_speed(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(step_metrics.time, "monotonic", lambda: now[0])
    speed = step_metrics.Speed(images=50)
    assert speed.measure(1, 3.0) == {}  # start-up
    now[0] += 10
    with speed.paused():
        now[0] += 5
    assert speed.measure(11, 5.0) == {
        "speed/images_per_second": 50.0,
        "speed/input_wait": 0.2,
    }
    now[0] += 1
    assert speed.measure(12, None) == {"speed/images_per_second": 50.0}
