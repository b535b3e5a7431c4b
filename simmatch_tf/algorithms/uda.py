"""UDA: sharpened predictions of weak views are the targets of strong ones.

Images count whose prediction is confident before it is sharpened. Training
signal annealing (TSA) leaves out labeled images of which the network is already
sure; the confidence from which on it does so rises during the run. The letters
are those of `simmatch`, and

| here | shape  | meaning                                                     |
|------|--------|-------------------------------------------------------------|
| q    | [U, L] | targets: p^w, sharpened by the temperature                  |
| eta  |        | η, largest confidence of a labeled image that is trained on |

References:
    Xie et al., "Unsupervised Data Augmentation for Consistency Training",
    NeurIPS 2020, https://arxiv.org/abs/1904.12848. Code:
    https://github.com/google-research/uda
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.algorithms import (
    algorithm,
    diagnostics,
    pseudo_labeling,
    unlabeled_loss,
)
from simmatch_tf.flags.commandline import flag, rare
from simmatch_tf.flags.errors import InputError
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import losses, schedules, targets


@registry.algorithms.register("uda")
class UDA(algorithm.Algorithm):
    """With training signal annealing or without, as published for CIFAR-10."""

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(pseudo_labeling.HyperParameters):
        """The authors' values for CIFAR-10."""

        threshold: float = flag(
            0.8,
            "Confidence threshold tau: smallest confidence of a pseudo-label.",
            low=0,
            high=1,
        )
        temperature: float = rare(
            0.4,
            "Temperature T that sharpens the targets; 1 leaves them as they "
            "are.",
            low=0.005,
            high=10,
        )
        tsa: str = rare(
            "none",
            "Training signal annealing: how the largest confidence of a "
            "labeled image that is still trained on grows to 1: log grows "
            "early, exp late, as is right for few labels.",
            choices=("none", "linear", "log", "exp"),
        )
        tsa_steps: int | None = rare(
            None,
            "Steps in which that confidence grows to 1. Default: those of the "
            "run.",
            low=1,
        )
        entropy_weight: float = rare(
            0.0,
            "Weight of the entropy of the predictions for weak views.",
            low=0,
            high=1e6,
        )

        def check_run(self, config: config_lib.Config) -> None:
            """Checks that TSA's length is known where the run's is not."""
            super().check_run(config)
            if self.tsa != "none" and self.tsa_steps is None:
                unlabeled_loss.check_length_known(config, "uda.tsa_steps", 2000)

        def check(self) -> None:
            """Checks flags that depend on others."""
            if self.tsa == "none" and self.tsa_steps is not None:
                raise InputError(
                    f"--uda.tsa_steps={self.tsa_steps}: is for --uda.tsa="
                    "linear, log or exp, not none"
                )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_u L_u + λ_e L_e."""
        hyper = self.hyper
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]  # [U]
        sizes = [x_l.shape[0], x_w.shape[0], x_s.shape[0]]

        with tf.GradientTape() as tape:
            out = self.call(self.student, tf.concat([x_l, x_w, x_s], 0))
            logits_l, logits_w, logits_s = tf.split(out["logits"], sizes)

            # The threshold is that of p^w as it is, not of the targets.
            p_w = tf.nn.softmax(tf.stop_gradient(logits_w))  # [U, L]
            mask = tf.reduce_max(p_w, axis=1) > hyper.threshold
            mask = tf.cast(mask, self.dtype)  # [U]
            q = targets.sharpen(p_w, hyper.temperature)  # [U, L]

            # L_s: labeled images against their labels.
            signal, used = self._signal(logits_l, y)  # [B], [B]
            y = tf.one_hot(y, self.num_classes, dtype=self.dtype)  # [B, L]
            loss_s = losses.weighted_cross_entropy(logits_l, y, signal)
            # L_u: strong views against the targets of confident weak views.
            loss_u = losses.kl_loss(logits_s, q, mask)
            # L_e: entropy of the weak views' predictions, sharpness/p_w.
            loss_e = losses.entropy_loss(logits_w)
            weighted_e = hyper.entropy_weight * loss_e
            loss = loss_s + hyper.lambda_u * loss_u + weighted_e

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch,
            lambda: diagnostics.pseudo_labels(batch, p_w, p_w, mask, None),
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/e": loss_e,
            "loss/weighted_e": weighted_e,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            "uda/labeled_used": tf.reduce_mean(used),
            **shown,
        }

    def _signal(
        self, logits_l: tf.Tensor, y: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns weights of labeled images, by TSA.

        Args:
            logits_l: [B, L].
            y: [B].

        Returns:
            Weights [B] whose mean over the whole batch is 1, or 0 if none is
            used; and which are used, [B] of 0 and 1.
        """
        hyper = self.hyper
        if hyper.tsa == "none":
            used = tf.ones(y.shape, self.dtype)
            return used, used
        eta = schedules.signal_annealing(
            self.step,
            steps=hyper.tsa_steps or self.config.steps,
            shape=hyper.tsa,
            num_classes=self.num_classes,
            dtype=self.dtype,
        )
        p_l = tf.nn.softmax(tf.stop_gradient(logits_l))  # [B, L]
        p_y = tf.gather(p_l, y, batch_dims=1)  # [B]
        used = tf.cast(p_y <= eta, self.dtype)
        # The divisor is the number of used images, on all replicas.
        share = replica.mean(tf.reduce_mean(used))
        return tf.math.divide_no_nan(used, share), used
