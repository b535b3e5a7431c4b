"""The names of backbones, and the limits on their images."""

import importlib.util
import inspect
import subprocess
import sys

import keras
import keras_cv
import pytest

from simmatch_tf import registry
from simmatch_tf.flags import errors
from simmatch_tf.networks import keras_cv_presets, library_backbone, network
from simmatch_tf.networks.backbones import libraries

MODELS = [
    cls
    for cls in vars(keras_cv.models).values()
    if isinstance(cls, type) and issubclass(cls, keras_cv.models.Backbone)
]
# Not of images: of videos, and of points measured by a laser.
NOT_IMAGES = {
    "videoswin_base",
    "videoswin_small",
    "videoswin_tiny",
    "center_pillar_waymo_open_dataset",
}


def test_the_names_are_those_of_the_installed_libraries():
    functions = {n for n, f in vars(keras.applications).items() if callable(f)}
    names = libraries.keras_applications_names()
    assert set(names) == functions and len(names) == len(functions)
    presets = {name for cls in MODELS for name in cls.presets_without_weights}
    assert set(keras_cv_presets.PRESETS) == presets - NOT_IMAGES


def test_weights_are_published():
    weights = {name for cls in MODELS for name in cls.presets_with_weights}
    weights = {n.removesuffix("_imagenet") for n in weights if "_image" in n}
    # That of another name has another classifier only.
    assert set(keras_cv_presets.PUBLISHED) == weights & {
        *keras_cv_presets.PRESETS
    }
    for name in libraries.keras_applications_names():
        function = getattr(keras.applications, name)
        weights = inspect.signature(function).parameters["weights"]
        assert weights.default == "imagenet"


@pytest.mark.parametrize(
    "name",
    [
        "wrn_10_1",
        "wrn_28_8",
        "resnet18",
        "resnet101",
        "resnet50x16",
        *(f"keras_cv:{name}" for name in keras_cv_presets.PRESETS),
        *(f"keras_applications:{n}" for n in dir(keras.applications)
          if n[0].isupper()),
    ],
)  # fmt: skip
def test_known_names(name):
    registry.networks.find(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rennet50", "is unknown; did you mean resnet50 or"),
        ("ResNet50", "is unknown; did you mean"),
        ("WRN-28-2", "is unknown; known: "),
        ("wrn_28_x", "is unknown; did you mean wrn_28_"),
        ("wrn_0010_1", "is unknown"),
        ("wrn_28_0", ": the depth must be 6n + 4 (10, 16, 22, 28 … up to"),
        ("wrn_27_2", "up to 1000) and the width 1 to 16"),
        ("wrn_28_100000", "the width 1 to 16"),
        ("resnet152", ": the depth must be 18, 34, 50 or 101"),
        ("resnet50x17", ": the width must be 1 to 16"),
        ("resnet50x0", ": the width must be 1 to 16"),
        # The nearest first.
        ("keras_cv:resnet5", "is unknown; did you mean resnet50 or"),
        ("keras_cv:csp_darknet", "is unknown; did you mean csp_darknet_"),
        ("keras_cv:qqq", "is unknown; known: resnet18, "),
        ("keras_cv:ResNet50", "is unknown; did you mean resnet50?"),
        ("keras_applications:ResNet5", "is unknown; did you mean ResNet50"),
        ("keras_applications:vgg16", "is unknown; did you mean VGG16?"),
        ("keras_applications:Inception", "is unknown; did you mean Inception"),
        ("qqq", "is unknown; known: "),
        ("", "is unknown; known: "),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(errors.InputError) as info:
        registry.networks.find(name, flag="model")
    assert str(info.value).startswith(f"--model={name}")
    assert words in str(info.value)


def test_keras_hub_is_an_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.InputError) as info:
        registry.networks.find("keras_hub:dinov2_small")
    assert str(info.value) == (
        "--backbone=keras_hub:dinov2_small: keras_hub is not installed; pip "
        "install 'simmatch_tf[hub]'"
    )


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from simmatch_tf import registry; "
        "[registry.networks.find(n) for n in ('keras_cv:resnet50', 'wrn_10_1', "
        "'keras_applications:VGG16', 'resnet18')]; "
        "print({'keras', 'keras_cv', 'tensorflow', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout == "set()\n"


def limits(name):
    facts = registry.networks.find(name)[0].facts
    return facts.get("min_side", 1), facts.get("side_step", 1)


@pytest.mark.parametrize("name", libraries.keras_applications_names())
def test_keras_applications_refuse_smaller_images(name):
    side, step = limits(f"keras_applications:{name}")
    assert step == 1
    with pytest.raises(ValueError, match=f"must be at least {side}x{side}"):
        library_backbone.make(
            "keras_applications", name, (side - 1, side - 1, 3)
        )


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("densenet121", 28),
        ("vitdet_base", 15),
        ("mit_b0", 32),
        ("mit_b0", 80),
        ("csp_darknet_tiny", 31),
    ],
)
def test_keras_cv_refuses_other_images(name, side):
    with pytest.raises(errors.InputError, match=f"not {side}: give another"):
        registry.networks.check_side(f"keras_cv:{name}", side)
    with pytest.raises(ValueError, match=f"keras_cv:{name}, image_shape="):
        library_backbone.make("keras_cv", name, (side, side, 3))


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18_v2", "yolo_v8_xs_backbone"]
)
def test_no_limit(name):
    assert limits(f"keras_cv:{name}") == (1, 1)
    assert (
        library_backbone.make("keras_cv", name, (1, 1, 3)).output_shape[0]
        is None
    )


def test_own_limits():
    for name in ("wrn_10_1", "resnet18", "resnet50x2"):
        assert limits(name) == (8, 1)
        with pytest.raises(
            errors.InputError, match="sides of at least 8, not 7"
        ):
            network.build(
                name,
                image_shape=(8, 7, 3),
                num_classes=None,
                projection_dim=None,
                mean=[0.5] * 3,
                std=[0.25] * 3,
            )
