"""Label propagation: SimMatch's (Eq. 3 to 10), and that of other methods.

Results are float32, or float64 if all inputs are (`tensors.widen`). K is the
number of slots of the memory bank. "The slides" summarize the paper.

References:
    Zheng et al., "SimMatch: Semi-supervised Learning with Similarity
    Matching", CVPR 2022, https://arxiv.org/abs/2203.06915. Code:
    https://github.com/mingkai-zheng/simmatch
"""

from __future__ import annotations

from simmatch_tf.lazy import np, tf
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


def nearest(
    z: tf.Tensor,
    bank: tf.Tensor,
    count: int,
    valid: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the rows of a bank that are most similar to each image.

    Args:
        z: [N, D], unit rows.
        bank: [K, D], unit rows.
        count: How many to find, at least 1; at most all K are found.
        valid: [K] bool, rows that take part, at least `count`; default: all.

    Returns:
        Cosines, the largest first, and indices int32, both [N, min(count, K)];
        of rows that are equally similar the first. Neither has a gradient.

    Raises:
        ValueError: A shape does not fit, or `count` is not above 0.
    """
    if count < 1:
        raise ValueError(f"count={count}: must be at least 1")
    z, bank = tensors.widen(z, bank)
    tensors.check(z=(z, "ND"), bank=(bank, "KD"))
    cosines = tf.matmul(z, bank, transpose_b=True)  # [N, K]
    if valid is not None:
        cosines = tf.where(valid, cosines, -float("inf"))
    cosines = tf.stop_gradient(cosines)
    cosines, indices = tf.math.top_k(cosines, min(count, bank.shape[0]))
    return cosines, indices


def graph_propagate(
    p: tf.Tensor,
    z: tf.Tensor,
    bank: tf.Tensor,
    bank_labels: tf.Tensor,
    num_classes: int,
    neighbors: int,
    temperature: float,
    alpha: float,
) -> tf.Tensor:
    """Propagates labels to each image from its nearest slots (SimMatchV2).

    For each image i, with its n nearest slots j₁ … j_n of the bank:
    Z = [z_i; Q_j₁; …; Q_j_n],  Y = [p_i; onehot y_j₁; …; onehot y_j_n]
    A = softmax_row(Z Zᵀ / t, diagonal -∞)
    p̂_i = row 0 of (1 - α) (I - αA)⁻¹ Y

    Args:
        p: Class probabilities [N, L].
        z: [N, D], unit rows.
        bank: Q [K, D], unit rows; no gradient goes to it.
        bank_labels: y [K], int32 or int64 in [0, L); not checked.
        num_classes: L.
        neighbors: n, at least 1; all slots, if there are fewer.
        temperature: t > 0.
        alpha: α in [0, 1); 0 leaves p as it is.

    Returns:
        p̂ [N, L] float32; rows sum to 1 if those of p do.

    Raises:
        ValueError: A shape does not fit, or a number is out of range.

    References:
        Zheng et al., "SimMatchV2: Semi-Supervised Learning with Graph
        Consistency", ICCV 2023, https://arxiv.org/abs/2308.06692. Code:
        https://github.com/mingkai-zheng/SimMatchV2
    """
    z, bank = tensors.widen(z, bank)
    bank_labels = tf.convert_to_tensor(bank_labels)
    tensors.check(bank=(bank, "KD"), bank_labels=(bank_labels, "K"))
    _, places = nearest(z, bank, neighbors)  # [N, n]
    return propagate(
        p,
        z,
        tf.gather(bank, places),
        tf.gather(bank_labels, places),
        num_classes,
        temperature,
        alpha,
    )


def propagate(
    p: tf.Tensor,
    z: tf.Tensor,
    slots: tf.Tensor,
    labels: tf.Tensor,
    num_classes: int,
    temperature: float,
    alpha: float,
) -> tf.Tensor:
    """Propagates labels to each image from given slots; see `graph_propagate`.

    Args:
        p: Class probabilities [N, L].
        z: [N, D], unit rows.
        slots: Embeddings of each image's slots [N, n, D], unit rows; no
            gradient goes to them.
        labels: Their classes [N, n], int32 or int64 in [0, L); not checked.
        num_classes: L.
        temperature: t > 0.
        alpha: α in [0, 1).

    Returns:
        p̂ [N, L] float32.

    Raises:
        ValueError: A shape does not fit, or a number is out of range.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    p, z, slots = tensors.widen(p, z, slots)
    labels = tf.convert_to_tensor(labels)
    tensors.check(
        p=(p, ("N", num_classes)),
        z=(z, "ND"),
        slots=(slots, "NnD"),
        labels=(labels, "Nn"),
    )
    nodes = tf.concat([z[:, None], tf.stop_gradient(slots)], 1)  # [N, n+1, D]
    logits = tf.matmul(nodes, nodes, transpose_b=True) / temperature
    logits = tf.linalg.set_diag(
        logits, tf.fill(tf.shape(logits)[:2], -tf.cast(np.inf, logits.dtype))
    )
    v = walk(tf.nn.softmax(logits), alpha)  # [N, n + 1]
    # Sums by image and class, without a one-hot row for each slot.
    count = tf.shape(p)[0]
    first = num_classes * tf.range(count, dtype=labels.dtype)  # [N]
    shares = tf.math.unsorted_segment_sum(
        v[:, 1:], labels + first[:, None], num_classes * count
    )
    return v[:, :1] * p + tf.reshape(shares, tf.shape(p))


def walk(a: tf.Tensor, alpha: float) -> tf.Tensor:
    """Returns row 0 of (1 - α) (I - αA)⁻¹ of matrices whose rows sum to 1.

    Only that row v is wanted: the solution of (I - αA)ᵀ v = (1 - α) e₀. It is
    where a walk ends that starts at node 0 and takes a further step with
    probability α. Richardson's iteration, v ← e₀ + α Aᵀ v from e₀, scaled to a
    sum of 1, costs n² multiplications instead of the n³ of a factorization and
    needs no pivots: every matrix operation is a product.

    What is missing after m iterations is the walks of more than m steps, which
    have probability α^(m+1) for any A, so that ‖v - v_m‖₁ ≤ 2 α^(m+1). As many
    are done as make α^(m+1) no more than the precision of the type: with
    α = 0.1, 6 in float32 and 15 in float64; with α = 0.9, 151 and 342.

    Args:
        a: A [..., n, n], ≥ 0, rows sum to 1.
        alpha: α in [0, 1).

    Returns:
        v [..., n], ≥ 0; its entries sum to 1.

    Raises:
        ValueError: A is no matrix, or `alpha` is out of range.
    """
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha={alpha}: must be in [0, 1)")
    (a,) = tensors.widen(a)
    if a.shape.rank < 2 or a.shape[-1] != a.shape[-2]:
        raise ValueError(f"a has shape {a.shape}: must be [..., n, n]")
    start = tf.one_hot(0, a.shape[-1], dtype=a.dtype)
    start = tf.broadcast_to(start, tf.shape(a)[:-1])
    # Differs: the paper's formula has the inverse of a matrix.
    (v,) = tf.while_loop(
        lambda v: True,
        lambda v: (start + alpha * tf.linalg.matvec(a, v, transpose_a=True),),
        (start,),
        maximum_iterations=iterations(alpha, a.dtype),
    )
    return v / tf.reduce_sum(v, axis=-1, keepdims=True)


def iterations(alpha: float, dtype: tf.DType) -> int:
    """Returns the iterations of `walk`, the least m with α^(m+1) ≤ ε.

    Args:
        alpha: α in [0, 1).
        dtype: float32 or float64, ε is the distance from 1 to the next number.
    """
    if alpha == 0:
        return 0
    epsilon = np.finfo(dtype.as_numpy_dtype).eps
    return max(int(np.ceil(np.log(epsilon) / np.log(alpha))) - 1, 0)
