"""Dash's whole step against its equations, in all its stages."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.flags import errors
from tests import reference
from tests.algorithms import whole_step
from tests.algorithms.test_simmatch import on_two

IMAGES = 8  # two batches of four: ρ̂ is the mean of two steps


def equations(s):
    """CE(x) + λ 0.9 Σ m H(q, p(s)) / Σ m."""
    h, y = s.algorithm.hyper, s.batch["labels"]
    images = [
        s.batch[name]
        for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong")
    ]
    b, u = len(images[0]), len(images[1])
    logits = s.student(np.concatenate(images))["logits"]
    constant = s.constant(np.concatenate(images))["logits"]

    total, count = float(s.algorithm.total), float(s.algorithm.count)
    first = h.warmup_epochs * h.epoch_steps
    rho, soft = np.inf, True
    if s.k >= first:
        epoch = s.k // h.epoch_steps
        rho = total / count * h.gamma ** -((epoch - 1) // h.decay_epochs)
        soft = rho > h.minimum
        rho = max(rho, h.minimum)

    p_w = reference.softmax(constant[b : b + u])
    q = np.eye(p_w.shape[1])[p_w.argmax(axis=1)]
    kept = reference.cross_entropy(q, p_w) < rho
    if soft:
        q = reference.softmax(constant[b : b + u] / h.temperature)
    entropies = reference.cross_entropy(q, reference.softmax(logits[b + u :]))
    loss_u = np.sum(entropies[kept]) / kept.sum() if kept.any() else 0.0
    loss_s = reference.supervised_loss(logits[:b], y)
    if first - 2 <= s.k < first:
        total, count = total + entropies.mean(), count + 1
    return {
        "loss/total": loss_s + h.lambda_u * 0.9 * loss_u,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "pseudo_label/mask_rate": kept.mean(),
        "dash/threshold": np.exp(-rho),
    }, {"total": total, "count": count}


def make(strategy=None, **changes):
    values = {
        "epoch_steps": 2,
        "warmup_epochs": 2,
        "decay_epochs": 2,
        "gamma": 1.5,
    }
    values |= changes
    return whole_step.make(
        "dash",
        strategy,
        unlabeled_images=IMAGES,
        learning_rate=values.pop("learning_rate", whole_step._FAR),
        **{f"dash.{name}": value for name, value in values.items()},
    )


def check(algorithm, count, labels=(0, 2, 1, 0)):
    batches = [whole_step.batch(seed, labels=labels) for seed in range(count)]
    return whole_step.check(algorithm, equations, batches)


def test_first_step():
    (metrics,) = check(make(), 1)
    assert metrics["pseudo_label/mask_rate"] == 1
    assert metrics["dash/threshold"] == 0


def test_from_warm_up_to_hard_labels():
    """Steps 0 to 3 are the warm-up, of which 2 and 3 are measured."""
    algorithm = make(minimum=0.3)
    check(algorithm, 2)
    assert float(algorithm.count) == 0
    steps = check(algorithm, 4)
    assert float(algorithm.count) == 2
    rho_hat = float(algorithm.total) / 2
    assert 0.3 < rho_hat < 1.5 * 0.3
    # Epochs 2 and 3 have j = 0 and j = 1.
    thresholds = [float(metrics["dash/threshold"]) for metrics in steps]
    thresholds += [
        float(metrics["dash/threshold"]) for metrics in check(algorithm, 2)
    ]
    wanted = 2 * [0.0] + 2 * [np.exp(-rho_hat)] + 2 * [np.exp(-0.3)]
    np.testing.assert_allclose(thresholds, wanted, rtol=1e-6)
    assert float(algorithm.count) == 2


@pytest.mark.parametrize("minimum", [0.3, 0.02])
@pytest.mark.parametrize("step", [4, 10, 16])
def test_with_a_threshold(step, minimum):
    algorithm = make(minimum=minimum)
    algorithm.step.assign(step)
    algorithm.total.assign(0.8)
    algorithm.count.assign(2)
    steps = check(algorithm, 2)
    rates = [metrics["pseudo_label/mask_rate"] for metrics in steps]
    assert any(0 < rate < 1 for rate in rates), rates


def test_no_image_is_kept():
    algorithm = make(minimum=0, gamma=90.0)
    algorithm.step.assign(100)
    algorithm.total.assign(1.0)
    algorithm.count.assign(1)
    (metrics,) = check(algorithm, 1, labels=(0, 0, 1, 1))
    assert metrics["pseudo_label/mask_rate"] == metrics["loss/u"] == 0


def test_the_threshold_itself_is_not_kept():
    algorithm = make(minimum=float(tf.math.log(tf.constant(2, tf.float64))))
    for variable in algorithm.student.variables:
        if variable.path == "logits/kernel":
            variable.assign(tf.zeros_like(variable))
        if variable.path == "logits/bias":
            variable.assign([0.0, 0.0, -1000.0])
    algorithm.step.assign(100)
    metrics = algorithm.guarded_step(whole_step.batch())
    np.testing.assert_allclose(metrics["dash/threshold"], 0.5, rtol=1e-12)
    assert float(metrics["pseudo_label/mask_rate"]) == 0


def test_published_stages():
    config = config_lib.Config(
        algorithm="dash", dataset="digits", labels=40, steps=100
    )
    h = config.hyper
    assert (h.gamma, h.minimum, h.temperature) == (1.27, 0.05, 0.5)
    assert (h.warmup_epochs, h.decay_epochs) == (10, 9)
    algorithm = whole_step.make("dash", steps=2**20)
    assert algorithm.epoch_steps == 1024
    algorithm.total.assign(1.0)
    algorithm.count.assign(1)
    for step, decays in (
        (10_240, 1),
        (10_239 + 9_216, 1),
        (10_240 + 9_216, 2),
    ):
        algorithm.step.assign(step)
        rho, measured = algorithm._threshold()
        np.testing.assert_allclose(rho, 1.27**-decays)
        assert not measured
    algorithm.step.assign(10_239)
    assert algorithm._threshold()[0] == np.inf and algorithm._threshold()[1]


def state(algorithm):
    return [np.array(variable) for variable in algorithm_lib.state(algorithm)]


def test_two_replicas_are_as_one_in_each_stage(two_replicas):
    changes = {"learning_rate": 0.03, "decay_epochs": 1, "gamma": 2.0}
    one, two = make(**changes), make(two_replicas, **changes)
    step = tf.function(one.guarded_step, autograph=False)
    # The warm-up, then two steps with a threshold.
    for seed, count in ((0, 4), (1, 2)):
        batch = whole_step.batch(seed, unlabeled=4)
        for _ in range(count):
            metrics = step(batch)
        on_two(two_replicas, two, batch, count, guarded=True)
    assert 0 < float(metrics["pseudo_label/mask_rate"]) < 1
    for a, b in zip(state(one), state(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


def test_it_goes_on_within_the_warm_up(tmp_path):
    whole, first, second = make(), make(), make()
    batches = [whole_step.batch(seed) for seed in range(6)]
    for algorithm, own in ((whole, batches), (first, batches[:3])):
        step = tf.function(algorithm.guarded_step, autograph=False)
        for batch in own:
            step(batch)
    path = tf.train.Checkpoint(algorithm=first).write(str(tmp_path / "save"))
    tf.train.Checkpoint(algorithm=second).read(path).assert_consumed()
    step = tf.function(second.guarded_step, autograph=False)
    for batch in batches[3:]:
        step(batch)
    assert float(second.count) == 2
    for a, b in zip(state(whole), state(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_epoch_is_a_share_of_the_run():
    assert whole_step.make("dash", steps=1900).epoch_steps == 2
    changes = {"algorithm": "dash", "dataset": "digits", "labels": 40}
    changes |= {"schedule": "cooldown", "steps": 100}
    with pytest.raises(errors.InputError, match="--dash.epoch_steps is miss"):
        config_lib.Config(**changes)
    changes["dash.epoch_steps"] = 5
    config_lib.Config(**changes)
