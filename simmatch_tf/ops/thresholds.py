"""Thresholds and weights of pseudo-labels that change during training."""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import tensors

# Below it a variance is that of rounding. It keeps the quotient finite.
_SMALLEST_VARIANCE = 1e-12


def dash(
    initial: tf.Tensor, decays: tf.Tensor, gamma: float, minimum: float
) -> tf.Tensor:
    """Threshold of the losses of pseudo-labels, which shrinks.

    ρ = max(ρ_min, ρ̂ γ^(-j))

    A pseudo-label is used if its loss is below ρ. Where the loss is
    -log max p, that is a confidence above e^(-ρ), which grows.

    Args:
        initial: ρ̂, a scalar ≥ 0: mean loss at the end of the warm-up.
        decays: j, a scalar ≥ 0: how often the threshold has shrunk.
        gamma: γ ≥ 1.
        minimum: ρ_min ≥ 0.

    Returns:
        A float32 scalar ≥ ρ_min, or float64 if ρ̂ and j are.

    Raises:
        ValueError: An input is no scalar.

    References:
        Xu et al., "Dash: Semi-Supervised Learning with Dynamic Thresholding",
        ICML 2021, https://arxiv.org/abs/2109.00650. Code:
        https://github.com/idstcv/Dash
    """
    initial, decays = tensors.widen(initial, decays)
    gamma, minimum = (
        tf.cast(
            tf.convert_to_tensor(x, dtype_hint=initial.dtype), initial.dtype
        )
        for x in (gamma, minimum)
    )
    tensors.check(
        initial=(initial, ""),
        decays=(decays, ""),
        gamma=(gamma, ""),
        minimum=(minimum, ""),
    )
    return tf.maximum(minimum, initial * gamma**-decays)


def flexible(
    counts: tf.Tensor,
    unused: tf.Tensor,
    threshold: float,
    warmup: bool = True,
) -> tf.Tensor:
    """Thresholds of classes by how well each is learned (FlexMatch).

    τ_c = τ M(β_c), M(b) = b / (2 - b),
    β_c = σ_c / max(max_c σ_c, number of unused images)

    Args:
        counts: σ [L] ≥ 0, images whose last confident prediction is the class.
        unused: Number of images that never had one, a scalar ≥ 0.
        threshold: τ, that of the class learned best.
        warmup: False leaves the unused images out of the quotient.

    Returns:
        [L], in [0, τ]; all 0 while no image had a confident prediction.
        float32, or float64 if both counts are.

    Raises:
        ValueError: A shape does not fit.

    References:
        Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with
        Curriculum Pseudo Labeling", NeurIPS 2021,
        https://arxiv.org/abs/2110.08263. Code:
        https://github.com/TorchSSL/TorchSSL
    """
    unused, counts = _alike(unused, counts)
    tensors.check(counts=(counts, "L"), unused=(unused, ""))
    most = tf.reduce_max(counts)
    if warmup:
        most = tf.maximum(most, unused)
    beta = tf.math.divide_no_nan(counts, most)  # [L]
    threshold = tf.convert_to_tensor(threshold, dtype_hint=beta.dtype)
    return tf.cast(threshold, beta.dtype) * beta / (2.0 - beta)


def self_adaptive(threshold: tf.Tensor, p_mean: tf.Tensor) -> tf.Tensor:
    """Thresholds of classes by how likely each is on average (FreeMatch).

    τ_c = τ̃ p̃_c / max_c p̃_c

    Args:
        threshold: τ̃, the threshold of the most likely class, a scalar.
        p_mean: p̃ [L] ≥ 0, mean class probabilities.

    Returns:
        [L], in [0, τ̃]; float32, or float64 if both inputs are.

    Raises:
        ValueError: A shape does not fit.

    References:
        Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised
        Learning", ICLR 2023, https://arxiv.org/abs/2205.07246. Code:
        https://github.com/microsoft/Semi-supervised-learning
    """
    threshold, p_mean = _alike(threshold, p_mean)
    tensors.check(threshold=(threshold, ""), p_mean=(p_mean, "L"))
    return threshold * tf.math.divide_no_nan(p_mean, tf.reduce_max(p_mean))


def truncated_gaussian(
    confidence: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    n_sigma: float = 2.0,
) -> tf.Tensor:
    """Weights of images by a Gaussian of their confidence (SoftMatch).

    λ_i = exp(-min(c_i - μ̃, 0)² / (2 σ̃² / n²)): 1 from the mean on.

    Args:
        confidence: c [N].
        mean: μ̃, mean confidence, a scalar.
        variance: σ̃² ≥ 0 of the confidence, a scalar.
        n_sigma: n > 0: the Gaussian's deviation is σ̃ / n.

    Returns:
        [N], from 0 to 1; float32, or float64 if all inputs are.

    Raises:
        ValueError: A shape does not fit, or `n_sigma` is not above 0.

    References:
        Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in
        Semi-supervised Learning", ICLR 2023, https://arxiv.org/abs/2301.10921.
        Code: https://github.com/microsoft/Semi-supervised-learning, whose n is
        2; the paper's Gaussian has n = 1.
    """
    if not n_sigma > 0:
        raise ValueError(f"n_sigma={n_sigma}: must be above 0")
    mean, variance, confidence = _alike(mean, variance, confidence)
    tensors.check(
        confidence=(confidence, "N"), mean=(mean, ""), variance=(variance, "")
    )
    below = tf.minimum(confidence - mean, 0.0)  # [N]
    variance = tf.maximum(variance, _SMALLEST_VARIANCE) / n_sigma**2
    return tf.exp(-tf.square(below) / (2.0 * variance))


def _alike(*values: tf.Tensor) -> list[tf.Tensor]:
    """Widens values; Python numbers have the type of the last, a vector."""
    last = tf.convert_to_tensor(values[-1])
    return tensors.widen(
        *(
            tf.convert_to_tensor(value, dtype_hint=last.dtype)
            for value in values[:-1]
        ),
        last,
    )
