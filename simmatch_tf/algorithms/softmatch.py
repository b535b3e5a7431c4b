"""SoftMatch: every pseudo-label counts, by a Gaussian of its confidence.

Images as confident as the mean or more have weight 1, others less. Uniform
alignment divides the predictions by their mean, for the weights only. Views,
forwards and optimizer are FixMatch's, the letters those of `simmatch`; p̃, μ̃
and σ̃² are in `modules.confidence_gaussian`.

References:
    Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in
    Semi-supervised Learning", ICLR 2023, https://arxiv.org/abs/2301.10921.
    Code: https://github.com/microsoft/Semi-supervised-learning
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, pseudo_labeling
from simmatch_tf.flags.commandline import rare
from simmatch_tf.lazy import tf
from simmatch_tf.modules import confidence_gaussian
from simmatch_tf.ops import losses


@registry.algorithms.register("softmatch")
class SoftMatch(pseudo_labeling.PseudoLabeling):
    """With hard pseudo-labels.

    Attributes:
        gaussian: p̃, μ̃ and σ̃².
    """

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(pseudo_labeling.TargetFlags):
        """As published, labels are not aligned, only the weights."""

        align: bool = rare(False, "Whether to apply distribution alignment.")
        # Differs: as in the authors' code. The paper's Gaussian has n = 1.
        n_sigma: float = rare(
            2.0,
            "Standard deviations of the confidence in one of the Gaussian "
            "that weights pseudo-labels: the larger, the less unsure ones "
            "count.",
            low=0.01,
            high=100,
        )
        momentum: float = rare(
            0.999,
            "Momentum of the mean and variance of the confidence, and of the "
            "mean prediction.",
            low=0,
            high=0.99999,
        )

    def build_state(self) -> None:
        """Makes the alignment's window and the averages."""
        super().build_state()
        self.gaussian = confidence_gaussian.ConfidenceGaussian(
            self.num_classes,
            self.hyper.momentum,
            n_sigma=self.hyper.n_sigma,
            dtype=self.dtype,
        )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_u L_u."""
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]  # [U]

        targets = self.label(x_l, x_w)

        with tf.GradientTape() as tape:
            logits_l, logits_s, _, targets = self.forward(
                x_l, x_s, x_w, targets
            )  # [B, L], [U, L]
            p_w = targets.p_w  # [U, L]
            # The averages are those that include this batch.
            self.gaussian.record(p_w)
            weight = self.gaussian.weights(p_w)  # [U]
            label = tf.one_hot(
                tf.argmax(p_w, axis=1), self.num_classes, dtype=p_w.dtype
            )  # [U, L]

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: strong views against weighted pseudo-labels.
            loss_u = losses.weighted_cross_entropy(logits_s, label, weight)
            loss = loss_s + self.config.lambda_u * loss_u

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch, lambda: self._diagnostics(batch, targets, p_w, weight)
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "pseudo_label/mask_rate": tf.reduce_mean(weight),
            **shown,
        }
