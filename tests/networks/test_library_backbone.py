"""Architectures of the libraries: KerasCV's as small ones of their classes."""

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import registry
from simmatch_tf.networks import (
    batch_norm,
    keras_cv_presets,
    library_backbone,
    network,
)
from simmatch_tf.networks.backbones import libraries
from tests import variants

POLICIES = ("float32", "mixed_bfloat16")
# One of each class of KerasCV's → what makes it small.
SMALLER = {
    "resnet18": {
        "stackwise_filters": [64, 8],  # the first ones as the stem's
        "stackwise_blocks": [2, 1],
        "stackwise_strides": [1, 2],
    },
    "resnet18_v2": {
        "stackwise_filters": [64, 8],
        "stackwise_blocks": [2, 2],
        "stackwise_strides": [1, 2],
    },
    "densenet121": {"stackwise_num_repeats": [2, 1, 1, 1], "growth_rate": 4},
    "efficientnetv1_b0": {
        "stackwise_kernel_sizes": [3, 5],
        "stackwise_num_repeats": [1, 2],
        "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 16],
        "stackwise_expansion_ratios": [1, 2],
        "stackwise_strides": [1, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
    },
    "efficientnetlite_b0": {
        "stackwise_kernel_sizes": [3, 5],
        "stackwise_num_repeats": [1, 2],
        "stackwise_input_filters": [32, 8],
        "stackwise_output_filters": [8, 16],
        "stackwise_expansion_ratios": [1, 2],
        "stackwise_strides": [1, 2],
    },
    "efficientnetv2_b0": {
        "stackwise_kernel_sizes": [3, 3],
        "stackwise_num_repeats": [2, 2],
        "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 16],
        "stackwise_expansion_ratios": [1, 4],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.25],
        "stackwise_strides": [1, 2],
        "stackwise_conv_types": ["fused", "unfused"],
    },
    "csp_darknet_tiny": {"stackwise_channels": [8], "stackwise_depth": [1]},
    "yolo_v8_xs_backbone": {
        "stackwise_channels": [4, 8],
        "stackwise_depth": [1, 1],
    },
    "mobilenet_v3_small": {
        "stackwise_expansion": [1, 3, 3],
        "stackwise_filters": [8, 8, 16],
        "stackwise_kernel_size": [3, 3, 5],
        "stackwise_stride": [2, 1, 2],
        "stackwise_se_ratio": [0.25, None, 0.25],
        "stackwise_activation": ["relu", "relu", "hard_swish"],
    },
    "mit_b0": {"depths": [1, 1, 1, 1], "embedding_dims": [8, 16, 40, 64]},
    "vitdet_base": {
        "embed_dim": 16,
        "depth": 2,
        "mlp_dim": 16,
        "num_heads": 2,
        "global_attention_indices": [1],
    },
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args):
        raise AssertionError("something is fetched")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def small(monkeypatch):
    """Makes a small one of KerasCV's."""
    for name, changes in SMALLER.items():
        class_name, arguments = keras_cv_presets.PRESETS[name]
        arguments = {**arguments, **changes}
        monkeypatch.setitem(
            keras_cv_presets.PRESETS, name, (class_name, arguments)
        )

    def make(name, shape=(16, 16, 3)):
        return library_backbone.make("keras_cv", name, shape)

    return make


