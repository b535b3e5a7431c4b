"""VAT and EntMin: predictions that no small perturbation of an image changes.

Virtual adversarial training (VAT) looks for the perturbation of a given size
that changes the prediction for an image the most, and trains the perturbed
image on the prediction for the image as it is. Entropy minimization (EntMin)
makes that prediction sharp. There is one view of each image.

Perturbations are in units in which black is -1 and white is 1, whatever the
network normalizes images by: their L2 norm over height, width and channels.

| here  | shape        | meaning                                              |
|-------|--------------|------------------------------------------------------|
| x, y  | [B, …], [B]  | labeled images and their classes                     |
| w     | [U, …]       | weak views of unlabeled images                       |
| v     | [V, H, W, C] | w, or x and w: the images that are perturbed         |
| p     | [V, L]       | prediction for v, the target of v + r                |
| d     | [V, H, W, C] | random direction; then that of the steepest change   |
| r     | [V, H, W, C] | virtual adversarial perturbation, ‖r‖₂ = ε           |

References:
    Miyato et al., "Virtual Adversarial Training: A Regularization Method for
    Supervised and Semi-Supervised Learning", TPAMI 2018,
    https://arxiv.org/abs/1704.03976.
    Grandvalet and Bengio, "Semi-supervised Learning by Entropy Minimization",
    NeurIPS 2004.
    Oliver et al., "Realistic Evaluation of Deep Semi-Supervised Learning
    Algorithms", NeurIPS 2018, https://arxiv.org/abs/1804.09170. Code:
    https://github.com/brain-research/realistic-ssl-evaluation
    Zhai et al., "S4L: Self-Supervised Semi-Supervised Learning", ICCV 2019,
    https://arxiv.org/abs/1905.03670, whose ImageNet figures papers compare
    with. Code: https://github.com/google-research/s4l
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, diagnostics, unlabeled_loss
from simmatch_tf.flags.commandline import flag, rare
from simmatch_tf.flags.errors import InputError
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import losses, perturbations, sampling

# Gray levels in a unit of perturbations.
UNIT = 127.5


@registry.algorithms.register("vat")
class VAT(algorithm.Algorithm):
    """With the entropy of the predictions as a third loss."""

    unlabeled_views = ("weak",)

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(unlabeled_loss.RampedWeight):
        """As published for CIFAR, and one unlabeled image for each labeled."""

        defaults = {"unlabeled_ratio": 1}

        lambda_u: float = flag(
            0.3, "Weight of the loss on unlabeled images.", low=0, high=1e6
        )
        epsilon: float = flag(
            6.0,
            "Size of the perturbation of an image: its L2 norm over height, "
            "width and channels, where black is -1 and white is 1 (a unit is "
            "127.5 gray levels). As published: 6 for CIFAR, 1 for SVHN, 40 for "
            "ImageNet; it grows with the root of the number of pixels.",
            low=1e-3,
            high=1e4,
        )
        # Differs: 1, not 1e-6. A step of that size changes a pixel by less
        # than float32 resolves, and the direction is that of rounding.
        xi: float = rare(
            1.0,
            "Size of the step, in the units of --vat.epsilon, by which the "
            "direction of the perturbation is found. Of the published 1e-6 "
            "float32 sees nothing.",
            low=0.01,
            high=1e3,
        )
        lambda_e: float = flag(
            0.06,
            "Weight of the entropy of the predictions; it has no ramp.",
            low=0,
            high=1e6,
        )
        images: str = rare(
            "unlabeled",
            "Images that both losses are of: the unlabeled ones; or all, in "
            "one forward pass, as published for ImageNet.",
            choices=("unlabeled", "all"),
        )

        def check_run(self, config: config_lib.Config) -> None:
            """Checks that the network resolves a small difference."""
            super().check_run(config)
            if config.precision.startswith("mixed"):
                raise InputError(
                    f"--precision={config.precision}: --algorithm=vat follows "
                    "the small difference of two predictions, which half "
                    "precision rounds away; give --precision=float32"
                )

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + r(k) λ_u L_u + λ_e L_e."""
        hyper = self.hyper
        x, y = batch["labeled_weak"], batch["labels"]  # [B, ...], [B]
        w = batch["unlabeled_weak"]  # [U, ...]
        b, joint = x.shape[0], hyper.images == "all"
        views = {"labeled": x, "unlabeled": w} if joint else {"unlabeled": w}
        v = tf.concat(list(views.values()), 0)  # [V, ...]

        with tf.GradientTape() as tape:
            if joint:
                logits_v = self.call(self.student, v)["logits"]  # [V, L]
                logits_x = logits_v[:b]
            else:
                # BatchNorm's averages are those of labeled images alone.
                logits_x = self.call(self.student, x)["logits"]  # [B, L]
                logits_v = self.call(self.student, v, "batch")["logits"]
            p = tf.nn.softmax(tf.stop_gradient(logits_v))  # [V, L]
            # The search has a tape of its own: this one would record two
            # forwards and a gradient that no weight depends on.
            with tape.stop_recording():
                r = self.perturbation(v, p, self.directions(views))  # [V, ...]
            v_r = tf.cast(v, r.dtype) + UNIT * r
            logits_r = self.call(self.student, v_r, "batch")["logits"]

            # L_s: labeled images against their labels.
            loss_s = losses.supervised_loss(logits_x, y)
            # L_u: perturbed images against the prediction without.
            # Differs: KL(p ‖ p(v + r)), as the paper has it; the code behind
            # the published figures minimizes KL(p(v + r) ‖ p).
            loss_u = losses.kl_loss(logits_r, p)
            # L_e: entropy of the prediction without.
            loss_e = losses.entropy_loss(logits_v)
            weighted_u = hyper.ramp(self) * hyper.lambda_u * loss_u
            weighted_e = hyper.lambda_e * loss_e
            loss = loss_s + weighted_u + weighted_e

        self.minimize(tape, loss)
        p_w = p[b:] if joint else p
        shown = self.diagnose(
            batch,
            lambda: diagnostics.pseudo_labels(
                batch, p_w, p_w, None, None, views=("weak",)
            ),
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/u": loss_u,
            "loss/e": loss_e,
            "loss/weighted_u": weighted_u,
            "loss/weighted_e": weighted_e,
            **shown,
        }

    def directions(self, views: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Draws a direction for each image of this step.

        It is a function of --seed, the step and the image's place in the
        whole batch, whatever the number of replicas.

        Args:
            views: Name → this replica's images [N, H, W, C].

        Returns:
            d [V, H, W, C], of each view in turn.
        """
        parts = []
        for name, images in views.items():
            rows = images.shape[0] * replica.count()
            seed = self.seed(f"direction_{name}", shared=True)
            shape = [rows, *images.shape[1:]]
            d = sampling.normal(seed, shape, self.dtype)
            parts.append(replica.share(d))
        return tf.concat(parts, 0)

    def perturbation(
        self, v: tf.Tensor, p: tf.Tensor, d: tf.Tensor
    ) -> tf.Tensor:
        """Finds the perturbation, by one step of the power iteration.

        r = ε d̂/‖d̂‖, d̂ = ∇_d KL(p ‖ p(v + ξ d/‖d‖))

        Only `d` is watched: no gradient of a weight is computed.

        Args:
            v: Images [V, H, W, C], from 0 to 255.
            p: Predictions for them [V, L].
            d: Directions to start from, [V, H, W, C].

        Returns:
            r [V, H, W, C], where black is -1 and white is 1; it may lead out
            of that range. 0 where the prediction does not change at all.
        """
        d = perturbations.with_norm(d, self.hyper.xi)
        v = tf.cast(v, d.dtype)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(d)
            logits = self.call(self.student, v + UNIT * d, "batch")["logits"]
            divergence = losses.kl_loss(logits, p)
        d_hat = tape.gradient(divergence, d)
        return perturbations.with_norm(d_hat, self.hyper.epsilon)
