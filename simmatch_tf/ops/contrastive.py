"""Losses that compare embeddings with each other.

Results are float32, or float64 if all inputs are (`tensors.widen`).
"""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import tensors


def graph_loss(
    z_1: tf.Tensor,
    z_2: tf.Tensor,
    p: tf.Tensor,
    temperature: float,
    threshold: float,
    *,
    queue: tf.Tensor | None = None,
    queue_p: tf.Tensor | None = None,
    valid: tf.Tensor | None = None,
) -> tf.Tensor:
    """Cross-entropy of embeddings against a graph of pseudo-labels (CoMatch).

    W_ii = 1, W_ij = p_i·p_j, and 0 where that is below T_c
    L_c = (1/N) Σ_i H(W_i / Σ_j W_ij, C_i),  C_i = softmax_j(z_1i·z_2j / T)

    With a queue, its rows are further columns j of both.

    Args:
        z_1: Embeddings of one view [N, D], unit rows.
        z_2: Those of another view of the same images, likewise.
        p: Their pseudo-labels [N, L], targets: no gradient goes to them.
        temperature: T > 0.
        threshold: T_c in [0, 1], smallest weight of an edge.
        queue: Embeddings of earlier images [Q, D], unit rows; no gradient goes
            to them.
        queue_p: Their pseudo-labels [Q, L].
        valid: [Q] bool, rows of the queue that take part; default: all.

    Returns:
        A float32 scalar, ≥ 0.

    Raises:
        ValueError: A shape does not fit, a number is out of range, or one of
            `queue` and `queue_p` is missing.

    References:
        Li, Xiong and Hoi, "CoMatch: Semi-supervised Learning with Contrastive
        Graph Regularization", ICCV 2021, https://arxiv.org/abs/2011.11183,
        Eq. 6 to 9. Code: https://github.com/salesforce/CoMatch
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold={threshold}: must be in [0, 1]")
    if (queue is None) != (queue_p is None):
        raise ValueError("queue and queue_p: give both, or none of them")
    z_1, z_2, p = tensors.widen(z_1, z_2, p)
    p = tf.stop_gradient(p)
    tensors.check(z_1=(z_1, "ND"), z_2=(z_2, "ND"), p=(p, "NL"))
    columns, columns_p = z_2, p  # [M, D], [M, L]
    if queue is not None:
        queue, queue_p = tensors.widen(queue, queue_p)
        tensors.check(
            z_1=(z_1, "ND"),
            p=(p, "NL"),
            queue=(queue, "QD"),
            queue_p=(queue_p, "QL"),
        )
        if valid is not None:
            valid = tf.cast(tf.convert_to_tensor(valid), tf.bool)
            tensors.check(queue=(queue, "QD"), valid=(valid, "Q"))
            # Rows that are not valid may hold anything: 0 times NaN is NaN.
            queue = tf.where(valid[:, None], queue, 0.0)
            queue_p = tf.where(valid[:, None], queue_p, 0.0)
        queue, queue_p = (
            tf.stop_gradient(tf.cast(x, z_1.dtype)) for x in (queue, queue_p)
        )
        columns = tf.concat([z_2, queue], 0)
        columns_p = tf.concat([p, queue_p], 0)

    w = tf.matmul(p, columns_p, transpose_b=True)  # [N, M]
    w = tf.linalg.set_diag(w, tf.ones_like(w[:, 0]))
    w = tf.where(w >= threshold, w, 0.0)
    if valid is not None and queue is not None:
        valid = tf.concat([tf.ones_like(z_2[:, 0], tf.bool), valid], 0)  # [M]
        w = tf.where(valid, w, 0.0)
    w /= tf.reduce_sum(w, axis=1, keepdims=True)
    logits = tf.matmul(z_1, columns, transpose_b=True) / temperature  # [N, M]
    match = tf.reduce_sum(w * logits, axis=1)  # [N]
    if valid is not None and queue is not None:
        logits = tf.where(valid, logits, -float("inf"))
    return tf.reduce_mean(tf.reduce_logsumexp(logits, axis=1) - match)
