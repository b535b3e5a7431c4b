"""Writes a run as a version of a SavedModel, or for LiteRT or ONNX."""

import collections
import dataclasses
import datetime
import importlib.metadata
import json
import logging
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import simmatch_tf
from simmatch_tf import preflight, terminal
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import classifier as classifier_lib
from simmatch_tf.serving import loading, thumbnails, verification, versions
from simmatch_tf.training import inputs

# Other format → its file.
FILES = {"litert": "model.tflite", "onnx": "model.onnx"}
# Those runtimes sum in another order, so the allowed difference is larger.
_TOLERANCE = 1e-4
_ONNX_OPSET = 18
# Requests that TensorFlow Serving sends itself before a version goes live, in
# batches of these sizes.
WARMUP = "assets.extra/tf_serving_warmup_requests"
_WARMUP_BATCHES = (1, 8, 32)
# Above this number of labeled images no thumbnails are kept.
_MOST_THUMBNAILS = 10_000
_PACKAGES = ("tensorflow", "keras", "numpy")


@dataclasses.dataclass(frozen=True)
class Written:
    """The result of an export.

    Attributes:
        path: The version's folder.
        card: Its model card.
        notes: What was left out, and why.
    """

    path: pathlib.Path
    card: dict[str, Any]
    notes: list[str]


def write(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    weights: str | None = None,
    kind: str = "saved_model",
    input_dtype: str = "uint8",
    neighbors: int = 5,
    keep_thumbnails: bool = True,
    images: str | None = None,
    data_dir: str | None = None,
    tfds_dir: str | None = None,
) -> Written:
    """Exports a run: writes a version, loads it again and compares it.

    Args:
        folder: The run's folder.
        output: The folder of versions.
        weights: "student", "ema" or "baseline"; default: the weights of
            record.
        kind: "saved_model", "litert" or "onnx".
        input_dtype: Data type of the images that it takes, "uint8" or
            "float32".
        neighbors: Number of labeled images that `explain` lists for each image.
        keep_thumbnails: Keep thumbnails of the labeled images in a SavedModel.
        images: Folder, pattern or list of images to compare on; default: those
            of the run's dataset.
        data_dir: Present location of the run's --data_dir.
        tfds_dir: Present location of the run's --tfds_dir.

    Raises:
        InputError: The run or the images cannot be loaded, the export cannot
            be written, or it differs from the training network. Nothing is
            left behind.
    """
    terminal.say(f"loading {folder}")
    run = loading.run(
        folder,
        weights=weights,
        neighbors=neighbors,
        input_dtype=input_dtype,
        data_dir=data_dir,
        tfds_dir=tfds_dir,
    )
    if images is not None:
        source = None
        examples = verification.of_files(images, run.preprocessing)
    else:
        source, examples = _of_dataset(run)
    terminal.say(f"writing a version in {output}, and comparing it")
    card, notes = _card(run) | {"format": kind}, []

    def fill(version: pathlib.Path) -> None:
        if kind == "saved_model":
            card.update(
                _saved_model(
                    version, run, examples, neighbors=neighbors, notes=notes
                )
            )
            if keep_thumbnails and run.explain is not None:
                _thumbnails(version, run, source, notes)
        else:
            card.update(_converted(version, kind, run.classifier, examples))
        versions.write_card(version, card)

    return Written(versions.add(output, fill), card, notes)


def _of_dataset(
    run: loading.Run,
) -> tuple[source_lib.Source, verification.Examples]:
    """Returns the run's dataset, and images of it to compare on."""
    terminal.say(f"reading the images of {run.config.dataset}")
    try:
        source = inputs.make_source(run.moved)
    except InputError as error:
        raise InputError(f"{error}{preflight.GIVE_IMAGES}") from None
    return source, verification.of_source(
        source.test or source.train,
        side=run.preprocessing.image_shape[0],
        resize=run.preprocessing.resize,
    )


