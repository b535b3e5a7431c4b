"""What is measured of a model on a dataset. Imports no TensorFlow."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One cell of the table.

    Attributes:
        model: Its row.
        epochs: What the model was trained for.
        dataset: Its column.
        protocol: "linear", "finetune" or "knn".
        metric: "top1" or "mean_per_class".
        score: On the test images, in [0, 1].
        train_images: Images that the last fit had, those to choose by too.
        validation_images: Of these, the ones to choose by; 0: nothing was
            chosen.
        validation: "official", "held out" or "none".
        test_images: Images that are scored.
        seconds: What it took, features too.
        details: What the protocol reports of itself.
    """

    model: str
    epochs: str
    dataset: str
    protocol: str
    metric: str
    score: float
    train_images: int
    validation_images: int
    validation: str
    test_images: int
    seconds: float
    details: dict[str, Any]


def score(metric: str, labels: np.ndarray, predicted: np.ndarray) -> float:
    """Accuracy in [0, 1].

    Args:
        metric: "top1": share of the images that are right; "mean_per_class":
            the mean of that over the classes that have images.
        labels: Classes [N].
        predicted: Likewise.

    Raises:
        ValueError: There is no such metric.
    """
    right = labels == predicted
    if metric == "top1":
        return float(right.mean())
    if metric == "mean_per_class":
        counts = np.bincount(labels)
        hits = np.bincount(labels, right)
        return float((hits[counts > 0] / counts[counts > 0]).mean())
    raise ValueError(f"metric={metric!r}: must be top1 or mean_per_class")
