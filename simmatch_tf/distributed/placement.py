"""What is divided over the replicas: brought together, and divided again."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import tensorflow as tf

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.modules import shard


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

    for each in shards:
        whole = _gather(strategy, each)()
        each.whole = strategy.experimental_local_results(whole)[0]
    try:
        yield
    finally:
        for each in shards:
            each.whole = each.whole[:0]


# Traced once a run, not at each checkpoint.
@functools.lru_cache(maxsize=2)
def _gather(
    strategy: tf.distribute.Strategy, rows: shard.Shard
) -> Callable[[], tf.Tensor]:
    return tf.function(lambda: strategy.run(rows.gather), autograph=False)


def spread(
    strategy: tf.distribute.Strategy, algorithm: algorithm_lib.Algorithm
) -> None:
    """Gives each replica its rows of what a checkpoint had.

    Raises:
        InputError: It had none.
    """
    for each in algorithm.shards():
        if each.whole.shape[:1] != [each.rows]:
            raise InputError(
                f"the checkpoint's {each.name} has shape {each.whole.shape}, "
                f"but {each.rows} rows are wanted"
            )

        @tf.function(autograph=False)
        def divide(whole, each=each):
            strategy.run(each.spread, args=(whole,))

        divide(each.whole)
        each.whole = each.whole[:0]
