"""ReMixMatch's step against its equations in NumPy float64."""

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf.training import inputs
from simmatch_tf.training import workdir as workdir_lib
from tests import reference
from tests.algorithms import test_mixmatch, whole_step
from tests.algorithms.test_mixmatch import mean_cross_entropy

PRIOR = [0.6, 0.3, 0.1]


def views(strong):
    names = ("strong", *(f"strong_{k}" for k in range(2, strong + 1)))
    return ("weak", *names)


def remixmatch(prior=None):
    """L_x + r(k) (λ_u L_u + λ_kl L_kl) + λ_rot L_rot."""

    def equations(s):
        hyper = s.algorithm.hyper
        x, y = s.batch["labeled_weak"], s.batch["labels"]
        w, *strong = (
            s.batch[f"unlabeled_{view}"] for view in views(hyper.strong_views)
        )
        p_w = reference.softmax(s.constant(w, "batch")["logits"])
        # The mean of the window, which this batch is not in yet.
        window = np.array(s.algorithm.align.window)
        if not int(s.algorithm.align.written):
            window = np.full_like(window, 1 / whole_step.L)
        p, states = p_w, {"align.window": window}
        if hyper.align:
            target = np.array(prior or np.full(whole_step.L, 1 / whole_step.L))
            p = p_w * (1e-6 + target) / (1e-6 + window.mean(axis=0))
            p = p / p.sum(axis=1, keepdims=True)
            written = int(s.algorithm.align.written)
            window = window.copy()
            window[written % len(window)] = p_w.mean(axis=0)
            states = {
                "align.window": window,
                "align.written": np.array(written + 1),
            }
        q = test_mixmatch.sharpened(p, hyper.temperature)
        logits, t = test_mixmatch.mixed_forward(
            s,
            (x, w, *strong),
            (np.eye(whole_step.L)[y], q, *[q] * len(strong)),
            hyper.alpha,
            updates=1 + len(strong),  # the last batch
        )
        loss_x = mean_cross_entropy(logits[0], t[0])
        loss_u = mean_cross_entropy(
            np.concatenate(logits[1:]), np.concatenate(t[1:])
        )
        # The first strong view unmixed, and a quarter by each of four angles.
        s_1 = strong[0]
        loss_kl = mean_cross_entropy(s.student(s_1, "batch")["logits"], q)
        turns = [0, 1, 2, 3]
        rotated = [
            np.rot90(image, k) for image, k in zip(s_1, turns, strict=True)
        ]
        loss_rot = reference.supervised_loss(
            s.student(np.stack(rotated), "batch")["rotation"], turns
        )
        r = test_mixmatch.ramp(s.algorithm, s.k)
        loss = (
            loss_x
            + s.algorithm.config.lambda_u * r * loss_u
            + hyper.lambda_kl * r * loss_kl
            + hyper.lambda_rot * loss_rot
        )
        return {
            "loss/total": loss,
            "loss/s": loss_x,
            "loss/u": loss_u,
            "loss/kl": loss_kl,
            "loss/rotation": loss_rot,
        }, states

    return equations


def check(count, prior=None, first=0, **changes):
    algorithm = whole_step.make("remixmatch", prior=prior, **changes)
    algorithm.step.assign(first)
    names = views(algorithm.hyper.strong_views)
    assert algorithm.unlabeled_views == names
    batches = [
        whole_step.batch(seed, views=names, unlabeled=4)
        for seed in range(count)
    ]
    return whole_step.check(algorithm, remixmatch(prior), batches)


@pytest.mark.parametrize(
    ("k", "changes"),
    [
        (0, {"remixmatch.strong_views": 1}),
        (
            1,
            {
                "prior": PRIOR,
                "remixmatch.strong_views": 2,
                "ramp_steps": 4,
                "lambda_u": 3.0,
                "remixmatch.lambda_kl": 2.0,
                "remixmatch.lambda_rot": 0.25,
            },
        ),
        (100, {"remixmatch.strong_views": 1, "align": False}),
    ],
)
def test_step(k, changes):
    (metrics,) = check(1, first=k, **changes)
    # Rotations are learned from the first step on, the rest is ramped.
    assert (
        metrics["loss/total"]
        == pytest.approx(metrics["loss/s"] + 0.5 * metrics["loss/rotation"])
    ) == (k == 0)


@pytest.mark.slow
@pytest.mark.variant
def test_steps_in_a_row_and_a_window_that_is_full():
    """Also with the eight strong views of the published runs."""
    check(
        4,
        prior=[0.5, 0.5, 0.0],  # a class without a label
        first=100,
        da_window=2,
        seed=3,
        **{"remixmatch.strong_views": 3, "remixmatch.temperature": 0.8},
    )
    check(1)


def test_the_prior_is_that_of_the_labels_and_none_without_alignment(tmp_path):
    class Split:
        labeled = np.arange(6)

    class Train:
        labels = np.array([0, 0, 0, 1, 1, 2])

    class Source:
        num_classes, train = 3, Train

    def prior(**changes):
        config = simmatch_tf.Config(
            algorithm="remixmatch", labels=10, steps=1, **changes
        )
        folder = workdir_lib.Workdir(tmp_path)
        return inputs.class_prior(config, Source, Split, folder)

    assert prior() == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert prior(align=False) is None
    assert prior(class_prior="uniform") is None
