"""UDA's whole step against its equations."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.flags.errors import InputError
from tests import reference
from tests.algorithms import whole_step
from tests.algorithms.test_simmatch import on_two


def equations(s):
    """L_s (TSA) + λ_u (1/U) Σ m KL(q ‖ p(s)) + λ_e mean H(p(w), p(w))."""
    h, y = s.algorithm.hyper, s.batch["labels"]
    images = [
        s.batch[name]
        for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong")
    ]
    b, u = len(images[0]), len(images[1])
    logits = s.student(np.concatenate(images))["logits"]
    constant = s.constant(np.concatenate(images))["logits"]

    p_w = reference.softmax(constant[b : b + u])
    q = reference.softmax(constant[b : b + u] / h.temperature)
    p_s = reference.softmax(logits[b + u :])
    loss_u, kept = 0.0, p_w.max(axis=1) > h.threshold
    for i in np.flatnonzero(kept):
        loss_u += np.sum(q[i] * (np.log(q[i]) - np.log(p_s[i]))) / u

    t, classes = min(1.0, s.k / (h.tsa_steps or 200)), logits.shape[1]
    c = {
        "none": 1.0,
        "linear": t,
        "log": 1 - np.exp(-5 * t),
        "exp": np.exp(5 * (t - 1)),
    }[h.tsa]
    eta = c * (1 - 1 / classes) + 1 / classes
    used = reference.softmax(constant[:b])[np.arange(b), y] <= eta
    own = -np.log(reference.softmax(logits[:b])[np.arange(b), y])
    loss_s = np.sum(own[used]) / max(used.sum(), 1)

    p = reference.softmax(logits[b : b + u])
    loss_e = np.mean(reference.cross_entropy(p, p))
    return {
        "loss/total": loss_s + h.lambda_u * loss_u + h.entropy_weight * loss_e,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "pseudo_label/mask_rate": kept.mean(),
        "uda/labeled_used": used.mean(),
    }, {}


def make(strategy=None, **changes):
    own = {
        f"uda.{name}": changes.pop(name)
        for name in ("temperature", "tsa", "tsa_steps", "entropy_weight")
        if name in changes
    }
    return whole_step.make("uda", strategy, **changes, **own)


def check(step=0, labels=(0, 2, 1, 0), count=2, **changes):
    algorithm = make(**changes)
    algorithm.step.assign(step)
    batches = [whole_step.batch(seed, labels=labels) for seed in range(count)]
    return whole_step.check(algorithm, equations, batches)


@pytest.mark.parametrize("step", [0, 99])
def test_published(step):
    steps = check(step, lambda_u=2.0)
    rates = [metrics["pseudo_label/mask_rate"] for metrics in steps]
    assert any(0 < rate < 1 for rate in rates), rates
    assert all(metrics["uda/labeled_used"] == 1 for metrics in steps)


@pytest.mark.parametrize(
    ("step", "changes"),
    [
        (20, {"tsa": "linear"}),
        (20, {"tsa": "log"}),
        (150, {"tsa": "exp"}),
        (100, {"tsa": "linear", "tsa_steps": 500}),
    ],
    ids=str,
)
def test_annealed(step, changes):
    steps = check(step, threshold=0.5, **changes)
    shares = [metrics["uda/labeled_used"] for metrics in steps]
    assert any(0 < share < 1 for share in shares), shares


def test_no_labeled_image_is_used():
    """At the first step of TSA, if all are classified rightly."""
    inputs = whole_step.batch()
    algorithm = make(threshold=0.5, tsa="linear")
    images = [
        inputs[name]
        for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong")
    ]
    logits = algorithm.student(tf.concat(images, 0), training=True)["logits"]
    labels = [int(y) for y in tf.argmax(logits[:4], axis=1)]
    (metrics,) = check(labels=labels, count=1, threshold=0.5, tsa="linear")
    assert metrics["uda/labeled_used"] == 0 and metrics["loss/s"] == 0


def test_entropy_and_temperature():
    check(30, entropy_weight=0.3, temperature=0.9, threshold=0.5)
    # It is added whether or not an image is kept.
    check(30, entropy_weight=0.3, threshold=1.0, count=1)


@pytest.mark.parametrize(("threshold", "rate"), [(1.0, 0.0), (0.0, 1.0)])
def test_no_image_is_kept_or_all_are(threshold, rate):
    (metrics,) = check(50, threshold=threshold, labels=(0, 0, 1, 1), count=1)
    assert metrics["pseudo_label/mask_rate"] == rate
    assert (metrics["loss/u"] > 0) == (rate > 0)


def test_where_both_thresholds_are_reached_exactly():
    """p = (1/2, 1/2, 0) of each image, and η = 1/2 at a quarter of the run."""
    algorithm = make(threshold=0.5, tsa="linear")
    for variable in algorithm.student.variables:
        if variable.path == "logits/kernel":
            variable.assign(tf.zeros_like(variable))
        if variable.path == "logits/bias":
            variable.assign([0.0, 0.0, -1000.0])
    algorithm.step.assign(50)
    metrics = algorithm.guarded_step(whole_step.batch(labels=(0, 1, 1, 0)))
    assert float(metrics["pseudo_label/mask_rate"]) == 0
    assert float(metrics["uda/labeled_used"]) == 1


def test_two_replicas_divide_by_the_labeled_images_of_both(two_replicas):
    changes = {"threshold": 0.5, "tsa": "linear", "learning_rate": 0.03}
    one, two = make(**changes), make(two_replicas, **changes)
    for algorithm in (one, two):
        algorithm.step.assign(40)
    step = tf.function(one.guarded_step, autograph=False)
    batch = whole_step.batch(unlabeled=4)
    for _ in range(2):
        metrics = step(batch)
    on_two(two_replicas, two, batch, 2, guarded=True)
    assert 0 < float(metrics["uda/labeled_used"]) < 1
    for a, b in zip(
        algorithm_lib.state(one), algorithm_lib.state(two), strict=True
    ):
        np.testing.assert_allclose(
            np.array(a), np.array(b), rtol=1e-6, atol=1e-8, err_msg=a.name
        )


def test_its_flags():
    config = config_lib.Config(
        algorithm="uda", dataset="digits", labels=40, steps=100
    )
    assert (config.threshold, config.lambda_u) == (0.8, 1.0)
    assert (config.temperature, config.tsa) == (0.4, "none")
    with pytest.raises(InputError, match="is for --uda.tsa=linear, log or exp"):
        make(tsa_steps=100)


def test_annealing_needs_a_length_of_its_own_with_a_cooldown():
    with pytest.raises(InputError, match="--uda.tsa_steps is missing: its def"):
        make(tsa="exp", schedule="cooldown")
    algorithm = make(tsa="exp", schedule="cooldown", tsa_steps=50)
    algorithm.guarded_step(whole_step.batch())
    make(schedule="cooldown").guarded_step(whole_step.batch())
