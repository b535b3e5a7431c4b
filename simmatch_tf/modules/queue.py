"""A memory of the last images: first in, first out."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import tensors


class Queue(lazy.Module):
    """Embeddings and class probabilities of the last N images.

    Attributes:
        embeddings: Q [N, D]; rows that were never written are 0.
        probabilities: P [N, L], likewise.
        written: Number of images written so far, int64. The next one goes to
            row `written` modulo N.
    """

    def __init__(
        self, size: int, dim: int, num_classes: int, dtype: str = "float32"
    ) -> None:
        """Makes an empty queue.

        Args:
            size: Number N of images, at least 1.
            dim: Width D of the embeddings.
            num_classes: Number of classes L.
            dtype: "float32" or "float64".
        """
        super().__init__(name="queue")
        self.embeddings, self.probabilities = (
            replica.variable(tf.zeros([size, width], dtype), name, dtype)
            for name, width in (
                ("embeddings", dim),
                ("probabilities", num_classes),
            )
        )
        self.written = replica.variable(0, "written", tf.int64)

    @property
    def filled(self) -> tf.Tensor:
        """Whether each row was written, bool [N]."""
        size = self.embeddings.shape[0]
        return tf.range(size, dtype=tf.int64) < self.written

    def full(self) -> tf.Tensor:
        """Returns whether every row was written, a bool scalar."""
        return self.written >= self.embeddings.shape[0]

    def write(self, z: tf.Tensor, p: tf.Tensor) -> None:
        """Replaces the oldest rows by those of all replicas, in order.

        Of more than N images, the last N are kept.

        Args:
            z: This replica's embeddings [B, D].
            p: Their class probabilities [B, L].

        Raises:
            ValueError: A shape does not fit.
        """
        size, dim = self.embeddings.shape
        dtype, num_classes = self.embeddings.dtype, self.probabilities.shape[1]
        z, p = (tf.cast(tf.convert_to_tensor(x), dtype) for x in (z, p))
        tensors.check(z=(z, ("B", dim)), p=(p, ("B", num_classes)))
        z, p = replica.all_gather(z), replica.all_gather(p)  # [B], global
        count = z.shape[0]
        places = (self.written + tf.range(count, dtype=tf.int64)) % size
        places = places[-size:, None]  # [B, 1], each once
        for rows, new in ((self.embeddings, z), (self.probabilities, p)):
            new = tf.tensor_scatter_nd_update(rows, places, new[-size:])
            rows.assign(new)
        self.written.assign_add(count)
