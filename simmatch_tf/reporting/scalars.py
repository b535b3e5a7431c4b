"""The scalars that a run wrote for TensorBoard. Imports no TensorFlow."""

import pathlib
from collections.abc import Iterator

from absl import logging
from google.protobuf import message
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow
from tensorboard.util import tensor_util

# Tag → step → value.
Scalars = dict[str, dict[int, float]]


def read(folder: pathlib.Path) -> Scalars:
    """Reads all event files of a run.

    A run that is killed goes on from its last checkpoint, in a new file: what
    an earlier file has from that step on was undone, and is left out.

    Args:
        folder: Of the event files; it need not be there.

    Returns:
        Of each tag its steps in order. Values may be NaN or infinite.
    """
    found: Scalars = {}
    # The names have the time of their making in them.
    for path in sorted(folder.glob("*tfevents*"), key=_made):
        new = _of_file(path)
        if not new:
            continue
        first = min(min(points) for points in new.values())
        for points in found.values():
            for step in [step for step in points if step >= first]:
                del points[step]
        for tag, points in new.items():
            found.setdefault(tag, {}).update(points)
    return {
        tag: dict(sorted(points.items()))
        for tag, points in sorted(found.items())
        if points
    }


def _made(path: pathlib.Path) -> tuple[int, str]:
    """When a file was begun: events.out.tfevents.SECONDS.HOST.PROCESS.…."""
    seconds = path.name.partition("tfevents.")[2].partition(".")[0]
    return int(seconds) if seconds.isdecimal() else 0, path.name


def _of_file(path: pathlib.Path) -> Scalars:
    """The scalars of one file, as far as it can be read."""
    found: Scalars = {}
    for record in _records(path):
        try:
            event = event_pb2.Event.FromString(record)
        except message.DecodeError:
            break
        for value in event.summary.value:
            number = _scalar(value)
            if number is not None:
                found.setdefault(value.tag, {})[event.step] = number
    return found


def _records(path: pathlib.Path) -> Iterator[bytes]:
    """The whole records of a file; its last one may still be written."""
    try:
        # TensorBoard's own loader would import TensorFlow, which takes seconds.
        reader = pywrap_tensorflow.PyRecordReader_New(str(path))
    except (errors.OpError, OSError):
        return
    with reader.file_handle:
        while True:
            try:
                reader.GetNext()
            except (errors.OutOfRangeError, OSError):
                return
            except errors.DataLossError as error:
                # The last record of a run that goes on may be half written.
                if "truncated" not in str(error):
                    logging.warning(
                        "%s: is damaged; curves end there (%s)", path, error
                    )
                return
            yield reader.record()


def _scalar(value: summary_pb2.Summary.Value) -> float | None:
    """The number in a value; None if it is no scalar."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor"):
        return None
    try:
        array = tensor_util.make_ndarray(value.tensor)
    except (TypeError, ValueError):  # a tensor of another kind
        return None
    if array.size != 1 or array.dtype.kind not in "fiu":
        return None
    return float(array.reshape(()))
