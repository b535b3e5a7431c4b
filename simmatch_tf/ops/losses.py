"""The three losses of SimMatch, and those of other methods, from logits.

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

# Probabilities that have a logarithm are no smaller.
_LEAST = 1e-12


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
    logits: tf.Tensor,
    p_hat: tf.Tensor,
    threshold: float | tf.Tensor,
    hard: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Cross-entropy against confident pseudo-labels (slides, L_u).

    L_u = (1/μB) Σ 1(max p̂ ≥ τ) H(p̂, p^s)

    Args:
        logits: Of the strong views, [N, L].
        p_hat: p̂ [N, L], a target: no gradient goes to it.
        threshold: Confidence threshold τ, a number, or one for each image [N].
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
    threshold = tf.convert_to_tensor(threshold, dtype_hint=p_hat.dtype)
    threshold = tf.cast(threshold, p_hat.dtype)
    if threshold.shape.rank:
        tensors.check(p_hat=(p_hat, "NL"), threshold=(threshold, "N"))
    # Differs: ≥ as in the published runs, where the slides write >.
    kept = tf.reduce_max(p_hat, axis=1) >= threshold  # [N]
    if hard:
        p_hat = tf.one_hot(
            tf.argmax(p_hat, axis=1), p_hat.shape[1], dtype=p_hat.dtype
        )
    entropies = tf.nn.softmax_cross_entropy_with_logits(p_hat, logits)
    loss = tf.reduce_mean(tf.where(kept, entropies, 0.0))
    return loss, tf.cast(kept, loss.dtype)


def weighted_cross_entropy(
    logits: tf.Tensor, target: tf.Tensor, weight: tf.Tensor
) -> tf.Tensor:
    """Cross-entropy against soft targets, each image with a weight.

    (1/N) Σ_i w_i H(t_i, p_i), p = softmax(logits)

    Args:
        logits: [N, L].
        target: t [N, L], rows sum to 1; no gradient goes to it.
        weight: w [N], such as a mask of 0 and 1; no gradient goes to it.

    Returns:
        A float32 scalar: the sum divided by all N, whatever the weights.

    Raises:
        ValueError: A shape does not fit.
    """
    logits, target, weight = tensors.widen(logits, target, weight)
    tensors.check(
        logits=(logits, "NL"), target=(target, "NL"), weight=(weight, "N")
    )
    target, weight = tf.stop_gradient(target), tf.stop_gradient(weight)
    entropies = tf.nn.softmax_cross_entropy_with_logits(target, logits)  # [N]
    return tf.reduce_mean(weight * entropies)


def mixture_loss(p: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Cross-entropy of probabilities that are no softmax of logits.

    (1/N) Σ_i H(t_i, p_i), for p that are means of other probabilities

    Args:
        p: Probabilities [N, L]; below 1e-12 they count as 1e-12, and get no
            gradient.
        target: t [N, L], rows sum to 1; no gradient goes to it.

    Returns:
        A float32 scalar, ≥ 0.

    Raises:
        ValueError: The shapes differ.
    """
    p, target = tensors.widen(p, target)
    tensors.check(p=(p, "NL"), target=(target, "NL"))
    logs = tf.math.log(tf.maximum(p, _LEAST))
    return -tf.reduce_mean(
        tf.reduce_sum(tf.stop_gradient(target) * logs, axis=1)
    )


def kl_loss(
    logits: tf.Tensor, target: tf.Tensor, weight: tf.Tensor | None = None
) -> tf.Tensor:
    """Kullback-Leibler divergence from soft targets.

    (1/N) Σ_i w_i KL(t_i ‖ p_i), p = softmax(logits)

    KL(t ‖ p) = H(t, p) - H(t): the gradient is that of the cross-entropy, and
    the value is 0 where p = t.

    Args:
        logits: [N, L].
        target: t [N, L], rows sum to 1; no gradient goes to it.
        weight: w [N], such as a mask of 0 and 1; no gradient goes to it.
            Default: 1 for each image.

    Returns:
        A float32 scalar, divided by all N; ≥ 0 if the weights are.

    Raises:
        ValueError: A shape does not fit.
    """
    logits, target = tensors.widen(logits, target)
    tensors.check(logits=(logits, "NL"), target=(target, "NL"))
    target = tf.stop_gradient(target)
    cross = tf.nn.softmax_cross_entropy_with_logits(target, logits)  # [N]
    own = -tf.reduce_sum(tf.math.xlogy(target, target), axis=1)  # H(t), [N]
    divergences = cross - own
    if weight is not None:
        weight = tf.cast(tf.convert_to_tensor(weight), divergences.dtype)
        tensors.check(logits=(logits, "NL"), weight=(weight, "N"))
        divergences *= tf.stop_gradient(weight)
    return tf.reduce_mean(divergences)


