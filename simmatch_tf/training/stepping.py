"""The compiled training step, one at a time or several in a row."""

from collections.abc import Callable, Iterator

import tensorflow as tf

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.commandline import InputError
from simmatch_tf.data import pipeline as pipeline_lib
from simmatch_tf.modules import replica


class Stepper:
    """Takes steps, on all replicas.

    Attributes:
        stop: Whether any worker asked to stop: a tensor of the last call.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        algorithm: algorithm_lib.Algorithm,
        batches: Iterator[pipeline_lib.Batch],
        *,
        finish: Callable[[pipeline_lib.Batch], pipeline_lib.Batch] | None,
        jit_compile: bool,
        workers: int,
    ) -> None:
        """Compiles nothing yet; the first call does.

        Args:
            strategy: Where it trains.
            algorithm: What takes a step.
            batches: See `inputs.make_batches`.
            finish: What is done to a batch on the device first.
            jit_compile: Compile it with XLA.
            workers: Processes that may be asked to stop.
        """
        self._batches = batches
        self.stop: tf.Tensor = tf.constant(False)

        def replica_step(batch, asked):
            if finish:
                batch = finish(batch)
            if workers > 1:
                asked = replica.mean(tf.cast(asked, tf.float32)) > 0
            return algorithm.guarded_step(batch), asked

        if jit_compile:
            replica_step = tf.function(
                replica_step, autograph=False, jit_compile=True
            )

        # AutoGraph would read a thousand lines for seconds and change none.
        @tf.function(autograph=False)
        def step(batch, asked):
            metrics, stop = strategy.run(replica_step, args=(batch, asked))
            metrics = {
                name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, None)
                for name, value in metrics.items()
            }
            return metrics, strategy.experimental_local_results(stop)[0]

        @tf.function(autograph=False)
        def steps(batches, count, asked):
            return tf.while_loop(
                lambda done, *_: done < count,
                lambda done, *_: (done + 1, *step(next(batches), asked)),
                (1, *step(next(batches), asked)),
            )[1:]

        self._step, self._steps = step, steps

    def __call__(
        self, first: int, count: int, asked: bool
    ) -> dict[str, tf.Tensor]:
        """Takes `count` steps.

        Args:
            first: Number of the first, for messages.
            count: At least 1.
            asked: Whether this process was asked to stop.

        Returns:
            The metrics of the last.

        Raises:
            InputError: An image cannot be read.
        """
        asked = tf.constant(asked)
        if count == 1:
            batch = pipeline_lib.read_next(self._batches, f"at step {first}")
            metrics, self.stop = self._step(batch, asked)
            return metrics
        try:
            metrics, self.stop = self._steps(
                self._batches, tf.constant(count), asked
            )
        except tf.errors.OpError as error:
            if "IteratorGetNext" not in error.message:
                raise
            raise InputError(
                pipeline_lib.unreadable(f"from step {first} on", error)
            ) from None
        return metrics
