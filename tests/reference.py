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


def sharpen(p, temperature):
    """Of MixMatch and UDA."""
    powers = np.float64(p) ** (1 / temperature)
    return powers / powers.sum(axis=1, keepdims=True)


def weighted_cross_entropy(logits, target, weight):
    """(1/N) Σ w_i H(t_i, p_i)."""
    entropies = cross_entropy(np.float64(target), softmax(np.float64(logits)))
    return np.sum(np.float64(weight) * entropies) / len(logits)


def kl_loss(logits, target, weight=None):
    """(1/N) Σ w_i KL(t_i ‖ p_i)."""
    p, total = softmax(np.float64(logits)), 0.0
    for i, row in enumerate(np.float64(target)):
        divergence = sum(
            t * np.log(t / p[i, c]) for c, t in enumerate(row) if t
        )
        total += divergence * (1 if weight is None else weight[i])
    return total / len(logits)


def entropy_loss(logits):
    """(1/N) Σ H(p_i, p_i)."""
    p = softmax(np.float64(logits))
    return np.mean(cross_entropy(p, p))


def instance_loss(z_s, memory, q_hat, t, valid=None):
    """L_in, with the log of q^s as the slides write it."""
    valid = np.ones(len(memory), bool) if valid is None else valid
    if not valid.any():
        return 0.0
    q_s = instance_similarity(z_s, memory, t, valid)
    return np.mean(cross_entropy(np.float64(q_hat)[:, valid], q_s[:, valid]))


def consistency_loss(logits, target):
    """Mean over images and classes of (p - t)²."""
    p = softmax(np.float64(logits))
    total = 0.0
    for i, c in np.ndindex(p.shape):
        total += (p[i, c] - target[i, c]) ** 2
    return total / p.size


def mix(x, y, permutation, share):
    """MixMatch, Eq. 8 to 11, without the draw of λ."""
    x, y = np.float64(x), np.float64(y)
    mixed = np.zeros_like(x), np.zeros_like(y)
    for i, other in enumerate(permutation):
        own = max(share[i], 1 - share[i])
        for result, value in zip(mixed, (x, y), strict=True):
            result[i] = own * value[i] + (1 - own) * value[other]
    return mixed


def interleave(batches):
    """MixMatch's exchange: group i of the first batch with that of batch i."""
    first, *others = (np.array(batch) for batch in batches)
    rows, count = len(first), len(batches)
    # The rows that are left over go to the last groups.
    ends = np.cumsum([(rows + g) // count for g in range(count)])
    for start, end, other in zip(ends, ends[1:], others, strict=False):
        here = slice(start, end)
        kept = first[here].copy()
        first[here], other[here] = other[here], kept
    return [first, *others]


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


def flexible(counts, unused, threshold, warmup=True):
    """FlexMatch, τ_c."""
    most = max(*counts, unused) if warmup else max(counts)
    result = np.zeros(len(counts))
    for c, count in enumerate(counts):
        b = count / most if most else 0.0
        result[c] = threshold * b / (2 - b)
    return result


def self_adaptive(threshold, p_mean):
    """FreeMatch, τ_c."""
    return np.array([threshold * p / max(p_mean) for p in np.float64(p_mean)])


def truncated_gaussian(confidence, mean, variance, n_sigma=2.0):
    """SoftMatch, λ_i."""
    weights = []
    for c in np.float64(confidence):
        distance = min(c - mean, 0.0)
        sigma = np.sqrt(variance) / n_sigma
        weights.append(np.exp(-(distance**2) / (2 * sigma**2)))
    return np.array(weights)


def fairness_loss(logits, kept, p_mean, histogram):
    """FreeMatch, L_f, over the kept images alone."""
    p = softmax(np.float64(logits))[np.asarray(kept) > 0]
    if not len(p):
        return 0.0
    p_bar = p.mean(axis=0)
    h_bar = np.bincount(p.argmax(axis=1), minlength=p.shape[1]) / len(p)
    target = np.float64(p_mean) / np.float64(histogram)
    target /= target.sum()
    ratio = np.array([a / b if b else 0.0 for a, b in zip(p_bar, h_bar)])  # noqa: B905
    ratio /= ratio.sum()
    return np.sum(target * np.log(ratio + 1e-12))


def neighbor_smooth(p, z, bank, bank_p, t, alpha):
    """CoMatch's smoothing."""
    smoothed = np.zeros(np.shape(p))
    for i, row in enumerate(np.float64(z)):
        a = softmax(np.float64(bank) @ row / t)
        smoothed[i] = alpha * np.float64(p)[i]
        for share, other in zip(a, np.float64(bank_p), strict=True):
            smoothed[i] += (1 - alpha) * share * other
    return smoothed


def graph_loss(z_1, z_2, p, t, threshold, queue=(), queue_p=()):
    """CoMatch's L_c; columns of the graph: this batch, then the queue."""
    z_1, p = np.float64(z_1), np.float64(p)
    columns = np.array([*np.float64(z_2), *np.float64(queue)])
    columns_p = np.array([*p, *np.float64(queue_p)])
    total = 0
    for i in range(len(z_1)):
        w = columns_p @ p[i]
        w[i] = 1
        w[w < threshold] = 0
        total += cross_entropy(w / w.sum(), softmax(columns @ z_1[i] / t))
    return total / len(z_1)


def graph_propagate(p, z, bank, bank_labels, num_classes, neighbors, t, alpha):
    """SimMatchV2's p̂, by a dense solver of the whole system."""
    result = np.zeros(np.shape(p))
    for i, row in enumerate(np.float64(z)):
        near = np.argsort(-(np.float64(bank) @ row), kind="stable")[:neighbors]
        nodes = np.array([row, *np.float64(bank)[near]])
        a = np.zeros([len(nodes)] * 2)
        for j, node in enumerate(nodes):
            others = np.arange(len(nodes)) != j
            a[j, others] = softmax(nodes[others] @ node / t)
        y = np.array([p[i], *np.eye(num_classes)[bank_labels[near]]])
        inverse_y = np.linalg.solve(np.eye(len(nodes)) - alpha * a, y)
        result[i] = (1 - alpha) * inverse_y[0]
    return result
