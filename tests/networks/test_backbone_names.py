import subprocess
import sys

import keras
import keras_cv
import pytest

from simmatch_tf.flags import commandline
from simmatch_tf.networks import backbone_names, network, zoo, zoo_presets

# Not of images: of videos, and of points measured by a laser.
NOT_IMAGES = {
    "videoswin_base",
    "videoswin_small",
    "videoswin_tiny",
    "center_pillar_waymo_open_dataset",
}


def assert_same(listed, installed, where):
    missing, gone = set(installed) - set(listed), set(listed) - set(installed)
    assert not missing, f"the library has, and {where} lacks: {missing}"
    assert not gone, f"{where} has, and the library lacks: {gone}"
    assert len(listed) == len(set(listed))


def test_the_lists_are_those_of_the_installed_libraries():
    functions = {n for n, f in vars(keras.applications).items() if callable(f)}
    assert_same(
        backbone_names.KERAS_APPLICATIONS,
        functions,
        "backbones.KERAS_APPLICATIONS",
    )
    presets = {
        name
        for cls in vars(keras_cv.models).values()
        if isinstance(cls, type) and issubclass(cls, keras_cv.models.Backbone)
        for name in cls.presets_without_weights
    }
    assert_same(
        backbone_names.KERAS_CV, presets - NOT_IMAGES, "backbones.KERAS_CV"
    )
    assert_same(
        backbone_names.KERAS_CV, zoo_presets.PRESETS, "backbones.KERAS_CV"
    )


@pytest.mark.parametrize(
    "name",
    [
        "custom",
        "wrn_10_1",
        "wrn_28_8",
        "resnet18",
        "resnet101",
        "resnet50x16",
        *(f"keras_cv:{name}" for name in backbone_names.KERAS_CV),
        *(f"keras_applications:{n}" for n in backbone_names.KERAS_APPLICATIONS),
    ],
)
def test_known_names(name):
    backbone_names.check(name)


MEANT = {
    "ResNet50": "resnet50 or keras_applications:ResNet50 or keras_cv:resnet50",
    "resnet50_v2": "keras_applications:ResNet50V2 or keras_cv:resnet50_v2",
    "keras_cv:VGG16": "keras_applications:VGG16",
    "keras_applications:resnet34": "resnet34 or keras_cv:resnet34",
    "kerascv:mit_b0": "keras_cv:mit_b0",
    "efficientnetb7": "keras_applications:EfficientNetB7",
    "WRN-28-2": "wrn_28_2",
    "wrn_28_x": "wrn_28_2 or wrn_28_8",
}


@pytest.mark.parametrize("name", MEANT)
def test_unknown_names_and_what_was_meant(name):
    with pytest.raises(commandline.InputError) as info:
        backbone_names.check(name)
    wanted = f"--backbone={name} is unknown; did you mean {MEANT[name]}?"
    assert str(info.value) == wanted


@pytest.mark.parametrize(
    ("name", "words"),
    [
        # The nearest first.
        ("keras_cv:resnet5", "is unknown; did you mean keras_cv:resnet50 or"),
        (
            "resnet152",
            "is unknown: the depth must be 18, 34, 50 or 101; did you mean "
            "keras_applications:ResNet152 or keras_cv:resnet152?",
        ),
        ("resnet50x17", "is unknown: the width must be 1 to 16; did you mean"),
        ("resnet50x0", "is unknown: the width must be 1 to 16; did you mean"),
        ("wrn_28_0", ": the depth must be 6n + 4 (10, 16, 22, 28 … up to"),
        ("wrn_27_2", "up to 1000) and the width 1 to 16"),
        ("wrn_28_100000", "the width 1 to 16"),
        ("wrn_0010_1", "is unknown"),
        ("keras_cv:", "is unknown; known of keras_cv: csp_darknet_tiny, csp_"),
        ("qqq", "is unknown; known: wrn_DEPTH_WIDTH (such as wrn_28_2), res"),
        ("", "--backbone= is unknown; known: wrn_DEPTH_WIDTH"),
    ],
)
def test_other_messages(name, words):
    with pytest.raises(commandline.InputError) as info:
        backbone_names.check(name)
    assert str(info.value).startswith(f"--backbone={name}")
    assert words in str(info.value)


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from simmatch_tf.networks import backbone_names as b; "
        "b.check('keras_cv:resnet50'); "
        "print({'keras', 'keras_cv', 'tensorflow', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout == "set()\n"


@pytest.mark.parametrize("name", backbone_names.KERAS_APPLICATIONS)
def test_keras_applications_refuse_smaller_images(name):
    side = backbone_names.smallest_side(f"keras_applications:{name}")
    with pytest.raises(ValueError, match=f"must be at least {side}x{side}"):
        zoo.make("keras_applications", name, (side - 1, side - 1, 3))


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
    backbone = f"keras_cv:{name}"
    assert side < (
        backbone_names.smallest_side(backbone) or 0
    ) or side % backbone_names.side_step(backbone)
    with pytest.raises(ValueError, match=f"{backbone}, image_shape="):
        zoo.make("keras_cv", name, (side, side, 3))


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet18_v2", "yolo_v8_xs_backbone"]
)
def test_no_limit(name):
    assert backbone_names.smallest_side(f"keras_cv:{name}") is None
    assert zoo.make("keras_cv", name, (1, 1, 3)).output_shape[0] is None


def test_own_limits():
    for name in ("wrn_10_1", "resnet18", "resnet50x2"):
        assert backbone_names.smallest_side(name) == 8
        with pytest.raises(ValueError, match="sides must be at least 8"):
            network.backbone(name).make((8, 7, 3))
    assert backbone_names.smallest_side("custom") is None
    assert backbone_names.side_step("wrn_28_2") == 1
