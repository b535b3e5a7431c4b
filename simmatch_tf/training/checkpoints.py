"""Checkpoints: one file pair a step, the newest readable one is resumed."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import Any

import tensorflow as tf
from absl import logging

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.flags import errors
from simmatch_tf.flags.commandline import InputError

# Counted up when the state of a run changes: what one version saves, another
# may not be able to take.
FORMAT = 2


class _Data(tf.train.experimental.PythonState):
    """What data the state belongs to, as JSON.

    Attributes:
        here: This run's.
        saved: That of the checkpoint that was read last.
    """

    def __init__(self, here: dict[str, Any]) -> None:
        self.here, self.saved = here, here

    def serialize(self) -> str:
        """Written into a checkpoint."""
        return json.dumps({"format": FORMAT, **self.here})

    def deserialize(self, value: str) -> None:
        """Read from one."""
        self.saved = json.loads(value)


def digest(folder: pathlib.Path, step: int) -> str:
    """What tells a checkpoint from others of the same step.

    The index holds a checksum of every tensor.
    """
    index = folder / f"step_{step:08d}.index"
    return hashlib.sha256(index.read_bytes()).hexdigest()


class Checkpoints:
    """All state of an algorithm, and what data it belongs to.

    TensorFlow renames the .index file into place last: a checkpoint that has
    one is whole. It is read back and on the disk before older ones go.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        algorithm: algorithm_lib.Algorithm,
        data: dict[str, Any],
        keep: int = 3,
    ) -> None:
        """Names the folder; creates nothing.

        Args:
            folder: Where the checkpoints are.
            algorithm: What is saved.
            data: What tells its data from others, as JSON can have it; see
                `splits.identity`. It is saved, too, and must be the same when
                the state is restored.
            keep: How many to keep.
        """
        self._folder, self._keep = folder, keep
        self._data = _Data(data)
        self._checkpoint = tf.train.Checkpoint(
            algorithm=algorithm, data=self._data
        )

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
            self._verify(step)
        except (OSError, tf.errors.OpError) as error:
            text = errors.reason(error)
            with contextlib.suppress(OSError):
                self._delete(step)
                self.tidy()
            raise InputError(
                f"the checkpoint of step {step} cannot be written to "
                f"{self._folder} ({text}); make room and start the run again: "
                f"it goes on from the last of {self.steps() or 'none'}"
            ) from None
        for old in self.steps()[: -self._keep]:
            self._delete(old)

    def _verify(self, step: int) -> None:
        """Reads a checkpoint back, by its checksums, and flushes it.

        Raises:
            OSError, tf.errors.OpError: It is not what was written.
        """
        reader = tf.train.load_checkpoint(self._prefix(step))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
        for path in (*self._folder.glob(f"step_{step:08d}.*"), self._folder):
            number = os.open(path, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)

    def restore(self, at: int | None = None) -> int | None:
        """Reads the newest checkpoint that can be read; changes nothing.

        Args:
            at: Only this step's.

        Returns:
            Its step; None if there is no checkpoint at all.

        Raises:
            InputError: There are some, and none can be read; or the newest
                readable one does not hold what this run needs.
        """
        failures = []
        for step in reversed(self.steps() if at is None else [at]):
            try:
                self._check_format(step)
                status = self._checkpoint.read(self._prefix(step))
            # A broken file makes TensorFlow raise errors of many types.
            except InputError:
                raise
            except Exception as error:
                text = errors.reason(error)
                failures.append(f"step {step}: {text}")
                logging.warning(
                    "cannot read the checkpoint of %s", failures[-1]
                )
                continue
            try:
                status.assert_consumed()
            except AssertionError as error:
                status.expect_partial()  # or TensorFlow lists each tensor
                raise InputError(
                    f"{self._prefix(step)} does not hold what this run needs: "
                    f"{str(error).splitlines()[0]}"
                ) from None
            self._check_data(step)
            if failures:
                logging.warning("falling back to the one of step %d", step)
            return step
        if failures:
            raise InputError(
                f"no checkpoint in {self._folder} can be read ("
                + "; ".join(failures)
                + "). If flags or backbone are not the run's own, that is "
                "why; --overwrite starts anew"
            )
        return None

    def _check_format(self, step: int) -> None:
        reader = tf.train.load_checkpoint(self._prefix(step))
        saved = json.loads(reader.get_tensor("data/.ATTRIBUTES/py_state"))
        there = saved.get("format", 1)
        if there != FORMAT:
            raise InputError(
                f"{self._prefix(step)} was written by another version of "
                f"simmatch_tf (its format is {there}, this one's {FORMAT}): "
                "go on with that version, or --overwrite to start anew"
            )

    def _check_data(self, step: int) -> None:
        for name, here in self._data.here.items():
            there = self._data.saved.get(name)
            if there != here:
                raise InputError(
                    f"{self._prefix(step)} was trained on other data than "
                    f"split.json names: {name} is {there} there and {here} "
                    "here; restore the run's own split.json"
                )

    def tidy(self) -> None:
        """Removes what a kill in the middle of a write left behind.

        For the process that trains alone: of another, it would be the
        checkpoint that is being written.
        """
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
