"""SimMatch: matching classes and instances at once (CVPR 2022, Algorithm 1).

| here        | shape   | meaning                                              |
|-------------|---------|------------------------------------------------------|
| B, U        |         | labeled and unlabeled images here, U = μB            |
| L, K, D     |         | classes; slots of the memory; width of embeddings    |
| x_l, x_w, x_s | [·, H, W, C] | labeled, weak and strong unlabeled views      |
| p_w         | [U, L]  | aligned class probabilities of the weak views        |
| z_l, z_w, z_s | [·, D] | unit embeddings                                     |
| Q_f, Q_l    | [K, D], [K] | memory: embeddings and classes of labeled images |
| p_hat       | [U, L]  | class pseudo-labels, smoothed by the memory          |

Instance similarity and its pseudo-labels, q^w, q^s and q̂ [U, K], exist in
`ops.matching` alone, block by block.
"""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm
from simmatch_tf.modules import alignment, memory
from simmatch_tf.ops import losses


class SimMatch(algorithm.Algorithm):
    """Both forms: student–teacher, and temporal ensemble.

    Attributes:
        align: The distribution alignment's window.
        memory: Q_f and Q_l.
    """

    def __init__(
        self,
        config: config_lib.Config,
        make_network: Callable[[], keras.Model],
        *,
        num_classes: int,
        slot_labels: np.ndarray,
    ) -> None:
        """See `Algorithm`; adds the window and the memory."""
        super().__init__(
            config,
            make_network,
            num_classes=num_classes,
            slot_labels=slot_labels,
        )
        self.from_teacher = config.memory == "teacher"
        self.weights_of_record = "student" if self.from_teacher else "ema"
        self.align = alignment.DistributionAlignment(
            num_classes, config.da_window, self.dtype
        )
        self.memory = memory.MemoryBuffer(
            slot_labels,
            config.projection_dim,
            momentum=0.0 if self.from_teacher else config.memory_momentum,
            dtype=self.dtype,
            sharded=config.memory_placement == "sharded",
        )

    def train_step(self, batch: dict[str, tf.Tensor]) -> algorithm.Metrics:
        """One step of Algorithm 1."""
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s = batch["unlabeled_weak"], batch["unlabeled_strong"]  # [U]
        b, u = x_l.shape[0], x_w.shape[0]
        ready = self.memory.full() & (
            self.step >= self.config.matching_start_steps
        )

        views = [x_l, x_s]
        apart = self.from_teacher or self.config.weak_forward == "separate"
        if apart:
            z_l, z_w, p_w = self.label(x_l, x_w)
        else:
            views.append(x_w)

        with tf.GradientTape() as tape:
            out = self.student(tf.concat(views, 0), training=True)
            logits, z = out["logits"], out["embeddings"]
            logits_l, logits_s = logits[:b], logits[b : b + u]  # [B, L], [U, L]
            z_s = z[b : b + u]  # [U, D]
            if not apart:
                z_w = tf.stop_gradient(z[b + u :])  # [U, D]
                p_w = tf.stop_gradient(tf.nn.softmax(logits[b + u :]))
                p_w = self.align(p_w)  # [U, L]
            if not self.from_teacher:
                z_l = tf.stop_gradient(z[:b])  # [B, D]

            # Eq. 3 to 10: p̂ [U, L]; and H(q̂, q^s) of each image [U].
            p_hat, entropies = self.memory.match(
                z_w,
                z_s,
                p_w,
                temperature=self.config.temperature,
                alpha=self.config.alpha,
            )
            p_hat = tf.where(ready, p_hat, p_w)

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: strong views against confident class pseudo-labels.
            loss_u, mask = losses.unsupervised_loss(
                logits_s, p_hat, self.config.threshold
            )
            # L_in: strong views against instance pseudo-labels.
            loss_in = tf.where(ready, tf.reduce_mean(entropies), 0.0)
            loss = (
                loss_s
                + self.config.lambda_u * loss_u
                + self.config.lambda_in * loss_in
            )

        self.minimize(tape, loss)
        self.memory.update(batch["slots"], z_l)
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/in": loss_in,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
        }

    def label(
        self, x_l: tf.Tensor, x_w: tf.Tensor
    ) -> tuple[tf.Tensor | None, tf.Tensor, tf.Tensor]:
        """What weak views give in a forward of their own, without gradient.

        Args:
            x_l: Labeled images [B, H, W, C].
            x_w: Weak views of unlabeled images [U, H, W, C].

        Returns:
            z^l [B, D] of the teacher, None without one; z^w [U, D]; p^w [U, L].
        """
        if not self.from_teacher:
            # Differs: by --weak_forward; batch statistics are the weak views',
            # and their averages move twice a step.
            out = self.student(x_w, training=True)
            p_w = self.align(tf.nn.softmax(out["logits"]))
            return None, out["embeddings"], p_w
        # Differs: by default on averaged BatchNorm statistics (EMAN).
        seed = tf.stack([self.config.seed, tf.cast(self.step, tf.int32)])
        out = self.teacher(tf.concat([x_l, x_w], 0), seed)
        z_l, z_w = tf.split(out["embeddings"], [x_l.shape[0], x_w.shape[0]])
        return (
            z_l,
            z_w,
            self.align(tf.nn.softmax(out["logits"][x_l.shape[0] :])),
        )
