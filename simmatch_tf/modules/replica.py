"""What crosses replicas: the only file that talks to the others.

Inside `strategy.run` these see every replica; elsewhere, and with one replica,
they return their argument.
"""

from typing import Any

import tensorflow as tf


def count() -> int:
    """Number of replicas in step."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def _alone() -> bool:
    return count() == 1 or tf.distribute.in_cross_replica_context()


def mean(x: tf.Tensor) -> tf.Tensor:
    """Mean of `x` over the replicas, the same on each."""
    if _alone():
        return x
    context = tf.distribute.get_replica_context()
    return context.all_reduce(tf.distribute.ReduceOp.MEAN, x)


def all_gather(x: tf.Tensor) -> tf.Tensor:
    """Joins `x` [B / replicas, ...] over the replicas, in their order."""
    if _alone():
        return x
    context = tf.distribute.get_replica_context()
    # An iterator's own tensors cannot be gathered, their copies can.
    return context.all_gather(tf.identity(x), axis=0)


def variable(value: Any, name: str, dtype: tf.DType) -> tf.Variable:
    """State that every replica assigns the same value to."""
    return tf.Variable(
        value,
        trainable=False,
        name=name,
        dtype=dtype,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )
