"""Exports for other runtimes: LiteRT (TensorFlow Lite) and ONNX."""

import json
import logging
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf.serving import loading, verification

# Format → its file.
FILES = {"litert": "model.tflite", "onnx": "model.onnx"}
_OPSET = 18
# Other runtimes sum in another order.
TOLERANCE = 1e-4


def write(
    folder: pathlib.Path,
    kind: str,
    run: loading.Run,
    shown: verification.Examples,
) -> dict[str, Any]:
    """Writes a model that gives `probabilities`, and compares it.

    Args:
        folder: Of the version.
        kind: "litert" or "onnx".
        run: What is exported.
        shown: Images to compare by.

    Returns:
        What it adds to the model card.

    Raises:
        InputError: It cannot be written, or differs from the training
            network.
    """
    made = run.classifier
    spec = tf.TensorSpec(
        [None, *made.preprocessing.image_shape], made.input_dtype, "images"
    )

    def probabilities(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = made.network(images, training=False)["logits"]
        return {"probabilities": tf.nn.softmax(logits)}

    function = tf.function(
        probabilities, input_signature=[spec], autograph=False
    )
    content = {"litert": _litert, "onnx": _onnx}[kind](function)
    path = folder / FILES[kind]
    path.write_bytes(content)
    for name, text in (
        (loading.CLASS_NAMES, made.class_names),
        (loading.PREPROCESSING, made.preprocessing.as_dict()),
    ):
        (folder / name).write_text(
            json.dumps(text, ensure_ascii=False), "utf-8"
        )
    images = shown.pixels.astype(made.input_dtype)
    found = load(path)(images)
    wanted = verification.reference(made, shown.pixels)["serving_default"]
    gap = float(np.abs(found - wanted["probabilities"]).max())
    verification.check("probabilities", gap, TOLERANCE)
    return {
        "interface": {
            FILES[kind]: {
                "inputs": {"images": _field(spec)},
                "outputs": {
                    "probabilities": {
                        "dtype": "float32",
                        "shape": [None, len(made.class_names)],
                    }
                },
            }
        },
        "verified": {
            "images": len(images),
            "largest_difference": {"probabilities": gap},
        },
    }


def _field(spec: tf.TensorSpec) -> dict[str, Any]:
    return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}


def _litert(function) -> bytes:
    from tensorflow.python.framework import convert_to_constants

    # The converter would leave Keras' variables without their values.
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        function.get_concrete_function()
    )
    # Freezing loses the outputs' names.
    named = tf.function(
        lambda images: {"probabilities": frozen(images)[0]},
        input_signature=function.input_signature,
        autograph=False,
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [named.get_concrete_function()], tf.Module()
    )
    return converter.convert()


def _onnx(function) -> bytes:
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.WARNING)
    model, _ = tf2onnx.convert.from_function(
        function,
        input_signature=function.input_signature,
        opset=_OPSET,
    )
    # It names them after the graph's nodes.
    output = model.graph.output[0]
    for node in model.graph.node:
        node.output[:] = [
            "probabilities" if name == output.name else name
            for name in node.output
        ]
        node.input[:] = [
            "probabilities" if name == output.name else name
            for name in node.input
        ]
    output.name = "probabilities"
    return model.SerializeToString()


def load(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """A converted model, in its own runtime on the CPU.

    Args:
        path: A .tflite or .onnx file of `write`.

    Returns:
        Images [N, H, W, C] → probabilities [N, L].
    """
    if path.suffix == ".tflite":
        from ai_edge_litert import interpreter

        model = interpreter.Interpreter(model_path=str(path))
        runner = model.get_signature_runner()
        return lambda images: runner(images=images)["probabilities"]
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(path), providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(["probabilities"], {"images": images})[0]
