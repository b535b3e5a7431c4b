"""Mean Teacher's whole step against its equations."""

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.lazy import tf
from tests import reference
from tests.algorithms import whole_step

VIEWS = ("weak", "weak_2")


def mean_teacher(s):
    """L_s + r λ_u L_u, with the EMA before the step on batch statistics."""
    c = s.algorithm.config
    p_w = reference.softmax(
        s.teacher(s.batch["unlabeled_weak"], "batch")["logits"]
    )
    p_w2 = reference.softmax(
        s.student(s.batch["unlabeled_weak_2"], "batch")["logits"]
    )
    logits_x = s.student(s.batch["labeled_weak"])["logits"]
    loss_s = reference.supervised_loss(logits_x, s.batch["labels"])
    loss_u = np.mean(np.square(p_w2 - p_w))
    steps = 0.4 * c.steps if c.ramp_steps is None else c.ramp_steps
    ramp = min(1, s.k / steps) if steps else 1
    return {
        "loss/total": loss_s + ramp * c.lambda_u * loss_u,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "loss/weighted_u": ramp * c.lambda_u * loss_u,
    }, {}


@pytest.mark.parametrize(
    ("k", "changes"),
    [
        (0, {}),  # no weight yet
        (30, {"lambda_u": 5.0}),
        (100, {"lambda_u": 5.0}),  # after the ramp of 80 of 200 steps
        (30, {"ramp_steps": 0, "lambda_u": 5.0}),
        (30, {"ramp_steps": 50, "lambda_u": 5.0, "schedule": "cooldown"}),
    ],
    ids=str,
)
def test_step(k, changes):
    algorithm = whole_step.make("mean_teacher", **changes)
    algorithm.step.assign(k)
    batches = [whole_step.batch(seed, views=VIEWS) for seed in range(2)]
    steps = whole_step.check(algorithm, mean_teacher, batches)
    assert steps[0]["loss/u"] > 0.01
    assert not any(name.startswith("pseudo_label") for name in steps[0])


def test_defaults_are_the_published_ones():
    config = simmatch_tf.Config(algorithm="mean_teacher", labels=10, steps=9)
    assert (config.lambda_u, config.unlabeled_ratio) == (50, 1)
    assert config.ramp_steps is None and config.hyper.ramp_share == 0.4
    assert not hasattr(config, "threshold")
    assert not hasattr(config, "targets_from")


def test_diagnostics_are_of_the_teacher():
    algorithm = whole_step.make("mean_teacher")
    x = whole_step.batch(views=VIEWS)
    x[diagnostics.LOGGED] = tf.constant(True)
    network = whole_step.Network(algorithm.teacher.model)
    p_w = reference.softmax(
        network(x["unlabeled_weak"].numpy(), "batch")["logits"]
    )
    metrics = tf.function(algorithm.guarded_step, autograph=False)(x)
    shown = metrics[diagnostics.DIAGNOSTICS]
    np.testing.assert_allclose(shown.rows["p_w"], p_w, rtol=1e-5)
    assert "view/weak_2" in shown.rows and "mask" not in shown.rows
    assert "pseudo_label/mask_rate" not in metrics
