"""Batches from tf.data's service, made by other processes and put in order.

A batch is a function of (seed, step), so it does not matter which process makes
it. The service's workers take positions in turn, each position once, and send
batches when they are done; here they are sorted, so that the run gets the
batches that it would have made itself.
"""

import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf import preflight
from simmatch_tf.flags.errors import InputError

# Seconds after which a missing batch is an error. TensorFlow itself would wait
# for ever: for a data worker that died, for the service, or for a first data
# worker.
PATIENCE = 120.0
# Largest number of bytes of images in memory. gRPC ends the process at a
# message of 2 GiB; the rest is for the graph itself.
_LARGEST = 2**31 - 2**26
# Batches requested at once, and so data workers that are busy for one run.
_UNDER_WAY = 16
# Later batches that are held while an earlier one is missing: at least this
# number, or as many as fit into this number of bytes.
_HELD_BATCHES, _HELD_BYTES = 96, 2**32
# The beginning of messages about the service, as opposed to images.
FAILED = "the data service"


def ordered(
    dataset: tf.data.Dataset,
    address: str,
    *,
    held_bytes: int = 0,
    patience: float = PATIENCE,
) -> tf.data.Dataset:
    """Hands a dataset to the service, and returns its batches in order.

    Args:
        dataset: A finite dataset of (position, batch), positions from 0;
            stateless, so that it does not matter where it runs.
        address: Address of the service, grpc://HOST:PORT.
        held_bytes: Bytes of images in memory, which go to the service with the
            dataset.
        patience: Seconds after which a missing batch is an error.

    Returns:
        The batches, in the order of their positions. Reading them raises
        tf.errors.OpError, with `FAILED` in its message, if one is missing.

    Raises:
        InputError: The service cannot be reached, or refuses the dataset.
    """
    if held_bytes > _LARGEST:
        raise InputError(
            f"--data_service={address}: the run's images take "
            f"{held_bytes / 2**30:.1f} GiB of memory and would go to the "
            "service in one message, which must stay below 2 GiB; leave it "
            "out, or keep them in files (--dataset=folder)"
        )
    count = int(dataset.cardinality())
    spec = dataset.element_spec[1]
    size = sum(
        each.dtype.size * (each.shape.num_elements() or 1)
        for each in tf.nest.flatten(spec)
    )
    api = tf.data.experimental.service
    served = api.from_dataset_id(
        api.ShardingPolicy.DYNAMIC,
        address,
        _register(dataset, address),
        dataset.element_spec,
        max_outstanding_requests=_UNDER_WAY,
    )
    # There is nothing to tune; see `pipeline`.
    options = tf.data.Options()
    options.autotune.enabled = False
    served = served.with_options(options)

    def batches() -> Iterator[tuple[str, Any]]:
        arrivals = _Arrivals(served)
        try:
            for batch in in_order(
                arrivals.next,
                count,
                held=max(_HELD_BATCHES, _HELD_BYTES // max(size, 1)),
                patience=patience,
            ):
                yield "", batch
        except _Failed as error:
            # Not raised: TensorFlow would log a traceback of this generator.
            nothing = tf.nest.map_structure(
                lambda x: np.zeros(x.shape, x.dtype.as_numpy_dtype), spec
            )
            yield str(error), nothing
        finally:
            arrivals.stop()

    signature = (tf.TensorSpec([], tf.string), spec)
    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=signature
    )
    dataset = dataset.map(_checked, num_parallel_calls=1)
    return dataset.prefetch(2).with_options(options)


