"""MixMatch: two weak views vote on a target; all images are mixed with all.

The student's mean prediction for two weak views of an image, sharpened, is the
target of both. Labeled images and both views are then mixed with each other,
images and targets alike.

| here     | shape     | meaning                                               |
|----------|-----------|-------------------------------------------------------|
| x, y     | [B, …], [B] | labeled images and their classes                    |
| w_1, w_2 | [B, …]    | two weak views of B unlabeled images                  |
| p, q     | [B, L]    | mean prediction of both, and the target made from it  |

References:
    Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised
    Learning", NeurIPS 2019, https://arxiv.org/abs/1905.02249. Code:
    https://github.com/google-research/mixmatch
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, diagnostics, mixed_views
from simmatch_tf.flags.commandline import flag
from simmatch_tf.lazy import tf
from simmatch_tf.ops import losses, targets


@registry.algorithms.register("mixmatch")
class MixMatch(mixed_views.MixedViews):
    """With K = 2 guesses, as in all published runs."""

    unlabeled_views = ("weak", "weak_2")

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(mixed_views.HyperParameters):
        """As published for CIFAR-10."""

        lambda_u: float = flag(
            75.0, "Weight of the loss on unlabeled images.", low=0, high=1e6
        )
        temperature: float = flag(
            0.5,
            "Temperature T that sharpens the mean of the two predictions.",
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

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_x + λ_u r(k) L_u."""
        x, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        w_1, w_2 = batch["unlabeled_weak"], batch["unlabeled_weak_2"]

        # q: the mean of two guesses, sharpened; of both views.
        p_1, p_2 = (
            tf.nn.softmax(self.call(self.student, w, "batch")["logits"])
            for w in (w_1, w_2)
        )
        p = (p_1 + p_2) / 2  # [B, L]
        q = targets.sharpen(p, self.hyper.temperature)  # [B, L]
        y = tf.one_hot(y, self.num_classes, dtype=q.dtype)  # [B, L]
        v, t = self.mix((x, w_1, w_2), (y, q, q), self.hyper.alpha)

        with tf.GradientTape() as tape:
            logits = self.forward(v, updates=0)  # 3 × [B, L]
            # L_x: mixtures that are mostly labeled, against mixed targets.
            loss_x = mixed_views.cross_entropy(logits[:1], t[:1])
            # L_u: the others, by a loss that is bounded.
            loss_u = losses.consistency_loss(
                tf.concat(logits[1:], 0), tf.concat(t[1:], 0)
            )
            weight = self.hyper.lambda_u * self.hyper.ramp(self)
            loss = loss_x + weight * loss_u

        self.minimize(tape, loss)
        shown = self.diagnose(
            batch,
            lambda: diagnostics.pseudo_labels(
                batch, p, q, None, None, views=("weak", "weak_2")
            ),
        )
        return {
            "loss/total": loss,
            "loss/s": loss_x,
            "loss/u": loss_u,
            "loss/weighted_u": weight * loss_u,
            **shown,
        }
