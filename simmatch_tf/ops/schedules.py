"""Learning rate, EMA momentum and ramps as functions of the step."""

from __future__ import annotations

import math

from simmatch_tf.lazy import tf


def learning_rate(
    step: tf.Tensor,
    *,
    peak: float,
    steps: int,
    warmup_steps: int,
    shape: str,
    cooldown_steps: int = 0,
) -> tf.Tensor:
    """Learning rate of a step: a linear warm-up, then the schedule.

    Args:
        step: Number of the step, from 0.
        peak: Learning rate at the end of the warm-up.
        steps: Length S of the run, warm-up included.
        warmup_steps: Length W ≥ 0 of the warm-up; step s < W has the rate
            peak · (s + 1) / W.
        shape: "cosine_7_16": peak · cos(7π s / 16 S), s counted from the start
            of the run as in FixMatch; "half_cosine": peak · ½ (1 + cos(π
            (s - W) / (S - W))); "constant": peak; "cooldown": peak, and in the
            last C steps peak · (S - s) / C. Before them no rate depends on S.
        cooldown_steps: C ≥ 1 of "cooldown".

    Returns:
        A float32 scalar ≥ 0.

    Raises:
        ValueError: `shape` is unknown, or "cooldown" has no steps.

    References:
        "cooldown": Hägele et al., "Scaling Laws and Compute-Optimal Training
        Beyond Fixed Training Durations", NeurIPS 2024,
        https://arxiv.org/abs/2405.18392: as good as a cosine with a fifth of
        the steps. Zhai et al., "Scaling Vision Transformers", CVPR 2022,
        https://arxiv.org/abs/2106.04560, extend runs in this way.
    """
    s = tf.cast(step, tf.float32)
    if shape == "cosine_7_16":
        rate = peak * tf.cos(7.0 * math.pi / 16.0 * s / steps)
    elif shape == "half_cosine":
        done = (s - warmup_steps) / max(steps - warmup_steps, 1)
        rate = peak * 0.5 * (1.0 + tf.cos(math.pi * done))
    elif shape == "constant":
        rate = tf.constant(peak, tf.float32)
    elif shape == "cooldown":
        if cooldown_steps < 1:
            raise ValueError(f"cooldown_steps={cooldown_steps}: must be >= 1")
        left = (steps - s) / cooldown_steps
        rate = tf.where(s < steps - cooldown_steps, peak, peak * left)
    else:
        raise ValueError(
            f"shape={shape!r}: must be cosine_7_16, half_cosine, constant or "
            "cooldown"
        )
    if warmup_steps:
        rate = tf.where(s < warmup_steps, peak * (s + 1.0) / warmup_steps, rate)
    return rate


def ema_momentum(
    step: tf.Tensor,
    *,
    momentum: float,
    warmup: bool,
    start: tuple[float | None, int] = (None, 0),
) -> tf.Tensor:
    """Weight of the EMA's old value after one step.

    Args:
        step: Number of the step, from 0.
        momentum: m in [0, 1].
        warmup: Limit m to (1 + step) / (10 + step), so that a short run
            forgets its initial weights.
        start: Another m, and the number of first steps that have exactly
            this: Mean Teacher has 0.99 during its ramp, CoMatch in its first
            epoch.

    Returns:
        A float32 scalar in [0, 1].
    """
    m = tf.constant(momentum, tf.float32)
    s = tf.cast(step, tf.float32)
    if warmup:
        m = tf.minimum(m, (1.0 + s) / (10.0 + s))
    first, steps = start
    if first is not None:
        m = tf.where(s < steps, tf.constant(first, tf.float32), m)
    return m


def ramp(
    step: tf.Tensor,
    *,
    steps: float,
    shape: str = "linear",
    dtype: tf.DType | str = "float32",
) -> tf.Tensor:
    """Factor of a loss weight that grows from 0 to 1.

    With t = min(1, step / steps): "linear" is t; "exponential" is
    exp(-5 (1 - t)²), which is e^-5 at the first step.

    Args:
        step: Number of the step, from 0.
        steps: Length of the ramp, ≥ 0; 0 for none.
        shape: "linear" or "exponential".
        dtype: Type of the result.

    Returns:
        A scalar in [0, 1].

    Raises:
        ValueError: `shape` is unknown.

    References:
        "exponential": Laine and Aila, "Temporal Ensembling for Semi-Supervised
        Learning", ICLR 2017, https://arxiv.org/abs/1610.02242.
    """
    if shape not in ("linear", "exponential"):
        raise ValueError(f"shape={shape!r}: must be linear or exponential")
    if not steps:
        return tf.ones([], dtype)
    t = tf.minimum(tf.cast(step, dtype) / steps, 1.0)
    return t if shape == "linear" else tf.exp(-5.0 * tf.square(1.0 - t))


def signal_annealing(
    step: tf.Tensor,
    *,
    steps: float,
    shape: str,
    num_classes: int,
    dtype: tf.DType | str = "float32",
) -> tf.Tensor:
    """Largest confidence of a labeled image that is still trained on (TSA).

    η = c (1 - 1/L) + 1/L, where c grows with t = min(1, step / steps):
    "linear" is t; "log" is 1 - exp(-5 t), which grows early; "exp" is
    exp(5 (t - 1)), which grows late.

    Args:
        step: Number of the step, from 0.
        steps: Number of steps in which η grows, above 0.
        shape: "linear", "log" or "exp".
        num_classes: L.
        dtype: Type of the result.

    Returns:
        A scalar from 1/L to 1.

    Raises:
        ValueError: `shape` is unknown, or `steps` is not above 0.

    References:
        Xie et al., "Unsupervised Data Augmentation for Consistency Training",
        NeurIPS 2020, https://arxiv.org/abs/1904.12848, training signal
        annealing.
    """
    if shape not in ("linear", "log", "exp"):
        raise ValueError(f"shape={shape!r}: must be linear, log or exp")
    if steps <= 0:
        raise ValueError(f"steps={steps}: must be above 0")
    t = tf.minimum(tf.cast(step, dtype) / steps, 1.0)
    c = {
        "linear": t,
        "log": 1.0 - tf.exp(-5.0 * t),
        "exp": tf.exp(5.0 * (t - 1.0)),
    }[shape]
    return c * (1.0 - 1.0 / num_classes) + 1.0 / num_classes
