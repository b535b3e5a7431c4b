"""Accuracy of networks on a split."""

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf.data import pipeline
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.modules import replica


class Evaluator:
    """Runs networks over images, each traced once."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        networks: dict[str, keras.Model],
        batch_size: int,
        *,
        side: int,
        resize: int | None = None,
        parallel_calls: int = 1,
    ) -> None:
        """Takes the networks to evaluate.

        Args:
            strategy: Where they live.
            networks: Name → network.
            batch_size: Images at once, all replicas together.
            side: See `pipeline.evaluation_dataset`.
            resize: Likewise.
            parallel_calls: Likewise.
        """
        self._strategy, self._batch_size = strategy, batch_size
        self._input = {
            "side": side,
            "resize": resize,
            "parallel_calls": parallel_calls,
        }
        self._forward = {
            name: tf.function(
                lambda images, model=model: strategy.run(
                    lambda x: replica.all_gather(
                        model(x, training=False)["logits"]
                    ),
                    args=(images,),
                ),
                autograph=False,
            )
            for name, model in networks.items()
        }

    def logits(
        self,
        images: source_lib.Images | source_lib.Encoded,
        indices: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Logits of every network.

        Args:
            images: The set.
            indices: Which of them [n], n ≥ 1.

        Returns:
            Name → float32 [n, L].
        """
        batches = strategies.iterate(
            self._strategy,
            lambda context: pipeline.evaluation_dataset(
                images,
                indices,
                min(self._batch_size, len(indices)),
                **self._input,
                context=context,
            ),
        )
        found = {name: [] for name in self._forward}
        while True:
            batch = pipeline.read_next(batches, "in evaluation")
            if batch is None:
                break
            for name, forward in self._forward.items():
                # Each replica has those of all.
                first, *_ = self._strategy.experimental_local_results(
                    forward(batch)
                )
                found[name].append(first.numpy())
        return {
            name: np.concatenate(parts)[: len(indices)]
            for name, parts in found.items()
        }


def accuracy(
    logits: dict[str, np.ndarray], labels: np.ndarray
) -> dict[str, dict[str, float]]:
    """Name → {"top1", "top5"}, fractions in [0, 1].

    Args:
        logits: Name → [N, L].
        labels: [N].
    """
    return {
        name: {f"top{k}": top_k(values, labels, k) for k in (1, 5)}
        for name, values in logits.items()
    }


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of images whose class is among the k likeliest.

    Args:
        logits: [N, L].
        labels: [N].
        k: With k ≥ L every class is among them.
    """
    best = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return float(np.mean(np.any(best == labels[:, None], axis=1)))


def describe(
    logits: np.ndarray, labels: np.ndarray, *, bins: int = 15
) -> dict[str, object]:
    """Everything `evaluate` reports of one network.

    Args:
        logits: [N, L].
        labels: [N], each in [0, L).
        bins: Of equal width, for the calibration error.

    Returns:
        `top1`, `top5`; `per_class`: accuracy of each class, None for one
        without images; `confusion`: counts [true class][predicted class];
        `calibration_error`: Σ over bins of |accuracy - mean confidence|
        weighted by the bin's share (expected calibration error).
    """
    from sklearn import metrics  # slow to import, needed here only

    classes = logits.shape[1]
    predicted = logits.argmax(axis=1)
    confusion = metrics.confusion_matrix(
        labels, predicted, labels=np.arange(classes)
    )
    totals = confusion.sum(axis=1)
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, (predicted == labels) - confidence, bins)
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
