"""A matrix whose rows are divided over the replicas."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica


class Shard(lazy.Module):
    """The rows of one replica; in a checkpoint it is the whole matrix.

    A checkpoint does not tell a sharded matrix from a variable of the same
    name, so either can be restored from what the other saved.

    Attributes:
        rows: Of the whole matrix.
        replicas: How many there are.
        size: Rows of each replica; the last replicas may use fewer.
        local: [size + 1, D], this replica's rows, not those of others, and one
            that nobody reads, for what is written to rows of others.
        whole: [rows, D] while a checkpoint is written or was read, else [0, D];
            see `gather` and `spread`.
    """

    def __init__(
        self, rows: int, dim: int, name: str, dtype: tf.DType | str
    ) -> None:
        """Makes rows of 0.

        Args:
            rows: Of the whole matrix, at least 1.
            dim: D.
            name: Of the variable.
            dtype: Likewise.
        """
        super().__init__(name=name)
        self.rows, self.replicas = rows, replica.count()
        self.size = -(-rows // self.replicas)
        # Not under its own name in a checkpoint, which holds the whole.
        self.local = self._no_dependency(
            replica.variable(
                tf.zeros([self.size + 1, dim], dtype), name, dtype, own=True
            )
        )
        self.whole = tf.zeros([0, dim], dtype)

    def start(self) -> tf.Tensor:
        """Which row of the matrix this replica's first is: an int32 scalar."""
        return replica.number() * self.size

    def values(self) -> tf.Tensor:
        """This replica's rows [size, D]."""
        return self.local[: self.size]

    def used(self) -> tf.Tensor | None:
        """Which of them the matrix has [size]; None: all, on every replica."""
        if self.size * self.replicas == self.rows:
            return None
        return self.start() + tf.range(self.size) < self.rows

    def gather(self) -> tf.Tensor:
        """The whole matrix [rows, D].

        Raises:
            ValueError: Called outside of the replicas.
        """
        if not replica.together():
            raise ValueError(
                f"{self.name} is divided over {self.replicas} replicas: gather "
                "it in strategy.run"
            )
        return replica.all_gather(self.values())[: self.rows]

    def spread(self, whole: tf.Tensor) -> None:
        """Gives each replica its rows of the whole matrix.

        Args:
            whole: [rows, D].
        """
        rest = self.size * self.replicas + 1 - self.rows
        whole = tf.pad(whole, [[0, rest], [0, 0]])
        self.local.assign(tf.slice(whole, [self.start(), 0], self.local.shape))

    def place(self, rows: tf.Tensor) -> tf.Tensor:
        """Where rows of the matrix are here.

        Args:
            rows: [B], integers in [0, `rows`).

        Returns:
            int32 [B] in [0, `size`); `size` for those of others.
        """
        place = tf.cast(rows, tf.int32) - self.start()
        here = (place >= 0) & (place < self.size)
        return tf.where(here, place, self.size)

    def write(self, rows: tf.Tensor, values: tf.Tensor) -> None:
        """Writes those of some rows that are here.

        Args:
            rows: [B], as for `place`.
            values: [B, D]; equal where a row comes twice.
        """
        place = self.place(rows)
        # What lands on the spare row is the same whatever comes last.
        values = tf.where((place < self.size)[:, None], values, 0.0)
        self.local.assign(
            tf.tensor_scatter_nd_update(self.local, place[:, None], values)
        )

    def _serialize_to_tensors(self) -> dict[str, tf.Tensor]:
        return {"VARIABLE_VALUE": self.whole}

    def _restore_from_tensors(self, tensors: dict[str, tf.Tensor]) -> None:
        self.whole = tensors["VARIABLE_VALUE"]
