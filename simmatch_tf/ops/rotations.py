"""Rotated copies of images, by multiples of 90 degrees.

References:
    Gidaris et al., "Unsupervised Representation Learning by Predicting Image
    Rotations", ICLR 2018, https://arxiv.org/abs/1803.07728. Zhai et al.,
    "S4L: Self-Supervised Semi-Supervised Learning", ICCV 2019,
    https://arxiv.org/abs/1905.03670.
"""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import tensors


def rotate(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Rotates each image by a number of quarter turns.

    Args:
        images: [N, S, S, C] of any type, square.
        turns: Quarter turns counterclockwise [N], integers in [0, 4); not
            checked.

    Returns:
        [N, S, S, C].

    Raises:
        ValueError: A shape does not fit.
    """
    images, turns = tf.convert_to_tensor(images), tf.convert_to_tensor(turns)
    tensors.check(images=(images, "NSSC"), turns=(turns, "N"))
    copies = tf.stack([tf.image.rot90(images, k) for k in range(4)], axis=1)
    return tf.gather(copies, turns, axis=1, batch_dims=1)


def four_rotations(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes all four rotations of each image.

    Args:
        images: [N, S, S, C] of any type, square.

    Returns:
        All images unrotated, then all rotated by one quarter turn, and so on,
        [4N, S, S, C]; and the quarter turns of each, int32 [4N].

    Raises:
        ValueError: The images are not square.
    """
    images = tf.convert_to_tensor(images)
    tensors.check(images=(images, "NSSC"))
    copies = [tf.image.rot90(images, k) for k in range(4)]
    turns = tf.repeat(tf.range(4), tf.shape(images)[0])
    return tf.concat(copies, axis=0), turns
