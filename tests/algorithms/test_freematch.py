"""FreeMatch's whole step against its equations."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import freematch as freematch_lib
from simmatch_tf.flags import errors
from tests import reference
from tests.algorithms import whole_step
from tests.algorithms.test_simmatch import on_two

L = whole_step.L


def freematch(s):
    """L_s + λ_u L_u + λ_f L_f, the averages with this batch."""
    algorithm, h, c = s.algorithm, s.algorithm.hyper, s.algorithm.config
    logits_l, logits_s, p_w, states = whole_step.weak_and_strong(s)
    hard, confidence = p_w.argmax(axis=1), p_w.max(axis=1)
    threshold, p_mean, histogram = (
        h.momentum * np.array(old) + (1 - h.momentum) * new
        for old, new in (
            (
                algorithm.adaptive.threshold,
                confidence.mean()
                if h.quantile is None
                else np.quantile(confidence, h.quantile),
            ),
            (algorithm.adaptive.p_mean, p_w.mean(axis=0)),
            (
                algorithm.adaptive.histogram,
                np.bincount(hard, minlength=L) / len(hard),
            ),
        )
    )
    if h.global_high is not None:
        threshold = min(threshold, h.global_high)
    thresholds = reference.self_adaptive(threshold, p_mean)
    thresholds = np.clip(thresholds, h.class_low, h.class_high)
    kept = confidence >= thresholds[hard]
    p_s = reference.softmax(logits_s)
    loss_u = -np.mean(kept * np.log(p_s[np.arange(len(p_s)), hard]))
    loss_s = reference.supervised_loss(logits_l, s.batch["labels"])
    loss_f = reference.fairness_loss(logits_s, kept, p_mean, histogram)
    return {
        "loss/total": loss_s + c.lambda_u * loss_u + h.lambda_f * loss_f,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "loss/f": loss_f,
        "pseudo_label/mask_rate": kept.mean(),
        "pseudo_label/threshold": thresholds[hard].mean(),
    }, {
        "adaptive.threshold": threshold,
        "adaptive.p_mean": p_mean,
        "adaptive.histogram": histogram,
        **states,
    }


def make(strategy=None, **changes):
    """Its own flags are given by their fields' names."""
    values = {"seed": 2, "lambda_u": 2.0, "lambda_f": 0.7} | changes
    own = freematch_lib.FreeMatch.HyperParameters.declared().values()
    names = {each.field: each.name for each in own}
    return whole_step.make(
        "freematch",
        strategy,
        **{names.get(name, name): value for name, value in values.items()},
    )


def later(algorithm):
    """Puts the averages where those of a run may be."""
    algorithm.step.assign(99)
    algorithm.adaptive.threshold.assign(0.8)
    algorithm.adaptive.p_mean.assign([0.5, 0.1, 0.4])
    algorithm.adaptive.histogram.assign([0.7, 0.05, 0.25])
    return algorithm


def check(algorithm, *batches):
    return whole_step.check(
        algorithm, freematch, batches or [whole_step.batch()]
    )


def rates(steps):
    return [float(metrics["pseudo_label/mask_rate"]) for metrics in steps]


def test_from_the_first_step():
    """At first the threshold is 1 / L, which every confidence reaches."""
    steps = check(make(), whole_step.batch(0), whole_step.batch(1))
    assert rates(steps)[0] == 1
    assert steps[0]["loss/f"] < 0


@pytest.mark.parametrize("seed", [1, 2])
def test_the_hundredth_step(seed):
    (rate,) = rates(check(later(make()), whole_step.batch(seed)))
    assert 0 < rate < 1


def test_averages_that_move_fast():
    """Without this batch in the averages other images would be kept."""
    algorithm = later(make(momentum=0.25))
    assert 0 < rates(check(algorithm, whole_step.batch(2)))[0] < 1
    np.testing.assert_array_less(algorithm.adaptive.threshold, 0.77)


def test_no_image_is_kept():
    """L_f is 0 with a gradient of 0, not the log of nothing."""
    (metrics,) = check(later(make(class_low=1.0)))
    assert metrics["pseudo_label/mask_rate"] == 0
    assert metrics["loss/f"] == 0 and metrics["loss/u"] == 0


def test_a_class_that_no_strong_view_is_predicted_as():
    """Class 1: its part of L_f is the constant of log 1e-12."""
    algorithm = later(make())
    algorithm.adaptive.histogram.assign([0.1, 0.8, 0.1])
    (metrics,) = check(algorithm)
    assert metrics["loss/f"] < -0.01


@pytest.mark.parametrize(
    ("changes", "threshold"),
    [
        ({"quantile": 0.8, "momentum": 0.5}, None),
        ({"global_high": 0.6}, None),
        # Of the classes 0 and 2 whose thresholds would be 0.8 and 0.64.
        ({"class_low": 0.66, "class_high": 0.7}, 0.68),
    ],
    ids=["quantile", "global", "class"],
)
def test_quantile_and_limits(changes, threshold):
    (metrics,) = check(later(make(**changes)), whole_step.batch(1))
    if threshold is not None:
        np.testing.assert_allclose(
            metrics["pseudo_label/threshold"], threshold, rtol=1e-6
        )


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize(
    "changes",
    [
        {"weak_forward": "separate"},
        {"targets_from": "teacher"},
        {"align": True, "da_window": 2},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_options(changes):
    check(later(make(**changes)), *map(whole_step.batch, range(3)))


def test_two_replicas_are_as_one(two_replicas):
    """One of them keeps none, and strong views of a class are on one alone."""
    changes = {"quantile": 0.6, "momentum": 0.5, "learning_rate": 0.1}
    one, two = later(make(**changes)), later(make(two_replicas, **changes))
    batches = [whole_step.batch(seed) for seed in range(2)]
    step = tf.function(one.guarded_step, autograph=False)
    for batch in batches:
        assert step(batch)["loss/f"] < 0
        on_two(two_replicas, two, batch, 1, guarded=True)
    for a, b in zip(
        algorithm_lib.state(one), algorithm_lib.state(two), strict=True
    ):
        np.testing.assert_allclose(
            np.array(a), np.array(b), rtol=1e-6, atol=1e-9, err_msg=a.name
        )


def test_limits_the_wrong_way_round():
    with pytest.raises(
        errors.InputError,
        match="--freematch.class_low=0.9: must be at most --freematch.class_hi",
    ):
        make(class_low=0.9, class_high=0.5)