@pytest.fixture(params=POLICIES)
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def pixels(side, channels=3, batch=4):
    shape = [batch, side, side, channels]
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def check(model, policy, folder):
    """It trains, and comes back from its file and from a checkpoint."""
    assert len(model.inputs) == 1
    assert sum("InputLayer" in type(x).__name__ for x in model.layers) == 1
    x = pixels(model.input_shape[1])
    with tf.GradientTape() as tape:
        features = model(x, training=True)
        loss = tf.reduce_mean(tf.square(1 - tf.cast(features, tf.float32)))
    assert features.dtype == policy.removeprefix("mixed_")
    assert features.shape == (4, model.output_shape[1])
    for gradient, weight in zip(
        tape.gradient(loss, model.trainable_variables),
        model.trainable_variables,
        strict=True,
    ):
        assert gradient is not None, weight.path
        assert np.isfinite(tf.convert_to_tensor(gradient)).all(), weight.path

    wanted = tf.cast(model(x, training=False), tf.float32)
    images = keras.Input(model.input_shape[1:])
    keras.Model(images, model(images)).save(folder / "model.keras")
    keras.config.set_dtype_policy("float32")  # that it was made with, is kept
    again = keras.models.load_model(folder / "model.keras")
    keras.config.set_dtype_policy(policy)
    np.testing.assert_array_equal(
        tf.cast(again(x, training=False), tf.float32), wanted
    )

    values = [keras.ops.convert_to_numpy(v) for v in model.variables]
    path = tf.train.Checkpoint(model=model).write(str(folder / "checkpoint"))
    for variable in model.variables:
        variable.assign(keras.ops.zeros_like(variable))
    tf.train.Checkpoint(model=model).read(path)
    for value, variable in zip(values, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable, err_msg=variable.path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", variants.of(SMALLER, ("resnet18_v2", "mit_b0"))
)
def test_keras_cv(name, small, policy, tmp_path):
    facts = registry.networks.find(f"keras_cv:{name}")[0].facts
    side = facts.get("min_side", 8)
    side *= 2 if name == "vitdet_base" else 1  # with more than one patch
    model = small(name, (side, side, 3))
    assert model.name == f"keras_cv_{name}"
    assert not any(
        layer.compute_dtype != "float32"
        for layer in model.layers
        if isinstance(layer, keras.layers.Rescaling)
    )
    check(model, policy, tmp_path)


def test_keras_applications(policy, tmp_path):
    model = library_backbone.make(
        "keras_applications", "MobileNet", (32, 32, 3)
    )
    assert model.name == "keras_applications_MobileNet"
    check(model, policy, tmp_path)


def test_every_class_of_keras_cv_is_among_them():
    classes = {
        class_name for class_name, _ in keras_cv_presets.PRESETS.values()
    }
    assert {keras_cv_presets.PRESETS[name][0] for name in SMALLER} == classes


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("resnet18", 0),
        ("resnet18_v2", 0),
        ("yolo_v8_xs_backbone", 0),
        # What KerasCV's number counts and its class does not have: in a block
        # of 32 filters that does not expand, an expansion, 32², and its BN,
        # 4 · 32;
        ("efficientnetlite_b0", 32**2 + 4 * 32),
        # minus what it has by rounding its narrow layers up from a to b, with
        # weights to and from f channels: (b - a)(2f + 1) each.
        (
            "mobilenet_v3_small",
            -(4 * 33 + 2 * 4 * 481 + 2 * 241 + 4 * 289),
        ),
    ],
)
def test_published_sizes(name, beside):
    class_name, _ = keras_cv_presets.PRESETS[name]
    presets = getattr(keras_cv.models, class_name).presets
    model = library_backbone.make("keras_cv", name, (64, 64, 3))
    assert model.count_params() == presets[name]["metadata"]["params"] - beside


MODULES = {
    getattr(keras.applications, name).__module__.rpartition(".")[2]
    for name in libraries.keras_applications_names()
}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_preprocessing_is_the_modules_own(module, policy):
    x = np.random.default_rng(0).uniform(0, 255, [2, 5, 4, 3])
    x = x.astype(np.float32)
    preprocessed = library_backbone.Preprocess(module)(x)
    preprocess = getattr(keras.applications, module).preprocess_input
    np.testing.assert_allclose(
        preprocessed, preprocess(x.copy()), rtol=1e-6, atol=1e-5
    )
    assert preprocessed.dtype == tf.float32


