"""How well each class is learned: the thresholds of FlexMatch."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import tensors, thresholds


class LearningStatus(lazy.Module):
    """Remembers the last confident prediction of every unlabeled image.

    Attributes:
        labels: û, its class, int32 [N]; -1 of an image that never had one.
        counts: σ, number of images with each class in û, int32 [L].
        threshold: τ, the confidence that a prediction needs to be remembered,
            and the threshold of the class learned best.
        warmup: Whether images that never had one keep all thresholds low.

    References:
        Zhang et al., "FlexMatch: Boosting Semi-Supervised Learning with
        Curriculum Pseudo Labeling", NeurIPS 2021,
        https://arxiv.org/abs/2110.08263. Code:
        https://github.com/TorchSSL/TorchSSL
    """

    def __init__(
        self,
        num_classes: int,
        images: int,
        threshold: float,
        *,
        warmup: bool = True,
        dtype: str = "float32",
    ) -> None:
        """Starts with no prediction, so that all thresholds are 0.

        Args:
            num_classes: Number of classes L, at least 1.
            images: Size N of the unlabeled set, at least 1.
            threshold: τ.
            warmup: See `ops.thresholds.flexible`.
            dtype: "float32" or "float64", the type of the thresholds.

        Raises:
            ValueError: There is no unlabeled image.
        """
        super().__init__(name="learning_status")
        if images < 1:
            raise ValueError(f"images={images}: must be at least 1")
        self.labels = replica.variable(
            tf.fill([images], -1), "labels", tf.int32
        )
        self.counts = replica.variable(
            tf.zeros([num_classes], tf.int32), "counts", tf.int32
        )
        self.threshold, self.warmup, self.dtype = threshold, warmup, dtype

    def unused(self) -> tf.Tensor:
        """Returns the number of images without a prediction, an int32."""
        return self.labels.shape[0] - tf.reduce_sum(self.counts)

    def thresholds(self) -> tf.Tensor:
        """Returns τ_c of each class, [L] in [0, τ]."""
        return thresholds.flexible(
            tf.cast(self.counts, self.dtype),
            tf.cast(self.unused(), self.dtype),
            self.threshold,
            self.warmup,
        )

    def record(self, index: tf.Tensor, p: tf.Tensor) -> None:
        """Remembers the classes of confident predictions.

        û_i ← argmax p_i where max p_i ≥ τ; σ follows. Where an image is twice
        in the whole batch, the first that is confident counts.

        Args:
            index: Places in the unlabeled set of this replica's images [U],
                int32 or int64 in [0, N).
            p: Their class probabilities [U, L].

        Raises:
            ValueError: A shape does not fit.
        """
        index, p = tf.convert_to_tensor(index), tf.convert_to_tensor(p)
        classes = self.counts.shape[0]
        tensors.check(index=(index, "U"), p=(p, ("U", classes)))
        sure = tf.reduce_max(p, axis=1) >= self.threshold
        rows = tf.stack(
            [tf.cast(x, tf.int64) for x in (index, sure, tf.argmax(p, axis=1))],
            axis=1,
        )
        # Differs: in the authors' code each process has a û of its own.
        rows = replica.all_gather(rows)  # [U, 3], of the whole batch from here
        index, sure, label = tf.unstack(rows, axis=1)  # [U] each
        same = tf.cast(index[:, None] == index[None, :], tf.int64)  # [U, U]
        sure_same = same * sure  # [U, U]
        old = tf.gather(self.labels, index)
        new = tf.where(
            tf.reduce_any(sure_same > 0, axis=1),
            tf.gather(tf.cast(label, old.dtype), tf.argmax(sure_same, axis=1)),
            old,
        )
        # Each image once. A label of -1 is in no class.
        first = tf.argmax(same, axis=1) == tf.range(
            index.shape[0], dtype=tf.int64
        )
        change = tf.one_hot(new, classes, dtype=tf.int32) - tf.one_hot(
            old, classes, dtype=tf.int32
        )  # [U, L]
        change *= tf.cast(first, tf.int32)[:, None]
        self.counts.assign_add(tf.reduce_sum(change, axis=0))
        # Equal labels for equal places: it does not matter which comes last.
        self.labels.assign(
            tf.tensor_scatter_nd_update(self.labels, index[:, None], new)
        )
