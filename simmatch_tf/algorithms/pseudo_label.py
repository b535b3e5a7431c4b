"""Pseudo-Label: confident predictions are the labels of the same images.

An image's most likely class becomes its label where the network is sure of it,
and the same prediction is trained towards that class. There is one weak view
and no strong one. The letters are those of `simmatch`.

References:
    Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning
    Method for Deep Neural Networks", ICML 2013 workshop on Challenges in
    Representation Learning. With a threshold, as here: Oliver et al.,
    "Realistic Evaluation of Deep Semi-Supervised Learning Algorithms", NeurIPS
    2018, https://arxiv.org/abs/1804.09170. Code:
    https://github.com/brain-research/realistic-ssl-evaluation
    The figures that papers compare with are those of Sohn et al. (FixMatch),
    NeurIPS 2020, https://arxiv.org/abs/2001.07685. Code:
    https://github.com/google-research/fixmatch
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import (
    algorithm,
    diagnostics,
    pseudo_labeling,
    unlabeled_loss,
)
from simmatch_tf.lazy import tf
from simmatch_tf.ops import losses


@registry.algorithms.register("pseudo_label")
class PseudoLabel(algorithm.Algorithm):
    """The student labels its own weak views, in the forward that trains it."""

    unlabeled_views = ("weak",)

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(
        pseudo_labeling.HyperParameters, unlabeled_loss.RampedWeight
    ):
        """--threshold, --lambda_u and --ramp_steps."""

        prefix = ""
        defaults = {"unlabeled_ratio": 1}

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_u r(k) L_u."""
        hyper = self.hyper
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w = batch["unlabeled_weak"]  # [U, ...]

        with tf.GradientTape() as tape:
            logits_l = self.call(self.student, x_l)["logits"]  # [B, L]
            # BatchNorm's averages are those of labeled images alone.
            logits_w = self.call(self.student, x_w, batch_norm="batch")
            logits_w = logits_w["logits"]  # [U, L]
            p_w = tf.nn.softmax(tf.stop_gradient(logits_w))  # [U, L]

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: confident weak views against their own most likely class.
            # Differs: the mask is that of each image. The code behind the
            # published figures multiplies [U] by [U, 1], which makes the loss
            # the product of the mean mask and the mean cross-entropy.
            loss_u, mask = losses.unsupervised_loss(
                logits_w, p_w, hyper.threshold, hard=True
            )
            weight = hyper.lambda_u * hyper.ramp(self)
            loss = loss_s + weight * loss_u

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch,
            lambda: diagnostics.pseudo_labels(
                batch, p_w, p_w, mask, None, views=("weak",)
            ),
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/weighted_u": weight * loss_u,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            **shown,
        }
