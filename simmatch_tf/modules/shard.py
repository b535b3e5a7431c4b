"""A matrix whose rows are distributed over the replicas."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica


class Shard(lazy.Module):
    """The rows of one replica; a checkpoint holds the whole matrix.

    In a checkpoint a sharded matrix looks like a variable of the same name, so
    either can be restored from what the other saved.

    Attributes:
        rows: Number of rows of the whole matrix.
        replicas: Number of replicas.
        size: Number of rows on each replica; the last replicas may use fewer.
        local: This replica's rows, and a spare row that takes writes to rows
            of other replicas and is never read, [size + 1, D].
        whole: The whole matrix [rows, D] while a checkpoint is written or was
            read, else [0, D]; see `gather` and `spread`.
    """

    def __init__(
        self, rows: int, dim: int, name: str, dtype: tf.DType | str
    ) -> None:
        """Makes a matrix of zeros.

        Args:
            rows: Number of rows of the whole matrix, at least 1.
            dim: Number of columns D.
            name: Name of the variable.
            dtype: Type of the variable.
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
        """Returns the index of this replica's first row, an int32 scalar."""
        return replica.number() * self.size

    def values(self) -> tf.Tensor:
        """Returns this replica's rows [size, D]."""
        return self.local[: self.size]

    def used(self) -> tf.Tensor | None:
        """Returns which local rows are in use, bool [size]; None for all."""
        if self.size * self.replicas == self.rows:
            return None
        return self.start() + tf.range(self.size) < self.rows

    def gather(self) -> tf.Tensor:
        """Returns the whole matrix [rows, D].

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
        """Distributes the whole matrix over the replicas.

        Args:
            whole: [rows, D].
        """
        rest = self.size * self.replicas + 1 - self.rows
        whole = tf.pad(whole, [[0, rest], [0, 0]])
        self.local.assign(tf.slice(whole, [self.start(), 0], self.local.shape))

    def place(self, rows: tf.Tensor) -> tf.Tensor:
        """Returns the local indices of rows of the matrix.

        Args:
            rows: Indices in the whole matrix [B], integers in [0, `rows`).

        Returns:
            int32 [B] in [0, `size`); `size` for rows of other replicas.
        """
        place = tf.cast(rows, tf.int32) - self.start()
        here = (place >= 0) & (place < self.size)
        return tf.where(here, place, self.size)

    def write(self, rows: tf.Tensor, values: tf.Tensor) -> None:
        """Writes those of the given rows that are on this replica.

        Args:
            rows: Indices in the whole matrix [B].
            values: Their new values [B, D]; equal where a row occurs twice.
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
