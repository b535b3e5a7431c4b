"""Perturbations of images, of a given length in the L2 norm.

References:
    Miyato et al., "Virtual Adversarial Training: A Regularization Method for
    Supervised and Semi-Supervised Learning", TPAMI 2018,
    https://arxiv.org/abs/1704.03976.
"""

from __future__ import annotations

from simmatch_tf.lazy import np, tf
from simmatch_tf.ops import tensors


def with_norm(d: tf.Tensor, norm: float) -> tf.Tensor:
    """Gives the direction of each image a norm.

    ε d / ‖d‖₂, the norm over height, width and channels

    Each is divided by its largest element first: squares of the tiny numbers
    of a gradient are 0 in float32.

    Args:
        d: Directions [N, H, W, C] of any length, such as a gradient.
        norm: ε ≥ 0.

    Returns:
        [N, H, W, C], float32, or float64 if `d` is; 0 where `d` is 0.

    Raises:
        ValueError: The rank of `d` is not 4.
    """
    (d,) = tensors.widen(d)
    tensors.check(d=(d, "NHWC"))
    # Smaller numbers count as 0 on some devices.
    least = np.finfo(d.dtype.as_numpy_dtype).tiny
    largest = tf.reduce_max(tf.abs(d), axis=[1, 2, 3], keepdims=True)
    d /= tf.maximum(largest, least)  # elements from -1 to 1
    squares = tf.reduce_sum(tf.square(d), axis=[1, 2, 3], keepdims=True)
    return norm * tf.math.divide_no_nan(d, tf.sqrt(squares))
