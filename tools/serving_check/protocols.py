"""Calls of an export without a server: saved_model_cli, REST, gRPC."""

import base64
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import predict_pb2

from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import loading, verification

BYTES = "classify_bytes"


def compare(
    where: str, wanted: Mapping[str, Any], actual: Mapping[str, Any]
) -> float:
    """Compares the outputs of one call.

    Args:
        where: Named in messages.
        wanted: Output name → tensor or array.
        actual: Likewise.

    Returns:
        The largest difference of numbers, of features relative to the
        largest of them.

    Raises:
        InputError: It is above `verification.TOLERANCE`, or strings, shapes
            or names differ.
    """
    if set(wanted) != set(actual):
        raise InputError(
            f"{where}: gives {sorted(actual)}, but {sorted(wanted)} are wanted"
        )
    largest = 0.0
    for key in wanted:
        a, b = np.asarray(wanted[key]), np.asarray(actual[key])
        if a.shape != b.shape:
            raise InputError(
                f"{where}/{key}: shape {b.shape} instead of {a.shape}"
            )
        if a.dtype.kind in "OSU":
            if a.tolist() != b.tolist():
                raise InputError(f"{where}/{key}: strings differ")
            continue
        gap = np.abs(a.astype(np.float64) - b).max(initial=0)
        if key == "features":
            gap /= np.abs(a).max(initial=1)
        # NaN counts as a difference.
        if not gap <= verification.TOLERANCE:
            raise InputError(
                f"{where}/{key}: differs by {gap:.2g}, but "
                f"{verification.TOLERANCE:.0e} is allowed"
            )
        largest = max(largest, float(gap))
    return largest


def signature_defs(path: pathlib.Path) -> dict[str, Any]:
    """Reads the signatures from the file, as servers do.

    Args:
        path: The version's folder.

    Returns:
        Name → SignatureDef.
    """
    content = saved_model_pb2.SavedModel()
    content.ParseFromString((path / "saved_model.pb").read_bytes())
    (graph,) = content.meta_graphs
    return dict(graph.signature_def)


