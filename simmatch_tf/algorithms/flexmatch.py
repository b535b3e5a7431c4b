"""FlexMatch: FixMatch with a threshold for each class.

A class's threshold follows how many unlabeled images were last predicted
confidently as that class; all thresholds start at 0, so that at first all
images are used. Views, forwards and optimizer are FixMatch's, the letters those
of `simmatch`; σ and û are in `modules.learning_status`.

References:
    Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with Curriculum
    Pseudo Labeling", NeurIPS 2021, https://arxiv.org/abs/2110.08263. Code:
    https://github.com/TorchSSL/TorchSSL
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, pseudo_labeling
from simmatch_tf.flags import errors
from simmatch_tf.flags.commandline import rare
from simmatch_tf.lazy import tf
from simmatch_tf.modules import learning_status
from simmatch_tf.ops import losses


@registry.algorithms.register("flexmatch")
class FlexMatch(pseudo_labeling.PseudoLabeling):
    """With hard pseudo-labels.

    Attributes:
        status: û and σ.
    """

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(pseudo_labeling.TargetHyperParameters):
        """As published, FlexMatch does not align."""

        align: bool = rare(False, "Whether to apply distribution alignment.")
        threshold_warmup: bool = rare(
            True,
            "Whether images without a confident prediction so far keep the "
            "thresholds of all classes low.",
        )

        def check(self) -> None:
            """Checks flags that depend on others."""
            super().check()
            if not self.threshold:
                raise errors.InputError(
                    "--threshold=0: is the largest threshold of a class, so "
                    "that all would be 0; give one above 0, such as "
                    "--threshold=0.95"
                )

    needs_index = True

    def build_state(self) -> None:
        """Makes the alignment's window and the learning status."""
        super().build_state()
        self.status = learning_status.LearningStatus(
            self.num_classes,
            self.unlabeled_images,
            self.config.threshold,
            warmup=self.hyper.threshold_warmup,
            dtype=self.dtype,
        )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_u L_u."""
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]  # [U]

        targets = self.label(x_l, x_w)
        thresholds = self.status.thresholds()  # τ M(β_c) [L]

        with tf.GradientTape() as tape:
            logits_l, logits_s, _, targets = self.forward(
                x_l, x_s, x_w, targets
            )  # [B, L], [U, L]
            p_w = targets.p_w  # [U, L]
            threshold = tf.gather(thresholds, tf.argmax(p_w, axis=1))  # [U]

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: strong views against pseudo-labels, by their class's
            # threshold.
            loss_u, mask = losses.unsupervised_loss(
                logits_s, p_w, threshold, hard=True
            )
            loss = loss_s + self.config.lambda_u * loss_u

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch, lambda: self._diagnostics(batch, targets, p_w, mask)
        )
        # û by the fixed τ, whatever the threshold of the class.
        self.status.record(batch["unlabeled_index"], p_w)
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            "pseudo_label/threshold": tf.reduce_mean(threshold),
            **shown,
        }
