"""The compiled training step, one at a time or several in a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import diagnostics as diagnostics_lib
from simmatch_tf.data import pipeline as pipeline_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.modules import replica


class Stepper:
    """Takes training steps on all replicas.

    Attributes:
        stop: Whether any worker asked to stop: a tensor of the last call.
        diagnostics: Diagnostics of the last step as NumPy arrays, if it was
            logged and the algorithm has any, else None.
        waited: Seconds spent waiting for batches, except in calls of several
            steps, where this is unknown.
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
        logs: bool = False,
    ) -> None:
        """Prepares the step; the first call compiles it.

        Args:
            strategy: The distribution strategy.
            algorithm: The algorithm whose steps are taken.
            batches: See `inputs.make_batches`.
            finish: Applied to each batch on the device first; None if batches
                are complete.
            jit_compile: Compile the step with XLA.
            workers: Number of worker processes.
            logs: Whether any step will be logged with diagnostics.
        """
        self._batches, self._logs = batches, logs
        self.stop: tf.Tensor = tf.constant(False)
        self.diagnostics: diagnostics_lib.Diagnostics | None = None
        self.waited = 0.0

        def replica_step(batch, asked, logged):
            if finish:
                batch = finish(batch)
            if logs:
                batch = {**batch, diagnostics_lib.LOGGED: logged}
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
        self, first: int, count: int, asked: bool, logged: bool = False
    ) -> dict[str, tf.Tensor]:
        """Takes `count` steps.

        Args:
            first: Number of the first step, for messages.
            count: Number of steps, at least 1.
            asked: Whether this process was asked to stop.
            logged: Whether the last step gives diagnostics.

        Returns:
            The metrics of the last step.

        Raises:
            InputError: An image cannot be read.
        """
        logged &= self._logs
        flags = tf.constant(asked), tf.constant(logged)
        if count == 1:
            began = time.monotonic()
            batch = pipeline_lib.read_next(self._batches, f"at step {first}")
            self.waited += time.monotonic() - began
            metrics, shown, self.stop = self._step(batch, *flags)
        else:
            try:
                metrics, shown, self.stop = self._steps(
                    self._batches, tf.constant(count), *flags
                )
            except tf.errors.OpError as error:
                if "IteratorGetNext" not in error.message:
                    raise
                raise InputError(
                    pipeline_lib.unreadable(f"from step {first} on", error)
                ) from None
        self.diagnostics = None
        if logged and shown:
            if self._mean:
                shown = shown._replace(means=self._mean(shown.means))
            self.diagnostics = tf.nest.map_structure(np.asarray, shown)
        return metrics

    def compiles(self, count: int) -> bool:
        """Returns whether the next call with `count` steps compiles first."""
        function = self._step if count == 1 else self._steps
        return not function.experimental_get_tracing_count()


def _mean_of_workers(
    strategy: tf.distribute.Strategy,
) -> Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]]:
    """Returns a function from values on each worker to the means of all."""

    # An argument itself cannot be reduced, its copy can.
    def reduce(values):
        return {n: replica.mean(tf.identity(v)) for n, v in values.items()}

    @tf.function(autograph=False)
    def mean(values):
        means = strategy.run(reduce, args=(values,))
        return {
            name: strategy.experimental_local_results(value)[0]
            for name, value in means.items()
        }

    return mean


def _compiled(
    strategy: tf.distribute.Strategy, replica_step: Callable
) -> tuple[Callable, Callable]:
    """Returns one step on all replicas; and several, with the last logged.

    Either returns (metrics, diagnostics or (), whether to stop).
    """

    # AutoGraph would read a thousand lines for seconds and change none.
    def mean(value):
        return strategy.reduce(tf.distribute.ReduceOp.MEAN, value, None)

    def first(value):
        return strategy.experimental_local_results(value)[0]

    def mean_here(value):
        values = strategy.experimental_local_results(value)
        if len(values) == 1:
            return values[0]
        return tf.add_n(values) / len(values)

    @tf.function(autograph=False)
    def step(batch, asked, logged) -> tuple[dict, Any, tf.Tensor]:
        metrics, stop = strategy.run(replica_step, args=(batch, asked, logged))
        # Not None where there are none: a loop cannot carry it.
        shown = metrics.pop(diagnostics_lib.DIAGNOSTICS, ())
        if shown:
            # Means of this worker: others' would cost a message in each step,
            # and are asked for after a step that is logged.
            shown = diagnostics_lib.Diagnostics(
                {n: mean_here(v) for n, v in shown.means.items()},
                {n: first(v) for n, v in shown.rows.items()},
            )
        return {n: mean(v) for n, v in metrics.items()}, shown, first(stop)

    @tf.function(autograph=False)
    def steps(batches, count, asked, logged):
        def one(done):
            last = logged & (done + 1 == count)
            return done + 1, step(next(batches), asked, last)

        return tf.while_loop(
            lambda done, _: done < count,
            lambda done, _: one(done),
            one(0),
        )[1]

    return step, steps
