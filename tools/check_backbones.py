"""Trains, saves and reloads backbones.

    python tools/check_backbones.py                    # a few
    python tools/check_backbones.py resnet50 keras_cv:mit_b0
    python tools/check_backbones.py --full             # all: hours, 16 GB
    python tools/check_backbones.py --published --full # 40 of them: an hour

For each backbone, in float32 and in mixed_bfloat16: builds the whole network,
takes a training step with an EMA teacher on 2 + 2 images, saves it as .keras
and .weights.h5, reloads both and compares the outputs. KerasCV's must have as
many parameters as it publishes. Prints a table; ends with status 1 if one
fails.
"""

import argparse
import contextlib
import gc
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import h5py
import keras
import numpy as np
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from simmatch_tf import registry
from simmatch_tf.flags import errors
from simmatch_tf.modules import optimizer
from simmatch_tf.modules import teacher as teacher_lib
from simmatch_tf.networks import (
    batch_norm,
    keras_cv_presets,
    library_backbone,
    network,
)
from simmatch_tf.networks.backbones import libraries
from simmatch_tf.training import initial

FEW = (
    "wrn_10_1",
    "resnet18",
    "keras_cv:resnet18",
    "keras_cv:efficientnetlite_b0",
    "keras_cv:yolo_v8_xs_backbone",
    "keras_applications:MobileNet",
    "keras_applications:EfficientNetB0",
)
ALL = (
    "wrn_10_1",
    "wrn_28_2",
    "wrn_28_8",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101)),
    "resnet50x2",
    *(f"keras_applications:{n}" for n in libraries.keras_applications_names()),
    *(f"keras_cv:{n}" for n in keras_cv_presets.PRESETS),
)
# One of each way to scale pixels and to store weights.
FEW_PUBLISHED = tuple(
    f"keras_applications:{name}"
    for name in (
        "ConvNeXtTiny",
        "DenseNet121",
        "EfficientNetB0",
        "MobileNet",
        "MobileNetV3Small",
        "ResNet50",
        "ResNet50V2",
    )
)
PUBLISHED = tuple(n for n in ALL if n.startswith("keras_applications:"))
POLICIES = ("float32", "mixed_bfloat16")

# Backbone → published number of parameters minus the number its class has.
COUNTED_BESIDE = {
    # An expansion by 1 in each block that does not expand.
    **dict.fromkeys(("efficientnetv1_b0", "efficientnetlite_b0"), 1_152),
    "efficientnetlite_b1": 1_152,
    "efficientnetlite_b2": 1_152,
    "efficientnetlite_b3": 1_736,
    "efficientnetlite_b4": 2_320,
    "efficientnetv1_b1": 1_472,
    "efficientnetv1_b2": 1_472,
    "efficientnetv1_b3": 2_432,
    "efficientnetv1_b4": 3_168,
    "efficientnetv1_b5": 3_840,
    "efficientnetv1_b6": 5_664,
    "efficientnetv1_b7": 7_808,
    # Without rounding the squeeze layers to multiples of 8.
    "mobilenet_v3_small": -5_618,
    "mobilenet_v3_large": -1_834,
    # A classifier of ten classes.
    "mit_b0": 2_570,
    **{f"mit_b{size}": 5_130 for size in range(1, 6)},
}


class Failure(Exception):
    """A check of a backbone failed."""


def check_published_size(name: str) -> None:
    """Compares the number of parameters with the published one.

    Raises:
        Failure: They differ.
    """
    import keras_cv

    class_name, _ = keras_cv_presets.PRESETS[name]
    presets = getattr(keras_cv.models, class_name).presets
    published = presets[name]["metadata"].get("params")
    if published is None:
        return
    # The position embeddings of ViTDet are as large as its images.
    side = 1024 if name.startswith("vitdet") else 64
    count = library_backbone.make(
        "keras_cv", name, (side, side, 3)
    ).count_params()
    wanted = published - COUNTED_BESIDE.get(name, 0)
    if count != wanted:
        raise Failure(f"{count} parameters, {wanted} published")


def make_network(name: str, side: int) -> keras.Model:
    """Builds a network with heads of ten classes and 16 dimensions."""
    return network.build(
        name,
        # Statistics of the last batch: with the initial ones, the values of a
        # deep network overflow in inference.
        batch_norm_momentum=0.0,
        image_shape=(side, side, 3),
        num_classes=10,
        projection_dim=16,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )


