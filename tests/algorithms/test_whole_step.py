"""FixMatch and the supervised baseline by `whole_step`, and its own faults."""

import numpy as np
import pytest

from tests import reference
from tests.algorithms import whole_step


def fixmatch(s):
    """L_s + λ_u L_u, one joint forward, no alignment, hard labels."""
    x_l, x_w, x_s = (
        s.batch[name]
        for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong")
    )
    b, u = len(x_l), len(x_s)
    images = np.concatenate([x_l, x_s, x_w])
    logits = s.student(images)["logits"]
    p_w = reference.softmax(s.constant(images)["logits"][b + u :])
    kept = p_w.max(axis=1) >= s.algorithm.config.threshold
    hard = np.eye(p_w.shape[1])[p_w.argmax(axis=1)]
    p_s = reference.softmax(logits[b : b + u])
    loss_u = np.mean(kept * reference.cross_entropy(hard, p_s))
    loss_s = reference.supervised_loss(logits[:b], s.batch["labels"])
    return {
        "loss/total": loss_s + s.algorithm.config.lambda_u * loss_u,
        "loss/u": loss_u,
        "pseudo_label/mask_rate": kept.mean(),
    }, {}


def test_fixmatch():
    algorithm = whole_step.make("fixmatch", threshold=0.7, lambda_u=2.0)
    batches = [whole_step.batch(seed) for seed in range(3)]
    steps = whole_step.check(algorithm, fixmatch, batches)
    rates = [metrics["pseudo_label/mask_rate"] for metrics in steps]
    assert any(0 < rate < 1 for rate in rates), rates


@pytest.mark.parametrize("fault", ["gradient of the target", "averages"])
def test_a_fault_is_seen(fault):
    """Equations with a wrong gradient or wrong averages do not pass."""

    def faulty(s):
        if fault == "averages":
            s.student(s.batch["unlabeled_weak"])
            return fixmatch(s)
        metrics, states = fixmatch(s)
        p_w = reference.softmax(
            s.student(s.batch["unlabeled_weak"], "batch")["logits"]
        )
        zero = (
            p_w.max(axis=1)
            - reference.softmax(
                s.constant(s.batch["unlabeled_weak"], "batch")["logits"]
            ).max(axis=1)
        ).mean()
        metrics["loss/total"] += zero
        return metrics, states

    algorithm = whole_step.make("fixmatch", threshold=0.7, lambda_u=2.0)
    with pytest.raises(AssertionError, match="gradient of|moving_mean"):
        whole_step.check(algorithm, faulty, [whole_step.batch()])
