"""FixMatch's step against its equations, and what it shares with SimMatch."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import fixmatch, simmatch
from simmatch_tf.ops import losses
from tests import reference
from tests.algorithms.test_simmatch import B, U, batch, make


def expected(algorithm, inputs):
    """L_s + λ_u L_u in NumPy float64, from the networks' own outputs."""
    c = algorithm.config
    x_l, x_w, x_s = (
        inputs[k]
        for k in ("labeled_weak", "unlabeled_weak", "unlabeled_strong")
    )
    if c.targets_from == "teacher":
        logits_w = algorithm.teacher.model(tf.concat([x_l, x_w], 0))["logits"]
        logits_w = logits_w[B:]
        logits = algorithm.student(tf.concat([x_l, x_s], 0), training=True)
        logits = logits["logits"]
    elif c.weak_forward == "separate":
        logits_w = algorithm.student(x_w, training=True)["logits"]
        logits = algorithm.student(tf.concat([x_l, x_s], 0), training=True)
        logits = logits["logits"]
    else:
        x = tf.concat([x_l, x_s, x_w], 0)
        logits = algorithm.student(x, training=True)["logits"]
        logits_w = logits[B + U :]
    p_w = reference.softmax(np.float64(logits_w))
    if c.align:
        p_w = reference.align(p_w, p_w.mean(axis=0))  # the first batch
    confidences = p_w.max(axis=1)
    kept = confidences >= c.threshold
    if c.pseudo_labels != "soft":
        p_w = np.eye(p_w.shape[1])[p_w.argmax(axis=1)]
    p_s = reference.softmax(np.float64(logits[B : B + U]))
    loss_u = (kept * -(p_w * np.log(p_s)).sum(axis=1)).mean()
    loss_s = reference.supervised_loss(logits[:B], inputs["labels"].numpy())
    return {
        "loss/s": loss_s,
        "loss/u": loss_u,
        "loss/total": loss_s + c.lambda_u * loss_u,
        "pseudo_label/mask_rate": kept.mean(),
    }, confidences


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"align": True},
        {"pseudo_labels": "soft"},
        {"align": True, "pseudo_labels": "soft", "weak_forward": "separate"},
        {"align": True, "pseudo_labels": "hard", "targets_from": "teacher"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "published",
)
def test_losses_equal_the_equations(changes):
    changes = {"algorithm": "fixmatch", **changes}
    _, confidences = expected(make(fixmatch.FixMatch, **changes), batch())
    # Between the third and the fourth of six.
    changes["threshold"] = float(np.sort(confidences)[2:4].mean())
    ours, theirs = (make(fixmatch.FixMatch, **changes) for _ in range(2))
    wanted, _ = expected(theirs, batch())
    metrics = tf.function(ours.train_step)(batch())
    assert set(metrics) == set(wanted)
    assert wanted["pseudo_label/mask_rate"] == 0.5
    for name, value in wanted.items():
        np.testing.assert_allclose(
            metrics[name], value, rtol=2e-4, err_msg=name
        )
    assert int(ours.step) == 1
    assert int(ours.align.written) == int(changes.get("align", False))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["teacher", "student"])
def test_it_is_simmatch_without_the_memory(form):
    """Soft and aligned, with α = 1 and λ_in = 0, both train the same."""
    one = make(
        fixmatch.FixMatch,
        algorithm="fixmatch",
        align=True,
        pseudo_labels="soft",
        targets_from=form,
    )
    other = make(simmatch.SimMatch, alpha=1.0, lambda_in=0.0, targets_from=form)
    for algorithm in (one, other):
        step = tf.function(algorithm.train_step)
        for seed in range(3):
            metrics = step(batch(seed))
        algorithm.last = float(metrics["loss/total"])
    np.testing.assert_allclose(one.last, other.last, rtol=1e-5)
    # The projection head has no gradient here.
    others = [
        weight
        for weight in other.student.trainable_variables
        if not weight.path.startswith(("hidden", "embedding"))
    ]
    for weight, same in zip(
        one.student.trainable_variables, others, strict=True
    ):
        np.testing.assert_allclose(weight, same, rtol=1e-4, atol=1e-5)


def test_hard_labels_carry_no_more_than_their_class():
    """The same argmax, another p^w: the same loss, if it is hard."""
    logits = tf.constant([[2.0, 1.0, 0.0]])
    for p in ([0.5, 0.3, 0.2], [0.9, 0.05, 0.05]):
        hard, _ = losses.unsupervised_loss(logits, [p], 0.4, hard=True)
        soft, _ = losses.unsupervised_loss(logits, [p], 0.4)
        # -log softmax of the first class, by hand.
        np.testing.assert_allclose(hard, 0.407606, rtol=1e-5)
        assert abs(float(hard) - float(soft)) > 0.05
