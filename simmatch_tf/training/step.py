"""The compiled training step, one at a time or several in a row."""

import time
from collections.abc import Callable, Iterator

import tensorflow as tf

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.data import pipeline as pipeline_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.modules import replica


class Stepper:
    """Takes steps, on all replicas.

    Attributes:
        stop: Whether any worker asked to stop: a tensor of the last call.
        seen: What was seen of the last step, if it was watched, or None.
        waited: Seconds spent waiting for batches, but for those of several
            steps in a row: there it is not known.
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
        watches: bool = False,
    ) -> None:
        """Compiles nothing yet; the first call does.

        Args:
            strategy: Where it trains.
            algorithm: What takes a step.
            batches: See `inputs.make_batches`.
            finish: What is done to a batch on the device first.
            jit_compile: Compile it with XLA.
            workers: Processes that may be asked to stop.
            watches: Whether any step will be watched.
        """
        self._batches, self._watches = batches, watches
        self._layout = algorithm.layout
        self.stop: tf.Tensor = tf.constant(False)
        self.seen: diagnostics.Seen | None = None
        self.waited = 0.0

        def replica_step(batch, asked, watch):
            if finish:
                batch = finish(batch)
            if watches:
                batch = {**batch, diagnostics.WATCH: watch}
            if workers > 1:
                asked = replica.mean(tf.cast(asked, tf.float32)) > 0
            return algorithm.guarded_step(batch), asked

        if jit_compile:
            replica_step = tf.function(
                replica_step, autograph=False, jit_compile=True
            )
        self._step, self._steps = _compiled(strategy, replica_step)
        self._mean = _mean_of_workers(strategy) if workers > 1 else None

    def __call__(
        self, first: int, count: int, asked: bool, watch: bool = False
    ) -> dict[str, tf.Tensor]:
        """Takes `count` steps.

        Args:
            first: Number of the first, for messages.
            count: At least 1.
            asked: Whether this process was asked to stop.
            watch: Whether the last of them is watched.

        Returns:
            The metrics of the last.

        Raises:
            InputError: An image cannot be read.
        """
        watch &= self._watches
        asked, watched = tf.constant(asked), tf.constant(watch)
        if count == 1:
            began = time.monotonic()
            batch = pipeline_lib.read_next(self._batches, f"at step {first}")
            self.waited += time.monotonic() - began
            metrics, seen, self.stop = self._step(batch, asked, watched)
            self._keep(seen if watch else None)
            return metrics
        try:
            metrics, seen, self.stop = self._steps(
                self._batches, tf.constant(count), asked, watched
            )
        except tf.errors.OpError as error:
            if "IteratorGetNext" not in error.message:
                raise
            raise InputError(
                pipeline_lib.unreadable(f"from step {first} on", error)
            ) from None
        self._keep(seen if watch else None)
        return metrics

    def compiles(self, count: int) -> bool:
        """Whether the next call with `count` steps compiles them first."""
        function = self._step if count == 1 else self._steps
        return not function.experimental_get_tracing_count()

    def _keep(self, seen: diagnostics.Packed | tuple[()] | None) -> None:
        if seen and self._mean:
            seen = seen._replace(means=self._mean(seen.means))
        self.seen = self._layout.unpack(seen) if seen else None


def _mean_of_workers(
    strategy: tf.distribute.Strategy,
) -> Callable[[tf.Tensor], tf.Tensor]:
    """From a value on each worker to the mean of all."""

    # An argument itself cannot be reduced, its copy can.
    def reduce(value):
        return replica.mean(tf.identity(value))

    @tf.function(autograph=False)
    def mean(value):
        means = strategy.run(reduce, args=(value,))
        return strategy.experimental_local_results(means)[0]

    return mean


def _compiled(
    strategy: tf.distribute.Strategy, replica_step: Callable
) -> tuple[Callable, Callable]:
    """One step on all replicas; and several, of which the last is watched."""

    # AutoGraph would read a thousand lines for seconds and change none.
    def mean(value):
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, value, None)

    def first(value):
        return strategy.experimental_local_results(value)[0]

    def here(value):
        values = strategy.experimental_local_results(value)
        if len(values) == 1:
            return values[0]
        return tf.add_n(values) / len(values)

    @tf.function(autograph=False)
    def step(batch, asked, watch):
        metrics, stop = strategy.run(replica_step, args=(batch, asked, watch))
        # Not None where nothing is watched: a loop cannot carry it.
        seen = metrics.pop(diagnostics.SEEN, ())
        if seen:
            # Those of this worker: others' would cost each step a message,
            # and are asked for after a step that is watched.
            means = here(seen.means)
            seen = tf.nest.map_structure(first, seen)._replace(means=means)
        return {n: mean(v) for n, v in metrics.items()}, seen, first(stop)

    @tf.function(autograph=False)
    def steps(batches, count, asked, watch):
        def one(done):
            last = watch & (done + 1 == count)
            return done + 1, step(next(batches), asked, last)

        return tf.while_loop(
            lambda done, _: done < count,
            lambda done, _: one(done),
            one(0),
        )[1]

    return step, steps
