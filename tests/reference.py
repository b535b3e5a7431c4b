"""The slides' equations, transcribed to NumPy in float64, one loop each."""

from collections.abc import Callable

import numpy as np


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def cross_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """H(p, q), row by row."""
    return -(p * np.log(q)).sum(axis=-1)


def instance_similarity(z, memory, t, valid=None):
    """Eq. 3, 4."""
    z, memory = np.float64(z), np.float64(memory)
    valid = np.ones(len(memory), bool) if valid is None else valid
    q = np.zeros([len(z), len(memory)])
    for i in range(len(z)):
        e = np.exp((memory @ z[i]) / t) * valid
        q[i] = e / e.sum() if valid.any() else 0
    return q


def unfold(p_w, memory_labels):
    """Eq. 7."""
    return np.stack([np.float64(p_w)[:, i] for i in memory_labels], axis=1)


def scale(q_w, p_unfold):
    """Eq. 8."""
    q = np.float64(q_w) * np.float64(p_unfold)
    for i, row in enumerate(q):
        q[i] = row / row.sum() if row.sum() > 0 else q_w[i]
    return q


def aggregate(q_w, memory_labels, num_classes):
    """Eq. 9."""
    q_agg = np.zeros([len(q_w), num_classes])
    for j, label in enumerate(memory_labels):
        q_agg[:, label] += np.float64(q_w)[:, j]
    return q_agg


def smooth(p_w, q_agg, alpha):
    """Eq. 10."""
    return alpha * np.float64(p_w) + (1 - alpha) * np.float64(q_agg)


def align(p, mean):
    """DA."""
    p, mean = np.float64(p), np.float64(mean)
    ratio = np.divide(p, mean, out=np.zeros_like(p), where=mean > 0)
    return ratio / ratio.sum(axis=1, keepdims=True)


def supervised_loss(logits, labels):
    """L_s."""
    p = softmax(np.float64(logits))
    return np.mean([-np.log(p[i, y]) for i, y in enumerate(labels)])


def unsupervised_loss(logits, p_hat, threshold):
    """L_u, and which images are kept."""
    mask = (np.float64(p_hat).max(axis=1) >= threshold).astype(float)
    entropies = cross_entropy(np.float64(p_hat), softmax(np.float64(logits)))
    return np.sum(mask * entropies) / len(logits), mask


def instance_loss(z_s, memory, q_hat, t, valid=None):
    """L_in, with the log of q^s as the slides write it."""
    valid = np.ones(len(memory), bool) if valid is None else valid
    if not valid.any():
        return 0.0
    q_s = instance_similarity(z_s, memory, t, valid)
    return np.mean(cross_entropy(np.float64(q_hat)[:, valid], q_s[:, valid]))


def gradient(
    function: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-5
) -> np.ndarray:
    """Central differences in float64."""
    x = np.float64(x)
    result = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[place] = h
        result[place] = (function(x + step) - function(x - step)) / (2 * h)
    return result
