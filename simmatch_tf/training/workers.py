"""What the workers of one run tell each other."""

import contextlib
import hashlib
from collections.abc import Iterator

import tensorflow as tf

from simmatch_tf import checks
from simmatch_tf import cluster as cluster_lib
from simmatch_tf import config as config_lib
from simmatch_tf.commandline import InputError
from simmatch_tf.modules import replica
from simmatch_tf.training import interruption, reasons
from simmatch_tf.training import workdir as workdir_lib

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


# Flags that each worker may have of its own.
_OWN = (*checks.PATHS, "workdir", "progress", "parallel_calls")


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
        self._strategy, self._config = strategy, config

        @tf.function(autograph=False)
        def first(value: tf.Tensor) -> tf.Tensor:
            def own(x: tf.Tensor) -> tf.Tensor:
                mine = tf.equal(replica.number(), 0)
                return replica.sum(tf.where(mine, x, tf.zeros_like(x)))

            return strategy.run(own, args=(value,))

        self._first = first

    def agree(self, value: int) -> int:
        """The chief's value."""
        if self.count == 1:
            return value
        found = self._first(tf.constant(value, tf.int64))
        return int(self._strategy.experimental_local_results(found)[0].numpy())

    def wait(self) -> None:
        """Until all have come here."""
        self.agree(0)

    def same_run(self, folder: workdir_lib.Workdir) -> bool:
        """Whether a run goes on, as the chief sees it.

        Raises:
            InputError: This worker was given other flags than the chief, or
                does not see what the chief sees.
        """
        text = self._config.to_flagfile(without=_OWN)
        digest = int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)
        if self.agree(digest) != digest:
            raise InputError(
                "this worker has other flags than the chief: all need the "
                f"same, but for --{', --'.join(_OWN)}"
            )
        resumed = bool(self.agree(folder.resumed()))
        if not self.chief:
            if resumed and not folder.started():
                raise InputError(
                    f"--workdir={folder.path}: the chief finds a run there, "
                    "this worker does not; it must be a folder that all "
                    "workers share"
                )
            folder.anew = not resumed
        return resumed

    def stop(self, request: interruption.Request, asked: tf.Tensor) -> str:
        """Why to stop now, on all alike; empty: no reason.

        Args:
            request: What this process was told.
            asked: Of a step before, whether any worker had been asked.
        """
        if self.count == 1:
            return request.signal or ""
        return (request.signal or "another worker's signal") * bool(asked)


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
        raise interruption.Interrupted(
            "another worker has gone or cannot be reached "
            f"({reasons.reason(error)}); start all of them again to go on from "
            f"the last checkpoint in {folder.checkpoints}"
        ) from None
