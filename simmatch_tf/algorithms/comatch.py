"""CoMatch: a graph of pseudo-labels is the target of a graph of embeddings.

Class probabilities of weak views are smoothed by those of similar images in a
memory. They train one strong view as in FixMatch; and images whose
pseudo-labels agree are to have similar embeddings in two strong views.

| here        | shape   | meaning                                              |
|-------------|---------|------------------------------------------------------|
| B, U        |         | labeled and unlabeled images on this replica, U = μB |
| L, N, D     |         | classes; images in the memory; embedding width       |
| x_l, x_w    | [·, H, W, C] | labeled images; weak views of unlabeled ones    |
| x_s, x_s2   | [U, H, W, C] | their strong views s and s'                     |
| p_w         | [U, L]  | aligned class probabilities of the weak views        |
| p_hat       | [U, L]  | the same, smoothed by the memory                     |
| Q, P        | [N, D], [N, L] | the memory: its embeddings, its probabilities |

References:
    Li, Xiong and Hoi, "CoMatch: Semi-supervised Learning with Contrastive
    Graph Regularization", ICCV 2021, https://arxiv.org/abs/2011.11183. Code:
    https://github.com/salesforce/CoMatch
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, diagnostics, pseudo_labeling
from simmatch_tf.flags.commandline import rare
from simmatch_tf.lazy import tf
from simmatch_tf.modules import queue, replica
from simmatch_tf.ops import contrastive, losses, propagation, schedules


@registry.algorithms.register("comatch")
class CoMatch(pseudo_labeling.PseudoLabeling):
    """Both published forms.

    For small images the student sees all views. With --targets_from=teacher,
    as for ImageNet, the EMA teacher sees the weak views and s', and the graph
    has the images of earlier batches, too.

    Attributes:
        queue: The memory, Q and P.
        graph_queue: Embeddings of s' and p̂ of earlier images, further columns
            of the graph; None without a teacher's targets.
    """

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(pseudo_labeling.TargetHyperParameters):
        """Flags of the memory and of the graph, as published for CIFAR-10."""

        defaults = {"projection_dim": 64}

        alpha: float = rare(
            0.9,
            "Weight of the class probabilities p^w in the smoothed "
            "pseudo-label.",
            low=0,
            high=1,
        )
        temperature: float = rare(
            0.2, "Temperature T of the similarities.", low=0.005, high=10
        )
        lambda_c: float = rare(
            1.0, "Weight of the loss of the graph.", low=0, high=1e6
        )
        ramp_c_steps: int = rare(
            0,
            "Steps in which the weight of the loss of the graph grows linearly "
            "to --comatch.lambda_c; 0 for none.",
            low=0,
        )
        edge_threshold: float = rare(
            0.8,
            "Smallest similarity of two pseudo-labels that is an edge of the "
            "graph.",
            low=0,
            high=1,
        )
        queue_size: int | None = rare(
            None,
            "Number of images in the memory. Default: those of five steps.",
            low=1,
        )

    unlabeled_views = (
        "weak",
        "strong",
        algorithm.View(
            "strong_2", "jitter", crop="resized_crop", crop_area=(0.2, 1.0)
        ),
    )
    # Differs: for CIFAR, CoMatch's head has a leaky ReLU of slope 0.1.
    needs_embeddings = True

    def build_state(self) -> None:
        """Makes the alignment's window, the memory and the graph's queue."""
        super().build_state()
        config = self.config
        step = config.batch_size * (1 + config.unlabeled_ratio)
        shape = (self.hyper.queue_size or 5 * step, config.projection_dim)
        self.queue = queue.Queue(*shape, self.num_classes, self.dtype)
        self.graph_queue = None
        if self.from_teacher:
            self.graph_queue = queue.Queue(*shape, self.num_classes, self.dtype)

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_u L_u + λ_c L_c."""
        config = self.config
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w, x_s, x_s2 = (  # [U, ...]
            batch[f"unlabeled_{v}"] for v in ("weak", "strong", "strong_2")
        )

        targets = self.label(x_l, x_w)
        key = self._embed(x_s2)  # [U, D], or None

        with tf.GradientTape() as tape:
            views = x_s if self.from_teacher else tf.concat([x_s, x_s2], 0)
            logits_l, logits_s, z, targets = self.forward(
                x_l, views, x_w, targets
            )
            logits_s = logits_s[: x_s.shape[0]]  # [U, L]
            z_s, z_s2 = (z, key) if self.from_teacher else tf.split(z, 2)
            p_w, z_w, z_l = targets  # [U, L], [U, D], [B, D]
            p_hat = self._smooth(p_w, z_w)  # [U, L]

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_u: strong views against confident pseudo-labels.
            loss_u, mask = losses.unsupervised_loss(
                logits_s, p_hat, config.threshold
            )
            # L_c: similarities of the two strong views of all images against
            # those of their pseudo-labels.
            loss_c = self._graph_loss(z_s, z_s2, p_hat)
            weighted_c = self._weight_c() * loss_c
            loss = loss_s + config.lambda_u * loss_u + weighted_c

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch, lambda: self._diagnostics(batch, targets, p_hat, mask)
        )
        self.queue.write(z_w, p_w)
        self.queue.write(z_l, tf.one_hot(y, self.num_classes))
        if self.graph_queue:
            self.graph_queue.write(z_s2, p_hat)
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/c": loss_c,
            "loss/weighted_c": weighted_c,
            "pseudo_label/mask_rate": tf.reduce_mean(mask),
            **shown,
        }

    def _embed(self, x_s2: tf.Tensor) -> tf.Tensor | None:
        """Returns the teacher's embeddings of s' [U, D], if it sees them."""
        if not self.from_teacher:
            return None
        # Differs: in a forward of their own, which matters with
        # --teacher_norm=shuffle alone.
        seed = tf.stack([self.config.seed, tf.cast(self.step, tf.int32)])
        return self.teacher(x_s2, seed)["embeddings"]

    def _smooth(self, p_w: tf.Tensor, z_w: tf.Tensor) -> tf.Tensor:
        """Returns p̂ [U, L]: p^w, smoothed as soon as the memory is full."""
        # Differs: the published code waits for a number of steps; rows that
        # are empty then count as neighbors without a class.
        p_hat = propagation.neighbor_smooth(
            p_w,
            z_w,
            self.queue.embeddings,
            self.queue.probabilities,
            self.hyper.temperature,
            self.hyper.alpha,
        )
        return tf.where(self.queue.full(), p_hat, p_w)

    def _graph_loss(
        self, z_s: tf.Tensor, z_s2: tf.Tensor, p_hat: tf.Tensor
    ) -> tf.Tensor:
        """Returns L_c of the images of all replicas, the same on each."""
        # Differs: the published ImageNet code has a graph for each device.
        z_s, z_s2, p_hat = map(replica.all_gather, (z_s, z_s2, p_hat))
        earlier = {}
        if self.graph_queue:
            earlier = {
                "queue": self.graph_queue.embeddings,
                "queue_p": self.graph_queue.probabilities,
                "valid": self.graph_queue.filled,
            }
        return contrastive.graph_loss(
            z_s,
            z_s2,
            p_hat,
            self.hyper.temperature,
            self.hyper.edge_threshold,
            **earlier,
        )

    def _weight_c(self) -> tf.Tensor:
        """Returns λ_c, which may grow from 0 at the start."""
        # Differs: linear in steps. Published for ImageNet: min(epoch, λ_c),
        # epochs counted from 1.
        return self.hyper.lambda_c * schedules.ramp(
            self.step, steps=self.hyper.ramp_c_steps, dtype=self.dtype
        )

    def _diagnostics(
        self,
        batch: algorithm.Batch,
        targets: pseudo_labeling.Targets,
        p_hat: tf.Tensor,
        mask: tf.Tensor,
    ) -> diagnostics.Diagnostics:
        """Computes those of the pseudo-labels, with all three views."""
        align = self.align if self.aligns else None
        views = ("weak", "strong", "strong_2")
        return diagnostics.pseudo_labels(
            batch, targets.p_w, p_hat, mask, align, views
        )
