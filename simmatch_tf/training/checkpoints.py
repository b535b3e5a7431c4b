"""Checkpoints: one pair of files for a step; the newest readable one counts."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from simmatch_tf import terminal
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.modules import shard

# Incremented when the state of a run changes, so that a version of the package
# refuses checkpoints that it would misread.
FORMAT = 2


class _Data(tf.train.experimental.PythonState):
    """Identity of the data that a state belongs to, saved as JSON.

    Attributes:
        current: That of this run.
        saved: That of the checkpoint that was read last.
    """

    def __init__(self, current: dict[str, Any]) -> None:
        self.current, self.saved = current, current

    def serialize(self) -> str:
        """Returns the text to save."""
        return json.dumps({"format": FORMAT, **self.current})

    def deserialize(self, value: str) -> None:
        """Reads a saved text."""
        self.saved = json.loads(value)


def digest(folder: pathlib.Path, step: int) -> str:
    """Returns a hash that tells a checkpoint from others of the same step.

    It is that of the index, which holds a checksum of every tensor.
    """
    index = folder / f"step_{step:08d}.index"
    return hashlib.sha256(index.read_bytes()).hexdigest()


def steps_in(folder: pathlib.Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, oldest first."""
    stems = [path.stem[5:] for path in folder.glob("step_*.index")]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


class Checkpoints:
    """Saves and restores all state of an algorithm.

    TensorFlow renames the .index file into place last, so a checkpoint that has
    one is complete. It is read back and flushed to disk before older ones are
    deleted.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        algorithm: algorithm_lib.Algorithm,
        data: dict[str, Any],
        keep: int = 3,
    ) -> None:
        """Creates nothing on disk.

        Args:
            folder: Folder of the checkpoints.
            algorithm: Its state is saved.
            data: JSON values that identify its data; see `splits.identity`.
                They are saved, and a checkpoint with others is refused.
            keep: Number of checkpoints to keep.
        """
        self._folder, self._keep = folder, keep
        self._data = _Data(data)
        self._checkpoint = tf.train.Checkpoint(
            algorithm=algorithm, data=self._data
        )

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints in the folder, oldest first."""
        return steps_in(self._folder)

    def save(self, step: int) -> None:
        """Writes a checkpoint, then deletes the oldest beyond `keep`.

        Raises:
            InputError: It cannot be written; the earlier ones stay.
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
        """Reads a checkpoint back, with its checksums, and flushes it.

        Raises:
            OSError, tf.errors.OpError: It is not what was written.
        """
        reader = tf.train.load_checkpoint(self._prefix(step))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
        for path in (*self._folder.glob(f"step_{step:08d}.*"), self._folder):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def restore(self, at: int | None = None) -> int | None:
        """Reads the newest checkpoint that can be read.

        Args:
            at: Step of the only one to read.

        Returns:
            Its step; None if there is no checkpoint.

        Raises:
            InputError: None of them can be read, or the newest readable one
                does not fit this run.
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
                failures.append(f"step {step}: {errors.reason(error)}")
                terminal.warn(f"cannot read the checkpoint of {failures[-1]}")
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
                terminal.warn(f"falling back to the one of step {step}")
            return step
        if failures:
            raise InputError(
                f"no checkpoint in {self._folder} can be read ("
                + "; ".join(failures)
                + "). This also happens with other flags or another backbone "
                "than the run's own; --overwrite starts anew"
            )
        return None

    def _check_format(self, step: int) -> None:
        reader = tf.train.load_checkpoint(self._prefix(step))
        saved = json.loads(reader.get_tensor("data/.ATTRIBUTES/py_state"))
        version = saved.get("format", 1)
        if version != FORMAT:
            raise InputError(
                f"{self._prefix(step)} was written by another version of "
                f"simmatch_tf (its format is {version}, this one's {FORMAT}): "
                "go on with that version, or --overwrite to start anew"
            )

    def _check_data(self, step: int) -> None:
        for name, current in self._data.current.items():
            saved = self._data.saved.get(name)
            if saved != current:
                raise InputError(
                    f"{self._prefix(step)} was trained on other data than "
                    f"split.json names: {name} is {saved} there and {current} "
                    "here; restore the run's own split.json"
                )

    def tidy(self) -> None:
        """Removes what a kill in the middle of a write left behind.

        Only the process that trains may call this: another one would remove
        the checkpoint that is being written.
        """
        for path in self._folder.glob("step_*_temp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prefix(self, step: int) -> str:
        return str(self._folder / f"step_{step:08d}")

    def _delete(self, step: int) -> None:
        """Deletes a checkpoint, its index first: then it is none any more."""
        prefix = self._prefix(step)
        pathlib.Path(prefix + ".index").unlink(missing_ok=True)
        for path in self._folder.glob(f"step_{step:08d}.data-*"):
            path.unlink(missing_ok=True)


# ------------------------------------------------ state that is divided --
@contextlib.contextmanager
def gathered(
    strategy: tf.distribute.Strategy, algorithm: algorithm_lib.Algorithm
) -> Iterator[None]:
    """Gathers state that is divided over the replicas, to write a checkpoint.

    In the body `Shard.whole` has all rows. All workers must enter it, whichever
    of them writes.
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


def forget() -> None:
    """Frees state of runs that are over, which `gathered` still holds."""
    _gather.cache_clear()


def spread(
    strategy: tf.distribute.Strategy, algorithm: algorithm_lib.Algorithm
) -> None:
    """Divides restored state over the replicas: each takes its own rows."""
    for each in algorithm.shards():

        @tf.function(autograph=False)
        def divide(whole, each=each):
            strategy.run(each.spread, args=(whole,))

        divide(each.whole)
        each.whole = each.whole[:0]
