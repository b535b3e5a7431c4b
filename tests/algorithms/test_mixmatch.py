"""MixMatch's step against its equations in NumPy float64."""

import dataclasses

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf.flags.errors import InputError
from simmatch_tf.ops import sampling
from tests import reference
from tests.algorithms import whole_step

VIEWS = ("weak", "weak_2")
_drawn = {}


def draws(algorithm, count, alpha):
    """The shares and the order of a step, as the method draws them."""
    key = (algorithm.config.seed, int(algorithm.step), count, alpha)
    if key not in _drawn:  # the equations are evaluated many times
        seeds = [
            algorithm.seed(stream, shared=True) for stream in ("share", "order")
        ]
        _drawn[key] = (
            sampling.beta(seeds[0], [count], alpha, dtype="float64").numpy(),
            sampling.permutation(seeds[1], count).numpy(),
        )
    return _drawn[key]


def mixed_forward(s, views, targets, alpha, updates):
    """Mixes all images, exchanges groups, runs each batch; logits, targets."""
    x = np.concatenate([np.float64(view) for view in views])
    share, order = draws(s.algorithm, len(x), alpha)
    x, t = reference.mix(x, np.concatenate(targets), order, share)
    batches = reference.interleave(np.split(x, len(views)))
    logits = [
        s.student(batch, "train" if number == updates else "batch")["logits"]
        for number, batch in enumerate(batches)
    ]
    return reference.interleave(logits), np.split(t, len(views))


def mean_cross_entropy(logits, target):
    """Mean over images of H(t, p)."""
    return reference.cross_entropy(target, reference.softmax(logits)).mean()


def sharpened(p, temperature):
    """p^(1/T), rows normalized."""
    p = p ** (1 / temperature)
    return p / p.sum(axis=1, keepdims=True)


def ramp(algorithm, k):
    """r(k), 1/64 of the run long unless --ramp_steps says otherwise."""
    steps = algorithm.config.ramp_steps
    if steps is None:
        steps = algorithm.config.steps / 64
    return min(1.0, k / steps) if steps else 1.0


def mixmatch(s):
    """L_x + λ_u r(k) L_u."""
    hyper = s.algorithm.hyper
    x, w_1, w_2 = (
        s.batch[name]
        for name in ("labeled_weak", "unlabeled_weak", "unlabeled_weak_2")
    )
    # Each view by its own batch statistics; no gradient.
    p = sum(
        reference.softmax(s.constant(w, "batch")["logits"]) for w in (w_1, w_2)
    )
    q = sharpened(p / 2, hyper.temperature)
    y = np.eye(whole_step.L)[s.batch["labels"]]
    # Of the exchanged batches, the first one moves BatchNorm's averages.
    logits, t = mixed_forward(
        s, (x, w_1, w_2), (y, q, q), hyper.alpha, updates=0
    )
    loss_x = mean_cross_entropy(logits[0], t[0])
    p_u = reference.softmax(np.concatenate(logits[1:]))
    loss_u = ((p_u - np.concatenate(t[1:])) ** 2).mean()
    weight = s.algorithm.config.lambda_u * ramp(s.algorithm, s.k)
    return {
        "loss/total": loss_x + weight * loss_u,
        "loss/s": loss_x,
        "loss/u": loss_u,
    }, {}


def batches(count):
    return [
        whole_step.batch(seed, views=VIEWS, unlabeled=4)
        for seed in range(count)
    ]


# By default the ramp is a 64th of the 200 steps: the hundredth is behind it.
@pytest.mark.parametrize(
    ("k", "changes"),
    [
        (0, {}),
        (2, {"lambda_u": 20.0}),
        (100, {}),
        (
            1,
            {
                "mixmatch.temperature": 0.9,
                "mixmatch.alpha": 5.0,
                "ramp_steps": 4,
            },
        ),
    ],
)
def test_step(k, changes):
    algorithm = whole_step.make("mixmatch", **changes)
    algorithm.step.assign(k)
    # Of one class there are no labeled images.
    batch = whole_step.batch(labels=(0, 2, 2, 0), views=VIEWS, unlabeled=4)
    (metrics,) = whole_step.check(algorithm, mixmatch, [batch])
    # At the first step nothing is learned from unlabeled images yet.
    ramped = metrics["loss/total"] - metrics["loss/s"]
    assert (ramped == 0) == (k == 0)


def test_a_recipe_for_others_gives_no_other_ratio():
    words = ["train", "--flagfile=configs/cifar10_40.cfg"]
    recipe = simmatch_tf.Config.from_argv(words)
    assert recipe.unlabeled_ratio == 7
    for name in ("mixmatch", "remixmatch"):
        method = [*words, f"--algorithm={name}"]
        config = simmatch_tf.Config.from_argv(method)
        assert config.unlabeled_ratio == 1
        assert not config.replaced_defaults()
        simmatch_tf.Config.from_argv([*method, "--unlabeled_ratio=1"])
        message = (
            f"--unlabeled_ratio=7: must be 1 with --algorithm={name}, which "
            "mixes"
        )
        with pytest.raises(InputError, match=message):
            simmatch_tf.Config.from_argv([*method, "--unlabeled_ratio=7"])
        with pytest.raises(InputError, match=message):
            dataclasses.replace(config, unlabeled_ratio=7)


@pytest.mark.slow
@pytest.mark.variant
def test_steps_in_a_row():
    algorithm = whole_step.make("mixmatch", seed=3, learning_rate=1.0)
    whole_step.check(algorithm, mixmatch, batches(4))
