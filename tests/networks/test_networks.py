import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.flags import errors
from simmatch_tf.networks import batch_norm, heads, network
from simmatch_tf.networks.backbones import resnet, wide_resnet


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_wrn_28_2_has_the_published_size():
    model = wide_resnet.wide_resnet((32, 32, 3), 28, 2)
    # 1,467,610 with the ten-class Dense of the published network.
    assert count(model) + 128 * 10 + 10 == 1_467_610


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (13, 10, 3)])
def test_sizes_and_strides(shape):
    model = wide_resnet.wide_resnet(shape, 10, 1)
    x = np.random.default_rng(0).normal(size=[2, *shape]).astype(np.float32)
    assert model(x).shape == (2, 64)
    sides = {
        layer.output.shape[1:3]
        for layer in model.layers
        if isinstance(layer, keras.layers.Add)
    }
    height, width = shape[:2]
    assert sides == {(-(-height // s), -(-width // s)) for s in (1, 2, 4)}


def numpy_convolution(x, kernel, stride):
    """Padding 1 on every side (0 for 1×1), as in the published weights."""
    size, _, _, filters = kernel.shape
    pad = size // 2
    x = np.pad(x, [[pad, pad], [pad, pad], [0, 0]])
    height = (x.shape[0] - size) // stride + 1
    width = (x.shape[1] - size) // stride + 1
    y = np.zeros([height, width, filters])
    for i in range(height):
        for j in range(width):
            top, left = i * stride, j * stride
            patch = x[top : top + size, left : left + size]
            y[i, j] = np.tensordot(patch, kernel, 3)
    return y


def test_forward_equals_a_numpy_transcription():
    """WRN-10-1 written out: BN, leak 0.1, shortcuts, symmetric padding."""
    keras.utils.set_random_seed(0)
    model = wide_resnet.wide_resnet((8, 8, 1), 10, 1)
    rng = np.random.default_rng(0)
    for v in model.variables:  # statistics and scales that matter
        if len(v.shape) == 1:
            v.assign(rng.uniform(0.5, 1.5, v.shape))
    image = rng.normal(size=[8, 8, 1]).astype(np.float32)
    kernels = iter(
        np.float64(layer.kernel)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    norms = iter(
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )

    def activate(x):
        bn = next(norms)
        gamma, beta, mean, variance = (np.float64(v) for v in bn.variables)
        assert bn.epsilon == 1e-3 and bn.momentum == 0.999
        y = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        return np.where(y > 0, y, 0.1 * y)

    x = numpy_convolution(np.float64(image), next(kernels), 1)
    for stride, changes in ((1, False), (2, True), (2, True)):
        h = activate(x)
        # Only the very first block's shortcut starts at the activation.
        shortcut = x if changes else h
        y = activate(numpy_convolution(h, next(kernels), stride))
        second = next(kernels)
        if changes:
            # Keras lists the shortcut's layer before or after the second
            # convolution; their sizes tell them apart.
            other = next(kernels)
            if second.shape[0] == 1:
                second, other = other, second
            shortcut = numpy_convolution(shortcut, other, stride)
        x = numpy_convolution(y, second, 1) + shortcut
    wanted = activate(x).mean(axis=(0, 1))
    np.testing.assert_allclose(model(image[None])[0], wanted, rtol=1e-4)


def test_he_normal_fan_out():
    keras.utils.set_random_seed(0)
    model = wide_resnet.wide_resnet((8, 8, 3), 10, 4)
    layer = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)][-1]
    kernel = np.array(layer.kernel)
    wanted = np.sqrt(2 / (kernel.shape[0] ** 2 * kernel.shape[3]))
    np.testing.assert_allclose(kernel.std(), wanted, rtol=0.02)
    # Untruncated: some values lie beyond two deviations.
    assert np.abs(kernel).max() > 3 * wanted


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


def test_projection_of_zero_has_a_finite_gradient():
    head = heads.projection_head(4, 3, "glorot_normal")
    x = tf.zeros([2, 4])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(head(x))
    assert np.isfinite(tape.gradient(y, x)).all()
    assert np.isfinite(y)


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


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # torchvision's totals, less their classifiers for 1,000 classes.
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 23_508_032),
        ("resnet101", 44_549_160 - 2_049_000),
        ("resnet50x2", 93_907_072),
    ],
)
def test_resnets_have_the_published_sizes(name, published):
    depth, _, wide = name.removeprefix("resnet").partition("x")
    model = resnet.resnet((32, 32, 3), depth, wide or None)
    assert count(model) == published
    width = 512 if name in ("resnet18", "resnet34") else 2048
    assert model.output.shape == (None, width * (2 if "x2" in name else 1))
    assert model.name == name


def test_resnet50_with_its_heads_is_that_of_table_2():
    model = network.build(
        "resnet50",
        image_shape=(224, 224, 3),
        num_classes=1000,
        projection_dim=128,
        mean=[0.0] * 3,
        std=[1.0] * 3,
    )
    parts = network.parts(model)
    encoder, fc = count(parts["backbone"]), count(parts["classifier"])
    assert (encoder, fc) == (23_508_032, 2_049_000)
    # 2048 · 2048 + 2048 + 2048 · 128 + 128.
    assert count(parts["projection_head"]) == 4_458_624
    assert count(model) == 30_015_656


def test_resnets_strides_norms_and_sizes():
    model = resnet.resnet((64, 96, 3), 50)
    # v1.5: a bottleneck's stride is at its second convolution.
    for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 1)):
        layer = model.get_layer(f"layer2_0_{name}")
        assert layer.strides == (stride, stride)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.epsilon, layer.momentum) == (1e-5, 0.9)
            # No residual branch starts at 0.
            assert float(layer.gamma.value[0]) == 1
    sizes = {
        f"layer{group}": model.get_layer(f"layer{group}_0_relu").output.shape[
            1:
        ]
        for group in (1, 2, 3, 4)
    }
    assert sizes == {
        "layer1": (16, 24, 256),
        "layer2": (8, 12, 512),
        "layer3": (4, 6, 1024),
        "layer4": (2, 3, 2048),
    }


def test_a_resnets_heads_are_uniform_within_the_root_of_fan_in():
    keras.utils.set_random_seed(0)
    for initializer, bound in (("fan_in_uniform", 0.1), ("glorot_normal", 0)):
        dense = heads.classifier(100, 400, initializer).get_layer("logits")
        bias, kernel = (np.asarray(v.value) for v in (dense.bias, dense.kernel))
        assert np.abs(bias).max() <= bound
        if bound:
            assert np.abs(kernel).max() <= bound
            for values in (bias, kernel):  # a uniform one's deviation
                assert values.std() == pytest.approx(bound / 3**0.5, rel=0.1)
            assert bias.min() < -0.09 and bias.max() > 0.09
    with pytest.raises(ValueError, match="initializer 'zeros': must be"):
        heads.classifier(4, 2, "zeros")


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


def test_a_head_needs_a_name_of_its_own():
    with pytest.raises(ValueError, match="has an output logits already"):
        build(heads={"logits": rotation})


@pytest.mark.parametrize(
    ("backbone", "precision"),
    [
        ("wrn_10_1", "float32"),
        ("wrn_10_1", "float64"),
        ("resnet18", "mixed_float16"),
        ("keras_applications:MobileNet", "mixed_bfloat16"),
        ("keras_cv:yolo_v8_xs_backbone", "float32"),
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