def _card(run: loading.Run) -> dict[str, Any]:
    """The model card, as far as it is known before the export is written."""
    content, config = run.content, run.config
    labels = collections.Counter(content["labels"])
    return {
        "model": {
            "algorithm": config.algorithm,
            "backbone": config.backbone,
            "weights": run.weights,
            "weights_of_record": run.weights_of_record,
            "step": run.step,
            "checkpoint": run.identity["checkpoint"],
            "parameters": run.classifier.network.count_params(),
            "input": list(content["image_shape"]),
            "input_dtype": run.input_dtype,
            "preprocessing": run.preprocessing.as_dict(),
            "explains": run.explain is not None,
        },
        "accuracy": run.accuracy,
        "calibration": run.calibration,
        "data": {
            "dataset": config.dataset,
            "class_names": content["class_names"],
            "train_images": content["train_images"],
            "unlabeled_images": content["unlabeled_images"],
            "train_sha256": content.get("train_sha256"),
        },
        "split": {
            "labeled_images": len(content["labels"]),
            "labeled_per_class": {
                str(name): labels[label]
                for label, name in enumerate(content["class_names"])
            },
            "validation_images": len(content["validation"] or ()),
            "split_seed": config.split_seed,
        },
        "flags": {
            name: value
            for name, value in config.values().items()
            if value is not None
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "versions": {
            "simmatch_tf": simmatch_tf.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def _saved_model(
    folder: pathlib.Path,
    run: loading.Run,
    examples: verification.Examples,
    *,
    neighbors: int,
    notes: list[str],
) -> dict[str, Any]:
    """Writes a SavedModel, loads and compares it.

    Returns:
        Entries for the model card; notes are appended to `notes`.
    """
    classifier = run.classifier
    assets = _assets(classifier)
    if labeled := classifier.labeled:
        assets[loading.LABELED] = [
            {"slot": slot, "id": name, "class": classifier.class_names[label]}
            for slot, name, label in zip(
                labeled.slots.tolist(), labeled.ids, labeled.labels, strict=True
            )
        ]
        if neighbors > classifier.neighbors:
            notes.append(
                f"--neighbors={neighbors}: explain gives all "
                f"{classifier.neighbors} labeled images of the memory"
            )
    else:
        notes.append(run.why_not)
    # TensorFlow copies them into assets/.
    originals = folder / "originals"
    originals.mkdir()
    _write_assets(originals, assets)
    classifier.assets = [
        tf.saved_model.Asset(str(originals / name)) for name in assets
    ]
    try:
        tf.saved_model.save(
            classifier, str(folder), signatures=classifier.signatures()
        )
        shutil.rmtree(originals)
        if not _write_warmup(folder, run.config.dataset, classifier, examples):
            notes.append(
                "no warm-up requests: pip install 'simmatch_tf[serving]' has "
                "what is needed to write them"
            )
    except tf.errors.OpError as error:  # such as a full disk
        raise InputError(
            f"{folder.parent}: cannot be written ({error.message})"
        ) from None
    loaded = tf.saved_model.load(str(folder)).signatures
    differences = verification.compare(classifier, loaded, examples)
    return {
        "interface": {
            name: {
                "inputs": _fields(function.structured_input_signature[1]),
                "outputs": _fields(function.structured_outputs),
            }
            for name, function in loaded.items()
        },
        "verified": {
            "images": len(examples.encoded),
            "largest_difference": differences,
        },
    }


def _assets(classifier: classifier_lib.Classifier) -> dict[str, Any]:
    """The files that programs need beside a model: name → JSON content."""
    return {
        loading.CLASS_NAMES: classifier.class_names,
        loading.PREPROCESSING: classifier.preprocessing.as_dict(),
    }


def _write_assets(folder: pathlib.Path, assets: Mapping[str, Any]) -> None:
    for name, content in assets.items():
        text = json.dumps(content, ensure_ascii=False)
        (folder / name).write_text(text, "utf-8")


def _fields(specs: Mapping[str, tf.TensorSpec]) -> dict[str, Any]:
    """The data types and shapes of tensors, for the model card."""
    return {
        key: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for key, spec in sorted(specs.items())
    }


def _write_warmup(
    folder: pathlib.Path,
    name: str,
    classifier: classifier_lib.Classifier,
    examples: verification.Examples,
) -> bool:
    """Writes warm-up requests, if the package for them is installed."""
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        return False

    path = folder / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as file:
        for signature in classifier.signatures():
            arguments = verification.inputs(
                signature, examples, classifier.input_dtype
            )
            for size in _WARMUP_BATCHES:
                request = predict_pb2.PredictRequest()
                request.model_spec.name = name
                request.model_spec.signature_name = signature
                chosen = tf.range(size) % len(examples.encoded)
                for key, tensor in arguments.items():
                    batch = tf.gather(tensor, chosen).numpy()
                    request.inputs[key].CopyFrom(tf.make_tensor_proto(batch))
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                file.write(log.SerializeToString())
    return True


def _thumbnails(
    folder: pathlib.Path,
    run: loading.Run,
    source: source_lib.Source | None,
    notes: list[str],
) -> None:
    """Keeps thumbnails of the labeled images, for `predict --html`."""
    slots = run.classifier.labeled.slots.tolist()
    if source is None:
        notes.append(
            "no thumbnails of the labeled images: --images was given, so the "
            "dataset was not read"
        )
    elif len(slots) > _MOST_THUMBNAILS:
        notes.append(
            f"no thumbnails of the labeled images: {len(slots)} are more than "
            f"{_MOST_THUMBNAILS}"
        )
    else:
        thumbnails.write_archive(folder, run.thumbnails(slots, source))


def _converted(
    folder: pathlib.Path,
    kind: str,
    classifier: classifier_lib.Classifier,
    examples: verification.Examples,
) -> dict[str, Any]:
    """Writes a LiteRT or ONNX model that gives `probabilities`; compares it.

    Returns:
        Entries for the model card.
    """
    spec = tf.TensorSpec(
        [None, *classifier.preprocessing.image_shape],
        classifier.input_dtype,
        "images",
    )

    def probabilities(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = classifier.network(images, training=False)["logits"]
        return {"probabilities": classifier.probabilities(logits)}

    function = tf.function(
        probabilities, input_signature=[spec], autograph=False
    )
    path = folder / FILES[kind]
    path.write_bytes({"litert": _litert, "onnx": _onnx}[kind](function))
    _write_assets(folder, _assets(classifier))
    expected = verification.reference(classifier, examples.pixels)
    expected = expected[classifier_lib.SERVED]["probabilities"]
    values = load_converted(path)(examples.pixels.astype(spec.dtype.name))
    difference = float(np.abs(values - expected).max())
    verification.check("probabilities", difference, _TOLERANCE)
    output = tf.TensorSpec([None, len(classifier.class_names)], tf.float32)
    return {
        "interface": {
            path.name: {
                "inputs": _fields({"images": spec}),
                "outputs": _fields({"probabilities": output}),
            }
        },
        "verified": {
            "images": len(values),
            "largest_difference": {"probabilities": difference},
        },
    }


def _litert(function: tf.types.experimental.PolymorphicFunction) -> bytes:
    from tensorflow.python.framework import convert_to_constants

    # The converter would leave Keras' variables without their values.
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        function.get_concrete_function()
    )
    # Freezing loses the names of the outputs.
    named = tf.function(
        lambda images: {"probabilities": frozen(images)[0]},
        input_signature=function.input_signature,
        autograph=False,
    )
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [named.get_concrete_function()], tf.Module()
    )
    return converter.convert()


def _onnx(function: tf.types.experimental.PolymorphicFunction) -> bytes:
    import tf2onnx

    logging.getLogger("tf2onnx").setLevel(logging.WARNING)
    model, _ = tf2onnx.convert.from_function(
        function,
        input_signature=function.input_signature,
        opset=_ONNX_OPSET,
    )
    # It names the output after a node of the graph.
    output = model.graph.output[0]
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [
                "probabilities" if name == output.name else name
                for name in names
            ]
    output.name = "probabilities"
    return model.SerializeToString()


def load_converted(path: pathlib.Path) -> Callable[[np.ndarray], np.ndarray]:
    """Loads a LiteRT or ONNX model in its own runtime, on the CPU.

    Args:
        path: The .tflite or .onnx file of an export.

    Returns:
        A function: images [N, H, W, C] → probabilities [N, L].
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
