"""Requests that TensorFlow Serving sends itself before a version goes live."""

import pathlib
from collections.abc import Mapping

import tensorflow as tf

from simmatch_tf.flags.commandline import InputError

FILE = "assets.extra/tf_serving_warmup_requests"
# TensorFlow Serving takes no more.
_MOST = 1000


def available() -> bool:
    """Whether the package with TensorFlow Serving's messages is installed."""
    try:
        _messages()
    except ImportError:
        return False
    return True


def write(
    folder: pathlib.Path,
    name: str,
    requests: Mapping[str, list[Mapping[str, tf.Tensor]]],
) -> int:
    """Writes the warm-up file of a version.

    Args:
        folder: Of the version.
        name: Of the model, as the server has it.
        requests: Signature → its requests, each input name → tensor.

    Returns:
        The number of requests.

    Raises:
        InputError: The file cannot be written.
        ImportError: tensorflow-serving-api is not installed.
    """
    predict_pb2, log_pb2 = _messages()
    logs = []
    for signature, inputs in requests.items():
        for tensors in inputs:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = name
            request.model_spec.signature_name = signature
            for key, tensor in tensors.items():
                proto = tf.make_tensor_proto(tensor.numpy())
                request.inputs[key].CopyFrom(proto)
            log = log_pb2.PredictionLog(
                predict_log=log_pb2.PredictLog(request=request)
            )
            logs.append(log.SerializeToString())
    if len(logs) > _MOST:
        raise ValueError(f"{len(logs)} requests: must be at most {_MOST}")
    path = folder / FILE
    path.parent.mkdir(exist_ok=True)
    try:
        with tf.io.TFRecordWriter(str(path)) as file:
            for log in logs:
                file.write(log)
    except tf.errors.OpError as error:
        raise InputError(f"{path}: cannot be written ({error})") from None
    return len(logs)


def _messages():
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    return predict_pb2, prediction_log_pb2