def _register(dataset: tf.data.Dataset, address: str) -> Any:
    """Registers a dataset with the service, and returns its id there."""
    preflight.check_reachable("data_service", address, scheme="grpc://")
    answers: queue.Queue[Any] = queue.Queue()

    def register() -> None:
        try:
            answers.put(
                tf.data.experimental.service.register_dataset(
                    # Pixels hardly shrink; a network is faster than Snappy.
                    address,
                    dataset,
                    compression=None,
                )
            )
        except Exception as error:
            answers.put(error)

    # In a thread: TensorFlow tries for ever where another program listens.
    threading.Thread(target=register, daemon=True).start()
    try:
        result = answers.get(timeout=PATIENCE)
    except queue.Empty:
        result = f"no answer within {PATIENCE:g} s"
    if isinstance(result, tf.errors.OpError):
        result = result.message
    elif isinstance(result, Exception):
        raise result
    if isinstance(result, str):
        raise InputError(
            f"--data_service={address}: refuses the run's input "
            f"({result}); is it the address of a dispatcher?"
        )
    return result


def _checked(failure: tf.Tensor, batch: Any) -> Any:
    """Returns the batch, or raises the error that replaces it."""
    check = tf.debugging.Assert(tf.equal(failure, ""), [failure])
    with tf.control_dependencies([check]):
        return tf.nest.map_structure(tf.identity, batch)


def reason(message: str) -> str:
    """Extracts the message of `_checked` from TensorFlow's error."""
    match = re.search(
        r"assertion failed: \[(.*)\]\s*\[\[\{\{node Assert", message, re.S
    )
    if not match:
        return message
    return re.sub(r"\{\{function_node .*?\}\} ", "", match[1])


def in_order(
    arrive: Callable[[float], tuple[int, Any] | None],
    count: int,
    *,
    held: int,
    patience: float,
) -> Iterator[Any]:
    """Puts elements in order as they arrive.

    Args:
        arrive: Waits for at most the given seconds, and returns the next
            (position, element), or None at the end; raises queue.Empty if none
            comes in time.
        count: Number of elements; they have the positions 0 … count - 1.
        held: Number of elements to keep while an earlier one is missing.
        patience: Seconds after which a missing element is an error.

    Yields:
        The elements by position.

    Raises:
        _Failed: One is missing.
    """
    waiting: dict[int, Any] = {}
    for wanted in range(count):
        deadline = time.monotonic() + patience
        while wanted not in waiting:
            left = deadline - time.monotonic()
            try:
                arrival = arrive(max(left, 0)) if left > 0 else None
            except queue.Empty:
                arrival = None
            if arrival is None or len(waiting) >= held:
                raise _lost(len(waiting), patience)
            waiting[arrival[0]] = arrival[1]
        yield waiting.pop(wanted)


class _Failed(Exception):
    """Says why there are no more batches."""


def _lost(later: int, patience: float) -> _Failed:
    if later:
        return _Failed(
            f"{FAILED} lost a batch: {later} later ones have come; has a data "
            "worker died or been stopped?"
        )
    return _Failed(
        f"{FAILED} sent no batch for {patience:g} s: does it run, and a data "
        "worker with it?"
    )


class _Arrivals:
    """Reads from the service in a thread, since its own wait is unlimited."""

    def __init__(self, served: tf.data.Dataset) -> None:
        self._arrivals: queue.Queue[Any] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        # A daemon, as it may wait for a data worker that has died.
        threading.Thread(target=self._read, args=(served,), daemon=True).start()

    def next(self, seconds: float) -> tuple[int, Any] | None:
        """Returns the next arrival; see `in_order`."""
        arrival = self._arrivals.get(timeout=seconds)
        if isinstance(arrival, tf.errors.OpError):
            raise _Failed(arrival.message.splitlines()[0])
        return arrival

    def stop(self) -> None:
        """Ends the thread at its next batch."""
        self._stopped.set()

    def _read(self, served: tf.data.Dataset) -> None:
        try:
            for position, batch in served:
                if not self._put((int(position), batch)):
                    return
            self._put(None)
        except tf.errors.OpError as error:
            self._put(error)

    def _put(self, arrival: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._arrivals.put(arrival, timeout=0.5)
                return True
            except queue.Full:
                pass
        return False