def train(
    student: keras.Model, teacher: teacher_lib.Teacher, images: tf.Tensor
) -> None:
    """Takes a step on images [4, H, W, 3], the first two labeled.

    Raises:
        Failure: A gradient is missing, or a value is not finite.
    """
    weights = student.trainable_variables
    sgd = optimizer.Sgd(1e-3)
    sgd.build(weights)

    def step(images: tf.Tensor) -> tf.Tensor:
        targets = teacher.model(images[2:], training=False)
        with tf.GradientTape() as tape:
            out = student(images, training=True)
            labels = tf.concat(
                [tf.eye(2, 10), tf.nn.softmax(targets["logits"])], 0
            )
            losses = tf.nn.softmax_cross_entropy_with_logits(
                labels, out["logits"]
            )
            alike = out["embeddings"][2:] * targets["embeddings"]
            loss = tf.reduce_mean(losses) - tf.reduce_mean(alike)
        gradients = tape.gradient(loss, weights)
        for gradient, weight in zip(gradients, weights, strict=True):
            if gradient is None:
                raise Failure(f"{weight.path} has no gradient")
        sgd.apply(gradients, weights)
        teacher.update(student, tf.constant(0))
        return tf.stack([tf.math.is_finite(tf.norm(g)) for g in gradients])

    graph = tf.function(step, autograph=False).get_concrete_function(images)
    finite = graph(images).numpy()
    for weight, is_finite in zip(weights, finite, strict=True):
        if not is_finite:
            raise Failure(f"{weight.path}: its gradient is not finite")
    for variable in student.variables + teacher.model.variables:
        value = keras.ops.convert_to_numpy(variable)
        if not np.isfinite(value.astype(np.float32)).all():
            raise Failure(f"{variable.path} is not finite")


def compare(
    title: str, model: keras.Model, other: keras.Model, images: tf.Tensor
) -> None:
    """Compares the outputs of two networks.

    Raises:
        Failure: They differ.
    """
    wanted, actual = (m(images, training=False) for m in (model, other))
    for key, value in wanted.items():
        gap = tf.reduce_max(
            tf.abs(
                tf.cast(value, tf.float32) - tf.cast(actual[key], tf.float32)
            )
        )
        size = tf.reduce_max(tf.abs(tf.cast(value, tf.float32)))
        if not gap <= 1e-5 * size:
            raise Failure(f"{title}: {key} differ by {gap:.2g} of {size:.2g}")


