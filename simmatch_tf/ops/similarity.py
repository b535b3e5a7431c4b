"""Instance similarity: which labeled images does an image resemble?"""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import precision, shapes


def similarity_logits(
    z: tf.Tensor,
    memory: tf.Tensor,
    temperature: float,
    valid: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """z·Q_f / t, shifted so that exp() of it neither over- nor underflows.

    Args:
        z: [N, D], unit rows.
        memory: Q_f [K, D], unit rows; rows that are not valid may hold
            anything.
        temperature: t > 0.
        valid: [K] bool, slots that take part; default: all.

    Returns:
        Logits minus their row's largest valid one, -inf at slots that are not
        valid [N, K], and that largest one [N, 1] (0 with no valid slot). Both
        of `precision.widen`'s dtype. No gradient goes to the shift, so add it
        back where it matters, and none to the memory.

    Raises:
        ValueError: A shape does not fit, or `temperature` is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    z, memory = precision.widen(z, memory)
    memory = tf.stop_gradient(memory)
    shapes.check(z=(z, "ND"), memory=(memory, "KD"))
    if valid is not None:
        valid = tf.cast(tf.convert_to_tensor(valid), tf.bool)
        shapes.check(memory=(memory, "KD"), valid=(valid, "K"))
        # Not only the logits: 0 times a NaN row is NaN in the gradient.
        memory = tf.where(valid[:, None], memory, 0.0)
    logits = tf.matmul(z, memory, transpose_b=True) / temperature  # [N, K]
    if valid is not None:
        logits = tf.where(valid, logits, -float("inf"))
    shift = tf.stop_gradient(tf.reduce_max(logits, axis=1, keepdims=True))
    shift = tf.where(tf.math.is_finite(shift), shift, 0.0)
    return logits - shift, shift


def instance_similarity(
    z: tf.Tensor,
    memory: tf.Tensor,
    temperature: float,
    valid: tf.Tensor | None = None,
) -> tf.Tensor:
    """Similarity of each image to each labeled one (slides, Eq. 3 and 4).

    q_k = exp(z·Q_f[k] / t) / Σ_j exp(z·Q_f[j] / t)

    Args:
        z: [N, D], unit rows.
        memory: Q_f [K, D], unit rows.
        temperature: t > 0.
        valid: [K] bool, slots that take part; default: all.

    Returns:
        q [N, K] float32: rows sum to 1; zeros where a slot is not valid, and
        everywhere if none is.

    Raises:
        ValueError: A shape does not fit, or `temperature` is not above 0.
    """
    logits, _ = similarity_logits(z, memory, temperature, valid)
    return shares(logits)


def shares(logits: tf.Tensor) -> tf.Tensor:
    """The last part of `instance_similarity`.

    Args:
        logits: Of `similarity_logits`, [N, K].

    Returns:
        q [N, K]; see there.
    """
    weights = tf.exp(logits)  # [N, K], the largest of a row is 1
    return tf.math.divide_no_nan(
        weights, tf.reduce_sum(weights, axis=1, keepdims=True)
    )
