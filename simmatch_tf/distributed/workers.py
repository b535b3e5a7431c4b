"""What the workers of one run tell each other."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import signals
from simmatch_tf.distributed import cluster as cluster_lib
from simmatch_tf.flags import errors
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.modules import replica
from simmatch_tf.training import workdir as workdir_lib

Value = TypeVar("Value")

# What TensorFlow raises when a worker has gone.
_GONE = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


class Workers:
    """All processes of a run; with one process it answers by itself.

    All of them call each method, in the same order.

    Attributes:
        count: How many there are.
        chief: Whether this one writes what the run leaves behind.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, config: config_lib.Config
    ) -> None:
        """Reads who they are.

        Args:
            strategy: Theirs.
            config: The run's.
        """
        cluster = cluster_lib.of(config)
        self.count = len(cluster.workers) if cluster else 1
        self.chief = cluster is None or cluster.chief
        self._strategy = strategy

        each = strategy.num_replicas_in_sync // self.count

        @tf.function(autograph=False)
        def gather(values: tf.Tensor) -> tf.Tensor:
            def own(x: tf.Tensor) -> tf.Tensor:
                row = _row(replica.number(), each)
                rows = tf.one_hot(row, self.count, dtype=x.dtype)
                return replica.sum(rows[:, None] * x)  # [workers, n]

            return strategy.run(own, args=(values,))

        self._gather = gather

    def text(self) -> str:
        """For a message: of how many workers something is."""
        return f" of {self.count} workers" if self.count > 1 else ""

    def gather(self, values: Sequence[int]) -> np.ndarray:
        """The values of all workers, int64 [workers, n], the chief's first.

        Args:
            values: This worker's, n integers.
        """
        own = np.asarray(values, np.int64)
        if self.count == 1:
            return own[None]
        rows = self._gather(tf.constant(own))
        return self._strategy.experimental_local_results(rows)[0].numpy()

    def agree(self, value: int) -> int:
        """The chief's value."""
        return int(self.gather([value])[0, 0])

    def wait(self) -> None:
        """Until all have come here."""
        self.agree(0)

    def by_each(self, act: Callable[[], Value]) -> Value:
        """What every worker does for itself, and all or none go on.

        Args:
            act: Called by all.

        Returns:
            What it returned here.

        Raises:
            InputError: What it raised here, or that another worker failed.
        """
        failure, value = None, None
        try:
            value = act()
        except InputError as error:
            failure = error
        failed = np.flatnonzero(self.gather([failure is not None]))
        if failure:
            raise failure
        if failed.size:
            raise InputError(
                f"{_name(failed[0])} cannot go on: its own message says why"
            )
        return value

    def by_chief(self, act: Callable[[], int | None]) -> int:
        """What the chief does, for all.

        Args:
            act: Called by the chief alone.

        Returns:
            What it returned there.

        Raises:
            InputError: What it raised there, or on others that it did.
        """
        value = self.by_each(lambda: (act() or 0) if self.chief else 0)
        return self.agree(value)

    def same(self, known: Mapping[str, str]) -> None:
        """Checks that all workers know the same.

        Args:
            known: What it is, for a message → what tells it from others.

        Raises:
            InputError: A worker knows otherwise; all raise it.
        """
        rows = self.gather([_number(text.encode()) for text in known.values()])
        for index, differs in enumerate((rows != rows[0]).tolist()):
            names = [
                n for n, other in zip(known, differs, strict=True) if other
            ]
            if names:
                raise InputError(
                    f"{_name(index)} and the chief would train on different "
                    f"data: they differ in {', '.join(names)}. Give all "
                    "workers the same"
                )

    def same_folder(self, folder: workdir_lib.Workdir) -> None:
        """Checks that all see the chief's folder, once the run stands in it.

        Raises:
            InputError: This worker does not, or another.
        """
        try:
            seen = folder.flagfile.read_bytes() + folder.split.read_bytes()
        except OSError:
            seen = b""
        digest = _number(seen)
        chiefs = self.agree(digest)

        def check() -> None:
            if digest != chiefs:
                raise InputError(
                    f"--workdir={folder.path}: this worker does not see there "
                    "what the chief sees; it must be a folder that all workers "
                    "share"
                )

        self.by_each(check)

    def stop(self, request: signals.Request, asked: tf.Tensor) -> str:
        """Why to stop now, on all alike; empty: no reason.

        Args:
            request: What this process was told.
            asked: Of a step before, whether any worker had been asked.
        """
        if self.count == 1:
            return request.signal or ""
        return (request.signal or "another worker's signal") * bool(asked)


def _row(number: tf.Tensor, each: int) -> tf.Tensor:
    """Which row of all workers' values a replica fills.

    Args:
        number: Of the replica.
        each: Replicas of a worker.

    Returns:
        That of its worker if it is the first replica there, -1 if not.
    """
    return tf.where(number % each == 0, number // each, -1)


def _name(index: int) -> str:
    """A worker, for a message."""
    return f"worker {index}" if index else "the chief"


def _number(content: bytes) -> int:
    """A digest that an int64 holds."""
    return int(hashlib.sha256(content).hexdigest()[:15], 16)


@contextlib.contextmanager
def lost(
    folder: workdir_lib.Workdir, config: config_lib.Config
) -> Iterator[None]:
    """Turns what TensorFlow says of a dead worker into the end of a run.

    Raises:
        Interrupted: Another worker has gone.
    """
    try:
        yield
    except _GONE as error:
        if cluster_lib.of(config) is None:
            raise
        raise signals.Interrupted(
            "another worker has gone or cannot be reached "
            f"({errors.reason(error)}); start all of them again to go on from "
            f"the last checkpoint in {folder.checkpoints}"
        ) from None
