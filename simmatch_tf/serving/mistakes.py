"""Which test images to look at. Nothing here imports TensorFlow."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image, as the network sees it.

    Attributes:
        name: Its file's, or its number.
        true: Its class.
        predicted: The likeliest class.
        confidence: Of that, in [0, 1].
        true_confidence: Of its own class.
        picture: JPEG; None where it cannot be shown.
        neighbors: The labeled images that it resembles most, the most similar
            first: `slot`, `id`, `class` and `similarity`.
    """

    name: str
    true: str
    predicted: str
    confidence: float
    true_confidence: float
    picture: bytes | None
    neighbors: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a run makes of the images that its result is of.

    Attributes:
        report: See `evaluation.describe`.
        scored_on: "test" or "validation".
        images: How many.
        errors: How many are wrong.
        wrong: Some of these, the most confident first.
        uncertain: The least certain of all, the least certain first.
        neighbors: Slot → JPEG of the labeled image.
        why_not: Why there are no neighbours; "" if there are.
    """

    report: dict[str, Any]
    scored_on: str
    images: int
    errors: int
    wrong: list[Shown]
    uncertain: list[Shown]
    neighbors: dict[int, bytes]
    why_not: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """Places of images to look at, in order.

    Attributes:
        wrong: Whose class is another, the most confident first.
        uncertain: Of all, the least certain first.
        errors: How many are wrong.
    """

    wrong: np.ndarray
    uncertain: np.ndarray
    errors: int


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities [N, L] from logits [N, L]."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def choose(logits: np.ndarray, labels: np.ndarray, most: int) -> Choice:
    """Chooses the images to look at.

    Args:
        logits: [N, L].
        labels: Classes [N].
        most: How many of each kind, at most.
    """
    confidence = softmax(logits).max(axis=1)
    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    order = np.argsort(-confidence[wrong], kind="stable")
    return Choice(
        wrong=wrong[order][:most],
        uncertain=np.argsort(confidence, kind="stable")[:most],
        errors=len(wrong),
    )