def entropy_loss(logits: tf.Tensor) -> tf.Tensor:
    """Entropy of the predictions (EntMin).

    (1/N) Σ_i H(p_i, p_i), p = softmax(logits)

    Args:
        logits: [N, L]. The gradient goes through both factors of p log p.

    Returns:
        A float32 scalar, from 0 (one-hot) to log L (equal shares).

    Raises:
        ValueError: `logits` is no matrix.

    References:
        Grandvalet and Bengio, "Semi-supervised Learning by Entropy
        Minimization", NeurIPS 2004. Miyato et al., "Virtual Adversarial
        Training", 2018, https://arxiv.org/abs/1704.03976, add it to VAT.
    """
    (logits,) = tensors.widen(logits)
    tensors.check(logits=(logits, "NL"))
    products = tf.nn.softmax(logits) * tf.nn.log_softmax(logits)  # [N, L]
    return -tf.reduce_mean(tf.reduce_sum(products, axis=1))


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


def fairness_loss(
    logits: tf.Tensor,
    kept: tf.Tensor,
    p_mean: tf.Tensor,
    histogram: tf.Tensor,
) -> tf.Tensor:
    """Self-adaptive fairness of the kept images' predictions (FreeMatch, L_f).

    L_f = Σ_c N(p̃ / h̃)_c log(N(p̄ / h̄)_c + 1e-12), N(x)_c = x_c / Σ x

    with p̄ the mean of p = softmax(logits) over the kept images, and h̄ the
    shares of the classes argmax p among them. It is -H(N(p̃ / h̃), N(p̄ / h̄)),
    and negative: to minimize it raises that cross-entropy.

    Args:
        logits: Of the strong views, [N, L].
        kept: [N], 1 for images that count and 0 for others; no gradient goes
            to it.
        p_mean: p̃ [L] ≥ 0, running mean of the predictions; no gradient.
        histogram: h̃ [L] ≥ 0, running shares of the predicted classes; no
            gradient.

    Returns:
        A float32 scalar ≤ 0; 0 with gradient 0 if no image is kept. A class
        that no kept image is predicted as has the constant log 1e-12.

    Raises:
        ValueError: A shape does not fit.

    References:
        Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised
        Learning", ICLR 2023, https://arxiv.org/abs/2205.07246. Code:
        https://github.com/microsoft/Semi-supervised-learning
    """
    logits, kept, p_mean, histogram = tensors.widen(
        logits, kept, p_mean, histogram
    )
    kept = tf.stop_gradient(kept)
    tensors.check(
        logits=(logits, "NL"),
        kept=(kept, "N"),
        p_mean=(p_mean, "L"),
        histogram=(histogram, "L"),
    )
    p = tf.nn.softmax(logits)  # [N, L]
    classes = tf.one_hot(
        tf.argmax(p, axis=1), p.shape[1], dtype=p.dtype
    )  # [N, L]
    # Neither divided by their number, which N(·) cancels.
    p_bar = tf.linalg.matvec(p, kept, transpose_a=True)  # [L]
    h_bar = tf.linalg.matvec(classes, kept, transpose_a=True)  # [L]
    target = tf.stop_gradient(_normalized_ratio(p_mean, histogram))
    log_ratio = tf.math.log(_normalized_ratio(p_bar, h_bar) + 1e-12)
    any_kept = tf.reduce_any(kept > 0)
    return tf.where(any_kept, tf.reduce_sum(target * log_ratio), 0.0)


def _normalized_ratio(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
    """Returns N(x / y) [L], where a quotient by 0 counts as 0."""
    ratio = tf.math.divide_no_nan(x, y)
    return tf.math.divide_no_nan(ratio, tf.reduce_sum(ratio))


def consistency_loss(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Squared distance of predictions and targets.

    (1/NL) Σ_i Σ_c (p_ic - t_ic)², p = softmax(logits)

    Args:
        logits: [N, L].
        target: t [N, L], class probabilities; no gradient goes to it.

    Returns:
        A float32 scalar, from 0 to 2/L: the mean over images and classes.

    Raises:
        ValueError: The shapes differ.

    References:
        Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR
        2017, https://arxiv.org/abs/1610.02242 (Pi-Model). Berthelot et al.,
        "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS
        2019, https://arxiv.org/abs/1905.02249, Eq. 4.
    """
    logits, target = tensors.widen(logits, target)
    tensors.check(logits=(logits, "NL"), target=(target, "NL"))
    distance = tf.nn.softmax(logits) - tf.stop_gradient(target)  # [N, L]
    return tf.reduce_mean(tf.square(distance))
