"""FreeMatch: thresholds that follow the confidence, and a fairness loss.

One threshold for all classes follows the mean confidence, and each class's part
of it how likely the class is on average. L_f keeps the predictions of the used
strong views from falling on few classes. Views, forwards and optimizer are
FixMatch's, the letters those of `simmatch`; τ̃, p̃ and h̃ are in
`modules.adaptive_thresholds`.

References:
    Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised
    Learning", ICLR 2023, https://arxiv.org/abs/2205.07246. Code:
    https://github.com/microsoft/Semi-supervised-learning
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, pseudo_labeling
from simmatch_tf.flags import errors
from simmatch_tf.flags.commandline import rare
from simmatch_tf.lazy import tf
from simmatch_tf.modules import adaptive_thresholds, replica
from simmatch_tf.ops import losses


@registry.algorithms.register("freematch")
class FreeMatch(pseudo_labeling.PseudoLabeling):
    """With hard pseudo-labels.

    Attributes:
        adaptive: τ̃, p̃ and h̃.
    """

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(pseudo_labeling.TargetFlags):
        """As published, FreeMatch does not align."""

        align: bool = rare(False, "Whether to apply distribution alignment.")
        lambda_f: float = rare(
            0.01, "Weight of the fairness loss.", low=0, high=1e6
        )
        momentum: float = rare(
            0.999,
            "Momentum of the averages that the thresholds are made of.",
            low=0,
            high=0.99999,
        )
        quantile: float | None = rare(
            None,
            "Quantile of a batch's confidences that the global threshold "
            "follows, such as 0.8. Default: their mean.",
            low=0,
            high=1,
        )
        global_high: float | None = rare(
            None,
            "Upper limit of the global threshold, such as 0.95. Default: none.",
            low=0,
            high=1,
        )
        class_low: float = rare(
            0.0, "Lower limit of each class's threshold.", low=0, high=1
        )
        class_high: float = rare(
            1.0, "Upper limit of each class's threshold.", low=0, high=1
        )

        def check(self) -> None:
            """Checks flags that depend on others."""
            super().check()
            if self.class_low > self.class_high:
                raise errors.InputError(
                    f"--freematch.class_low={self.class_low}: must be at most "
                    f"--freematch.class_high={self.class_high}"
                )

    def build_state(self) -> None:
        """Makes the alignment's window and the averages."""
        super().build_state()
        self.adaptive = adaptive_thresholds.AdaptiveThresholds(
            self.num_classes,
            self.hyper.momentum,
            quantile=self.hyper.quantile,
            most=self.hyper.global_high,
            dtype=self.dtype,
        )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_u L_u + λ_f L_f."""
        hyper, adaptive = self.hyper, self.adaptive
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]  # [U]

        targets = self.label(x_l, x_w)

        with tf.GradientTape() as tape:
            logits_l, logits_s, _, targets = self.forward(
                x_l, x_s, x_w, targets
            )  # [B, L], [U, L]
            p_w = targets.p_w  # [U, L]
            # The thresholds are those that include this batch.
            adaptive.record(p_w)
            thresholds = tf.clip_by_value(
                adaptive.thresholds(), hyper.class_low, hyper.class_high
            )  # τ_c [L]
            threshold = tf.gather(thresholds, tf.argmax(p_w, axis=1))  # [U]

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: strong views against pseudo-labels, by their class's
            # threshold.
            loss_u, mask = losses.unsupervised_loss(
                logits_s, p_w, threshold, hard=True
            )
            # L_f: of the whole batch, because it is no mean over images.
            # Differs: in the authors' code each process has its own.
            loss_f = losses.fairness_loss(
                replica.all_gather(logits_s),
                replica.all_gather(mask),
                adaptive.p_mean,
                adaptive.histogram,
            )
            loss = loss_s + hyper.lambda_u * loss_u + hyper.lambda_f * loss_f

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch, lambda: self._diagnostics(batch, targets, p_w, mask)
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/f": loss_f,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            "pseudo_label/threshold": tf.reduce_mean(threshold),
            **shown,
        }
