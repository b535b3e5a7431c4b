"""Batches that other processes make: tf.data's service, put back in order.

A batch is a function of (seed, step), so it does not matter who makes it. The
service's workers take positions in turn, each position once, and send batches
as they are done; here they are sorted, so that the training run gets what it
would have made itself.
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
from simmatch_tf.flags.commandline import InputError

# Seconds until a batch that does not come is an error. TensorFlow itself would
# wait for ever: for a data worker that died, for the service, or for a first
# data worker.
PATIENCE = 120.0
# Seconds in which the service must take a dataset.
_ANSWERS_WITHIN = 120.0
# Bytes of images that go with a dataset: gRPC ends the process where a message
# has 2 GiB; the rest is for the graph itself.
_LARGEST = 2**31 - 2**26
# Batches under way at once: as many data workers can be busy for one run.
_UNDER_WAY = 16
# Later batches held while an earlier one is missing: at least so many, and as
# many as go into so many bytes.
_HELD_BATCHES, _HELD_BYTES = 96, 2**32
# What a message begins with that is about the service, and not about an image.
FAILED = "the data service"


def ordered(
    dataset: tf.data.Dataset,
    address: str,
    *,
    patience: float = PATIENCE,
) -> tf.data.Dataset:
    """Hands a dataset to the service, and gives its batches in order.

    Args:
        dataset: Of (position, batch), positions from 0 on, of a finite number;
            stateless, so that it matters not where it runs.
        address: Of the service, grpc://HOST:PORT.
        patience: Seconds until a batch that does not come is an error.

    Returns:
        The batches, in the order of their positions. Reading them raises
        tf.errors.OpError if one does not come, with `FAILED` in the message.

    Raises:
        InputError: The service cannot be reached, or does not take it.
    """
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
    # Nothing to tune; see `pipeline`.
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
    """Tells the service of a dataset; its id there."""
    size = _held_bytes(dataset)
    if size > _LARGEST:
        raise InputError(
            f"--data_service={address}: the run's images take "
            f"{size / 2**30:.1f} GiB of memory and would go to the service in "
            "one message, which must stay below 2 GiB; leave it out, or keep "
            "them in files (--dataset=folder)"
        )
    preflight.check_reachable("data_service", address, scheme="grpc://")
    found: queue.Queue[Any] = queue.Queue()

    def register() -> None:
        try:
            found.put(
                tf.data.experimental.service.register_dataset(
                    # Pixels hardly shrink; a network is faster than Snappy.
                    address,
                    dataset,
                    compression=None,
                )
            )
        except Exception as error:
            found.put(error)

    # In a thread: where something else listens, TensorFlow tries for ever.
    threading.Thread(target=register, daemon=True).start()
    try:
        result = found.get(timeout=_ANSWERS_WITHIN)
    except queue.Empty:
        result = f"no answer within {_ANSWERS_WITHIN:g} s"
    if isinstance(result, tf.errors.OpError):
        result = result.message
    elif isinstance(result, Exception):
        raise result
    if isinstance(result, str):
        raise InputError(
            f"--data_service={address}: does not take the run's input "
            f"({result}); is it the address of a dispatcher?"
        )
    return result


def _held_bytes(dataset: tf.data.Dataset) -> int:
    """Of the tensors that the dataset's functions refer to."""
    sizes, pending = {}, [dataset]
    while pending:
        each = pending.pop()
        # No public way leads there, and the graph itself is as large.
        pending += each._inputs()
        for function in each._functions():
            for tensor in function.function.captured_inputs:
                count = tensor.shape.num_elements() or 0
                sizes[id(tensor)] = count * tensor.dtype.size
    return sum(sizes.values())


def _checked(failure: tf.Tensor, batch: Any) -> Any:
    """The batch, or the error that stands in for it."""
    check = tf.debugging.Assert(tf.equal(failure, ""), [failure])
    with tf.control_dependencies([check]):
        return tf.nest.map_structure(tf.identity, batch)


def reason(message: str) -> str:
    """What went wrong, out of TensorFlow's message on it."""
    found = re.search(
        r"assertion failed: \[(.*)\]\s*\[\[\{\{node Assert", message, re.S
    )
    if not found:
        return message
    return re.sub(r"\{\{function_node .*?\}\} ", "", found[1])


def in_order(
    arrive: Callable[[float], tuple[int, Any] | None],
    count: int,
    *,
    held: int,
    patience: float,
) -> Iterator[Any]:
    """Sorts what arrives.

    Args:
        arrive: Given seconds to wait: the next (position, element), or None at
            the end; queue.Empty if none comes in time.
        count: Of the elements: positions 0 … count - 1, each once.
        held: Elements kept while an earlier one is missing.
        patience: Seconds until an element that does not come is an error.

    Yields:
        The elements by position.

    Raises:
        _Failed: One does not come.
    """
    waiting: dict[int, Any] = {}
    for wanted in range(count):
        deadline = time.monotonic() + patience
        while wanted not in waiting:
            left = deadline - time.monotonic()
            try:
                found = arrive(max(left, 0)) if left > 0 else None
            except queue.Empty:
                found = None
            if found is None or len(waiting) >= held:
                raise _lost(len(waiting), patience)
            waiting[found[0]] = found[1]
        yield waiting.pop(wanted)


class _Failed(Exception):
    """Why there are no more batches."""


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
    """Reads the service in a thread: its own wait has no end."""

    def __init__(self, served: tf.data.Dataset) -> None:
        self._found: queue.Queue[Any] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        # A daemon, as it may be waiting for a data worker that is no more.
        threading.Thread(target=self._read, args=(served,), daemon=True).start()

    def next(self, seconds: float) -> tuple[int, Any] | None:
        """The next to arrive; see `in_order`."""
        found = self._found.get(timeout=seconds)
        if isinstance(found, tf.errors.OpError):
            raise _Failed(found.message.splitlines()[0])
        return found

    def stop(self) -> None:
        """Ends the thread, at its next batch."""
        self._stopped.set()

    def _read(self, served: tf.data.Dataset) -> None:
        try:
            for position, batch in served:
                if not self._put((int(position), batch)):
                    return
            self._put(None)
        except tf.errors.OpError as error:
            self._put(error)

    def _put(self, found: Any) -> bool:
        while not self._stopped.is_set():
            try:
                self._found.put(found, timeout=0.5)
                return True
            except queue.Full:
                pass
        return False
