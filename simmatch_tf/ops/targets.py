"""Targets made from predictions.

References:
    Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution
    Alignment and Augmentation Anchoring", ICLR 2020,
    https://arxiv.org/abs/1911.09785. It aligns with the class shares of the
    labeled images. SimMatch aligns with equal shares: Zheng et al., CVPR 2022,
    https://arxiv.org/abs/2203.06915 ("the slides" summarize it).
"""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import tensors


def align(
    p: tf.Tensor, mean: tf.Tensor, prior: tf.Tensor | None = None
) -> tf.Tensor:
    """Aligns predictions: divides by the mean prediction and renormalizes.

    DA(p) = Normalize(π p / p_avg), Normalize(x)_i = x_i / Σ_j x_j

    Args:
        p: Class probabilities [N, L].
        mean: Their mean over the last batches [L]; 0 / 0 counts as 0.
        prior: Class shares π that the mean is moved to, [L], above 0; None:
            equal shares, which cancel.

    Returns:
        [N, L] float32, or float64 if both inputs are; rows sum to 1, or to 0
        where all of p is 0.

    Raises:
        ValueError: A shape does not fit.
    """
    p, mean = tensors.widen(p, mean)
    tensors.check(p=(p, "NL"), mean=(mean, "L"))
    ratio = tf.math.divide_no_nan(p, mean)  # [N, L]
    if prior is not None:
        prior = tf.cast(prior, ratio.dtype)
        tensors.check(prior=(prior, [ratio.shape[1]]))
        ratio *= prior
    return tf.math.divide_no_nan(
        ratio, tf.reduce_sum(ratio, axis=1, keepdims=True)
    )
