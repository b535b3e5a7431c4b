"""What is divided over the replicas: brought together, and divided again."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from simmatch_tf.algorithms import algorithm as algorithm_lib


@contextlib.contextmanager
def gathered(
    strategy: tf.distribute.Strategy, algorithm: algorithm_lib.Algorithm
) -> Iterator[None]:
    """Has `Shard.whole` at hand while a checkpoint is written.

    All workers must come here, whoever writes.
    """
    shards = algorithm.shards()
    if not shards:
        yield
        return

    @tf.function(autograph=False)
    def gather():
        return strategy.run(lambda: [each.gather() for each in shards])

    empty = [each.whole for each in shards]
    for each, whole in zip(shards, gather(), strict=True):
        each.whole = strategy.experimental_local_results(whole)[0]
    try:
        yield
    finally:
        for each, nothing in zip(shards, empty, strict=True):
            each.whole = nothing


def spread(
    strategy: tf.distribute.Strategy, algorithm: algorithm_lib.Algorithm
) -> None:
    """Gives each replica its rows, where a checkpoint with them was read."""
    for each in algorithm.shards():
        if not each.whole.shape[0]:
            continue

        @tf.function(autograph=False)
        def divide(whole, each=each):
            strategy.run(each.spread, args=(whole,))

        divide(each.whole)
        each.whole = each.whole[:0]
