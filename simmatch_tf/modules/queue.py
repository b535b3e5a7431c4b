"""A memory of the last images: first in, first out."""

from __future__ import annotations

from typing import NamedTuple

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica, shard
from simmatch_tf.ops import propagation, tensors


class Similar(NamedTuple):
    """What of a queue is similar to images: q = softmax_j(z·Q_j / t).

    Attributes:
        log_total: log Σ_j exp(z·Q_j / t) [B].
        embeddings: Their mean Σ_j q_j Q_j [B, D].
        probabilities: Their mean Σ_j q_j P_j [B, L].
    """

    log_total: tf.Tensor
    embeddings: tf.Tensor
    probabilities: tf.Tensor


class Queue(lazy.Module):
    """Embeddings and class probabilities of the last N images.

    Attributes:
        embeddings: Q [N, D]; rows that were never written are 0. A variable,
            or, where it is sharded, a tensor gathered from all replicas.
        probabilities: P [N, L], likewise.
        shards: The rows of Q and of P on this replica; None where they are not
            sharded.
        written: Number of images written so far, int64. The next one goes to
            row `written` modulo N.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        num_classes: int,
        dtype: str = "float32",
        sharded: bool = False,
    ) -> None:
        """Makes an empty queue.

        Args:
            size: Number N of images, at least 1.
            dim: Width D of the embeddings.
            num_classes: Number of classes L.
            dtype: "float32" or "float64".
            sharded: Distribute the rows over the replicas, if there are
                several.
        """
        super().__init__(name="queue")
        self.size, self.dim, self.num_classes = size, dim, num_classes
        self.dtype = dtype
        widths = {"embeddings": dim, "probabilities": num_classes}
        divided = sharded and replica.count() > 1
        rows = tuple(
            shard.Shard(size, width, name, dtype)
            if divided
            else replica.variable(tf.zeros([size, width], dtype), name, dtype)
            for name, width in widths.items()
        )
        self._rows = self._no_dependency(rows)
        self.shards = self._no_dependency(rows if divided else None)
        # Either way a checkpoint has all of each under its own name.
        for name, each in zip(widths, rows, strict=True):
            self._track_trackable(each, name)
        self.written = replica.variable(0, "written", tf.int64)

    @property
    def embeddings(self) -> tf.Variable | tf.Tensor:
        """Q [N, D]."""
        return self.shards[0].gather() if self.shards else self._rows[0]

    @property
    def probabilities(self) -> tf.Variable | tf.Tensor:
        """P [N, L]."""
        return self.shards[1].gather() if self.shards else self._rows[1]

    @property
    def filled(self) -> tf.Tensor:
        """Whether each row was written, bool [N]."""
        return tf.range(self.size, dtype=tf.int64) < self.written

    def full(self) -> tf.Tensor:
        """Returns whether every row was written, a bool scalar."""
        return self.written >= self.size

    def similar(self, z: tf.Tensor, temperature: float) -> Similar:
        """Compares this replica's images with all rows.

        Rows that are not written yet count as rows of 0, so use the result
        once the queue is full only.

        Args:
            z: Embeddings [B, D], unit rows. They alone get a gradient.
            temperature: t > 0.

        Raises:
            ValueError: A shape does not fit, or `temperature` is not above 0.
        """
        rows, valid = self._rows, None
        if self.shards:
            # Each replica compares the images of all with its own rows.
            z = replica.all_gather(z)
            rows = tuple(each.values() for each in self.shards)
            valid = self.shards[0].used()
        logits, shift = propagation.similarity_logits(
            z, rows[0], temperature, valid
        )  # [B, N], [B, 1]
        if self.shards:
            own = shift
            if valid is not None:  # a replica may have no rows at all
                own = tf.where(tf.reduce_any(valid), shift, shift.dtype.min)
            most = tf.stop_gradient(replica.largest(own))
            logits, shift = logits + (shift - most), most
        weights = tf.exp(logits)  # [B, N]
        sums = [
            tf.reduce_sum(weights, axis=1, keepdims=True),  # [B, 1]
            *(tf.matmul(weights, tf.cast(x, weights.dtype)) for x in rows),
        ]
        if self.shards:
            sums = [replica.share(replica.sum(x)) for x in sums]
            shift = replica.share(shift)
        total, *means = sums
        log_total = tf.math.log(total) + shift
        return Similar(log_total[:, 0], *(x / total for x in means))

    def write(self, z: tf.Tensor, p: tf.Tensor) -> None:
        """Replaces the oldest rows by those of all replicas, in order.

        Of more than N images, the last N are kept.

        Args:
            z: This replica's embeddings [B, D].
            p: Their class probabilities [B, L].

        Raises:
            ValueError: A shape does not fit.
        """
        size = self.size
        z, p = (tf.cast(tf.convert_to_tensor(x), self.dtype) for x in (z, p))
        tensors.check(z=(z, ("B", self.dim)), p=(p, ("B", self.num_classes)))
        z, p = replica.all_gather(z), replica.all_gather(p)  # [B], global
        count = z.shape[0]
        places = (self.written + tf.range(count, dtype=tf.int64)) % size
        places = places[-size:]  # [B], each once
        for rows, new in zip(self._rows, (z[-size:], p[-size:]), strict=True):
            if self.shards:
                rows.write(places, new)
            else:
                place = places[:, None]
                rows.assign(tf.tensor_scatter_nd_update(rows, place, new))
        self.written.assign_add(count)