def test_preprocessing_by_hand():
    x = np.full([1, 1, 1, 3], [255, 51, 0], np.uint8)
    for module, wanted in {
        None: [255, 51, 0],
        "efficientnet_v2": [255, 51, 0],
        "mobilenet": [1, -0.6, -1],
        "resnet": [0 - 103.939, 51 - 116.779, 255 - 123.68],
        "densenet": [
            (1 - 0.485) / 0.229,
            (0.2 - 0.456) / 0.224,
            (0 - 0.406) / 0.225,
        ],
    }.items():
        preprocessed = library_backbone.Preprocess(module)(x)[0, 0, 0]
        np.testing.assert_allclose(preprocessed, wanted, rtol=1e-5)
    config = library_backbone.Preprocess("resnet").get_config()
    assert library_backbone.Preprocess.from_config(config).module == "resnet"


def test_grey_images(small):
    grey, coloured = (
        small("yolo_v8_xs_backbone", (16, 16, 1)),
        small("yolo_v8_xs_backbone"),
    )
    coloured.set_weights(grey.get_weights())
    x = pixels(16, 1)
    np.testing.assert_array_equal(grey(x), coloured(np.repeat(x, 3, -1)))


def test_weights_of_the_library_fit(tmp_path):
    """The same images give the same features."""
    model = library_backbone.make(
        "keras_applications", "MobileNet", (32, 32, 3)
    )
    original = keras.applications.MobileNet(
        include_top=False, weights=None, pooling="avg", input_shape=(32, 32, 3)
    )
    original.save_weights(tmp_path / "x.weights.h5")
    model.load_weights(tmp_path / "x.weights.h5")
    x = pixels(32)
    np.testing.assert_allclose(
        model(x), original(np.float32(x / 127.5 - 1)), rtol=1e-5, atol=1e-6
    )


def test_weights_of_keras_cv_fit(small, tmp_path):
    model = small("csp_darknet_tiny")
    class_name, arguments = keras_cv_presets.PRESETS["csp_darknet_tiny"]
    original = keras_cv.models.CSPDarkNetBackbone(
        include_rescaling=True, input_shape=(16, 16, 3), **arguments
    )
    original.save_weights(tmp_path / "x.weights.h5")
    model.load_weights(tmp_path / "x.weights.h5")
    x = pixels(16)
    wanted = np.mean(original(np.float32(x)), axis=(1, 2))
    np.testing.assert_allclose(model(x), wanted, rtol=1e-5, atol=1e-6)


