"""Distribution alignment: the window of the last batches."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import alignment, shapes


class DistributionAlignment(lazy.Module):
    """Aligns predictions with the mean of the last `window` batches.

    Attributes:
        window: [window, L], mean prediction of each batch.
        written: int64, batches recorded so far.
    """

    def __init__(
        self, num_classes: int, window: int, dtype: str = "float32"
    ) -> None:
        """Starts with an empty window.

        Args:
            num_classes: L, at least 1.
            window: Batches to average over, at least 1.
            dtype: float32 or float64.

        Raises:
            ValueError: One of them is below 1.
        """
        super().__init__(name="distribution_alignment")
        if num_classes < 1 or window < 1:
            raise ValueError(
                f"num_classes={num_classes}, window={window}: both must be at "
                "least 1"
            )
        self.window = replica.variable(
            tf.zeros([window, num_classes], dtype), "window", dtype
        )
        self.written = replica.variable(0, "written", tf.int64)

    def record(self, p: tf.Tensor) -> None:
        """Writes the mean of `p` [N, L] over the oldest row of the window."""
        size = self.window.shape[0]
        row = replica.mean(tf.reduce_mean(p, axis=0))  # [L]
        place = tf.range(size, dtype=tf.int64) == self.written % size
        self.window.assign(tf.where(place[:, None], row, self.window))
        self.written.assign_add(1)

    def mean(self) -> tf.Tensor:
        """Mean prediction [L] of the batches recorded, empty rows left out."""
        rows = tf.minimum(self.written, self.window.shape[0])
        return tf.math.divide_no_nan(
            tf.reduce_sum(self.window, axis=0), tf.cast(rows, self.window.dtype)
        )

    def __call__(self, p: tf.Tensor) -> tf.Tensor:
        """Records a batch, then aligns it by the mean that includes it.

        Args:
            p: Class probabilities [N, L] of this replica's share of the batch.

        Returns:
            The aligned probabilities [N, L], rows sum to 1.

        Raises:
            ValueError: `p` has not the shape [N, L].
        """
        p = tf.cast(tf.convert_to_tensor(p), self.window.dtype)
        shapes.check(p=(p, ("N", self.window.shape[1])))
        self.record(p)
        return alignment.align(p, self.mean())
