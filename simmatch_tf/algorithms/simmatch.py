"""SimMatch: matches classes and instances at the same time (Algorithm 1).

| here        | shape   | meaning                                              |
|-------------|---------|------------------------------------------------------|
| B, U        |         | labeled and unlabeled images on this replica, U = μB |
| L, K, D     |         | classes; slots of the memory bank; embedding width   |
| x_l, x_w, x_s | [·, H, W, C] | labeled, weak and strong unlabeled views      |
| p_w         | [U, L]  | aligned class probabilities of the weak views        |
| z_l, z_w, z_s | [·, D] | unit embeddings                                     |
| Q_f, Q_l    | [K, D], [K] | memory bank: its embeddings, its classes |
| p_hat       | [U, L]  | class pseudo-labels, smoothed by the memory bank     |

Instance similarities and instance pseudo-labels, q^w, q^s and q̂ [U, K], exist
in `ops.matching` alone, block by block.

References:
    Zheng, You, Huang, Wang, Qian, Xu, "SimMatch: Semi-supervised Learning with
    Similarity Matching", CVPR 2022, https://arxiv.org/abs/2203.06915; "the
    slides" that comments and `ops` cite are a summary of it. Code:
    https://github.com/mingkai-zheng/simmatch
    --threshold_policy: see `flexmatch` and `freematch`.
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, diagnostics, pseudo_labeling
from simmatch_tf.flags import errors
from simmatch_tf.flags.commandline import flag, rare
from simmatch_tf.lazy import tf
from simmatch_tf.modules import adaptive_thresholds, learning_status, memory
from simmatch_tf.ops import losses


@registry.algorithms.register("simmatch")
class SimMatch(pseudo_labeling.PseudoLabeling):
    """Both published forms: student–teacher, and temporal ensemble.

    Attributes:
        memory: Q_f and Q_l.
        status: With --threshold_policy=flexible, what thresholds are made of.
        adaptive: Likewise with --threshold_policy=adaptive.
    """

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(
        pseudo_labeling.MemoryPlacement, pseudo_labeling.TargetHyperParameters
    ):
        """Flags of the memory bank and of instance matching."""

        prefix = ""

        alpha: float = flag(
            0.9,
            "Weight of the class probabilities p^w in the smoothed "
            "pseudo-label.",
            low=0,
            high=1,
        )
        temperature: float = flag(
            0.1,
            "Temperature t of the instance similarities.",
            low=0.005,
            high=10,
        )
        lambda_in: float = flag(
            1.0, "Weight of the instance matching loss.", low=0, high=1e6
        )
        scale_instances: bool = rare(
            True,
            "Whether instance pseudo-labels are scaled by the class "
            "probabilities p^w (off: Table 5, w/o q^).",
        )
        smooth_classes: bool = rare(
            True,
            "Whether class pseudo-labels are smoothed by the instance "
            "pseudo-labels (off: Table 5, w/o p^).",
        )
        memory_momentum: float = rare(
            0.7,
            "Momentum of the embeddings in the memory bank with "
            "--targets_from=student.",
            low=0,
            high=0.99999,
        )
        matching_start_steps: int = rare(
            0,
            "Step at which instance loss and smoothing start, if the memory "
            "bank is full by then.",
            low=0,
        )
        threshold_policy: str = rare(
            "fixed",
            "Confidence threshold of a pseudo-label: --threshold for all "
            "(fixed); lower for classes with few confident predictions so far "
            "(flexible, as FlexMatch); or the mean confidence, lower for "
            "classes with little probability (adaptive, as FreeMatch). "
            "--threshold is then the largest.",
            choices=("fixed", "flexible", "adaptive"),
        )

        def check(self) -> None:
            """Checks flags that depend on others."""
            super().check()
            if self.threshold_policy != "fixed" and not self.threshold:
                raise errors.InputError(
                    f"--threshold_policy={self.threshold_policy}: is without "
                    "effect at --threshold=0, the largest threshold; give one "
                    "above 0, such as --threshold=0.95"
                )

    needs_embeddings = True

    def build_state(self) -> None:
        """Makes the alignment's window, the memory bank and the thresholds."""
        super().build_state()
        config = self.config
        self.memory = memory.MemoryBuffer(
            self.slot_labels,
            config.projection_dim,
            momentum=0.0 if self.from_teacher else config.memory_momentum,
            dtype=self.dtype,
            sharded=config.memory_placement == "sharded",
        )
        self.needs_index = config.threshold_policy == "flexible"
        if self.needs_index:
            self.status = learning_status.LearningStatus(
                self.num_classes,
                self.unlabeled_images,
                config.threshold,
                dtype=self.dtype,
            )
        elif config.threshold_policy == "adaptive":
            self.adaptive = adaptive_thresholds.AdaptiveThresholds(
                self.num_classes, most=config.threshold, dtype=self.dtype
            )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step of Algorithm 1."""
        config = self.config
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]  # [U]
        ready = self.memory.full() & (self.step >= config.matching_start_steps)

        targets = self.label(x_l, x_w)

        with tf.GradientTape() as tape:
            logits_l, logits_s, z_s, targets = self.forward(
                x_l, x_s, x_w, targets
            )  # [B, L], [U, L], [U, D]
            p_w, z_w, z_l = targets  # [U, L], [U, D], [B, D]

            # Eq. 3 to 10: p̂ [U, L]; and H(q̂, q^s) of each image [U].
            p_hat, entropies = self.memory.match(
                z_w,
                z_s,
                p_w,
                temperature=config.temperature,
                alpha=config.alpha if config.smooth_classes else 1.0,
                scale=config.scale_instances,
            )
            p_hat = tf.where(ready, p_hat, p_w)

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: strong views against confident class pseudo-labels.
            threshold = self._threshold(batch, p_hat)
            loss_u, mask = losses.unsupervised_loss(logits_s, p_hat, threshold)
            # L_in: strong views against instance pseudo-labels.
            loss_in = tf.where(ready, tf.reduce_mean(entropies), 0.0)
            loss = (
                loss_s + config.lambda_u * loss_u + config.lambda_in * loss_in
            )

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch, lambda: self._diagnostics(batch, targets, p_hat, mask)
        )
        norm = self.memory.update(batch["slots"], z_l, self.step)
        if config.threshold_policy != "fixed":
            shown["pseudo_label/threshold"] = tf.reduce_mean(threshold)
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/in": loss_in,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            "memory/norm": norm,
            **shown,
        }

    def _threshold(
        self, batch: algorithm.Batch, p_hat: tf.Tensor
    ) -> float | tf.Tensor:
        """Returns τ, or that of each image [U], by --threshold_policy."""
        policy = self.config.threshold_policy
        if policy == "fixed":
            return self.config.threshold
        if policy == "flexible":  # read before this batch is written
            thresholds = self.status.thresholds()  # [L]
            self.status.record(batch["unlabeled_index"], p_hat)
        else:  # those of FreeMatch include this batch
            self.adaptive.record(p_hat)
            thresholds = self.adaptive.thresholds()  # [L]
        return tf.gather(thresholds, tf.argmax(p_hat, axis=1))

    def _diagnostics(
        self,
        batch: algorithm.Batch,
        targets: pseudo_labeling.Targets,
        p_hat: tf.Tensor,
        mask: tf.Tensor,
    ) -> diagnostics.Diagnostics:
        """Computes those of the pseudo-labels and of the memory bank."""
        labels = super()._diagnostics(batch, targets, p_hat, mask)
        bank = diagnostics.memory_bank(
            self.memory, targets.z_w, targets.p_w, self.step, self.config
        )
        return diagnostics.Diagnostics(
            labels.means | bank.means, labels.rows | bank.rows
        )
