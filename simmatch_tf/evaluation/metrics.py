"""Figures of predictions: accuracy, confusion matrix, calibration error.

NumPy alone; nothing here imports TensorFlow.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

# The normal quantile of a 95 % interval, 1.96.
_Z = statistics.NormalDist().inv_cdf(0.975)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities [N, L] that logits [N, L] stand for."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the share of images whose class is among the k most likely.

    Args:
        logits: [N, L].
        labels: Class of each image, [N].
        k: At least 1; with k ≥ L every class counts.

    Returns:
        A fraction in [0, 1]. Of equal logits the first class comes first.
    """
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return float(np.mean(np.any(best == labels[:, None], axis=1)))


def accuracy(
    logits: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, dict[str, float]]:
    """Returns top-1 and top-5 accuracy of several networks.

    Args:
        logits: Name of a network → its logits [N, L].
        labels: Class of each image, [N].

    Returns:
        Name → {"top1", "top5"}, fractions in [0, 1].
    """
    return {
        name: {f"top{k}": top_k(values, labels, k) for k in (1, 5)}
        for name, values in logits.items()
    }


def describe(
    logits: np.ndarray, labels: np.ndarray, *, bins: int = 15
) -> dict[str, Any]:
    """Returns all figures that `simmatch evaluate` reports of a network.

    Args:
        logits: [N, L].
        labels: Class of each image, [N], each in [0, L).
        bins: Number of equally wide bins in the calibration error.

    Returns:
        `top1` and `top5`; `per_class`, the accuracy of each class, None for a
        class without images; `confusion`, counts [true class][predicted
        class]; `calibration_error`, the expected calibration error: Σ over
        bins of |accuracy - mean confidence|, weighted by the bin's share of
        the images.

    References:
        Guo et al., On Calibration of Modern Neural Networks, ICML 2017,
        https://arxiv.org/abs/1706.04599
    """
    from sklearn import metrics  # slow to import, needed here only

    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    confusion = metrics.confusion_matrix(
        labels, predicted, labels=np.arange(classes)
    )
    totals = confusion.sum(axis=1)
    confidence = softmax(logits).max(axis=1)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(bin_of, (predicted == labels) - confidence, bins)
    return {
        "top1": top_k(logits, labels, 1),
        "top5": top_k(logits, labels, 5),
        "per_class": [
            float(right / total) if total else None
            for right, total in zip(np.diag(confusion), totals, strict=True)
        ],
        "confusion": confusion.tolist(),
        "calibration_error": float(np.abs(gap).sum() / len(labels)),
    }


def wilson(share: float, images: int) -> tuple[float, float]:
    """Computes the 95 % interval of an accuracy measured on some images.

    It covers the choice of the images, not how runs differ.

    Args:
        share: Share of the images that are right, in [0, 1].
        images: Number n of images, at least 1.

    Returns:
        The ends of the interval, in [0, 1]: the accuracies p with
        |share - p| ≤ z √(p (1 - p) / n), z = 1.96.

    References:
        Wilson, "Probable inference, the law of succession, and statistical
        inference", Journal of the American Statistical Association, 1927.
    """
    size = images + _Z * _Z
    middle = (share * images + _Z * _Z / 2) / size
    half = _Z * math.sqrt(images * share * (1 - share) + _Z * _Z / 4) / size
    # Rounding must not lead beyond the ends.
    return max(0.0, middle - half), min(1.0, middle + half)


def lead(
    right: np.ndarray, other: np.ndarray
) -> tuple[float, tuple[float, float]]:
    """Compares two classifiers on the same images, in pairs.

    Args:
        right: Whether the first one is right, bool [n], n at least 1.
        other: Whether the second one is, bool [n].

    Returns:
        The first one's accuracy minus the second one's, in [-1, 1], and the
        ends of its 95 % interval: d ± z √((b + c - (b - c)² / n) / n²), where
        b images are right with the first one alone and c with the second one
        alone, d = (b - c) / n, each of b and c is raised by 1/2, and n by 2.
        Images that both have right or both wrong only count for n, so it is
        much narrower than that of two accuracies on different images.

    References:
        Agresti and Min, Simple improved confidence intervals for comparing
        matched proportions, Statistics in Medicine, 2005.
    """
    b, c, n = np.sum(right & ~other), np.sum(other & ~right), len(right)
    size, difference = n + 2, (b - c) / (n + 2)
    variance = (b + c + 1 - (b - c) ** 2 / size) / size**2
    half = _Z * math.sqrt(variance)
    low, high = max(-1.0, difference - half), min(1.0, difference + half)
    return float((b - c) / n), (float(low), float(high))
