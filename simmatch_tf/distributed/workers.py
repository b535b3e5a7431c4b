"""Agreement between the workers of one run: values, errors, the end."""

import contextlib
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import signals
from simmatch_tf.distributed import cluster as cluster_lib
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.modules import replica

Value = TypeVar("Value")

# Errors of TensorFlow's when another worker has gone.
_LOST_WORKER = (
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
    tf.errors.InternalError,
    tf.errors.UnavailableError,
    tf.errors.UnknownError,
)


class Workers:
    """All worker processes of a run; often this process alone.

    Every worker calls each method, in the same order.

    Attributes:
        count: Number of workers.
        chief: Whether this one writes the run's files.
    """

    def __init__(
        self, strategy: tf.distribute.Strategy, config: config_lib.Config
    ) -> None:
        """Reads TF_CONFIG.

        Args:
            strategy: The strategy of all workers.
            config: The run's flags.
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

    def gather(self, values: Sequence[int]) -> np.ndarray:
        """Collects integers from all workers.

        Args:
            values: This worker's n integers.

        Returns:
            int64 [workers, n], the chief's first.
        """
        own = np.asarray(values, np.int64)
        if self.count == 1:
            return own[None]
        rows = self._gather(tf.constant(own))
        return self._strategy.experimental_local_results(rows)[0].numpy()

    def agree(self, value: int) -> int:
        """Returns the chief's value."""
        return int(self.gather([value])[0, 0])

    def by_each(self, act: Callable[[], Value]) -> Value:
        """Calls a function on every worker; if one fails, all fail.

        Args:
            act: The function.

        Returns:
            What it returned on this worker.

        Raises:
            InputError: It failed here, or on another worker.
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
        """Calls a function on the chief alone; if it fails, all fail.

        Args:
            act: The function.

        Returns:
            What it returned on the chief, 0 for None.

        Raises:
            InputError: It failed.
        """
        value = self.by_each(lambda: (act() or 0) if self.chief else 0)
        return self.agree(value)

    def same(self, known: Mapping[str, str]) -> None:
        """Checks that all workers have the same data.

        Args:
            known: Description of a part of it, for the message → a text that
                is equal if and only if the part is.

        Raises:
            InputError: A part differs on some worker; raised on all of them.
        """
        rows = self.gather([_number(text) for text in known.values()])
        for index, differs in enumerate((rows != rows[0]).tolist()):
            names = list(itertools.compress(known, differs))
            if names:
                raise InputError(
                    f"{_name(index)} and the chief would train on different "
                    f"data: they differ in {', '.join(names)}. Give all "
                    "workers the same"
                )

    def same_folder(
        self, folder: pathlib.Path, files: Sequence[pathlib.Path]
    ) -> None:
        """Checks that all workers see the chief's folder.

        Args:
            folder: The folder, for the message.
            files: Files in it that the chief has written.

        Raises:
            InputError: A worker does not see them; raised on all of them.
        """
        known = [path.read_text() if path.is_file() else "" for path in files]
        description = f"--workdir={folder}, which must be a folder they share"
        self.same({description: "\n".join(known)})

    def stop(self, request: signals.Request, asked: tf.Tensor) -> str:
        """Returns why all workers stop now, or "" if they do not.

        Args:
            request: The signals of this process.
            asked: Whether any worker had been asked to stop at an earlier
                step, which is the same on all of them.
        """
        if self.count == 1:
            return request.signal or ""
        return (request.signal or "another worker's signal") * bool(asked)


def _row(number: tf.Tensor, each: int) -> tf.Tensor:
    """Returns the row of all workers' values that a replica fills.

    Args:
        number: Number of the replica.
        each: Replicas of a worker.

    Returns:
        The index of its worker if it is the first replica there, else -1.
    """
    return tf.where(number % each == 0, number // each, -1)


def _name(index: int) -> str:
    """Names a worker in a message."""
    return f"worker {index}" if index else "the chief"


def _number(text: str) -> int:
    """Returns a digest that fits an int64."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


@contextlib.contextmanager
def lost(
    config: config_lib.Config, checkpoints: pathlib.Path
) -> Iterator[None]:
    """Ends a run in an orderly way when TensorFlow has lost a worker.

    Args:
        config: The run's flags.
        checkpoints: Where its checkpoints are, for the message.

    Raises:
        Interrupted: Another worker has gone.
    """
    try:
        yield
    except _LOST_WORKER as error:
        if cluster_lib.of(config) is None:
            raise
        raise signals.Interrupted(
            "another worker has gone or cannot be reached "
            f"({errors.reason(error)}); start all of them again to go on from "
            f"the last checkpoint in {checkpoints}"
        ) from None
