"""Summaries of a batch that tell a healthy run from one that goes wrong.

None takes part in training. Results are float32, whatever the inputs.
"""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import tensors


def entropy(p: tf.Tensor) -> tf.Tensor:
    """Entropy of each distribution.

    H(p) = -Σ_i p_i log p_i, with 0 log 0 = 0

    Args:
        p: [N, L], rows sum to 1.

    Returns:
        [N] float32 in nats, from 0 (one-hot) to log L (uniform).

    Raises:
        ValueError: `p` is no matrix.
    """
    p = tf.convert_to_tensor(p)
    tensors.check(p=(p, "NL"))
    p = tf.cast(p, tf.float32)
    return -tf.reduce_sum(tf.math.xlogy(p, p), axis=1)


def histogram(values: tf.Tensor, bins: int) -> tf.Tensor:
    """Histogram of numbers over equal bins of [0, 1], as shares.

    Args:
        values: [N], in [0, 1]; 1 is in the last bin.
        bins: Number of bins, at least 1.

    Returns:
        [bins] float32, sums to 1.

    Raises:
        ValueError: `values` is no vector, or `bins` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}: must be at least 1")
    values = tf.convert_to_tensor(values)
    tensors.check(values=(values, "N"))
    place = tf.cast(values * bins, tf.int32)
    return shares(tf.clip_by_value(place, 0, bins - 1), bins)


def shares(classes: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Share of the images in each class.

    Args:
        classes: [N], integers in [0, num_classes).
        num_classes: L.

    Returns:
        [L] float32, sums to 1.
    """
    return tf.reduce_mean(tf.one_hot(classes, num_classes), axis=0)


def class_similarity(
    memory: tf.Tensor,
    memory_labels: tf.Tensor,
    valid: tf.Tensor,
    num_classes: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean cosine of two labeled images, within a class and between classes.

    With the class sums s_i = Σ_{k: Q_l[k] = i} Q_f[k], the cosines of all pairs
    of class i sum to s_i·s_i, and those of all images to (Σ s_i)·(Σ s_i).

    Args:
        memory: Q_f [K, D], unit rows.
        memory_labels: Q_l [K], in [0, L).
        valid: [K] bool, slots that count.
        num_classes: L.

    Returns:
        Two float32 scalars in [-1, 1]: within classes (an image with itself
        does not count) and between them; 0 where there is no such pair.

    Raises:
        ValueError: A shape does not fit.
    """
    tensors.check(
        memory=(memory, "KD"),
        memory_labels=(memory_labels, "K"),
        valid=(valid, "K"),
    )
    weights = tf.cast(valid, tf.float32)  # [K]
    rows = tf.cast(memory, tf.float32) * weights[:, None]
    sums = tf.math.unsorted_segment_sum(rows, memory_labels, num_classes)
    counts = tf.math.unsorted_segment_sum(weights, memory_labels, num_classes)
    images = tf.reduce_sum(counts)
    same = tf.reduce_sum(tf.square(sums))
    all_pairs = tf.reduce_sum(tf.square(tf.reduce_sum(sums, axis=0)))
    same_count = tf.reduce_sum(tf.square(counts))
    within = tf.math.divide_no_nan(
        same - tf.reduce_sum(tf.square(rows)), same_count - images
    )
    between = tf.math.divide_no_nan(
        all_pairs - same, tf.square(images) - same_count
    )
    return within, between
