"""Label propagation: SimMatch's (Eq. 3 to 10), and that of other methods.

Results are float32, or float64 if all inputs are (`tensors.widen`). K is the
number of slots of the memory bank. "The slides" summarize the paper.

References:
    Zheng et al., "SimMatch: Semi-supervised Learning with Similarity
    Matching", CVPR 2022, https://arxiv.org/abs/2203.06915. Code:
    https://github.com/mingkai-zheng/simmatch
"""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import tensors


def similarity_logits(
    z: tf.Tensor,
    memory: tf.Tensor,
    temperature: float,
    valid: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes z·Q_f / t, shifted so that exp() neither over- nor underflows.

    Args:
        z: [N, D], unit rows.
        memory: Q_f [K, D], unit rows; rows that are not valid may hold
            anything.
        temperature: t > 0.
        valid: [K] bool, slots that take part; default: all.

    Returns:
        Logits minus the largest valid one of their row, -inf at slots that are
        not valid, [N, K]; and that largest one, [N, 1] (0 without a valid
        slot). No gradient goes to the shift, so add it back where it matters,
        and none to the memory.

    Raises:
        ValueError: A shape does not fit, or `temperature` is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    z, memory = tensors.widen(z, memory)
    memory = tf.stop_gradient(memory)
    tensors.check(z=(z, "ND"), memory=(memory, "KD"))
    if valid is not None:
        valid = tf.cast(tf.convert_to_tensor(valid), tf.bool)
        tensors.check(memory=(memory, "KD"), valid=(valid, "K"))
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
    """Softmax of shifted logits, the last part of `instance_similarity`.

    Args:
        logits: Logits of `similarity_logits` [N, K].

    Returns:
        q [N, K], see `instance_similarity`.
    """
    weights = tf.exp(logits)  # [N, K], the largest of a row is 1
    return tf.math.divide_no_nan(
        weights, tf.reduce_sum(weights, axis=1, keepdims=True)
    )


def unfold(p_w: tf.Tensor, memory_labels: tf.Tensor) -> tf.Tensor:
    """Gives each labeled image its class's probability (slides, Eq. 7).

    p^unfold_k = p^w[Q_l[k]]

    Args:
        p_w: [N, L], class probabilities.
        memory_labels: Q_l [K], int32 or int64 in [0, L); not checked.

    Returns:
        p^unfold [N, K] float32.

    Raises:
        ValueError: A shape does not fit.
    """
    (p_w,) = tensors.widen(p_w)
    memory_labels = tf.convert_to_tensor(memory_labels)
    tensors.check(p_w=(p_w, "NL"), memory_labels=(memory_labels, "K"))
    return tf.gather(p_w, memory_labels, axis=1)


def scale(q_w: tf.Tensor, p_unfold: tf.Tensor) -> tf.Tensor:
    """Scales instance similarity by class similarity (slides, Eq. 8).

    q̂_k = q^w_k p^unfold_k / Σ_j q^w_j p^unfold_j

    Args:
        q_w: [N, K], rows sum to 1.
        p_unfold: [N, K], in [0, 1].

    Returns:
        q̂ [N, K] float32, rows sum to 1. A row whose products are all 0 (p^w
        rules out the class of every slot) keeps its q^w.

    Raises:
        ValueError: The shapes differ.
    """
    q_w, p_unfold = tensors.widen(q_w, p_unfold)
    tensors.check(q_w=(q_w, "NK"), p_unfold=(p_unfold, "NK"))
    # Only the ratio of the products counts; the largest p is made 1 so that
    # two small factors do not underflow to a row of zeros.
    largest = tf.stop_gradient(tf.reduce_max(p_unfold, axis=1, keepdims=True))
    products = q_w * tf.math.divide_no_nan(p_unfold, largest)  # [N, K]
    total = tf.reduce_sum(products, axis=1, keepdims=True)
    return tf.where(total > 0, tf.math.divide_no_nan(products, total), q_w)


def aggregate(
    q_w: tf.Tensor, memory_labels: tf.Tensor, num_classes: int
) -> tf.Tensor:
    """Adds up instance similarity class by class (slides, Eq. 9).

    q^agg_i = Σ_{k: Q_l[k] = i} q^w_k

    Args:
        q_w: [N, K].
        memory_labels: Q_l [K], int32 or int64 in [0, num_classes); not
            checked.
        num_classes: L.

    Returns:
        q^agg [N, L] float32; rows sum to what those of q_w sum to.

    Raises:
        ValueError: A shape does not fit.
    """
    (q_w,) = tensors.widen(q_w)
    memory_labels = tf.convert_to_tensor(memory_labels)
    tensors.check(q_w=(q_w, "NK"), memory_labels=(memory_labels, "K"))
    return tf.transpose(
        tf.math.unsorted_segment_sum(
            tf.transpose(q_w), memory_labels, num_classes
        )
    )


def smooth(p_w: tf.Tensor, q_agg: tf.Tensor, alpha: float) -> tf.Tensor:
    """Smooths the class pseudo-label by the instances' (slides, Eq. 10).

    p̂ = α p^w + (1 - α) q^agg

    Args:
        p_w: [N, L].
        q_agg: [N, L].
        alpha: α in [0, 1]; 1 leaves p^w as it is.

    Returns:
        p̂ [N, L] float32.

    Raises:
        ValueError: The shapes differ, or `alpha` is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha}: must be in [0, 1]")
    p_w, q_agg = tensors.widen(p_w, q_agg)
    tensors.check(p_w=(p_w, "NL"), q_agg=(q_agg, "NL"))
    return alpha * p_w + (1.0 - alpha) * q_agg


def neighbor_smooth(
    p: tf.Tensor,
    z: tf.Tensor,
    bank: tf.Tensor,
    bank_p: tf.Tensor,
    temperature: float,
    alpha: float,
) -> tf.Tensor:
    """Smooths predictions by those of similar images (CoMatch, Eq. 3 and 4).

    p̂_i = α p_i + (1 - α) Σ_k a_ik P_k,  a_i = softmax_k(z_i·Q_k / T)

    Args:
        p: Class probabilities [N, L].
        z: [N, D], unit rows.
        bank: Q [K, D], unit rows; no gradient goes to it.
        bank_p: P [K, L], class probabilities; no gradient goes to it.
        temperature: T > 0.
        alpha: α in [0, 1]; 1 leaves p as it is.

    Returns:
        p̂ [N, L] float32; rows sum to 1 if those of p and P do.

    Raises:
        ValueError: A shape does not fit, or a number is out of range.

    References:
        Li, Xiong and Hoi, "CoMatch: Semi-supervised Learning with Contrastive
        Graph Regularization", ICCV 2021, https://arxiv.org/abs/2011.11183.
    """
    p, z, bank, bank_p = tensors.widen(p, z, bank, bank_p)
    tensors.check(
        p=(p, "NL"), z=(z, "ND"), bank=(bank, "KD"), bank_p=(bank_p, "KL")
    )
    a = instance_similarity(z, bank, temperature)  # [N, K]
    return smooth(p, tf.matmul(a, tf.stop_gradient(bank_p)), alpha)