def test_statistics_of_efficientnet_are_read_when_it_runs():
    model = library_backbone.make(
        "keras_applications", "EfficientNetB0", (32, 32, 3)
    )
    (layer,) = (
        x for x in model.layers if isinstance(x, keras.layers.Normalization)
    )
    mean, variance, _ = layer.variables
    np.testing.assert_array_equal(layer(pixels(2)), pixels(2))  # as Keras' own
    mean.assign([0.5, 0.25, 0.0])
    variance.assign([1.0, 16.0, 1 / 16])
    # What Keras does behind published weights: / √v, then / √√v.
    np.testing.assert_allclose(
        layer(np.full([1, 1, 1, 3], 1.0, np.float32))[0, 0, 0],
        [0.5, 0.75 / 4 / 2, 1 / (1 / 4) / (1 / 2)],
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", ["csp_darknet_tiny", "resnet18"])
def test_momentum_of_every_batch_norm(name, small):
    """With 0, the statistics afterwards are those of the batch."""
    x = pixels(16)
    model = small(name)
    batch_norm.adjust(model, momentum=0.0, synchronized=False)
    before = model(x)
    wanted = model(x, training=True)
    np.testing.assert_allclose(model(x), wanted, rtol=1e-3, atol=1e-4)
    assert np.abs(wanted - before).max() > 0.01


def test_batch_norm_comes_back(small):
    adjusted = small("resnet18")
    batch_norm.adjust(adjusted, momentum=0.25, synchronized=True)
    model = library_backbone.LibraryBackbone.from_config(adjusted.get_config())
    layer = model.get_layer("conv1_bn")
    assert (layer.momentum, layer.synchronized) == (0.25, True)
    assert small("resnet18").get_layer("conv1_bn").momentum == 0.99
    assert (
        library_backbone.make("keras_cv", "mobilenet_v3_small", (32, 32, 3))
        .get_layer("Conv_BatchNorm")
        .momentum
        == 0.999
    )  # the architecture's own


def test_synchronized_batch_norm(small, two_replicas):
    x = pixels(16)
    with two_replicas.scope():
        model = small("csp_darknet_tiny")
        batch_norm.adjust(model, momentum=None, synchronized=True)

    def halves(context):
        first = 2 * context.replica_id_in_sync_group
        return tf.constant(x[first : first + 2])

    batch = two_replicas.experimental_distribute_values_from_function(halves)
    run = tf.function(
        lambda b: two_replicas.run(model, (b,), {"training": True})
    )
    outputs = tf.concat(two_replicas.experimental_local_results(run(batch)), 0)
    single = small("csp_darknet_tiny")
    single.set_weights(model.get_weights())
    np.testing.assert_allclose(
        outputs, single(x, training=True), rtol=1e-3, atol=1e-4
    )


def test_as_the_backbone_of_a_network():
    model = network.build(
        "keras_cv:yolo_v8_xs_backbone",
        image_shape=(32, 32, 3),
        num_classes=5,
        projection_dim=4,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )
    out = model(pixels(32))
    assert out["features"].shape == (4, 256) and out["logits"].shape == (4, 5)
    parts = network.parts(model)
    assert parts["backbone"].name == "keras_cv_yolo_v8_xs_backbone"
    assert "normalize" not in parts  # the library's has its own


@pytest.mark.parametrize(
    ("source", "name", "shape", "words"),
    [
        ("keras_cv", "resnet5", (32, 32, 3), "KerasCV has no 'resnet5'"),
        ("keras_applications", "resnet", (32, 32, 3), "has no 'resnet'"),
        ("keras_cv", "resnet18", (32, 32, 4), "1 or 3 channels"),
        ("keras_cv", "mit_b0", (64, 96, 3), "equal and a multiple of 32"),
        ("keras_cv", "vitdet_base", (32, 64, 3), "must be square"),
        ("keras_applications", "VGG16", (31, 64, 3), "at least 32x32"),
    ],
)
def test_bad_arguments(source, name, shape, words):
    with pytest.raises(ValueError, match=words) as info:
        library_backbone.make(source, name, shape)
    begin = f"backbone {source}:{name}, image_shape={shape}: "
    assert str(info.value).startswith(begin)


@pytest.mark.parametrize("others", [0, 1, 2])
def test_positions_fit_to_images_of_another_size(others):
    fit = library_backbone.fit_positions
    value = np.random.default_rng(0).normal(size=[1, others + 9, 4])
    path = "embeddings/position_embeddings"
    assert fit(path, value, value.shape) is value
    fitted = fit(path, value, (1, others + 36, 4))
    np.testing.assert_array_equal(fitted[:, :others], value[:, :others])
    wanted = tf.image.resize(
        value[:, others:].reshape(1, 3, 3, 4), [6, 6], method="bicubic"
    )
    np.testing.assert_allclose(
        fitted[:, others:], np.reshape(wanted, [1, 36, 4]), atol=1e-6
    )
    # Constant embeddings stay what they are.
    constant = fit(path, np.full([others + 4, 2], 3.0), (others + 25, 2))
    np.testing.assert_allclose(constant, 3.0, rtol=1e-6)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("dense/kernel", (1, 37, 4)),
        ("x/position_embedding", (1, 37, 5)),
        ("x/position_embedding", (37, 4)),
        ("x/position_embedding", (1, 36, 4)),
        ("x/position_embedding", (1, 1, 4)),
    ],
)
def test_what_are_no_positions_of_other_images(path, shape):
    value = np.zeros([1, 10, 4])
    assert library_backbone.fit_positions(path, value, shape) is None
