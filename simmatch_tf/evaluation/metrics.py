"""Figures of predictions: accuracy, confusion matrix, calibration error.

Nothing here imports TensorFlow.

References:
    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017,
    https://arxiv.org/abs/1706.04599: the calibration error, and the
    temperature that reduces it.
"""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

BINS = 15  # of the calibration error
# A temperature is fitted on at least, and on at most, these numbers of images.
LEAST_TO_CALIBRATE, MOST_TO_CALIBRATE = 10, 10_000
# Parts that the images are divided into by `cross_fitted`.
_FOLDS = 5
# Smallest and largest temperature.
_TEMPERATURES = (0.05, 20.0)
# The 95 % quantile of χ² with one degree of freedom.
_CHI_SQUARED = 3.841
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


def macro_accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the mean of the classes' accuracies, each class counting once.

    Args:
        logits: [N, L].
        labels: Class of each image, [N], N ≥ 1.

    Returns:
        A fraction in [0, 1]: the mean recall of the classes that have images.
    """
    totals = np.bincount(labels)
    right = np.bincount(labels, logits.argmax(axis=1) == labels)
    return float(np.mean(right[totals > 0] / totals[totals > 0]))


def accuracy(
    logits: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, dict[str, float]]:
    """Returns top-1, top-5 and macro-averaged accuracy of several networks.

    Args:
        logits: Name of a network → its logits [N, L].
        labels: Class of each image, [N].

    Returns:
        Name → {"top1", "top5", "macro_accuracy"}, fractions in [0, 1].
    """
    return {
        name: {
            "top1": top_k(values, labels, 1),
            "top5": top_k(values, labels, 5),
            "macro_accuracy": macro_accuracy(values, labels),
        }
        for name, values in logits.items()
    }


def calibration_error(
    logits: np.ndarray, labels: np.ndarray, *, bins: int = BINS
) -> float:
    """Returns the expected calibration error of the confidences.

    Σ over bins of |accuracy - mean confidence|, weighted by the bin's share of
    the images.

    Args:
        logits: [N, L], divided by their temperature if there is one.
        labels: Class of each image, [N].
        bins: Number of equally wide bins of the confidence.

    Returns:
        A fraction in [0, 1].
    """
    confidence = softmax(logits).max(axis=1)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    right = logits.argmax(axis=1) == labels
    gap = np.bincount(bin_of, right - confidence, bins)
    return float(np.abs(gap).sum() / len(labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fits the temperature that makes confidences calibrated.

    T minimizes Σ_n -log softmax(z_n / T)[y_n] + (log T)² / 2. The last term, a
    standard normal prior on log T, keeps T finite and above 0 where all images
    are right, or all are wrong; next to a few dozen images it has hardly any
    weight.

    Few images fit a temperature so coarsely that it may do more harm than
    good. It is therefore 1 unless these images tell it from 1: by the
    likelihood-ratio test at the level of 5 %. Of more than 10,000 images a
    fixed choice is used, in which each class keeps its share.

    Args:
        logits: z [N, L] of images that the network was not trained on.
        labels: Their classes y, [N].

    Returns:
        T, from 0.05 to 20: above 1 for a network that is too confident.
    """
    from scipy import optimize, special  # slow to import

    if len(labels) > MOST_TO_CALIBRATE:
        share = np.linspace(0, len(labels) - 1, MOST_TO_CALIBRATE).round()
        chosen = _by_class(labels)[share.astype(int)]
        logits, labels = logits[chosen], labels[chosen]
    logits = np.asarray(logits, np.float64)
    rows = np.arange(len(labels))

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        nll = special.logsumexp(scaled, axis=1) - scaled[rows, labels]
        return float(nll.sum())

    fitted = optimize.minimize_scalar(
        lambda log_t: loss(log_t) + log_t**2 / 2,
        bounds=tuple(np.log(_TEMPERATURES)),
        method="bounded",
    )
    if 2 * (loss(0.0) - loss(fitted.x)) < _CHI_SQUARED:
        return 1.0
    return float(np.exp(fitted.x))


def cross_fitted(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Divides logits by temperatures that were fitted on other images.

    So the images that a temperature is fitted on can measure it, too: they are
    divided into five parts, each with its share of each class, and each is
    scaled by the temperature of the other four.

    Args:
        logits: [N, L], N ≥ 2.
        labels: Class of each image, [N].

    Returns:
        float64 [N, L].
    """
    part_of = np.empty(len(labels), int)
    part_of[_by_class(labels)] = np.arange(len(labels)) % _FOLDS
    scaled = np.array(logits, np.float64)
    for part in range(min(_FOLDS, len(labels))):
        others = part_of != part
        scaled[~others] /= fit_temperature(logits[others], labels[others])
    return scaled


def _by_class(labels: np.ndarray) -> np.ndarray:
    """Returns the places of the images of class 0, then 1, and so on."""
    return np.argsort(labels, kind="stable")


def calibration(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    temperature: float | None,
    fitted_on_these: bool = False,
    bins: int = BINS,
) -> dict[str, float]:
    """Returns how far the confidences of a network are off.

    Args:
        logits: [N, L].
        labels: Class of each image, [N].
        temperature: The logits are divided by it; None: they are not.
        fitted_on_these: Whether it was fitted on these very images. Then the
            error is that of `cross_fitted` logits.
        bins: See `calibration_error`.

    Returns:
        `calibration_error`; with a temperature also `uncalibrated_error`, the
        same without it, and `temperature`.
    """
    plain = calibration_error(logits, labels, bins=bins)
    if temperature is None:
        return {"calibration_error": plain}
    scaled = np.asarray(logits, np.float64) / temperature
    if fitted_on_these:
        scaled = cross_fitted(logits, labels)
    return {
        "calibration_error": calibration_error(scaled, labels, bins=bins),
        "uncalibrated_error": plain,
        "temperature": temperature,
    }


def describe_fit(fitted_on: str, images: int, scored_on: str) -> str:
    """Says what a temperature was fitted on.

    Args:
        fitted_on: "validation" or "test".
        images: Number of images.
        scored_on: The images that its calibration error is measured on. If they
            are the same, it is measured by cross-fitting.
    """
    how = ", error by cross-fitting" if fitted_on == scored_on else ""
    return f"on {images:,} {fitted_on} images{how}"


def describe(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    temperature: float | None = None,
    fitted_on_these: bool = False,
    bins: int = BINS,
) -> dict[str, Any]:
    """Returns all figures that `simmatch evaluate` reports of a network.

    Args:
        logits: [N, L].
        labels: Class of each image, [N], each in [0, L).
        temperature: See `calibration`.
        fitted_on_these: See `calibration`.
        bins: See `calibration_error`.

    Returns:
        `top1`, `top5` and `macro_accuracy`; `per_class`, the accuracy of each
        class, None for a class without images; `confusion`, counts [true
        class][predicted class]; and the figures of `calibration`.
    """
    from sklearn import metrics  # slow to import, needed here only

    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    confusion = metrics.confusion_matrix(
        labels, predicted, labels=np.arange(classes)
    )
    totals = confusion.sum(axis=1)
    return {
        "top1": top_k(logits, labels, 1),
        "top5": top_k(logits, labels, 5),
        "macro_accuracy": macro_accuracy(logits, labels),
        "per_class": [
            float(right / total) if total else None
            for right, total in zip(np.diag(confusion), totals, strict=True)
        ],
        "confusion": confusion.tolist(),
        **calibration(
            logits,
            labels,
            temperature=temperature,
            fitted_on_these=fitted_on_these,
            bins=bins,
        ),
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
