"""Pseudo-Label's whole step against its equations."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.flags.errors import InputError
from tests import reference
from tests.algorithms import whole_step


def equations(s):
    """CE(x) + λ r(k) (1/U) Σ m H(ŷ, p(w)), in two forwards."""
    h = s.algorithm.hyper
    x_w = s.batch["unlabeled_weak"]
    loss_s = reference.supervised_loss(
        s.student(s.batch["labeled_weak"])["logits"], s.batch["labels"]
    )
    p = reference.softmax(s.student(x_w, "batch")["logits"])
    constant = reference.softmax(s.constant(x_w, "batch")["logits"])
    loss_u = 0.0
    for own, label in zip(p, constant, strict=True):
        if label.max() >= h.threshold:
            loss_u -= np.log(own[label.argmax()]) / len(p)
    k_0 = 0.4 * 200 if h.ramp_steps is None else h.ramp_steps
    ramp = min(1.0, s.k / k_0) if k_0 else 1.0
    return {
        "loss/total": loss_s + h.lambda_u * ramp * loss_u,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "pseudo_label/mask_rate": np.mean(constant.max(axis=1) >= h.threshold),
    }, {}


def check(step=0, labels=(0, 2, 1, 0), count=2, **changes):
    algorithm = whole_step.make("pseudo_label", **changes)
    algorithm.step.assign(step)
    batches = [
        whole_step.batch(seed, views=("weak",), labels=labels)
        for seed in range(count)
    ]
    return whole_step.check(algorithm, equations, batches)


@pytest.mark.parametrize("step", [0, 39, 99])
def test_step_of_the_ramp(step):
    steps = check(step, threshold=0.6, lambda_u=2.0)
    rates = [metrics["pseudo_label/mask_rate"] for metrics in steps]
    assert any(0 < rate < 1 for rate in rates), rates


@pytest.mark.parametrize(("threshold", "rate"), [(1.0, 0.0), (0.0, 1.0)])
def test_no_image_is_kept_or_all_are(threshold, rate):
    (metrics,) = check(50, threshold=threshold, ramp_steps=0, count=1)
    assert metrics["pseudo_label/mask_rate"] == rate
    assert (metrics["loss/u"] > 0) == (rate > 0)


def test_a_class_without_labels():
    check(20, labels=(0, 0, 1, 1), threshold=0.5, ramp_steps=40, count=1)


def test_the_threshold_itself_is_kept():
    algorithm = whole_step.make("pseudo_label", threshold=0.5)
    for variable in algorithm.student.variables:
        if variable.path == "logits/kernel":
            variable.assign(tf.zeros_like(variable))
        if variable.path == "logits/bias":
            variable.assign([0.0, 0.0, -1000.0])
    metrics = algorithm.guarded_step(whole_step.batch(views=("weak",)))
    assert float(metrics["pseudo_label/mask_rate"]) == 1
    np.testing.assert_allclose(metrics["loss/u"], np.log(2), rtol=1e-12)


def test_its_flags():
    config = config_lib.Config(
        algorithm="pseudo_label", dataset="digits", labels=40, steps=100
    )
    assert (config.threshold, config.lambda_u) == (0.95, 1.0)
    assert (config.unlabeled_ratio, config.ramp_steps) == (1, None)
    with pytest.raises(
        InputError, match="--ramp_steps is missing: its default"
    ):
        whole_step.make("pseudo_label", schedule="cooldown")
    whole_step.make("pseudo_label", schedule="cooldown", ramp_steps=50)


def test_its_diagnostics_show_one_view():
    algorithm = whole_step.make("pseudo_label", threshold=0.6)
    batch = whole_step.batch(views=("weak",))
    batch |= {
        "unlabeled_labels": tf.constant([0, 1, 2, 0, 1, -1]),
        diagnostics.LOGGED: tf.constant(True),
    }
    metrics = tf.function(algorithm.guarded_step, autograph=False)(batch)
    shown = metrics[diagnostics.DIAGNOSTICS]
    np.testing.assert_array_equal(
        shown.rows["view/weak"], batch["unlabeled_weak"]
    )
    assert "view/strong" not in shown.rows
    np.testing.assert_allclose(
        tf.reduce_sum(shown.means["used"]),
        metrics["pseudo_label/mask_rate"],
        rtol=1e-6,
    )
    np.testing.assert_allclose(shown.means["known"], 5 / 6, rtol=1e-6)
