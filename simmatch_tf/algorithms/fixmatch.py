"""FixMatch: confident predictions of weak views are the labels of strong ones.

It shares views, forwards, alignment, optimizer and EMA with SimMatch. It has no
memory bank: p̂ is p^w, and there is no L_in. The letters are those of
`simmatch`.

References:
    Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with
    Consistency and Confidence", NeurIPS 2020,
    https://arxiv.org/abs/2001.07685. Code:
    https://github.com/google-research/fixmatch
    Cai et al., "Exponential Moving Average Normalization for Self-supervised
    and Semi-supervised Learning" (FixMatch-EMAN), CVPR 2021,
    https://arxiv.org/abs/2101.08482.
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, pseudo_labeling
from simmatch_tf.flags.commandline import rare
from simmatch_tf.lazy import tf
from simmatch_tf.ops import losses


@registry.algorithms.register("fixmatch")
class FixMatch(pseudo_labeling.PseudoLabeling):
    """With hard or soft pseudo-labels, aligned or not.

    With --targets_from=teacher the EMA teacher sees the weak views
    (FixMatch-EMAN); else the student does, as published.
    """

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(pseudo_labeling.TargetHyperParameters):
        """As published, FixMatch does not align."""

        prefix = ""

        align: bool = rare(False, "Whether to apply distribution alignment.")
        pseudo_labels: str = rare(
            "hard",
            "Pseudo-labels: the most likely class, or all probabilities.",
            choices=("hard", "soft"),
        )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
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
        shown = self.diagnose(
            batch, lambda: self._diagnostics(batch, targets, targets.p_w, mask)
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            **shown,
        }
