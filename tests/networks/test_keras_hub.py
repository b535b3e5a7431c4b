"""Networks of KerasHub: small ones, saved as presets with random weights."""

import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import preflight, registry, transfer
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import library_backbone, network
from simmatch_tf.networks.backbones import libraries
from simmatch_tf.probes import encoders
from simmatch_tf.serving import exporting
from simmatch_tf.training import initial
from tests import runs

keras_hub = pytest.importorskip("keras_hub")
pytestmark = pytest.mark.extra
_TRANSFORMER = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8}
_VIT = {**_TRANSFORMER, "image_shape": (32, 32, 3), "patch_size": 16}
_MLP = {"intermediate_dim": 16}
# Class → its arguments.
SMALL = {
    "ViTBackbone": {**_VIT, "mlp_dim": 16},
    "DeiTBackbone": {**_VIT, **_MLP},
    "DINOV2Backbone": {
        **_TRANSFORMER,
        **_MLP,
        "patch_size": 14,
        "image_shape": (28, 28, 3),
        "position_embedding_shape": (42, 42, 3),
        "num_register_tokens": 2,
    },
    "DINOV3Backbone": {**_VIT, **_MLP},
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 8],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
    },
    "EfficientNetBackbone": {
        "stackwise_kernel_sizes": [3, 5],
        "stackwise_num_repeats": [1, 1],
        "stackwise_input_filters": [8, 8],
        "stackwise_output_filters": [8, 16],
        "stackwise_expansion_ratios": [1, 2],
        "stackwise_squeeze_and_excite_ratios": [0.25, 0.25],
        "stackwise_strides": [1, 2],
        "stackwise_block_types": ["v1", "v1"],
        "stackwise_force_input_filters": [0, 0],
        "stackwise_nores_option": [False, False],
        "stackwise_width_coefficients": [1.0, 1.0],
        "stackwise_depth_coefficients": [1.0, 1.0],
    },
    "DenseNetBackbone": {"stackwise_num_repeats": [1, 1], "growth_rate": 4},
    "CSPNetBackbone": {
        "stem_filters": 8,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stackwise_depth": [1, 1],
        "stackwise_strides": [2, 2],
        "stackwise_num_filters": [8, 16],
        "block_type": "dark_block",
        "stage_type": "csp",
        "block_ratio": [0.5],
    },
    "MobileNetBackbone": {
        "stackwise_expansion": [[8], [16]],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_filters": [[8], [8]],
        "stackwise_kernel_size": [[3], [5]],
        "stackwise_num_strides": [[2], [2]],
        "stackwise_se_ratio": [[0.25], [None]],
        "stackwise_activation": [["relu"], ["hard_swish"]],
        "stackwise_padding": [[1], [2]],
        "output_num_filters": 16,
        "input_activation": "hard_swish",
        "output_activation": "hard_swish",
        "input_num_filters": 8,
        "depthwise_filters": 8,
        "depthwise_stride": 2,
        "depthwise_residual": False,
        "squeeze_and_excite": 0.5,
        "last_layer_filter": 16,
    },
    "VGGBackbone": {
        "stackwise_num_repeats": [1, 1],
        "stackwise_num_filters": [8, 16],
    },
    "XceptionBackbone": {
        "stackwise_conv_filters": [[8, 8], [16, 16]],
        "stackwise_pooling": [True, False],
    },
}
SCALING = {"scale": [1 / 60, 1 / 50, 1 / 40], "offset": [-2.0, -1.9, -1.8]}


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Makes the folder of a preset, whose weights are random."""
    made, generator = {}, np.random.default_rng(0)

    def make(name):
        if name not in made:
            core = getattr(keras_hub.models, name)(**SMALL[name])
            for weight in core.weights:
                value = keras.ops.convert_to_numpy(weight)
                if "float" in str(value.dtype):
                    value = value + generator.uniform(0, 0.3, value.shape)
                    weight.assign(value)
            folder = tmp_path_factory.mktemp("presets") / name
            core.save_to_preset(str(folder))
            converter = name.replace("Backbone", "ImageConverter")
            # It resizes images, too: the network gets them in its own size.
            getattr(keras_hub.layers, converter)(
                image_size=(9, 9), **SCALING
            ).save_to_preset(str(folder))
            made[name] = folder
        return made[name]

    return make


def build(folder, side, channels=3, heads=None):
    return network.build(
        f"keras_hub:{folder}",
        image_shape=(side, side, channels),
        num_classes=heads,
        projection_dim=heads,
        mean=[0.5] * channels,
        std=[0.25] * channels,
    )


def filled(folder, side):
    model = build(folder, side)
    name = f"keras_hub:{folder}"
    initial.fill(
        model,
        "imagenet",
        backbone=f"--backbone={name}",
        published=initial.fetch(name),
    )
    return model


def pixels(side, channels=3, batch=2):
    shape = [batch, side, side, channels]
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def features(folder, images):
    """Those that the library makes."""
    changes = {}
    if "DINO" in folder.name:  # the library fits these to any size
        changes = {"image_shape": images.shape[1:]}
    core = keras_hub.models.Backbone.from_preset(str(folder), **changes)
    x = np.float32(images) * np.float32(SCALING["scale"])
    x = x + np.float32(SCALING["offset"])
    named = core.input if isinstance(core.input, dict) else None
    out = core(dict.fromkeys(named, x) if named else x)
    return out[:, 0] if len(out.shape) == 3 else np.mean(out, axis=(1, 2))


def side_of(name):
    return {"DINOV2Backbone": 42}.get(name, 32)


@pytest.mark.parametrize("name", SMALL)
def test_features_are_the_library_s(name, presets, tmp_path):
    folder, side = presets(name), side_of(name)
    model, images = filled(folder, side), pixels(side)
    wanted = features(folder, images)
    actual = model(images)["features"]
    np.testing.assert_allclose(
        actual, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max()
    )
    # It trains.
    weights = model.trainable_variables
    with tf.GradientTape() as tape:
        out = model(images, training=True)["features"]
        loss = tf.reduce_mean(tf.square(1 - out))
    gradients = tape.gradient(loss, weights)
    none = {
        w.path
        for w, g in zip(weights, gradients, strict=True)
        if g is None or not np.isfinite(tf.convert_to_tensor(g)).all()
    }
    assert all("mask_token" in path for path in none), none
    # The file stands alone.
    for weight in weights:
        weight.assign_add(0.01 * keras.random.normal(weight.shape, seed=1))
    wanted = model(images)["features"]
    model.save(tmp_path / "model.keras")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library_backbone, "_hub_preset", pytest.fail)
        again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(images)["features"], wanted)
    model.save_weights(tmp_path / "x.weights.h5")
    other = build(folder, side)
    initial.fill(other, str(tmp_path / "x.weights.h5"), backbone="")
    np.testing.assert_array_equal(other(images)["features"], wanted)


@pytest.mark.parametrize("name", ["DINOV2Backbone", "DINOV3Backbone"])
def test_images_of_another_size_as_the_library_takes_them(name, presets):
    side = 2 * side_of(name)
    folder, images = presets(name), pixels(side)
    wanted = features(folder, images)
    np.testing.assert_allclose(
        filled(folder, side)(images)["features"], wanted, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(("name", "others"), [("ViT", 1), ("DeiT", 2)])
def test_positions_of_images_of_another_size(name, others, presets):
    folder = presets(f"{name}Backbone")
    small, large = (filled(folder, side) for side in (32, 64))

    def positions(model):
        (weight,) = (
            w for w in model.weights if library_backbone.is_positions(w.path)
        )
        return np.squeeze(weight)

    before, after = positions(small), positions(large)
    assert after.shape == (others + 16, 8)
    np.testing.assert_array_equal(after[:others], before[:others])
    wanted = tf.image.resize(
        before[others:].reshape(2, 2, 8), [4, 4], method="bicubic"
    )
    np.testing.assert_allclose(
        after[others:], np.reshape(wanted, [16, 8]), rtol=1e-4, atol=1e-5
    )
    # All else is the same.
    for one, other in zip(small.weights, large.weights, strict=True):
        if not library_backbone.is_positions(one.path):
            np.testing.assert_array_equal(one, other)


def check(name):
    """As a new run checks it, before TensorFlow is imported."""
    config = runs.config("unused", backbone=name, image_size=224)
    preflight.check_available(config)


def test_names(presets, monkeypatch, tmp_path):
    wanted = {
        name
        for kind in SMALL
        for name in getattr(keras_hub.models, kind).presets
    }
    assert set(libraries.keras_hub_names()) == wanted
    for name, side, step in (
        ("dinov2_small", 98, 14),
        ("vit_base_patch32_384_imagenet", 96, 32),
        ("dinov3_vit_small_lvd1689m", 96, 16),
        ("resnet_50_imagenet", 96, 1),
        (presets("DINOV2Backbone"), 98, 14),
        (presets("ViTBackbone"), 96, 16),
        (presets("VGGBackbone"), 96, 1),
    ):
        fact = registry.networks.fact
        assert fact(f"keras_hub:{name}", "side_with_weights") == side
        registry.networks.check_side(f"keras_hub:{name}", side)
        assert fact(f"keras_hub:{name}", "side_step") == step
    with pytest.raises(InputError, match="a multiple of 14, not 96: give ano"):
        registry.networks.check_side("keras_hub:dinov2_small", 96)
    folder = tmp_path / "preset"
    shutil.copytree(presets("ViTBackbone"), folder)
    (folder / "image_converter.json").unlink()
    text = (folder / "config.json").read_text()
    for name, words in (
        ("dinov2_smal", "is unknown; did you mean dinov2_small"),
        ("bert_base_en", "is unknown"),
        ("./preset", f": give the folder's whole path, such as {tmp_path}/pre"),
        (folder, ": is no folder of a preset, which has a image_converter"),
        (tmp_path, ": is no folder of a preset, which has a config.json; "),
    ):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError) as info:
            check(f"keras_hub:{name}")
        assert f"--backbone=keras_hub:{name}"[:30] in str(info.value)
        assert words in str(info.value)
    (folder / "image_converter.json").touch()
    for content in (text.replace("models.vit.", "models.bert."), "{"):
        (folder / "config.json").write_text(content)
        with pytest.raises(InputError, match="is not one of the networks csp"):
            check(f"keras_hub:{folder}")


def test_without_a_network(monkeypatch):
    def fail(*_):
        raise OSError("no route to host")

    import kagglehub

    monkeypatch.setattr(kagglehub, "model_download", fail)
    line = (
        "python -c \"import keras_hub as h; [c.from_preset('dinov2_small')"
        ".save_to_preset('dinov2_small') for c in (h.models.Backbone, "
        'h.layers.ImageConverter)]"; bring that here and give '
        "keras_hub:/WHERE/IT/IS/dinov2_small instead"
    )
    for act, words in (
        (lambda: initial.fetch("keras_hub:dinov2_small"), "its published"),
        (lambda: build("dinov2_small", 42), "it cannot be fetched"),
    ):
        with pytest.raises(InputError) as info:
            act()
        for each in (words, "(no route to host)", "keras_hub keeps them", line):
            assert each in str(info.value)


def test_the_line_makes_a_folder(presets, tmp_path, monkeypatch):
    source = presets("ViTBackbone")
    line = library_backbone._published_keras_hub(str(source)).line
    monkeypatch.chdir(source.parent)
    shutil.move(source.name, "before")
    try:
        # From wherever the library has it, into a folder of its name.
        line = line.replace(
            "from_preset('ViTB", "from_preset('./before/../ViTB"
        )
        shutil.copytree("before", source.name)
        exec(line, {})
        check(f"keras_hub:{source}")
    finally:
        shutil.rmtree(source)
        shutil.move("before", source.name)


def test_in_a_transfer(presets):
    folder = presets("ViTBackbone")
    flags = transfer.TransferConfig(
        model=(f"keras_hub:{folder}",), datasets="digits", image_size=32
    )
    (encoder,) = encoders.load(flags)
    images = pixels(32)
    np.testing.assert_array_equal(
        encoder.network(images)["features"],
        filled(folder, 32)(images)["features"],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side", "larger"),
    [
        ("DINOV2Backbone", 42, 56),
        pytest.param("ViTBackbone", 32, 48, marks=pytest.mark.variant),
    ],
)
def test_runs(name, side, larger, presets, tmp_path):
    """Trained, resumed, saved, exported; the preset is needed at first only."""
    folder = tmp_path / "preset"
    shutil.copytree(presets(name), folder)
    flags = {
        "backbone": f"keras_hub:{folder}",
        "batch_norm_momentum": None,
        "batch_size": 2,
        "steps": 2,
    }
    first = tmp_path / "first"
    simmatch_tf.fit(
        runs.config(first, init_from="imagenet", image_size=side, **flags)
    )
    model = simmatch_tf.load(first)
    folder.rename(tmp_path / "gone")
    images = pixels(side, 1)
    code = (
        "import sys, numpy, simmatch_tf\n"
        "model = simmatch_tf.load(sys.argv[1])\n"
        "images = numpy.load(sys.argv[2])\n"
        "numpy.save(sys.argv[3], model(images)['logits'])\n"
    )
    numpy_files = [str(tmp_path / name) for name in ("x.npy", "y.npy")]
    np.save(numpy_files[0], images)
    subprocess.run(
        [sys.executable, "-c", code, first, *numpy_files], check=True
    )
    wanted = model(images)["logits"]
    np.testing.assert_array_equal(np.load(numpy_files[1]), wanted)
    assert exporting.write(first, tmp_path / "export").path.is_dir()
    (tmp_path / "gone").rename(folder)
    # A second run of larger images begins where the first one ended.
    second = tmp_path / "second"
    simmatch_tf.fit(
        runs.config(
            second,
            init_from=str(first),
            image_size=larger,
            learning_rate=0,
            **flags,
        )
    )
    (second / "results.json").unlink()
    simmatch_tf.fit(
        runs.config(
            second,
            init_from=str(first),
            image_size=larger,
            learning_rate=0,
            **flags,
        )
    )
    large = simmatch_tf.load(second, weights="student")
    for one, other in zip(model.weights, large.weights, strict=True):
        if not library_backbone.is_positions(one.path):
            np.testing.assert_array_equal(one, other)
    assert preflight.kind_of_weights(str(second))[0] == "workdir"
