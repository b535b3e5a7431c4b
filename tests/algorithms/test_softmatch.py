"""SoftMatch's whole step against its equations."""

import numpy as np
import pytest

from simmatch_tf.algorithms import diagnostics
from simmatch_tf.algorithms import softmatch as softmatch_lib
from simmatch_tf.lazy import tf
from tests import reference
from tests.algorithms import whole_step

L = whole_step.L


def softmatch(s):
    """L_s + λ_u L_u, the averages with this batch."""
    algorithm, h, c = s.algorithm, s.algorithm.hyper, s.algorithm.config
    logits_l, logits_s, p_w, states = whole_step.weak_and_strong(s)
    confidence = p_w.max(axis=1)
    p_mean, mean, variance = (
        h.momentum * np.array(old) + (1 - h.momentum) * new
        for old, new in (
            (algorithm.gaussian.p_mean, p_w.mean(axis=0)),
            (algorithm.gaussian.mean, confidence.mean()),
            (algorithm.gaussian.variance, confidence.var(ddof=1)),
        )
    )
    p_hat = p_w * (1 / L) / p_mean
    p_hat /= p_hat.sum(axis=1, keepdims=True)
    weight = reference.truncated_gaussian(
        p_hat.max(axis=1), mean, variance, h.n_sigma
    )
    hard = np.eye(L)[p_w.argmax(axis=1)]
    loss_u = reference.weighted_cross_entropy(logits_s, hard, weight)
    loss_s = reference.supervised_loss(logits_l, s.batch["labels"])
    return {
        "loss/total": loss_s + c.lambda_u * loss_u,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "pseudo_label/mask_rate": weight.mean(),
    }, {
        "gaussian.p_mean": p_mean,
        "gaussian.mean": mean,
        "gaussian.variance": variance,
        **states,
    }


def make(**changes):
    """Its own flags are given by their fields' names."""
    values = {"seed": 2, "lambda_u": 2.0} | changes
    own = softmatch_lib.SoftMatch.HyperParameters.declared().values()
    names = {each.field: each.name for each in own}
    return whole_step.make(
        "softmatch",
        **{names.get(name, name): value for name, value in values.items()},
    )


def later(algorithm):
    """Puts the averages where those of a run may be."""
    algorithm.step.assign(99)
    algorithm.gaussian.p_mean.assign([0.3, 0.1, 0.6])
    algorithm.gaussian.mean.assign(0.7)
    algorithm.gaussian.variance.assign(0.04)
    return algorithm


def check(algorithm, *batches):
    steps = whole_step.check(
        algorithm, softmatch, batches or [whole_step.batch()]
    )
    return [float(metrics["pseudo_label/mask_rate"]) for metrics in steps]


def test_from_the_first_step():
    """The variance starts at 1, so that at first all images count."""
    rates = check(make(), whole_step.batch(0), whole_step.batch(1))
    assert all(rate > 0.95 for rate in rates)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_hundredth_step(seed):
    (rate,) = check(later(make()), whole_step.batch(seed))
    assert 0.1 < rate < 0.9


@pytest.mark.parametrize(
    "changes", [{"n_sigma": 1.0}, {"momentum": 0.5}, {"momentum": 0.0}], ids=str
)
def test_its_own_flags(changes):
    check(later(make(**changes)), whole_step.batch(1))


def test_hardly_any_image_counts():
    algorithm = later(make(momentum=0.999))
    algorithm.gaussian.mean.assign(1.0)
    algorithm.gaussian.variance.assign(1e-4)
    algorithm.gaussian.p_mean.assign([1 / 3] * 3)
    (rate,) = check(algorithm)
    assert rate < 0.15


def test_all_images_count():
    algorithm = later(make())
    algorithm.gaussian.mean.assign(0.0)
    assert check(algorithm) == [1.0]


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


def test_shares_of_the_classes_are_weighted():
    """In the diagnostics, too, a pseudo-label counts with its weight."""
    algorithm = later(make())
    batch = {
        **whole_step.batch(1),
        "unlabeled_labels": tf.constant([0, -1, 2, 2, 2, 1]),
        diagnostics.LOGGED: tf.constant(True),
    }
    metrics = tf.function(algorithm.train_step, autograph=False)(batch)
    means, rows = tf.nest.map_structure(
        np.asarray, metrics[diagnostics.DIAGNOSTICS]
    )
    rate = float(metrics["pseudo_label/mask_rate"])
    np.testing.assert_allclose(means["used"].sum(), rate, rtol=1e-5)
    weight, classes = rows["mask"], rows["p_hat"].argmax(axis=1)
    assert ((weight > 0) & (weight < 0.9)).any()
    known, right = rows["truth"] >= 0, classes == rows["truth"]
    np.testing.assert_allclose(means["kept"], (weight * known).mean(), 1e-5)
    np.testing.assert_allclose(
        means["kept_right"], (weight * right).mean(), 1e-5
    )