# --------------------------------------------------- published weights --
def write_stand_in(name: str, path: pathlib.Path) -> list[np.ndarray]:
    """Writes random weights as Keras Applications publishes an architecture's.

    BatchNorm has the statistics of some images, so that features differ from
    image to image, with larger variances: otherwise a deep network of random
    weights multiplies rounding errors by thousands.

    Args:
        name: The architecture, such as "ResNet50".
        path: The .h5 file.

    Returns:
        The weights, in Keras' order.
    """
    generator = np.random.default_rng(0)
    model = getattr(keras.applications, name)(include_top=False, weights=None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
        values = layer.get_weights()
        if isinstance(layer, keras.layers.Normalization) and values:
            # The scaling of these depends on the values.
            values[:2] = (
                np.float32([0.485, 0.456, 0.406]),
                np.float32([0.229, 0.224, 0.225]) ** 2,
            )
            layer.set_weights(values)
            continue
        for place, value in enumerate(values):
            if value.ndim == 1:  # all are 0 or 1
                noise = generator.uniform(-0.01, 0.01, value.shape)
                values[place] = value + noise.astype(value.dtype)
        layer.set_weights(values)
    if any(batch_norm.layers(model)):
        side = model.input_shape[1] or 96  # some take one size only
        images = generator.uniform(0, 255, [4, side, side, 3])
        scaled = preprocess(name)(images.astype(np.float32))
        tf.function(model, autograph=False)(scaled, training=True)
        for layer in batch_norm.layers(model):
            variance = layer.moving_variance.numpy()
            layer.moving_variance.assign(variance + variance.mean())
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return model.get_weights()


def preprocess(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function that scales images as an architecture needs them."""
    module = getattr(keras.applications, name).__module__.rpartition(".")[2]
    return getattr(keras.applications, module).preprocess_input


@contextlib.contextmanager
def serving(path: pathlib.Path) -> Iterator[None]:
    """Has Keras Applications read a file instead of its published ones."""
    with (
        mock.patch.object(file_utils, "get_file", lambda *_, **__: str(path)),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # about the size of the images
        yield


def check_published(name: str, folder: pathlib.Path) -> tuple[int, int]:
    """Checks that an architecture's published weights would fit.

    Args:
        name: The backbone, such as "keras_applications:ResNet50".
        folder: For files.

    Returns:
        See `check`.

    Raises:
        Failure: They would not, or it cannot be trained from them.
    """
    _, _, architecture = name.rpartition(":")
    function = getattr(keras.applications, architecture)
    path = folder / f"{architecture}.h5"
    values = write_stand_in(architecture, path)
    side = registry.networks.find(name)[0].facts["min_side"]
    student = make_network(name, side)
    backbone = network.parts(student)["backbone"]
    fresh = backbone.get_weights()
    backup = folder / f"{architecture}.weights.h5"
    with serving(path):
        published = library_backbone.published(*name.split(":"))
        function(include_top=False).save_weights(backup)
    for way, given in (
        ("imagenet", published),
        (str(path), None),
        (str(backup), None),
    ):
        backbone.set_weights(fresh)
        initial.fill(
            student, way, backbone=f"--backbone={name}", published=given
        )
        for one, other in zip(backbone.get_weights(), values, strict=True):
            if not np.array_equal(one, other):
                raise Failure(f"--init_from={way} gives other weights")
    compare_with_library(architecture, student, path, side)
    train_on_labels(student, side)
    return side, backbone.count_params()


def compare_with_library(
    name: str,
    model: keras.Model,
    path: pathlib.Path,
    side: int,
) -> None:
    """Compares features with those of the library's model of published weights.

    Args:
        name: The architecture of Keras Applications.
        model: Our network, with the weights of the file.
        path: The file.
        side: Side of the images.

    Raises:
        Failure: They differ.
    """
    images = np.random.default_rng(1).integers(0, 256, [2, side, side, 3])
    # With "imagenet" some have a layer more than with a file's name. NASNets
    # then take images of one size only.
    weights = str(path) if name.startswith("NASNet") else "imagenet"
    with serving(path):
        original = getattr(keras.applications, name)(
            include_top=False,
            weights=weights,
            pooling="avg",
            input_shape=(side, side, 3),
        )
    wanted = original.predict(
        preprocess(name)(images.astype(np.float32)), verbose=0
    )
    actual = model.predict(images.astype(np.uint8), verbose=0)["features"]
    gap, size = np.abs(actual - wanted).max(), np.abs(wanted).max()
    apart = np.abs(wanted[0] - wanted[1]).max()
    if not apart > 1e-4 * size:
        raise Failure(f"images are {apart:.2g} of {size:.2g} apart: no check")
    if not gap <= min(1e-5 * size, 1e-2 * apart):
        raise Failure(
            f"features differ by {gap:.2g} of {size:.2g}, of two images by "
            f"{apart:.2g}"
        )


def train_on_labels(model: keras.Model, side: int) -> None:
    """Takes a step of supervised training on two images.

    Raises:
        Failure: A gradient is missing or not finite, or a weight stays.
    """
    images = np.random.default_rng(2).integers(0, 256, [2, side, side, 3])
    weights = [
        *network.parts(model)["backbone"].trainable_variables,
        *network.parts(model)["classifier"].trainable_variables,
    ]
    before = [keras.ops.convert_to_numpy(weight) for weight in weights]
    sgd = optimizer.Sgd(0.1)
    sgd.build(weights)

    @tf.function(autograph=False)
    def step(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            out = model(images, training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(
                    [0, 1], out["logits"]
                )
            )
        gradients = tape.gradient(loss, weights)
        sgd.apply(gradients, weights)
        return gradients

    gradients = step(tf.constant(images, tf.uint8))
    for gradient, weight in zip(gradients, weights, strict=True):
        if gradient is None or not np.isfinite(gradient).all():
            raise Failure(f"{weight.path}: its gradient is not finite")
    stays = [
        weight.path
        for weight, value, gradient in zip(
            weights, before, gradients, strict=True
        )
        if np.array_equal(weight, value) and np.any(gradient)
    ]
    if stays:
        raise Failure(f"{', '.join(stays)} did not change")


# ------------------------------------------------------------- the table --
def check(name: str, policy: str, folder: pathlib.Path) -> tuple[int, int]:
    """Checks a backbone.

    Returns:
        The side of the images, and the number of the backbone's parameters.

    Raises:
        Failure: A check failed.
    """
    library, _, architecture = name.rpartition(":")
    if library == "keras_cv" and policy == POLICIES[0]:
        check_published_size(architecture)
    side = max(32, registry.networks.find(name)[0].facts.get("min_side", 1))
    images = np.random.default_rng(0).integers(0, 256, [4, side, side, 3])
    images = tf.constant(images, tf.uint8)
    student = make_network(name, side)
    teacher = teacher_lib.Teacher(
        make_network(name, side), student, momentum=0.5
    )
    train(student, teacher, images)
    # Statistics of the new weights: with old ones a deep network overflows.
    for model in (student, teacher.model):
        model(images, training=True)
    student.save(folder / "network.keras")
    again = keras.models.load_model(folder / "network.keras")
    compare(".keras", student, again, images)
    teacher.model.save_weights(folder / "network.weights.h5")
    again.load_weights(folder / "network.weights.h5")
    compare(".weights.h5", teacher.model, again, images)
    return side, network.parts(student)["backbone"].count_params()


def row(name: str, policy: str, *, published: bool = False) -> bool:
    """Checks a backbone and prints a line of the table.

    Args:
        name: The backbone.
        policy: Keras' dtype policy.
        published: Whether to check published weights.

    Returns:
        Whether all checks passed.
    """
    keras.backend.clear_session()
    gc.collect()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    start, side, size, verdict = time.monotonic(), "", "", "ok"
    with tempfile.TemporaryDirectory() as folder:
        try:
            if published:
                side, size = check_published(name, pathlib.Path(folder))
            else:
                side, size = check(name, policy, pathlib.Path(folder))
        # Any error of a library must not stop the other checks.
        except Exception as error:
            verdict = f"{type(error).__name__}: {error}".replace("\n", " ")
    seconds = time.monotonic() - start
    print(
        f"{name:40} {policy:15} {side:>4} {size:>11} {seconds:8.1f} {verdict}",
        flush=True,
    )
    return verdict == "ok"


def check_apart(name: str, *options: str) -> bool:
    """Checks a backbone in a process of its own.

    TensorFlow and Keras do not free all memory while they run.

    Args:
        name: The backbone.
        *options: Of the command line.

    Returns:
        Whether all checks passed.
    """
    words = [sys.executable, __file__, "--bare", *options, name]
    status = subprocess.run(words, check=False).returncode
    if status not in (0, 1):
        print(f"{name:40} ended with status {status}", flush=True)
    return status == 0


def main() -> None:
    """Checks the backbones named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="backbones")
    parser.add_argument("--full", action="store_true", help="all backbones")
    parser.add_argument(
        "--published",
        action="store_true",
        help="whether published weights of Keras Applications would fit",
    )
    parser.add_argument(
        "--bare", action="store_true", help="in this process, without a heading"
    )
    arguments = parser.parse_args()
    published = arguments.published
    every, few = (PUBLISHED, FEW_PUBLISHED) if published else (ALL, FEW)
    names = arguments.names or (every if arguments.full else few)
    try:
        for name in names:
            registry.networks.find(name)
            if published and name not in PUBLISHED:
                parser.error(f"--published {name}: not of Keras Applications")
    except errors.InputError as error:
        sys.exit(f"error: {error}")
    if arguments.bare:
        # Every policy, even after one that fails.
        policies = POLICIES[:1] if published else POLICIES
        fine = [row(n, p, published=published) for n in names for p in policies]
        sys.exit(not all(fine))
    print(
        f"{'name':40} {'dtype policy':15} side {'parameters':>11} "
        f"{'seconds':>8} ok",
        flush=True,
    )
    options = ["--published"] * published
    wrong = [name for name in names if not check_apart(name, *options)]
    if wrong:
        sys.exit(f"failed: {', '.join(wrong)}")
    print(f"{len(names)} backbones passed")


if __name__ == "__main__":
    main()
