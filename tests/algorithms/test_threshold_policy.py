"""SimMatch's whole step with each --threshold_policy."""

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.flags import errors
from tests import reference, runs
from tests.algorithms import test_declarations, test_flexmatch, whole_step
from tests.algorithms.test_simmatch import on_two

L, IMAGES = whole_step.L, test_flexmatch.IMAGES


def thresholds(algorithm, batch, p_hat):
    """τ_c [L], and the policy's state after the step."""
    c, policy = algorithm.config, algorithm.config.threshold_policy
    if policy == "fixed":
        return np.full(L, c.threshold), {}
    if policy == "flexible":
        labels = np.array(algorithm.status.labels)
        counts = np.bincount(labels[labels >= 0], minlength=L)
        after = test_flexmatch.remember(
            labels, batch["unlabeled_index"], p_hat, c.threshold
        )
        states = {
            "status.labels": after,
            "status.counts": np.bincount(after[after >= 0], minlength=L),
        }
        unused = np.sum(labels < 0)
        return reference.flexible(counts, unused, c.threshold), states
    adaptive, m = algorithm.adaptive, 0.999
    threshold = min(
        m * float(adaptive.threshold) + (1 - m) * p_hat.max(axis=1).mean(),
        c.threshold,
    )
    p_mean = m * np.array(adaptive.p_mean) + (1 - m) * p_hat.mean(axis=0)
    states = {"adaptive.threshold": threshold, "adaptive.p_mean": p_mean}
    return reference.self_adaptive(threshold, p_mean), states


def simmatch(s):
    """Algorithm 1, in one forward, the memory bank being full."""
    algorithm, c = s.algorithm, s.algorithm.config
    x_l, x_w, x_s = (
        s.batch[name]
        for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong")
    )
    b, u = len(x_l), len(x_s)
    images = np.concatenate([x_l, x_s, x_w])
    out, constant = s.student(images), s.constant(images)
    p_w = reference.softmax(constant["logits"][b + u :])
    window = np.array(algorithm.align.window)
    written = int(algorithm.align.written)
    window[written % len(window)] = p_w.mean(axis=0)
    rows = min(written + 1, len(window))
    p_w = reference.align(p_w, window.sum(axis=0) / rows)

    bank = np.array(algorithm.memory.features)
    labels = whole_step.SLOT_LABELS
    q_w = reference.instance_similarity(
        constant["embeddings"][b + u :], bank, c.temperature
    )
    q_hat = reference.scale(q_w, reference.unfold(p_w, labels))
    p_hat = reference.smooth(p_w, reference.aggregate(q_w, labels, L), c.alpha)
    tau, states = thresholds(algorithm, s.batch, p_hat)
    kept = p_hat.max(axis=1) >= tau[p_hat.argmax(axis=1)]
    p_s = reference.softmax(out["logits"][b : b + u])
    loss_u = np.mean(kept * reference.cross_entropy(p_hat, p_s))
    loss_in = reference.instance_loss(
        out["embeddings"][b : b + u], bank, q_hat, c.temperature
    )
    loss_s = reference.supervised_loss(out["logits"][:b], s.batch["labels"])
    return {
        "loss/total": loss_s + c.lambda_u * loss_u + c.lambda_in * loss_in,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "loss/in": loss_in,
        "pseudo_label/mask_rate": kept.mean(),
    }, {"align.window": window, **states}


def make(policy, strategy=None, **changes):
    """SimMatch in the middle of a run."""
    values = {"seed": 2, "threshold": 0.7, "lambda_u": 2.0, "alpha": 0.8}
    algorithm = whole_step.make(
        "simmatch", strategy, threshold_policy=policy, **values | changes
    )
    z = np.random.default_rng(5).normal(size=[6, whole_step.D])
    algorithm.memory.update(np.arange(6), z)
    algorithm.step.assign(99)
    if policy == "flexible":
        labels = np.concatenate([np.arange(15) % 2, -np.ones(5)])
        algorithm.status.labels.assign(labels.astype(np.int32))
        algorithm.status.counts.assign([8, 7, 0])
    elif policy == "adaptive":
        algorithm.adaptive.threshold.assign(0.65)
        algorithm.adaptive.p_mean.assign([0.5, 0.1, 0.4])
    return algorithm


@pytest.mark.parametrize("policy", ["fixed", "flexible", "adaptive"])
def test_a_whole_step(policy):
    algorithm = make(policy)
    assert algorithm.needs_index == (policy == "flexible")
    batches = [whole_step.batch(seed) for seed in (1, 2)]
    steps = whole_step.check(algorithm, simmatch, batches)
    rates = [metrics["pseudo_label/mask_rate"] for metrics in steps]
    assert any(0 < rate < 1 for rate in rates), rates


def test_the_fixed_threshold_is_the_largest():
    algorithm = make("adaptive", threshold=0.5)
    whole_step.check(algorithm, simmatch, [whole_step.batch(1)])
    assert float(algorithm.adaptive.threshold) == 0.5


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize("policy", ["flexible", "adaptive"])
def test_two_replicas_are_as_one(policy, two_replicas):
    one = make(policy, learning_rate=0.1)
    with two_replicas.scope():
        two = make(policy, two_replicas, learning_rate=0.1)
    step = tf.function(one.guarded_step, autograph=False)
    for batch in [whole_step.batch(seed) for seed in range(2)]:
        step(batch)
        on_two(two_replicas, two, batch, 1, guarded=True)
    for a, b in zip(
        algorithm_lib.state(one), algorithm_lib.state(two), strict=True
    ):
        np.testing.assert_allclose(
            np.array(a), np.array(b), rtol=1e-6, atol=1e-8, err_msg=a.name
        )


@pytest.mark.slow
@pytest.mark.variant
def test_a_run_counts_its_images(tmp_path):
    """At this threshold every prediction is confident."""
    changes = {"threshold_policy": "flexible", "threshold": 0.1}
    test_declarations.fit(tmp_path, "simmatch", unlabeled_ratio=3, **changes)
    saved = test_declarations.saved(tmp_path)
    seen = 2 * 3 * runs.SMALL["batch_size"]
    assert np.sum(saved["status/labels"] >= 0) == seen
    assert saved["status/counts"].sum() == seen


def test_the_flag():
    words = ["x", "--flagfile=configs/digits_40.cfg"]
    read = simmatch_tf.Config.from_argv
    assert read(words).threshold_policy == "fixed"
    # A recipe for soft pseudo-labels has a threshold of 0.
    with pytest.raises(
        errors.InputError,
        match="threshold_policy=flexible: is without effect at --threshold=0",
    ):
        read([*words, "--threshold_policy=flexible"])
    words += ["--threshold_policy=adaptive", "--threshold=0.95"]
    assert read(words).threshold_policy == "adaptive"
    with pytest.raises(errors.InputError, match="is for --algorithm=simmatch"):
        simmatch_tf.Config(algorithm="fixmatch", threshold_policy="flexible")
