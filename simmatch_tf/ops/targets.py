"""Targets made from predictions: the pure part."""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import tensors


def align(p: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
    """Divides by the mean prediction and renormalises (slides, DA).

    DA(p) = Normalize(p / p_avg), Normalize(x)_i = x_i / Σ_j x_j

    Args:
        p: [N, L], class probabilities.
        mean: [L], their mean over the last batches; 0 / 0 counts as 0.

    Returns:
        [N, L] float32, rows sum to 1 (to 0 where nothing is left to share).

    Raises:
        ValueError: A shape does not fit.
    """
    p, mean = tensors.widen(p, mean)
    tensors.check(p=(p, "NL"), mean=(mean, "L"))
    ratio = tf.math.divide_no_nan(p, mean)  # [N, L]
    return tf.math.divide_no_nan(
        ratio, tf.reduce_sum(ratio, axis=1, keepdims=True)
    )
