"""TensorFlow's profiler, on some steps of a run."""

import pathlib

import tensorflow as tf
from absl import logging

from simmatch_tf import config as config_lib


class Profile:
    """Profiles steps START + 1 … START + COUNT of --profile=START:COUNT."""

    def __init__(
        self, flag: str | None, folder: pathlib.Path, done: int = 0
    ) -> None:
        """Names the steps.

        Args:
            flag: START:COUNT, or None.
            folder: The event files'.
            done: Steps done; what they were is not profiled any more.
        """
        self._folder, self._running = str(folder), False
        self._start = self._stop = -1
        if flag is not None:
            start, count = config_lib.profiled_steps(flag)
            self._start, self._stop = start, start + count
            if start < done:
                logging.warning(
                    "--profile=%s: %d steps are done already; nothing is "
                    "profiled",
                    flag,
                    done,
                )
                self._start = self._stop = -1

    def until_next(self, step: int) -> int:
        """Steps from `step` to the next place where `at` has work to do."""
        left = [n - step for n in (self._start, self._stop) if n > step]
        return min(left, default=2**62)

    def at(self, step: int) -> None:
        """Starts or stops, when `step` steps are done."""
        if step == self._start and not self._running:
            tf.profiler.experimental.start(self._folder)
            self._running = True
        elif self._running and step >= self._stop:
            self.close()

    def close(self) -> None:
        """Stops, and writes what was found."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
            logging.info("profile in %s", self._folder)
