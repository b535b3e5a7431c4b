"""S4L-Rotation: classes from the labels, and rotations from all images.

Each image is trained on in all four rotations. Those of labeled images learn
their class; a second head learns of all images which way they were turned.

| here  | shape          | meaning                                          |
|-------|----------------|--------------------------------------------------|
| x, y  | [4B, …], [4B]  | labeled images in four rotations, their classes  |
| w     | [4U, …]        | unlabeled images in four rotations               |
| turns | [4B], [4U]     | quarter turns of each                            |

References:
    Zhai et al., "S4L: Self-Supervised Semi-Supervised Learning", ICCV 2019,
    https://arxiv.org/abs/1905.03670. Code: https://github.com/google-research/s4l
    Gidaris et al., "Unsupervised Representation Learning by Predicting Image
    Rotations", ICLR 2018, https://arxiv.org/abs/1803.07728.
"""

from __future__ import annotations

import dataclasses

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm, diagnostics
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.lazy import keras, tf
from simmatch_tf.ops import losses, rotations


def _rotated(images: tf.Tensor) -> tf.Tensor:
    """Returns all four rotations of images, [4N, S, S, C]."""
    return rotations.four_rotations(images)[0]


@registry.algorithms.register("s4l_rotation")
class S4LRotation(algorithm.Algorithm):
    """All eight batches, four labeled and four not, in one forward."""

    unlabeled_views = ("weak",)
    square_images = True
    # The published result has no EMA.
    evaluated_weights = "student"
    evaluation_copies = {"four rotations": _rotated}

    @dataclasses.dataclass(frozen=True)
    class HyperParameters(commandline.HyperParameters):
        """The weight, and one unlabeled image for each labeled."""

        defaults = {"unlabeled_ratio": 1}

        lambda_rot: float = flag(
            1.0,
            "Weight of the rotation loss. Less where classes look alike when "
            "they are turned, such as 6 and 9.",
            low=0,
            high=1e6,
        )

    def heads(self) -> dict:
        """Returns the head that tells four rotations apart."""
        return {"rotation": lambda x: keras.layers.Dense(4, name="rotation")(x)}

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s + λ_rot L_rot."""
        x, turns_x = rotations.four_rotations(batch["labeled_weak"])  # [4B]
        w, turns_w = rotations.four_rotations(batch["unlabeled_weak"])  # [4U]
        y = tf.tile(batch["labels"], [4])  # [4B]
        sizes = [x.shape[0], w.shape[0]]

        with tf.GradientTape() as tape:
            out = self.call(self.student, tf.concat([x, w], 0))
            logits_x, logits_w = tf.split(out["logits"], sizes)
            rot_x, rot_w = tf.split(out["rotation"], sizes)  # [4B, 4], [4U, 4]

            # L_s: labeled images, whichever way they are turned.
            loss_s = losses.supervised_loss(logits_x, y)
            # L_rot: quarter turns; labeled and unlabeled images weigh the
            # same, however many there are.
            loss_rot = 0.5 * (
                losses.supervised_loss(rot_x, turns_x)
                + losses.supervised_loss(rot_w, turns_w)
            )
            weighted = self.hyper.lambda_rot * loss_rot
            loss = loss_s + weighted

        self.minimize(tape, loss)
        told = tf.argmax(rot_w, axis=1, output_type=turns_w.dtype) == turns_w
        # Of the images that are not turned, which come first.
        p_w = tf.nn.softmax(logits_w[: sizes[1] // 4])  # [U, L]
        shown = self.diagnose(
            batch,
            lambda: diagnostics.pseudo_labels(
                batch, p_w, p_w, None, None, views=("weak",)
            ),
        )
        return {
            "loss/total": loss,
            "loss/s": loss_s,
            "loss/rotation": loss_rot,
            "loss/weighted_rotation": weighted,
            "rotation/accuracy": tf.reduce_mean(tf.cast(told, self.dtype)),
            **shown,
        }
