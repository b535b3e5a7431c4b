"""Dash: FixMatch with a threshold on losses, which shrinks.

In a warm-up all pseudo-labels count. Then those count whose loss on the weak
view is below ρ, which starts at the mean loss of the end of the warm-up and
shrinks by γ every few epochs. Pseudo-labels are soft, sharpened by a
temperature, until ρ has reached its minimum; then they are hard.

With the loss ℓ = -log max p^w, ℓ < ρ is max p^w > e^(-ρ): ρ_min = 0.05 is a
confidence of 0.951. The letters are those of `simmatch`, and

| here    | shape  | meaning                                                  |
|---------|--------|----------------------------------------------------------|
| q       | [U, L] | pseudo-labels, soft or hard                              |
| rho     |        | ρ = max(ρ_min, ρ̂ γ^(-j))                                 |
| rho_hat |        | ρ̂, mean loss H(q, p^s) of the last pass over the         |
|         |        | unlabeled images before the warm-up ends                 |
| e       |        | number of epochs done, e₀ of them warm-up                |
| j       |        | ⌊(e - 1) / d⌋, how often the threshold has shrunk        |

References:
    Xu et al., "Dash: Semi-Supervised Learning with Dynamic Thresholding", ICML
    2021, https://arxiv.org/abs/2109.00650. Code:
    https://github.com/idstcv/Dash
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, diagnostics, unlabeled_loss
from simmatch_tf.flags.commandline import rare
from simmatch_tf.lazy import np, tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import losses, targets, thresholds

# Factor of L_u in the authors' code; the paper has none.
_FACTOR = 0.9


@registry.algorithms.register("dash")
class Dash(algorithm.Algorithm):
    """As the authors' code has it.

    Attributes:
        total: Sum of the losses of the steps that ρ̂ is the mean of.
        count: Number of these steps.
    """

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(unlabeled_loss.Weight):
        """The authors' values, with which they trained on SVHN."""

        epoch_steps: int | None = rare(
            None,
            "Steps of an epoch, by which warm-up and threshold are timed. "
            "Default: as published, 1/1024 of the run's steps.",
            low=1,
        )
        warmup_epochs: int = rare(
            10,
            "Epochs e0 of the warm-up, in which all pseudo-labels count.",
            low=1,
        )
        decay_epochs: int = rare(
            9, "Epochs d after which the threshold shrinks again.", low=1
        )
        gamma: float = rare(
            1.27,
            "Number gamma that the threshold is divided by each time.",
            low=1,
            high=100,
        )
        minimum: float = rare(
            0.05,
            "Smallest threshold, of the loss of a pseudo-label; 0.05 is a "
            "confidence of 0.951.",
            low=0,
            high=100,
        )
        temperature: float = rare(
            0.5,
            "Temperature T that sharpens the soft pseudo-labels.",
            low=0.005,
            high=10,
        )

        def check_run(self, config: config_lib.Config) -> None:
            """Checks that an epoch's length is known where the run's is not."""
            super().check_run(config)
            if self.epoch_steps is None:
                unlabeled_loss.check_length_known(config, "dash.epoch_steps", 5)

        def notes(self, steps: int) -> list[str]:
            """Says so if the warm-up does not end before the run."""
            warmup_steps = self.warmup_epochs * (self.epoch_steps or 0)
            if warmup_steps < steps:
                return []
            return [
                f"--dash.epoch_steps={self.epoch_steps}: all {steps} steps of "
                "this run are warm-up, in which every pseudo-label counts"
            ]

    @property
    def epoch_steps(self) -> int:
        """Steps of an epoch."""
        published = 1024  # epochs
        return self.hyper.epoch_steps or -(-self.config.steps // published)

    def build_state(self) -> None:
        """Makes the sum of which ρ̂ is the mean."""
        self.total = replica.variable(0.0, "total", self.dtype)
        self.count = replica.variable(0.0, "count", self.dtype)

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_u L_u."""
        hyper = self.hyper
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]  # [U]
        sizes = [x_l.shape[0], x_w.shape[0], x_s.shape[0]]
        rho, measured = self._threshold()

        with tf.GradientTape() as tape:
            out = self.call(self.student, tf.concat([x_l, x_w, x_s], 0))
            logits_l, logits_w, logits_s = tf.split(out["logits"], sizes)
            p_w = tf.nn.softmax(tf.stop_gradient(logits_w))  # [U, L]

            # ℓ: weak views against their own most likely class, -log max p^w.
            # Differs: as in the authors' code. The paper takes the losses of
            # strong views, divides L_u by the number of all images, without a
            # factor, and warms up on the labeled images alone.
            losses_w = -tf.reduce_max(
                tf.nn.log_softmax(tf.stop_gradient(logits_w)), axis=1
            )  # [U]
            mask = tf.cast(losses_w < rho, self.dtype)  # [U]
            q = targets.sharpen(p_w, hyper.temperature)  # [U, L]
            hard = tf.argmax(p_w, axis=1)
            hard = tf.one_hot(hard, self.num_classes, dtype=self.dtype)
            q = tf.where(rho > hyper.minimum, q, hard)

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: strong views against pseudo-labels of small loss. The divisor
            # is the number of these, on all replicas.
            share = replica.mean(tf.reduce_mean(mask))
            weight = tf.math.divide_no_nan(mask, share)  # [U]
            loss_u = losses.weighted_cross_entropy(logits_s, q, weight)
            weighted_u = hyper.lambda_u * _FACTOR * loss_u
            loss = loss_s + weighted_u

        self.minimize(tape, loss)
        self.total.assign_add(tf.where(measured, replica.mean(loss_u), 0.0))
        self.count.assign_add(tf.cast(measured, self.dtype))
        shown = self.diagnose(
            batch,
            lambda: diagnostics.pseudo_labels(batch, p_w, p_w, mask, None),
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/weighted_u": weighted_u,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            "dash/threshold": tf.exp(-rho),
            **shown,
        }

    def _threshold(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns ρ, ∞ in the warm-up, and whether this step's loss is in ρ̂."""
        hyper, config = self.hyper, self.config
        warmup_steps = hyper.warmup_epochs * self.epoch_steps
        pass_steps = -(
            -self.unlabeled_images
            // (config.batch_size * config.unlabeled_ratio)
        )
        after = self.step >= warmup_steps
        measured = ~after & (self.step >= warmup_steps - pass_steps)
        rho_hat = tf.math.divide_no_nan(self.total, self.count)
        e = self.step // self.epoch_steps
        j = tf.cast((e - 1) // hyper.decay_epochs, self.dtype)
        rho = thresholds.dash(rho_hat, j, hyper.gamma, hyper.minimum)
        return tf.where(after, rho, np.inf), measured
