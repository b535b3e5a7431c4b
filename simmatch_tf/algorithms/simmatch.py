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

from __future__ import annotations

from collections.abc import Callable

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, diagnostics, pseudo_labeling
from simmatch_tf.lazy import keras, np, tf
from simmatch_tf.modules import memory
from simmatch_tf.ops import losses


@registry.algorithms.register("simmatch")
class SimMatch(pseudo_labeling.WeakStrong):
    """Both forms: student–teacher, and temporal ensemble.

    Attributes:
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
        """See `WeakStrong`; adds the memory."""
        super().__init__(
            config,
            make_network,
            num_classes=num_classes,
            slot_labels=slot_labels,
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
            loss_u, mask = losses.unsupervised_loss(
                logits_s, p_hat, config.threshold
            )
            # L_in: strong views against instance pseudo-labels.
            loss_in = tf.where(ready, tf.reduce_mean(entropies), 0.0)
            loss = (
                loss_s + config.lambda_u * loss_u + config.lambda_in * loss_in
            )

        self.minimize(tape, loss)
        seen = self.watch(batch, targets, p_hat, mask)
        norm = self.memory.update(batch["slots"], z_l, self.step)
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/in": loss_in,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            "memory/norm": norm,
            **seen,
        }

    def _look(
        self,
        batch: dict[str, tf.Tensor],
        targets: pseudo_labeling.Targets,
        p_hat: tf.Tensor,
        mask: tf.Tensor,
    ) -> diagnostics.Seen:
        """See `WeakStrong`; adds what is seen of the memory."""
        seen = super()._look(batch, targets, p_hat, mask)
        more = diagnostics.labeled_memory(
            self.memory, targets.z_w, targets.p_w, self.step, self.config
        )
        return diagnostics.Seen(seen.means | more.means, seen.rows | more.rows)
