"""ReMixMatch: MixMatch with aligned targets, strong views and rotations.

The student's prediction for one weak view, aligned with the classes' shares and
sharpened, is the target of that view and of K strong ones. All are mixed as in
MixMatch. One strong view also learns the target unmixed, and, rotated, which
way it was turned.

| here        | shape     | meaning                                            |
|-------------|-----------|----------------------------------------------------|
| x, y        | [B, …], [B] | labeled images and their classes                 |
| w, s_1, … s_K | [B, …]  | a weak and K strong views of B unlabeled images    |
| s_r, turns  | [B, …], [B] | s_1, rotated, and by how many quarter turns      |
| p_w, p, q   | [B, L]    | prediction for w; aligned; and sharpened           |

References:
    Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution
    Alignment and Augmentation Anchoring", ICLR 2020,
    https://arxiv.org/abs/1911.09785. Code:
    https://github.com/google-research/remixmatch
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import (
    algorithm,
    class_shares,
    diagnostics,
    mixed_views,
)
from simmatch_tf.flags.commandline import flag, rare
from simmatch_tf.lazy import keras, tf
from simmatch_tf.modules import alignment, replica
from simmatch_tf.ops import losses, rotations, targets


@registry.algorithms.register("remixmatch")
class ReMixMatch(mixed_views.MixedViews):
    """With K strong views by --strong.

    Attributes:
        align: The distribution alignment.
    """

    square_images = True

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(
        class_shares.HyperParameters, mixed_views.HyperParameters
    ):
        """As published for all label sets but those of 40 labels."""

        lambda_u: float = flag(
            1.5, "Weight of the loss on unlabeled images.", low=0, high=1e6
        )
        da_window: int = rare(
            128,
            "Number of batches that distribution alignment averages over.",
            low=1,
        )
        class_prior: str = flag("labeled", class_shares.HELP)
        strong_views: int = flag(
            8,
            "Number K of strong views of each unlabeled image. As published, "
            "8; 1 with 40 labels.",
            low=1,
            high=64,
        )
        temperature: float = flag(
            0.5,
            "Temperature T that sharpens the aligned prediction.",
            low=0.01,
            high=10,
        )
        alpha: float = flag(
            0.75,
            "Of Beta(alpha, alpha), from which an image's share in its mixture "
            "is drawn.",
            low=1e-3,
            high=1e3,
        )
        lambda_kl: float = flag(
            0.5,
            "Weight of the loss on strong views that are not mixed.",
            low=0,
            high=1e6,
        )
        lambda_rot: float = flag(
            0.5,
            "Weight of the rotation loss. As published, 0.5; 2 with 40 labels.",
            low=0,
            high=1e6,
        )

    @property
    def unlabeled_views(self) -> tuple[str, ...]:
        """One weak view and K strong ones."""
        # Differs: strong views by --strong, RandAugment by default. CTAugment
        # learns its strengths from predictions for further labeled images.
        more = range(2, self.hyper.strong_views + 1)
        return ("weak", "strong", *(f"strong_{k}" for k in more))

    def heads(self) -> dict:
        """Returns the head that tells four rotations apart."""
        return {"rotation": lambda x: keras.layers.Dense(4, name="rotation")(x)}

    def build_state(self) -> None:
        """Makes the window of the alignment."""
        self.align = alignment.PastAlignment(
            self.num_classes,
            self.config.da_window,
            self.dtype,
            self.class_prior,
        )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_x + r(k) (λ_u L_u + λ_kl L_kl) + λ_rot L_rot."""
        hyper = self.hyper
        x, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        w, *s = (batch[f"unlabeled_{view}"] for view in self.unlabeled_views)
        s_r, turns = self._rotated(s[0])  # [B, ...], [B]

        # q: the weak view's guess, aligned and sharpened; of all views.
        p_w = tf.nn.softmax(self.call(self.student, w, "batch")["logits"])
        p = self.align(p_w) if hyper.align else p_w  # [B, L]
        q = targets.sharpen(p, hyper.temperature)  # [B, L]
        y = tf.one_hot(y, self.num_classes, dtype=q.dtype)  # [B, L]
        v, t = self.mix((x, w, *s), (y, q, *[q] * len(s)), hyper.alpha)

        with tf.GradientTape() as tape:
            logits = self.forward(v, updates=-1)  # (K + 2) × [B, L]
            out_s = self.call(self.student, s[0], "batch")
            out_r = self.call(self.student, s_r, "batch")

            # L_x: mixtures that are mostly labeled, against mixed targets.
            loss_x = mixed_views.cross_entropy(logits[:1], t[:1])
            # L_u: the others.
            loss_u = mixed_views.cross_entropy(logits[1:], t[1:])
            # L_kl: a strong view as it is.
            loss_kl = mixed_views.cross_entropy([out_s["logits"]], [q])
            # L_rot: which way it was turned.
            loss_rot = losses.supervised_loss(out_r["rotation"], turns)
            ramp = hyper.ramp(self)
            weighted = {
                "loss/weighted_u": hyper.lambda_u * ramp * loss_u,
                "loss/weighted_kl": hyper.lambda_kl * ramp * loss_kl,
                "loss/weighted_rotation": hyper.lambda_rot * loss_rot,
            }
            loss = loss_x + tf.add_n(list(weighted.values()))

        self.minimize(tape, loss)
        align = self.align if hyper.align else None
        shown = self.diagnose(
            batch, lambda: diagnostics.pseudo_labels(batch, p, q, None, align)
        )
        return {
            "loss/total": loss,
            "loss/s": loss_x,
            "loss/u": loss_u,
            "loss/kl": loss_kl,
            "loss/rotation": loss_rot,
            **weighted,
            **shown,
        }

    def _rotated(self, s: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Rotates a quarter of the whole batch by each of the four angles."""
        rows = s.shape[0] * replica.count()
        turns = replica.share(tf.range(rows) * 4 // rows)  # [B]
        return rotations.rotate(s, turns), turns
