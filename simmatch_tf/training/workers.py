"""What the workers of one run tell each other."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator

import tensorflow as tf

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

        @tf.function(autograph=False)
        def first(value: tf.Tensor) -> tf.Tensor:
            def own(x: tf.Tensor) -> tf.Tensor:
                mine = tf.equal(replica.number(), 0)
                return replica.sum(tf.where(mine, x, tf.zeros_like(x)))

            return strategy.run(own, args=(value,))

        self._first = first

    def text(self) -> str:
        """For a message: of how many workers something is."""
        return f" of {self.count} workers" if self.count > 1 else ""

    def agree(self, value: int) -> int:
        """The chief's value."""
        if self.count == 1:
            return value
        found = self._first(tf.constant(value, tf.int64))
        return int(self._strategy.experimental_local_results(found)[0].numpy())

    def wait(self) -> None:
        """Until all have come here."""
        self.agree(0)

    def by_chief(self, act: Callable[[], int | None]) -> int:
        """What the chief does, for all.

        Args:
            act: Called by the chief alone.

        Returns:
            What it returned there, at least 0.

        Raises:
            InputError: What it raised there, or on others that it did.
        """
        failure, value = None, 0
        if self.chief:
            try:
                value = act() or 0
            except InputError as error:
                failure, value = error, -1
        value = self.agree(value)
        if failure:
            raise failure
        if value < 0:
            raise InputError("the chief cannot go on: its own message says why")
        return value

    def same_folder(self, folder: workdir_lib.Workdir) -> None:
        """Checks that all see the chief's folder, once the run stands in it.

        Raises:
            InputError: This worker does not.
        """
        try:
            seen = folder.flagfile.read_bytes() + folder.split.read_bytes()
        except OSError:
            seen = b""
        digest = int(hashlib.sha256(seen).hexdigest()[:15], 16)
        if self.agree(digest) != digest:
            raise InputError(
                f"--workdir={folder.path}: this worker does not see there what "
                "the chief sees; it must be a folder that all workers share"
            )

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
