"""Cross-replica operations. No other module calls `get_replica_context`.

Inside `strategy.run` they work on all replicas. Elsewhere, and with one
replica, they return their argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simmatch_tf.lazy import tf


def count() -> int:
    """Returns the number of replicas."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def number() -> tf.Tensor:
    """Returns the index of this replica, an int32 scalar."""
    if _alone():
        return tf.constant(0)
    context = tf.distribute.get_replica_context()
    return tf.cast(context.replica_id_in_sync_group, tf.int32)


def together() -> bool:
    """Returns whether the caller is one of several replicas."""
    return not _alone()


def _alone() -> bool:
    return count() == 1 or tf.distribute.in_cross_replica_context()


def mean(x: tf.Tensor) -> tf.Tensor:
    """Returns the mean of `x` over the replicas."""
    if _alone():
        return x
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, x)


def sum(x: tf.Tensor) -> tf.Tensor:
    """Returns the sum of `x` over the replicas."""
    if _alone():
        return x
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def largest(x: tf.Tensor) -> tf.Tensor:
    """Returns the elementwise maximum of `x` over the replicas."""
    if _alone():
        return x
    return tf.reduce_max(all_gather(x[None]), axis=0)


def all_gather(x: tf.Tensor) -> tf.Tensor:
    """Concatenates `x` [B / replicas, ...] over the replicas, in order.

    A gradient is that of the sum of what all replicas make of the result.
    """
    if _alone():
        return x
    context = tf.distribute.get_replica_context()
    rows = None if x.shape[0] is None else x.shape[0] * count()

    @tf.custom_gradient
    def gather(x: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        joined = context.all_gather(x, axis=0)
        joined = tf.ensure_shape(joined, [rows, *x.shape[1:]])
        # TensorFlow's own has shapes that XLA does not know.
        return joined, lambda upstream: share(sum(upstream))

    # An iterator's own tensors cannot be gathered, their copies can.
    return gather(tf.identity(x))


def share(x: tf.Tensor) -> tf.Tensor:
    """Returns this replica's rows [B / replicas, ...] of `x` [B, ...].

    It undoes `all_gather`. B must be known and divisible by the replicas.
    """
    if _alone():
        return x
    rows = x.shape[0] // count()
    begin = [number() * rows] + [0] * (x.shape.rank - 1)
    return tf.slice(x, begin, [rows, *x.shape[1:]])


def shuffle(
    x: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Shuffles the rows of `x` over the replicas.

    Args:
        x: [B / replicas, ...].
        seed: int [2], the same on each replica. Equal seeds and B give the
            same permutation.

    Returns:
        This replica's rows of the shuffled batch, [B / replicas, ...]; and a
        function that undoes the shuffle for values in that order.
    """
    if _alone():
        return x, tf.identity  # the order of a batch changes nothing
    here = x.shape[0]
    start = number() * here
    draws = tf.random.stateless_uniform([here * count()], seed)
    order = tf.argsort(draws)
    home = tf.argsort(order)

    def take(rows: tf.Tensor, order: tf.Tensor) -> tf.Tensor:
        places = tf.slice(order, [start], [here])
        # Collectives support no bytes.
        kind = tf.float16 if rows.dtype == tf.uint8 else rows.dtype
        taken = tf.gather(all_gather(tf.cast(rows, kind)), places)
        return tf.ensure_shape(tf.cast(taken, rows.dtype), rows.shape)

    return take(x, order), lambda y: take(y, home)


def write_rows(table: tf.Variable, indices: tf.Tensor, rows: tf.Tensor) -> None:
    """Writes this replica's rows, and those of the others, into a table.

    It is for state of each image. A batch may hold an image twice; then the
    first of its rows in the whole batch is written, on each replica.

    Args:
        table: A `variable` [N, ...]; each replica gets the same values.
        indices: Rows of the table [B / replicas], int32 or int64 in [0, N).
        rows: Their values [B / replicas, ...]; cast to the type of the table.

    Raises:
        ValueError: The shapes do not fit.
    """
    indices = tf.convert_to_tensor(indices)
    rows = tf.cast(rows, table.dtype)
    if rows.shape != indices.shape + table.shape[1:]:
        raise ValueError(
            f"rows has shape {rows.shape}: must be "
            f"{indices.shape + table.shape[1:]}, one row for each index"
        )
    indices, rows = all_gather(indices), all_gather(rows)  # [B], [B, ...]
    same = indices[:, None] == indices[None, :]  # [B, B]
    # Equal rows, so that it does not matter which is written last.
    rows = tf.gather(rows, tf.argmax(same, axis=1))
    table.assign(tf.tensor_scatter_nd_update(table, indices[:, None], rows))


def variable(
    value: Any, name: str, dtype: tf.DType | str, *, own: bool = False
) -> tf.Variable:
    """Makes a variable for state of a module.

    Args:
        value: Initial value.
        name: Name of the variable.
        dtype: Type of the variable.
        own: False: every replica assigns the same value to it. True: each
            replica has a value of its own.
    """
    kinds = tf.VariableSynchronization
    return tf.Variable(
        value,
        trainable=False,
        name=name,
        dtype=dtype,
        synchronization=kinds.ON_READ if own else kinds.AUTO,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
