"""Pi-Model: two weak views of an image must have the same prediction.

| here        | shape   | meaning                                              |
|-------------|---------|------------------------------------------------------|
| B, U, L     |         | labeled, unlabeled images on this replica; classes   |
| w, w2       | [U, H, W, C] | two weak views of the unlabeled images          |
| p_w         | [U, L]  | class probabilities of the first, the target         |

References:
    Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR
    2017, https://arxiv.org/abs/1610.02242. Code:
    https://github.com/smlaine2/tempens
    Sohn et al., "FixMatch", NeurIPS 2020, https://arxiv.org/abs/2001.07685,
    whose comparison this is set up like. Code:
    https://github.com/google-research/fixmatch
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, diagnostics, unlabeled_loss
from simmatch_tf.flags.commandline import flag
from simmatch_tf.lazy import tf
from simmatch_tf.ops import losses


@registry.algorithms.register("pi_model")
class PiModel(algorithm.Algorithm):
    """Consistency of the student with itself."""

    unlabeled_views = ("weak", "weak_2")

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(unlabeled_loss.RampedWeight):
        """The weight, its ramp, and one unlabeled image for each labeled."""

        prefix = ""
        defaults = {"unlabeled_ratio": 1}

        lambda_u: float = flag(
            10.0, "Weight of the loss on unlabeled images.", low=0, high=1e6
        )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + r(k) λ_u L_u."""
        x, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        w, w2 = batch["unlabeled_weak"], batch["unlabeled_weak_2"]  # [U, ...]

        # Differs: only one of the two views has a gradient, as in FixMatch's
        # comparison. The paper has both, and labeled images in L_u, too.
        out_w = self.call(self.student, w, batch_norm="batch")
        p_w = tf.nn.softmax(out_w["logits"])  # [U, L]

        with tf.GradientTape() as tape:
            logits_x = self.call(self.student, x)["logits"]  # [B, L]
            out_w2 = self.call(self.student, w2, batch_norm="batch")

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_x, y)
            # L_u: one view against the prediction for the other.
            loss_u = losses.consistency_loss(out_w2["logits"], p_w)
            weight = self.hyper.ramp(self) * self.hyper.lambda_u
            loss = loss_s + weight * loss_u

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch,
            lambda: diagnostics.pseudo_labels(
                batch, p_w, p_w, None, None, views=("weak", "weak_2")
            ),
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/weighted_u": weight * loss_u,
            **shown,
        }
