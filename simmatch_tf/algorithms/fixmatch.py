"""FixMatch (NeurIPS 2020): confident weak views label strong ones.

What it shares with SimMatch is the same code: views, forwards, alignment,
optimizer, EMA. What it lacks is the memory, and so p̂ is p^w and L_in is 0. The
letters are those of `simmatch`.
"""

from __future__ import annotations

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, pseudo_labeling
from simmatch_tf.lazy import tf
from simmatch_tf.ops import losses


@registry.algorithms.register("fixmatch")
class FixMatch(pseudo_labeling.WeakStrong):
    """With hard pseudo-labels or soft ones, aligned or not.

    With --memory=teacher the EMA teacher sees the weak views (FixMatch-EMAN);
    else the student does, as published.
    """

    needs_embeddings = False
    published_align = False

    def train_step(self, batch: dict[str, tf.Tensor]) -> algorithm.Metrics:
        """One step: L_s + λ_u L_u."""
        config = self.config
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]  # [U]

        targets = self.label(x_l, x_w)

        with tf.GradientTape() as tape:
            logits_l, logits_s, _, targets = self.forward(
                x_l, x_s, x_w, targets
            )  # [B, L], [U, L]

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: strong views against confident pseudo-labels.
            loss_u, mask = losses.unsupervised_loss(
                logits_s,
                targets.p_w,
                config.threshold,
                hard=config.pseudo_labels != "soft",
            )
            loss = loss_s + config.lambda_u * loss_u

        self.minimize(tape, loss)
        seen = self.watch(batch, targets, targets.p_w, mask)
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            **seen,
        }
