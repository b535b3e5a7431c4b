"""All that is seen of a run while it trains: figures, pictures, signs."""

import contextlib
import pathlib
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.monitoring import diagnosis, step_metrics, tensorboard_writer
from simmatch_tf.training import step as step_lib


class Observer:
    """Keeps what steps and evaluations give, and hands it to TensorBoard."""

    def __init__(
        self,
        folder: pathlib.Path,
        config: config_lib.Config,
        source: source_lib.Source,
        split: splits.Split,
        algorithm: algorithm_lib.Algorithm,
        *,
        writes: bool,
    ) -> None:
        """Opens the event file.

        Args:
            folder: For it.
            config: The run's, with its durations in steps.
            source: Its dataset.
            split: Its labeled images.
            algorithm: What is trained.
            writes: Whether anything is written.

        Raises:
            InputError: The file cannot be written.
        """
        self._config, self._algorithm = config, algorithm
        unlabeled = 0
        if algorithm.needs_unlabeled:
            unlabeled = config.batch_size * config.unlabeled_ratio
        self._figures = step_metrics.Figures(config, unlabeled)
        self._speed = step_metrics.Speed(config.batch_size + unlabeled)
        self._summaries = tensorboard_writer.Summaries(
            folder, config, source, split, writes=writes
        )

    def begin(self, step: int) -> None:
        """Starts: `step` steps were done before."""
        if not step:
            self._summaries.describe()

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """What is done inside is no training, for the speed."""
        return self._speed.paused()

    def log(
        self,
        step: int,
        metrics: Mapping[str, tf.Tensor],
        stepper: step_lib.Stepper,
    ) -> dict[str, float]:
        """Keeps and writes a step's figures.

        Args:
            step: Steps done.
            metrics: Of the last.
            stepper: It has the diagnostics of the step, and how long it waited.

        Returns:
            Tag → value.
        """
        shown = stepper.diagnostics
        means = shown.means if shown else None
        rate = self._algorithm.learning_rate(step - 1)
        values = self._figures.of_step(metrics, means)
        values["learning_rate"] = float(rate)
        looped = self._config.steps_per_loop > 1
        waited = None if looped else stepper.waited
        values |= self._speed.measure(step, waited)
        self._figures.keep(step, values)
        self._summaries.scalars(step, values)
        return values

    def picture(self, step: int, stepper: step_lib.Stepper) -> None:
        """Writes pictures and histograms of a logged step, and the memory."""
        shown = stepper.diagnostics
        if shown is None:
            return
        self._summaries.histograms(step, shown.means, self._figures.classes)
        self._summaries.picture(step, shown)
        store = getattr(self._algorithm, "memory", None)
        if store is not None:
            self._summaries.memory(store)

    def evaluated(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps and writes the accuracies of an evaluation, by tag."""
        self._figures.keep(step, values)
        self._summaries.scalars(step, values)

    def confusion(
        self, step: int, logits: np.ndarray, labels: np.ndarray, title: str
    ) -> None:
        """Writes a confusion matrix; see `summaries`."""
        self._summaries.confusion(step, logits, labels, title)

    def findings(self, step: int) -> list[diagnosis.Finding]:
        """Patterns that show by now, each once a session."""
        return self._figures.findings(step)

    def close(self) -> None:
        """Ends the event file."""
        self._summaries.close()
