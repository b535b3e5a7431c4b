"""SimMatchV2: four consistencies of a graph of labeled and unlabeled images.

Nodes are images with class probabilities, edges their similarities. The EMA
teacher sees weak views, the student strong ones, and four losses make them
agree: a labeled node with its label (L_s); a node with the labels that are
propagated to it from its nearest labeled nodes (L_nn); the edges from weak and
from strong view to earlier unlabeled images with each other (L_ee); and a node
with what the edges of its strong view say of its class (L_ne).

| here        | shape   | meaning                                              |
|-------------|---------|------------------------------------------------------|
| B, U        |         | labeled and unlabeled images on this replica, U = μB |
| L, D        |         | classes; embedding width                             |
| K, n        |         | slots of the memory bank; nearest ones of an image   |
| N           |         | images in the queue                                  |
| x_l, x_w    | [·, H, W, C] | labeled images; weak views of unlabeled ones    |
| x_s         | [U, h, w, C] | a list of strong views                          |
| p_w         | [U, L]  | aligned class probabilities of the weak views        |
| p_hat       | [U, L]  | propagated to them from labels, p̂                    |
| Q, P        | [N, D], [N, L] | the queue: its embeddings, its probabilities  |

References:
    Zheng, You, Huang, Luo, Wang, Qian and Xu, "SimMatchV2: Semi-Supervised
    Learning with Graph Consistency", ICCV 2023,
    https://arxiv.org/abs/2308.06692. Code:
    https://github.com/mingkai-zheng/SimMatchV2
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from simmatch_tf import registry
from simmatch_tf.algorithms import (
    algorithm,
    class_shares,
    diagnostics,
    pseudo_labeling,
)
from simmatch_tf.flags import errors
from simmatch_tf.flags.commandline import Flags, flag, rare
from simmatch_tf.lazy import tf
from simmatch_tf.modules import alignment, memory, queue
from simmatch_tf.ops import losses, propagation

# The published crops: side of 224 pixels, least and greatest share of the area.
_CROPS = (
    (224, 0.14, 1.0),
    (192, 0.117, 0.86),
    (160, 0.095, 0.715),
    (120, 0.073, 0.571),
    (96, 0.05, 0.429),
)


class Targets(NamedTuple):
    """What the teacher makes of the weak views; no gradient goes to any of it.

    Attributes:
        p_w: Aligned class probabilities [U, L].
        p_hat: The same, or once the memory bank is full those that are
            propagated from labels [U, L].
        mask: 1 for an image whose p^w is confident, else 0, [U].
        z_w: Unit embeddings [U, D].
        z_l: Unit embeddings of the labeled images [B, D].
        near: What of the queue is similar to z_w.
    """

    p_w: tf.Tensor
    p_hat: tf.Tensor
    mask: tf.Tensor
    z_w: tf.Tensor
    z_l: tf.Tensor
    near: queue.Similar


@registry.algorithms.register("simmatch_v2")
class SimMatchV2(algorithm.Algorithm):
    """With one strong view, or crops of up to five sizes.

    Attributes:
        align: The distribution alignment.
        memory: Embeddings and classes of the labeled images.
        queue: Q and P.
    """

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(
        pseudo_labeling.TeacherNorm,
        pseudo_labeling.MemoryPlacement,
        class_shares.Prior,
        pseudo_labeling.HyperParameters,
    ):
        """As published for ImageNet with 1 % of the labels."""

        defaults = {"unlabeled_ratio": 5}

        threshold: float = flag(
            0.7,
            "Confidence threshold tau: smallest confidence of a pseudo-label.",
            low=0,
            high=1,
        )
        lambda_u: float = flag(
            10.0, "Weight of the loss on unlabeled images.", low=0, high=1e6
        )
        teacher_norm: str = rare(
            "shuffle",
            "BatchNorm of a teacher that predicts the pseudo-labels: running "
            "averages (eman), or statistics of each batch, shuffled over the "
            "devices.",
            choices=("eman", "shuffle"),
        )
        lambda_ee: float = flag(
            10.0,
            "Weight of the loss of similarities against similarities. As "
            "published, 10 with 1 % of ImageNet's labels, 5 with 10 %.",
            low=0,
            high=1e6,
        )
        lambda_ne: float = flag(
            10.0,
            "Weight of the loss of similarities against class probabilities. "
            "As published, as --simmatch_v2.lambda_ee.",
            low=0,
            high=1e6,
        )
        strong_views: int = flag(
            1,
            "Number of strong views: 1, as large as the images; or more, "
            "which are --strong of random crops of the published sizes: 5 as "
            "published.",
            low=1,
            high=len(_CROPS),
        )
        temperature: float = rare(
            0.1, "Temperature t of the similarities.", low=0.005, high=10
        )
        alpha: float = rare(
            0.1,
            "Weight of what nodes pass on, as against their own label, when "
            "labels are propagated.",
            low=0,
            high=0.9,
        )
        neighbors: int = rare(
            128,
            "Number n of nearest labeled images that labels are propagated "
            "from; of fewer labeled images, all.",
            low=1,
        )
        queue_steps: int = rare(
            256,
            "Steps whose unlabeled images are in the queue. Losses of "
            "similarities start when it is full.",
            low=1,
        )
        da_momentum: float = rare(
            0.9,
            "Momentum of the mean prediction that distribution alignment "
            "divides by.",
            low=0,
            high=0.99999,
        )

        def check_run(self, config: Flags) -> None:
            """Refuses a classifier of features without the LayerNorm."""
            super().check_run(config)
            if config.classifier_init == "frozen_features":
                raise errors.InputError(
                    "--classifier_init=frozen_features: is for classifiers of "
                    "the features as they are; that of "
                    f"--algorithm={config.algorithm} has a LayerNorm in front "
                    "of it; give --classifier_init=random"
                )

        def notes(self, steps: int) -> list[str]:
            """Says so if the queue is not full before the run ends."""
            if self.queue_steps < steps:
                return []
            return [
                f"--simmatch_v2.queue_steps={self.queue_steps}: the losses of "
                "similarities start when the queue is full, which it is not "
                f"in the {steps} steps of this run"
            ]

    needs_embeddings = True
    needs_feature_norm = True
    evaluated_weights = "student"

    @property
    def eman(self) -> bool:
        """Whether the teacher runs on averaged BatchNorm statistics."""
        return self.hyper.teacher_norm == "eman"

    @property
    def strong_views(self) -> tuple[algorithm.View, ...]:
        """The strong view, or crops of it, the largest first."""
        # Differs: by --strong. The published crops have MoCo's colors with
        # less saturation (0.2), and one in ten is solarized.
        count = self.hyper.strong_views
        if count == 1:
            return (algorithm.View.parse("strong"),)
        return tuple(
            algorithm.View(
                f"strong_{number}",
                "strong",
                crop="resized_crop",
                crop_area=tuple(area),
                scale=side / _CROPS[0][0],
            )
            for number, (side, *area) in enumerate(_CROPS[:count], 1)
        )

    @property
    def unlabeled_views(self) -> tuple[str | algorithm.View, ...]:
        """A weak view, and the strong ones."""
        return ("weak", *self.strong_views)

    def build_state(self) -> None:
        """Makes the alignment's average, the memory bank and the queue."""
        config, hyper = self.config, self.hyper
        sharded = hyper.memory_placement == "sharded"
        self.align = alignment.AverageAlignment(
            self.num_classes, hyper.da_momentum, self.dtype, self.class_prior
        )
        self.memory = memory.MemoryBuffer(
            self.slot_labels,
            config.projection_dim,
            dtype=self.dtype,
            sharded=sharded,
        )
        self.queue = queue.Queue(
            hyper.queue_steps * config.batch_size * config.unlabeled_ratio,
            config.projection_dim,
            self.num_classes,
            self.dtype,
            sharded=sharded,
        )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_u L_nn + λ_ee L_ee + λ_ne L_ne."""
        hyper = self.hyper
        x_l, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        x_w = batch["unlabeled_weak"]  # [U, ...]
        x_s = [batch[f"unlabeled_{view.name}"] for view in self.strong_views]

        targets = self._label(x_l, x_w)

        with tf.GradientTape() as tape:
            logits_l, views = self._forward(x_l, x_s)
            each = [self._consistency(*view, targets) for view in views]

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_l, y)
            # L_nn, L_ee, L_ne: means over the strong views.
            loss_nn, loss_ee, loss_ne = (
                tf.add_n(list(of_views)) / len(x_s)
                for of_views in zip(*each, strict=True)
            )
            weighted = {
                "loss/weighted_u": hyper.lambda_u * loss_nn,
                "loss/weighted_ee": hyper.lambda_ee * loss_ee,
                "loss/weighted_ne": hyper.lambda_ne * loss_ne,
            }
            loss = loss_s + tf.add_n(list(weighted.values()))

        self.minimize(tape, loss)
        shown = self.diagnose(batch, lambda: self._diagnostics(batch, targets))
        self.memory.update(batch["slots"], targets.z_l, self.step)
        self.queue.write(targets.z_w, targets.p_w)
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_nn,
            "loss/ee": loss_ee,
            "loss/ne": loss_ne,
            **weighted,
            "pseudo_label/mask_rate": tf.reduce_mean(targets.mask),
            **shown,
        }

    def _label(self, x_l: tf.Tensor, x_w: tf.Tensor) -> Targets:
        """Runs the teacher, and propagates labels to its predictions."""
        hyper, b = self.hyper, x_l.shape[0]
        seed = tf.stack([self.config.seed, tf.cast(self.step, tf.int32)])
        out = self.teacher(tf.concat([x_l, x_w], 0), seed)
        z_l, z_w = out["embeddings"][:b], out["embeddings"][b:]
        p_w = tf.nn.softmax(out["logits"][b:])  # [U, L]
        if hyper.align:
            p_w = self.align(p_w)  # by the average before this batch
        p_hat = propagation.propagate(
            p_w,
            z_w,
            *self.memory.nearest(z_w, hyper.neighbors),
            self.num_classes,
            hyper.temperature,
            hyper.alpha,
        )
        # Labels come from slots that were written only.
        p_hat = tf.where(self.memory.full(), p_hat, p_w)
        # The mask is that of p^w, not of the target p̂.
        confident = tf.reduce_max(p_w, axis=1) >= hyper.threshold
        near = self.queue.similar(z_w, hyper.temperature)
        mask = tf.cast(confident, p_w.dtype)
        targets = Targets(p_w, p_hat, mask, z_w, z_l, near)
        return tf.nest.map_structure(tf.stop_gradient, targets)

    def _forward(
        self, x_l: tf.Tensor, x_s: list[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tuple[tf.Tensor, tf.Tensor]]]:
        """Runs the student: labeled images with the first view, then others.

        Returns:
            Logits of the labeled images [B, L]; logits [U, L] and embeddings
            [U, D] of each strong view.
        """
        b = x_l.shape[0]
        joint = self.call(self.student, tf.concat([x_l, x_s[0]], 0))
        logits, z = joint["logits"], joint["embeddings"]
        views = [(logits[b:], z[b:])]
        for x in x_s[1:]:
            out = self.call(self.student, x)
            views.append((out["logits"], out["embeddings"]))
        return logits[:b], views

    def _consistency(
        self, logits_s: tf.Tensor, z_s: tf.Tensor, targets: Targets
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns L_nn, L_ee and L_ne of one strong view."""
        near = self.queue.similar(z_s, self.hyper.temperature)
        # L_nn: confident predictions against propagated labels.
        loss_nn = losses.weighted_cross_entropy(
            logits_s, targets.p_hat, targets.mask
        )
        # L_ee: H(q^w, q^s) without a log of q^s, as in `instance_loss`.
        match = tf.reduce_sum(z_s * targets.near.embeddings, axis=1)  # [U]
        entropies = near.log_total - match / self.hyper.temperature  # [U]
        # L_ne: probabilities of similar images against those of the weak view.
        loss_ne = losses.mixture_loss(near.probabilities, targets.p_w)
        # Differs: the published code replaces a loss that is not finite by 0.
        ready = self.queue.full()
        loss_ee, loss_ne = (
            tf.where(ready, loss, 0.0)
            for loss in (tf.reduce_mean(entropies), loss_ne)
        )
        return loss_nn, loss_ee, loss_ne

    def _diagnostics(
        self, batch: algorithm.Batch, targets: Targets
    ) -> diagnostics.Diagnostics:
        """Computes those of the pseudo-labels, and how full the state is."""
        labels = diagnostics.pseudo_labels(
            batch,
            targets.p_w,
            targets.p_hat,
            targets.mask,
            self.align if self.hyper.align else None,
            ("weak", *(view.name for view in self.strong_views)),
        )
        filled = tf.cast(self.queue.filled, tf.float32)
        state = diagnostics.slots(self.memory, self.step)
        state["queue/filled"] = tf.reduce_mean(filled)
        return diagnostics.Diagnostics(labels.means | state, labels.rows)
