"""The memory bank: an embedding and a class of each labeled image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simmatch_tf import lazy
from simmatch_tf.lazy import np, tf
from simmatch_tf.modules import replica, shard
from simmatch_tf.ops import matching, propagation, tensors


class MemoryBuffer(lazy.Module):
    """Q_f and Q_l of SimMatch; a slot belongs to one labeled image.

    Attributes:
        features: Q_f [K, D]; rows that were never written are 0. A variable,
            or, where it is sharded, a tensor gathered from all replicas.
        shard: The rows of Q_f on this replica; None where it is not sharded.
        labels: Q_l, int32 [K]; known from the data, so correct from the start.
        written: Number of steps that were done when a slot was last written,
            int64 [K]; -1 for never.
        momentum: Weight of a slot's old embedding.
        dim: Width D of the embeddings.
        dtype: Type of the features.
    """

    def __init__(
        self,
        labels: Sequence[int],
        dim: int,
        momentum: float = 0.0,
        dtype: str = "float32",
        sharded: bool = False,
    ) -> None:
        """Makes an empty memory bank.

        Args:
            labels: Class of each slot [K], K at least 1.
            dim: Width D of the embeddings.
            momentum: Weight of a slot's old embedding, in [0, 1): 0 for the
                student–teacher form, above 0 for the temporal ensemble.
            dtype: "float32" or "float64".
            sharded: Distribute Q_f over the replicas, if there are several.
        """
        super().__init__(name="memory")
        labels = np.asarray(labels)
        self.momentum = float(momentum)
        self.dim, self.dtype = dim, dtype
        self.shard: shard.Shard | None = None
        if sharded and replica.count() > 1:
            rows = shard.Shard(len(labels), dim, "features", dtype)
            self.shard = self._no_dependency(rows)
        else:
            rows = replica.variable(
                tf.zeros([len(labels), dim], dtype), "features", dtype
            )
            self._features = self._no_dependency(rows)
        # Either way a checkpoint has it as `features`, all of it.
        self._track_trackable(rows, "features")
        self._classes = np.unique(labels)
        self.labels = replica.variable(
            labels.astype(np.int32), "labels", tf.int32
        )
        self.written = replica.variable(
            tf.fill([len(labels)], tf.constant(-1, tf.int64)),
            "written",
            tf.int64,
        )

    @property
    def features(self) -> tf.Variable | tf.Tensor:
        """Q_f [K, D]."""
        return self.shard.gather() if self.shard else self._features

    @property
    def filled(self) -> tf.Tensor:
        """Whether each slot was written, bool [K]."""
        return self.written >= 0

    def full(self) -> tf.Tensor:
        """Returns whether every slot was written, a bool scalar."""
        return tf.reduce_all(self.filled)

    def match(
        self,
        z_w: tf.Tensor,
        z_s: tf.Tensor,
        p_w: tf.Tensor,
        *,
        temperature: float,
        alpha: float,
        scale: bool = True,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Matches this replica's images with all slots; see `matching.match`.

        Slots that are not written yet count as rows of 0, so use the result
        once the memory bank is full only.
        """
        present = np.isin(np.arange(p_w.shape[1]), self._classes)  # [L]
        options = {
            "num_classes": p_w.shape[1],
            "temperature": temperature,
            "scale": scale,
            "present": tf.constant(present),
        }
        if self.shard:
            sums = self._sums(self.shard, z_w, z_s, p_w, options)
            return matching.combine(
                sums, z_s, p_w, temperature=temperature, alpha=alpha
            )
        return matching.match(
            z_w,
            z_s,
            p_w,
            self.features,
            self.labels,
            alpha=alpha,
            **options,
        )

    def _sums(
        self,
        rows: shard.Shard,
        z_w: tf.Tensor,
        z_s: tf.Tensor,
        p_w: tf.Tensor,
        options: dict[str, Any],
    ) -> matching.Partials:
        """Returns the sums over all slots, from those over each replica's own.

        Each replica matches the images of the whole batch with its own slots;
        after the sums over the replicas it keeps those of its own images.
        """
        rest = rows.size * rows.replicas - rows.rows
        labels = tf.slice(
            tf.pad(self.labels, [[0, rest]]), [rows.start()], [rows.size]
        )
        sums = matching.partials(
            *(replica.all_gather(tf.stop_gradient(x)) for x in (z_w, z_s, p_w)),
            rows.values(),
            labels,
            valid=rows.used(),
            **options,
        )
        if options["temperature"] < matching.FIXED_SHIFT_FROM:
            sums = matching.rebase(sums, replica.largest(sums.shifts))
        *added, shifts = sums
        sums = matching.Partials(*map(replica.sum, added), shifts)
        count = z_w.shape[0]
        return matching.images(sums, replica.number() * count, count)

    def nearest(self, z: tf.Tensor, count: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Finds the slots that are most similar to this replica's images.

        Slots that are not written yet count as rows of 0, so use the result
        once the memory bank is full only.

        Args:
            z: Embeddings [N, D], unit rows; no gradient goes to them.
            count: How many to find, at least 1; at most all K are found.

        Returns:
            Embeddings [N, n, D] and classes int32 [N, n] of the n =
            min(count, K) slots, the most similar first.
        """
        count = min(count, self.labels.shape[0])
        z, rows = tf.stop_gradient(z), self.shard
        if not rows:
            _, places = propagation.nearest(z, self.features, count)
            embeddings = tf.gather(self.features, places)
            return embeddings, tf.gather(self.labels, places)
        # Each replica proposes some of its own slots to the images of all.
        cosines, places = propagation.nearest(
            replica.all_gather(z), rows.values(), count, rows.used()
        )
        places += rows.start()
        cosines, places = (  # [N, replicas · n], global
            tf.transpose(replica.all_gather(tf.transpose(x)))
            for x in (cosines, places)
        )
        _, best = tf.math.top_k(cosines, count)
        places = tf.gather(places, best, batch_dims=1)  # [N, n]
        # The embedding of a slot is on one replica; the others add 0.
        here = rows.place(places)
        own = tf.gather(rows.values(), tf.minimum(here, rows.size - 1))
        own = tf.where((here < rows.size)[..., None], own, 0.0)
        embeddings, places = map(replica.share, (replica.sum(own), places))
        return embeddings, tf.gather(self.labels, places)

    def update(
        self, indices: tf.Tensor, z: tf.Tensor, step: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Writes embeddings into their slots.

        Q_f[i] ← norm(m Q_f[i] + (1 - m) norm(z)), and norm(z) at a slot's
        first write. If a slot occurs more than once in the global batch, the
        mean of its unit embeddings is written once.

        Args:
            indices: Slots of this replica's images [B], int32 or int64 in
                [0, K).
            z: Their embeddings [B, D], of any length.
            step: Number of steps done.

        Returns:
            Mean length of m Q_f[i] + (1 - m) norm(z) over the batch, a scalar:
            1 if embeddings do not change, lower the more they change.

        Raises:
            ValueError: A shape does not fit.
        """
        indices = tf.convert_to_tensor(indices)
        z = tf.cast(tf.convert_to_tensor(z), self.dtype)
        tensors.check(indices=(indices, "B"), z=(z, ("B", self.dim)))
        indices = replica.all_gather(indices)  # [B], global from here
        z = replica.all_gather(tf.math.l2_normalize(z, axis=1))  # [B, D]
        same = indices[:, None] == indices[None, :]  # [B, B]
        z = tf.math.l2_normalize(tf.matmul(tf.cast(same, z.dtype), z), 1)
        # All duplicates get the row of the first, equal to the last bit, so
        # that it does not matter which of them is written last.
        z = tf.gather(z, tf.argmax(same, axis=1))
        old = self._rows(indices)  # [B, D]
        m = tf.cast(tf.gather(self.filled, indices), z.dtype) * self.momentum
        m = m[:, None]  # [B, 1]
        mixed = m * old + (1.0 - m) * z  # [B, D]
        new = tf.math.l2_normalize(mixed, axis=1)
        place = indices[:, None]  # [B, 1]
        if self.shard:
            self.shard.write(indices, new)
        else:
            self.features.assign(
                tf.tensor_scatter_nd_update(self.features, place, new)
            )
        now = tf.fill(tf.shape(indices), tf.cast(step, tf.int64))
        self.written.assign(
            tf.tensor_scatter_nd_update(self.written, place, now)
        )
        return tf.reduce_mean(tf.norm(mixed, axis=1))

    def _rows(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns Q_f at slots [B]; any row for slots of other replicas."""
        if self.shard:
            return tf.gather(self.shard.local, self.shard.place(indices))
        return tf.gather(self.features, indices)
