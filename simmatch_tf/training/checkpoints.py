"""Checkpoints: one file pair a step, the newest readable one is resumed."""

import pathlib
import re
import shutil

import tensorflow as tf
from absl import logging

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.commandline import InputError


class Checkpoints:
    """All state of an algorithm, saved and restored.

    TensorFlow renames the .index file into place last: a checkpoint that has
    one is whole.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        algorithm: algorithm_lib.Algorithm,
        keep: int = 3,
    ) -> None:
        """Names the folder; creates nothing.

        Args:
            folder: Where the checkpoints are.
            algorithm: What is saved.
            keep: How many to keep.
        """
        self._folder, self._keep = folder, keep
        self._checkpoint = tf.train.Checkpoint(algorithm=algorithm)

    def steps(self) -> list[int]:
        """Steps of the checkpoints in the folder, oldest first."""
        names = [path.name for path in self._folder.glob("step_*.index")]
        matches = [re.fullmatch(r"step_(\d+)\.index", name) for name in names]
        return sorted(int(match[1]) for match in matches if match)

    def save(self, step: int) -> None:
        """Writes a checkpoint, then deletes those beyond `keep`.

        Raises:
            InputError: It cannot be written; those before stay.
        """
        try:
            self._folder.mkdir(exist_ok=True)
            self._checkpoint.write(self._prefix(step))
        except (OSError, tf.errors.OpError) as error:
            text = str(error).splitlines()[0]
            raise InputError(
                f"the checkpoint of step {step} cannot be written to "
                f"{self._folder} ({text}); make room and start the run again: "
                f"it goes on from the last of {self.steps() or 'none'}"
            ) from None
        for old in self.steps()[: -self._keep]:
            self._delete(old)

    def restore(self) -> int | None:
        """Reads the newest checkpoint that can be read.

        Returns:
            Its step; None if there is no checkpoint at all.

        Raises:
            InputError: There are some, and none can be read; or the newest
                readable one does not hold what this run needs.
        """
        errors = []
        for step in reversed(self.steps()):
            try:
                status = self._checkpoint.read(self._prefix(step))
            # A broken file makes TensorFlow raise errors of many types.
            except Exception as error:
                text = (str(error).splitlines() or [repr(error)])[0]
                errors.append(f"step {step}: {text}")
                logging.warning("cannot read the checkpoint of %s", errors[-1])
                continue
            try:
                status.assert_consumed()
            except AssertionError as error:
                status.expect_partial()  # or TensorFlow lists each tensor
                raise InputError(
                    f"{self._prefix(step)} does not hold what this run needs: "
                    f"{str(error).splitlines()[0]}"
                ) from None
            if errors:
                logging.warning("falling back to the one of step %d", step)
            return step
        if errors:
            raise InputError(
                f"no checkpoint in {self._folder} can be read ("
                + "; ".join(errors)
                + "). If flags or backbone are not the run's own, that is "
                "why; --overwrite starts anew"
            )
        return None

    def tidy(self) -> None:
        """Removes what a kill in the middle of a write left behind."""
        for path in self._folder.glob("step_*_temp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prefix(self, step: int) -> str:
        return str(self._folder / f"step_{step:08d}")

    def _delete(self, step: int) -> None:
        """The index first: without it the rest is no checkpoint."""
        prefix = self._prefix(step)
        pathlib.Path(prefix + ".index").unlink(missing_ok=True)
        for path in self._folder.glob(f"step_{step:08d}.data-*"):
            path.unlink(missing_ok=True)
