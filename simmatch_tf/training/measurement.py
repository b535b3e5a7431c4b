"""Measures what the parts of a run take on this machine.

Everything that a measurement changes is its own and thrown away: networks,
optimizer, state, input and files. So the run that follows is the one that
--steps=N gives, to the last bit.
"""

import dataclasses
import gc
import pathlib
import shutil
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import signals
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import workers as workers_lib
from simmatch_tf.evaluation import evaluator as evaluator_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.monitoring import monitor as monitor_lib
from simmatch_tf.training import baseline_process, checkpoints, duration
from simmatch_tf.training import step as step_lib

# Steps are measured for this share of the time, within these bounds.
_SHARE, _LEAST_SECONDS, _MOST_SECONDS = 0.03, 2.0, 15.0
_LEAST_CALLS, _LOGGED_CALLS = 3, 2
# Batches that may have been prepared while the step was compiled.
_PREPARED_STEPS = 4
# Batches of an evaluation that are measured at most; all take as long.
_EVALUATED_BATCHES = 4
# Images for the baselines that are measured at once.
_PREPARED_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a measurement needs of a run.

    Attributes:
        config: Its flags, with durations in steps of any number.
        source: Its dataset.
        split: Its labeled images.
        scored: The set that is evaluated, and the indices in it.
        baselines: Those that it starts before its first step, if any.
        folder: An empty place for files on the disk of the run.
        make: Builds the algorithm, evaluator and stepper anew.
    """

    config: config_lib.Config
    source: source_lib.Source
    split: splits.Split
    scored: tuple[source_lib.Images | source_lib.Encoded, np.ndarray]
    baselines: baseline_process.Baselines
    folder: pathlib.Path
    make: Callable[
        [config_lib.Config],
        tuple[
            algorithm_lib.Algorithm,
            evaluator_lib.Evaluator,
            step_lib.Stepper,
        ],
    ]


def measure(
    parts: Parts,
    strategy: tf.distribute.Strategy,
    workers: workers_lib.Workers,
    request: signals.Request,
    *,
    seconds: float,
) -> tuple[duration.Costs, float]:
    """Measures a run's steps, evaluation, checkpoint and pictures.

    All workers must call it.

    Args:
        parts: The run.
        strategy: Its devices.
        workers: Its workers.
        request: The signals of this process.
        seconds: Length of the run; a small share of it is spent here.

    Returns:
        What each part takes, and the seconds to build and compile all of it
        once more and to start the baselines. They are the chief's measurements
        on every worker.

    Raises:
        Interrupted: A signal came.
        InputError: An image cannot be read, or a file not written.
    """
    shutil.rmtree(parts.folder, ignore_errors=True)
    try:
        if workers.chief:
            parts.folder.mkdir()
        measurement = _Measurement(parts, strategy, workers, request)
        result = measurement.take(seconds)
    except OSError as error:
        raise InputError(
            f"{parts.folder}: cannot be written ({error.strerror})"
        ) from None
    finally:
        shutil.rmtree(parts.folder, ignore_errors=True)
    # What it held is freed before the run takes as much memory.
    del measurement
    checkpoints.forget()
    gc.collect()
    return result


class _Measurement:
    """A run that is measured, and takes no part in the run itself."""

    def __init__(
        self,
        parts: Parts,
        strategy: tf.distribute.Strategy,
        workers: workers_lib.Workers,
        request: signals.Request,
    ) -> None:
        """Builds it."""
        self._began = time.monotonic()
        self._parts, self._config = parts, parts.config
        self._strategy, self._workers = strategy, workers
        self._request = request
        self._algorithm, self._evaluator, self._stepper = parts.make(
            parts.config
        )
        self._monitor = monitor_lib.Monitor(
            parts.folder / "tensorboard",
            parts.config,
            parts.source,
            parts.split,
            self._algorithm,
            writes=parts.config.summaries and workers.chief,
        )
        # Steps taken, and steps of a call.
        self._step, self._loop = 0, 1

    def take(self, seconds: float) -> tuple[duration.Costs, float]:
        """Measures each part; see `measure`."""
        window = min(max(_SHARE * seconds, _LEAST_SECONDS), _MOST_SECONDS)
        agree, loop = self._workers.agree, self._config.steps_per_loop
        self._loop = min(loop, 2)
        self._steps(1)  # compiles
        again = time.monotonic() - self._began
        if loop > 1:
            again *= 2  # a single step is compiled, too, where one is left
        first = max(self._steps(1) / self._loop, 1e-6)
        most = max(self._loop, int(window / first / _LEAST_CALLS))
        self._loop = agree(min(loop, most))
        count = max(_LEAST_CALLS, int(window / first / self._loop))
        count = agree(min(count, 100_000))
        if count > 2 * _PREPARED_STEPS:
            self._steps(_PREPARED_STEPS)
            count -= _PREPARED_STEPS
        step = self._steps(count) / (count * self._loop)
        logged = self._logged_step(step, agree(window > 4 * first * self._loop))
        picture = self._picture()
        evaluation, tracing = self._evaluation(window)
        checkpoint = self._checkpoint()
        self._monitor.writer.close()
        costs = duration.Costs(step, logged, evaluation, checkpoint, picture)
        again += tracing + self._baselines(window)
        micro = [*dataclasses.astuple(costs), again]
        (*own, again), *_ = self._workers.gather(
            [round(value * 1e6) for value in micro]
        ).tolist()
        costs = duration.Costs(*(max(value, 1) / 1e6 for value in own))
        return costs, again / 1e6

    def _steps(self, calls: int, *, logged: bool = False) -> float:
        """Takes steps; returns the seconds, to the end of their computation.

        Raises:
            Interrupted: A signal came.
        """
        loop, metrics = self._loop, {}
        began = time.monotonic()
        for _ in range(calls):
            asked_before = self._stepper.stop
            metrics = self._stepper(
                self._step + 1, loop, bool(self._request.signal), logged=logged
            )
            self._step += loop
            stop = self._workers.stop(self._request, asked_before)
            if stop:
                raise signals.Interrupted(
                    f"{stop} while the speed was measured; nothing is lost: "
                    "start it again"
                )
            if logged:
                self._monitor.log(
                    self._step,
                    metrics,
                    self._stepper.diagnostics,
                    self._stepper.waited,
                )
        float(metrics["loss/total"])  # waits for a device that still computes
        return time.monotonic() - began

    def _logged_step(self, step: float, is_worth_it: bool) -> float:
        """Returns the seconds that logging adds to a step.

        Args:
            step: Seconds of a step.
            is_worth_it: Whether there is time to measure it. Where steps take
                long, logging one of them does not matter.
        """
        # It sets up what only such steps need, and pictures need its output.
        self._steps(1, logged=True)
        if not is_worth_it:
            return 0.0
        logged = self._steps(_LOGGED_CALLS, logged=True) / _LOGGED_CALLS
        return max(logged - step * self._loop, 0.0)

    def _picture(self) -> float:
        """Returns the seconds of a step's pictures and histograms."""
        if not self._config.summaries:
            return 0.0
        durations = []
        for _ in range(2):  # the first one imports libraries
            began = time.monotonic()
            self._monitor.picture(self._step, self._stepper.diagnostics)
            durations.append(time.monotonic() - began)
        return durations[-1]

    def _evaluation(self, window: float) -> tuple[float, float]:
        """Returns the seconds of an evaluation, and of its compilation.

        Args:
            window: Seconds to measure for, roughly.
        """
        images, indices = self._parts.scored
        if not len(indices):
            return 0.0, 0.0
        batch = min(self._config.eval_batch_size, len(indices))
        compiling = self._evaluate(images, indices[:batch])
        most = int(window / max(compiling, 1e-6))
        most = self._workers.agree(min(max(most, 1), _EVALUATED_BATCHES))
        some = indices[: most * batch]
        seconds = self._evaluate(images, some)
        batches, measured = (-(-len(each) // batch) for each in (indices, some))
        evaluation = seconds * batches / measured
        aside = len(self._parts.split.validation)
        if self._parts.source.test is not None and aside:
            evaluation *= 1 + aside / len(indices)
        return evaluation, max(compiling - seconds / measured, 0.0)

    def _evaluate(
        self,
        images: source_lib.Images | source_lib.Encoded,
        indices: np.ndarray,
    ) -> float:
        began = time.monotonic()
        self._evaluator.logits(images, indices)
        return time.monotonic() - began

    def _baselines(self, window: float) -> float:
        """Returns the seconds of all that the baselines' process is given.

        Args:
            window: Seconds to measure for, roughly.
        """
        baselines, agree = self._parts.baselines, self._workers.agree
        if not agree(baselines.expected()):
            return 0.0
        seconds = 0.0
        for images, indices in baselines.sets:
            # What comes before the first batch is not needed for each.
            first = self._prepared(images, indices[:_PREPARED_IMAGES])
            left = indices[_PREPARED_IMAGES:]
            most = int(window / max(first, 1e-6))
            most = agree(min(max(most, 1), _EVALUATED_BATCHES))
            some = len(left[: most * _PREPARED_IMAGES])
            seconds += first
            if some:
                more = self._prepared(
                    images, indices[: _PREPARED_IMAGES + some]
                )
                seconds += max(more - first, 0.0) * len(left) / some
        return seconds

    def _prepared(
        self,
        images: source_lib.Images | source_lib.Encoded,
        indices: np.ndarray,
    ) -> float:
        began = time.monotonic()
        self._parts.baselines.pixels(images, indices)
        return time.monotonic() - began

    def _checkpoint(self) -> float:
        """Returns the seconds of writing a checkpoint."""
        saved = checkpoints.Checkpoints(
            self._parts.folder / "checkpoints", self._algorithm, {}
        )
        began = time.monotonic()
        with checkpoints.gathered(self._strategy, self._algorithm):
            self._workers.by_chief(lambda: saved.save(self._step))
        return time.monotonic() - began


def provisional(config: config_lib.Config) -> config_lib.Config:
    """Returns flags of a length that is not known yet, to measure the run.

    Args:
        config: The run's flags.
    """
    return config.with_steps(2**20).with_durations(1)
