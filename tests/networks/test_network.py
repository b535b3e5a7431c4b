"""Networks: outputs, parts, heads, and saving."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.flags import errors
from simmatch_tf.networks import batch_norm, heads, network


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def build(backbone="wrn_10_1", shape=(8, 8, 3), **changes):
    options = {
        "image_shape": shape,
        "num_classes": 5,
        "projection_dim": 16,
        "mean": [0.5] * shape[2],
        "std": [0.25] * shape[2],
        **changes,
    }
    return network.build(backbone, **options)


def test_outputs():
    model = build()
    images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 3])
    out = model(images.astype(np.uint8))
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "features": (3, 64),
        "logits": (3, 5),
        "embeddings": (3, 16),
    }
    np.testing.assert_allclose(
        np.linalg.norm(out["embeddings"], axis=1), 1, rtol=1e-5
    )
    np.testing.assert_allclose(
        out["logits"], model(images.astype(np.float32))["logits"], rtol=1e-5
    )
    assert set(build(projection_dim=None).output) == {"features", "logits"}


def test_heads_stay_in_float32_under_mixed_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        out = build()(np.zeros([2, 8, 8, 3], np.uint8))
    finally:
        keras.config.set_dtype_policy(policy)
    assert out["features"].dtype == tf.bfloat16
    assert out["logits"].dtype == out["embeddings"].dtype == tf.float32


def test_normalisation_is_part_of_the_network_and_of_its_weights(tmp_path):
    layer = heads.Normalize([0.5, 0.25], [0.1, 0.2])
    x = np.full([1, 1, 1, 2], 255, np.uint8)
    np.testing.assert_allclose(layer(x)[0, 0, 0], [5.0, 3.75], rtol=1e-5)
    assert [v.name for v in layer.variables] == ["mean", "std"]
    assert not layer.trainable_variables
    model = build()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3])
    np.testing.assert_allclose(
        again(images)["logits"], model(images)["logits"], rtol=1e-5
    )


def test_a_backbone_without_a_pool():
    def flat(shape):
        images = keras.Input(shape)
        return keras.Model(images, keras.layers.Conv2D(4, 3)(images))

    with pytest.raises(ValueError, match="end it with a global pool"):
        network.build(
            flat,
            image_shape=(8, 8, 1),
            num_classes=2,
            projection_dim=4,
            mean=[0.0],
            std=[1.0],
        )


def test_parts():
    model = build()
    assert list(network.parts(model)) == [
        "normalize",
        "backbone",
        "projection_head",
        "classifier",
    ]
    assert set(network.parts(build(num_classes=None))) == {
        "normalize",
        "backbone",
        "projection_head",
    }
    with pytest.raises(ValueError, match="is not a network of simmatch_tf"):
        network.parts(network.parts(model)["backbone"])


def test_batch_norm_of_a_backbone_from_python():
    def make(shape):
        images = keras.Input(shape)
        inner = keras.Sequential(
            [
                keras.Input(shape),
                keras.layers.BatchNormalization(momentum=0.7),
            ]
        )
        x = keras.layers.GlobalAveragePooling2D()(inner(images))
        return keras.Model(images, x)

    def norm(**options):
        model = build(make, (8, 8, 1), **options)
        (layer,) = batch_norm.layers(model)
        return layer.momentum, layer.synchronized

    assert norm() == (0.7, False)
    assert norm(batch_norm_momentum=0.0, synchronized=True) == (0.0, True)


def rotation(x):
    x = keras.layers.BatchNormalization()(keras.layers.Dense(6)(x))
    return keras.layers.Dense(4)(x)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_further_heads(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build(heads={"rotation": rotation}, batch_norm_momentum=0.5)
    finally:
        keras.config.set_dtype_policy(before)
    images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 3])
    outputs = model(images)
    assert set(outputs) == {"features", "logits", "embeddings", "rotation"}
    assert outputs["rotation"].shape == (3, 4)
    assert outputs["rotation"].dtype == tf.float32
    head = network.parts(model)["rotation"]
    assert count(head) == 64 * 6 + 6 + 12 + 6 * 4 + 4
    assert {layer.momentum for layer in batch_norm.layers(model)} == {0.5}
    np.testing.assert_allclose(
        head(outputs["features"]), outputs["rotation"], rtol=1e-5, atol=1e-5
    )


def test_a_predictor_is_a_head_of_a_projection():
    heads = {"projection": rotation, "prediction": ("projection", rotation)}
    model = build(heads=heads)
    outputs = model(np.zeros([3, 8, 8, 3], np.uint8))
    predictor = network.parts(model)["prediction"]
    np.testing.assert_allclose(
        predictor(outputs["projection"]), outputs["prediction"], rtol=1e-5
    )
    with pytest.raises(ValueError, match="is a head of projection, but the"):
        build(heads={"prediction": ("projection", rotation)})


def test_a_head_needs_a_name_of_its_own():
    with pytest.raises(ValueError, match="has an output logits already"):
        build(heads={"logits": rotation})


@pytest.mark.parametrize(
    ("backbone", "precision"),
    [
        ("wrn_10_1", "float32"),
        ("wrn_10_1", "float64"),
        pytest.param("resnet18", "mixed_float16", marks=pytest.mark.slow),
        pytest.param(
            "keras_applications:MobileNet",
            "mixed_bfloat16",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "keras_cv:yolo_v8_xs_backbone", "float32", marks=pytest.mark.slow
        ),
    ],
)
def test_a_saved_network_comes_back(backbone, precision, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = build(
            backbone,
            (32, 32, 3),
            heads={"rotation": rotation},
            batch_norm_momentum=0.25,
            synchronized=True,
        )
    finally:
        keras.config.set_dtype_policy(before)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if len(variable.shape) == 1 and "float" in variable.dtype:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    names = ["1/2", "é", "e\u0301", "日本\n", "\udcff"]
    path = tmp_path / "model.keras"
    network.save(model, path, names)
    assert [each.name for each in tmp_path.iterdir()] == ["model.keras"]
    again = network.load(path)
    assert list(again.class_names) == names
    images = rng.integers(0, 256, [2, 32, 32, 3]).astype(np.uint8)
    outputs = model(images)
    for name, values in again(images).items():
        np.testing.assert_array_equal(values, outputs[name], err_msg=name)
    assert list(network.parts(again)) == list(network.parts(model))
    assert {
        (layer.momentum, layer.synchronized)
        for layer in batch_norm.layers(again)
    } == {(0.25, True)}
    assert keras.saving.load_model(path).class_names == names


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_linear_classifier_on_a_network_comes_back(precision, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = build()
        random = np.random.default_rng(0)
        mean, deviation = random.uniform(0.5, 1, [2, 64])
        kernel, bias = random.normal(size=[64, 3]), random.normal(size=3)
        other = network.with_linear_classifier(
            model, mean, deviation, kernel, bias, most=2.0
        )
    finally:
        keras.config.set_dtype_policy(before)
    network.save(other, tmp_path / "model.keras", ["a", "b", "c"])
    again = network.load(tmp_path / "model.keras")
    assert list(again.class_names) == ["a", "b", "c"]
    assert list(network.parts(again)) == ["normalize", "backbone", "classifier"]
    images = random.integers(0, 256, [9, 8, 8, 3]).astype(np.uint8)
    features = np.asarray(model(images)["features"], np.float32)
    outputs = again(images)
    assert set(outputs) == {"features", "logits"}
    x = np.clip((features - mean) / deviation, -2, 2)
    np.testing.assert_allclose(
        outputs["logits"], x @ kernel + bias, rtol=1e-4, atol=1e-4
    )
    # The network that it was put on is as it was.
    assert model(images)["logits"].shape == (9, 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports", ["import keras, simmatch_tf", "import simmatch_tf, keras"]
)
def test_keras_loads_a_saved_network(imports, tmp_path):
    path = str(tmp_path / "model.keras")
    network.save(build(), path, ["a", "b", "c", "d", "e"])
    code = f"{imports}; print(keras.saving.load_model({path!r}).class_names)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "['a', 'b', 'c', 'd', 'e']\n"


def test_files_that_are_no_networks(tmp_path):
    path = tmp_path / "model.keras"
    with pytest.raises(errors.InputError, match="model.keras: cannot be read"):
        network.load(path)
    path.write_bytes(b"nothing")
    with pytest.raises(errors.InputError, match="model.keras: cannot be read"):
        network.load(path)
    keras.Sequential([keras.Input([2]), keras.layers.Dense(1)]).save(path)
    with pytest.raises(errors.InputError, match="is not a network of simmatch"):
        network.load(path)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_layer_norm_in_front_of_both_heads(policy, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build(feature_norm=True)
    finally:
        keras.config.set_dtype_policy(before)
    parts = network.parts(model)
    assert count(parts["feature_norm"]) == 2 * 64
    random = np.random.default_rng(0)
    for variable in parts["feature_norm"].variables:
        variable.assign(random.normal(size=variable.shape))
    images = random.integers(0, 256, [3, 8, 8, 3])
    out = model(images)
    x = np.float64(out["features"])  # those of the backbone
    x -= x.mean(axis=1, keepdims=True)
    x /= np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)
    gamma, beta = (v.numpy() for v in parts["feature_norm"].variables)
    x = tf.constant(x * gamma + beta, tf.float32)
    tolerance = {"rtol": 1e-4, "atol": 1e-4}
    for head, name in (
        ("classifier", "logits"),
        ("projection_head", "embeddings"),
    ):
        assert out[name].dtype == tf.float32
        np.testing.assert_allclose(parts[head](x), out[name], **tolerance)
    network.save(model, tmp_path / "x.keras", ["a"] * 10)
    again = network.load(tmp_path / "x.keras")(images)
    for name, value in out.items():
        np.testing.assert_array_equal(again[name], value)