def command_line(exported: loading.Export, shown: verification.Examples) -> str:
    """Runs `saved_model_cli run` on `classify_bytes`.

    Args:
        exported: The export.
        shown: A few images.

    Returns:
        The largest difference.

    Raises:
        InputError: The tool fails, or its answers differ.
    """
    # NumPy's strings would lose zeros at their ends; objects do not.
    encoded = np.array(shown.encoded, object)
    tool = pathlib.Path(sys.executable).with_name("saved_model_cli")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        np.save(folder / "input.npy", encoded)
        command = [tool, "run", "--dir", exported.path, "--tag_set", "serve"]
        command += ["--signature_def", BYTES, "--outdir", folder / "out"]
        command += ["--inputs", f"image_bytes={folder / 'input.npy'}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.splitlines()[-5:]
            raise InputError("\n".join(["saved_model_cli failed", *lines]))
        actual = {
            path.stem: np.load(path, allow_pickle=True)
            for path in (folder / "out").glob("*.npy")
        }
    wanted = exported.signatures[BYTES](image_bytes=tf.constant(shown.encoded))
    return f"{compare('saved_model_cli', wanted, actual):.1e}"


def rest(exported: loading.Export, shown: verification.Examples) -> str:
    """Answers a REST request in row form, by TensorFlow Serving's rules.

    Args:
        exported: The export.
        shown: A few images.

    Returns:
        The largest difference between the answer's numbers, read again from
        JSON, and the outputs.

    Raises:
        InputError: The signature cannot be served so, or something differs.
    """
    instances = [
        {"b64": base64.b64encode(data).decode("ascii")}
        for data in shown.encoded
    ]
    body = json.dumps({"signature_name": BYTES, "instances": instances})
    signature = signature_defs(exported.path)[BYTES]
    inputs = _parse_rows(json.loads(body), signature)
    outputs = exported.signatures[BYTES](
        **{key: tf.constant(value) for key, value in inputs.items()}
    )
    answer = json.loads(_render_rows(outputs))
    _check_rows(answer["predictions"], signature, len(instances))
    columns = {
        key: np.array([row[key] for row in answer["predictions"]])
        for key in outputs
    }
    wanted = exported.signatures[BYTES](image_bytes=tf.constant(shown.encoded))
    # JSON has text alone, no bytes.
    wanted = {key: _text(value.numpy()) for key, value in wanted.items()}
    return f"{compare('REST', wanted, columns):.1e}"


def _parse_rows(
    body: Mapping[str, Any], signature: meta_graph_pb2.SignatureDef
) -> dict[str, list[bytes]]:
    """Returns a request in row form; one input has its values alone."""
    if len(signature.inputs) != 1:
        raise InputError(
            f"REST: {BYTES} has {len(signature.inputs)} inputs, so clients "
            "would have to name them"
        )
    ((key, info),) = signature.inputs.items()
    if info.dtype != tf.string.as_datatype_enum:
        raise InputError(f"REST: {BYTES} takes no strings, so no b64 objects")
    return {key: [base64.b64decode(row["b64"]) for row in body["instances"]]}


def _render_rows(outputs: Mapping[str, tf.Tensor]) -> str:
    """Returns an answer in row form; with many outputs, each row names them.

    Strings are text, but b64 objects where the output's name ends in _bytes.
    """
    values = {}
    for key, tensor in outputs.items():
        rows = tensor.numpy()
        if key.endswith("_bytes"):
            rows = [{"b64": base64.b64encode(row).decode()} for row in rows]
        else:
            rows = _text(rows).tolist()
        values[key] = rows
    if len({len(rows) for rows in values.values()}) != 1:
        raise InputError("REST: the outputs have not one length of batch")
    predictions = [
        dict(zip(values, row, strict=True))
        for row in zip(*values.values(), strict=True)
    ]
    return json.dumps({"predictions": predictions}, allow_nan=False)


def _check_rows(
    predictions: list[Mapping[str, Any]],
    signature: meta_graph_pb2.SignatureDef,
    count: int,
) -> None:
    if len(predictions) != count:
        raise InputError(f"REST: {len(predictions)} rows for {count} images")
    for row in predictions:
        if set(row) != set(signature.outputs):
            raise InputError(
                f"REST: a row has {sorted(row)}, but the signature "
                f"{sorted(signature.outputs)}"
            )
        for key, info in signature.outputs.items():
            shape = tf.TensorShape(info.tensor_shape)[1:]
            if not shape.is_compatible_with(np.shape(row[key])):
                raise InputError(
                    f"REST: a row's {key} has the shape {np.shape(row[key])}, "
                    f"but the signature {shape}"
                )


def _text(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "O":
        return values
    flat = [value.decode("utf-8") for value in values.ravel()]
    return np.array(flat, object).reshape(values.shape)


def grpc(exported: loading.Export, shown: verification.Examples) -> str:
    """Checks a gRPC request for every signature.

    Args:
        exported: The export.
        shown: A few images.

    Returns:
        What was found to fit.

    Raises:
        InputError: A request does not survive being sent, or does not fit.
    """
    signatures = signature_defs(exported.path)
    for name in exported.signatures:
        inputs = verification.inputs(name, shown, exported.input_dtype)
        sent = predict_pb2.PredictRequest()
        sent.model_spec.name = "classifier"
        sent.model_spec.signature_name = name
        for key, value in inputs.items():
            proto = tf.make_tensor_proto(value.numpy(), value.dtype)
            sent.inputs[key].CopyFrom(proto)
        received = predict_pb2.PredictRequest()
        received.ParseFromString(sent.SerializeToString())
        if received != sent:
            raise InputError(f"gRPC/{name}: the request changed when sent")
        if name not in signatures:
            raise InputError(f"gRPC/{name}: the file has no such signature")
        _check_request(received, signatures[name])
        for key, value in inputs.items():
            array = tf.make_ndarray(received.inputs[key])
            if array.tolist() != value.numpy().tolist():
                raise InputError(f"gRPC/{name}/{key}: changed when sent")
    return "requests fit"


def _check_request(
    request: predict_pb2.PredictRequest,
    signature: meta_graph_pb2.SignatureDef,
) -> None:
    where = f"gRPC/{request.model_spec.signature_name}"
    # Servers refuse other method names.
    if signature.method_name != "tensorflow/serving/predict":
        raise InputError(f"{where}: its method is {signature.method_name}")
    if set(request.inputs) != set(signature.inputs):
        raise InputError(
            f"{where}: sent {sorted(request.inputs)}, but the signature has "
            f"{sorted(signature.inputs)}"
        )
    for key, info in signature.inputs.items():
        sent = request.inputs[key]
        shape = tf.TensorShape(info.tensor_shape)
        if sent.dtype != info.dtype:
            raise InputError(
                f"{where}/{key}: {tf.as_dtype(sent.dtype).name} instead of "
                f"{tf.as_dtype(info.dtype).name}"
            )
        if not shape.is_compatible_with(tf.TensorShape(sent.tensor_shape)):
            raise InputError(f"{where}/{key}: does not fit the shape {shape}")
