"""The three losses of SimMatch, from logits.

Results are float32, or float64 if all inputs are (`tensors.widen`). "The
slides" summarize the paper.

References:
    Zheng et al., "SimMatch: Semi-supervised Learning with Similarity
    Matching", CVPR 2022, https://arxiv.org/abs/2203.06915. Code:
    https://github.com/mingkai-zheng/simmatch
    Sohn et al., "FixMatch: Simplifying Semi-Supervised Learning with
    Consistency and Confidence", NeurIPS 2020,
    https://arxiv.org/abs/2001.07685. Code:
    https://github.com/google-research/fixmatch
"""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import propagation, tensors


def supervised_loss(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of labeled images (slides, L_s).

    L_s = (1/B) Σ H(y, p^l)

    Args:
        logits: [B, L].
        labels: y [B], int32 or int64 in [0, L); not checked.

    Returns:
        A float32 scalar, ≥ 0.

    Raises:
        ValueError: A shape does not fit.
    """
    (logits,) = tensors.widen(logits)
    labels = tf.convert_to_tensor(labels)
    tensors.check(logits=(logits, "BL"), labels=(labels, "B"))
    return tf.reduce_mean(
        tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    )


def unsupervised_loss(
    logits: tf.Tensor, p_hat: tf.Tensor, threshold: float, hard: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross-entropy against confident pseudo-labels (slides, L_u).

    L_u = (1/μB) Σ 1(max p̂ ≥ τ) H(p̂, p^s)

    Args:
        logits: Of the strong views, [N, L].
        p_hat: p̂ [N, L], a target: no gradient goes to it.
        threshold: Confidence threshold τ.
        hard: Use the class argmax p̂ as the target instead of p̂ (FixMatch,
            Eq. 4); the first of several.

    Returns:
        The loss, a float32 scalar: the sum over the images kept, divided by
        all N; and which were kept, [N] float32 of 0 and 1.

    Raises:
        ValueError: The shapes differ.
    """
    logits, p_hat = tensors.widen(logits, p_hat)
    p_hat = tf.stop_gradient(p_hat)
    tensors.check(logits=(logits, "NL"), p_hat=(p_hat, "NL"))
    # Differs: ≥ as in the published runs, where the slides write >.
    kept = tf.reduce_max(p_hat, axis=1) >= threshold  # [N]
    if hard:
        p_hat = tf.one_hot(
            tf.argmax(p_hat, axis=1), p_hat.shape[1], dtype=p_hat.dtype
        )
    entropies = tf.nn.softmax_cross_entropy_with_logits(p_hat, logits)
    loss = tf.reduce_mean(tf.where(kept, entropies, 0.0))
    return loss, tf.cast(kept, loss.dtype)


def instance_loss(
    z_s: tf.Tensor,
    memory: tf.Tensor,
    q_hat: tf.Tensor,
    temperature: float,
    valid: tf.Tensor | None = None,
) -> tf.Tensor:
    """Cross-entropy against instance pseudo-labels (slides, L_in).

    L_in = (1/μB) Σ H(q̂, q^s), and without a log of q^s
    H(q̂, q^s) = logsumexp_k(z^s·Q_f[k] / t) - z^s·(Σ_k q̂_k Q_f[k]) / t

    Args:
        z_s: Of the strong views, [N, D], unit rows.
        memory: Q_f [K, D], unit rows; no gradient goes to it.
        q_hat: q̂ [N, K], rows sum to 1 (or are 0: such an image adds 0); a
            target: no gradient goes to it.
        temperature: t > 0.
        valid: [K] bool, slots that take part; default: all.

    Returns:
        A float32 scalar, ≥ 0; 0 with gradient 0 if no slot is valid.

    Raises:
        ValueError: A shape does not fit, or `temperature` is not above 0.
    """
    z_s, memory, q_hat = tensors.widen(z_s, memory, q_hat)
    memory, q_hat = tf.stop_gradient(memory), tf.stop_gradient(q_hat)
    tensors.check(z_s=(z_s, "ND"), memory=(memory, "KD"), q_hat=(q_hat, "NK"))
    logits, shift = propagation.similarity_logits(
        z_s, memory, temperature, valid
    )
    if valid is not None:
        valid = tf.cast(tf.convert_to_tensor(valid), tf.bool)
        q_hat = tf.where(valid, q_hat, 0.0)
        memory = tf.where(valid[:, None], memory, 0.0)
    total = tf.reduce_sum(tf.exp(logits), axis=1)  # [N], ≥ 1 or no valid slot
    log_sum = tf.math.log(tf.where(total > 0, total, 1.0)) + shift[:, 0]
    context = tf.matmul(q_hat, memory)  # [N, D]
    mass = tf.reduce_sum(q_hat, axis=1)  # [N], 1 or 0
    match = tf.reduce_sum(z_s * context, axis=1) / temperature
    return tf.reduce_mean(mass * log_sum - match)
