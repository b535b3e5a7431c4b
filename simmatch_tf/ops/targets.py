"""Targets made from predictions.

References:
    Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution
    Alignment and Augmentation Anchoring", ICLR 2020,
    https://arxiv.org/abs/1911.09785. It aligns with the class shares of the
    labeled images. SimMatch aligns with equal shares: Zheng et al., CVPR 2022,
    https://arxiv.org/abs/2203.06915 ("the slides" summarize it).
    Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised
    Learning", NeurIPS 2019, https://arxiv.org/abs/1905.02249, sharpens.
"""

from __future__ import annotations

from simmatch_tf.lazy import np, tf
from simmatch_tf.ops import tensors


def sharpen(p: tf.Tensor, temperature: float) -> tf.Tensor:
    """Sharpens predictions by a temperature (MixMatch, Eq. 7).

    sharpen(p)_i = p_i^(1/T) / Σ_j p_j^(1/T), softmax(z)^(1/T) ∝ softmax(z / T)

    Args:
        p: Class probabilities [N, L]; they need not sum to 1.
        temperature: T > 0; below 1 it sharpens, above it smooths.

    Returns:
        [N, L] float32, or float64 if `p` is; rows sum to 1, or to 0 where all
        of p is 0. A probability of 0 stays 0, and gets no gradient.

    Raises:
        ValueError: `p` is no matrix, or `temperature` is not above 0.
    """
    if temperature <= 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    (p,) = tensors.widen(p)
    tensors.check(p=(p, "NL"))
    # Relative to the largest, which cancels: no row underflows to 0.
    largest = tf.stop_gradient(tf.reduce_max(p, axis=1, keepdims=True))
    ratio = tf.math.divide_no_nan(p, largest)  # [N, L]
    # Below it, 1 / ratio in the gradient may be infinite.
    positive = ratio >= np.finfo(ratio.dtype.as_numpy_dtype).tiny
    logs = tf.math.log(tf.where(positive, ratio, 1.0)) / temperature
    powers = tf.where(positive, tf.exp(logs), 0.0)
    return tf.math.divide_no_nan(
        powers, tf.reduce_sum(powers, axis=1, keepdims=True)
    )


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
