"""Mean Teacher: the prediction for one weak view must be the EMA's for another.

The letters are those of `pi_model`.

References:
    Tarvainen and Valpola, "Mean teachers are better role models:
    Weight-averaged consistency targets improve semi-supervised deep learning
    results", NeurIPS 2017, https://arxiv.org/abs/1703.01780. Code:
    https://github.com/CuriousAI/mean-teacher
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


@registry.algorithms.register("mean_teacher")
class MeanTeacher(algorithm.Algorithm):
    """Consistency of the student with its EMA teacher."""

    unlabeled_views = ("weak", "weak_2")

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(unlabeled_loss.RampedWeight):
        """The weight, its ramp, and one unlabeled image for each labeled."""

        prefix = ""
        defaults = {"unlabeled_ratio": 1}

        lambda_u: float = flag(
            50.0, "Weight of the loss on unlabeled images.", low=0, high=1e6
        )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + r(k) λ_u L_u."""
        x, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        w, w2 = batch["unlabeled_weak"], batch["unlabeled_weak_2"]  # [U, ...]

        # The EMA before this step, on the statistics of this batch: those that
        # it averages are for evaluation only.
        out_w = self.call(self.teacher.model, w, batch_norm="batch")
        p_w = tf.nn.softmax(out_w["logits"])  # [U, L]

        with tf.GradientTape() as tape:
            logits_x = self.call(self.student, x)["logits"]  # [B, L]
            out_w2 = self.call(self.student, w2, batch_norm="batch")

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_x, y)
            # L_u: one view against the teacher's prediction for the other.
            # Differs: labeled images have no part in it, as in FixMatch's
            # comparison; in the paper they have.
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
