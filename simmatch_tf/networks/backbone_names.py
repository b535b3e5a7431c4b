"""Is there a backbone of this name? Answered before TensorFlow is imported.

Nothing here imports anything heavy; a test holds the lists equal to what the
installed libraries have.
"""

import difflib
import re

from simmatch_tf.flags import commandline

KERAS_APPLICATIONS = (
    "ConvNeXtBase",
    "ConvNeXtLarge",
    "ConvNeXtSmall",
    "ConvNeXtTiny",
    "ConvNeXtXLarge",
    "DenseNet121",
    "DenseNet169",
    "DenseNet201",
    *(f"EfficientNetB{size}" for size in range(8)),
    *(f"EfficientNetV2B{size}" for size in range(4)),
    "EfficientNetV2L",
    "EfficientNetV2M",
    "EfficientNetV2S",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Large",
    "MobileNetV3Small",
    "NASNetLarge",
    "NASNetMobile",
    "ResNet50",
    "ResNet50V2",
    "ResNet101",
    "ResNet101V2",
    "ResNet152",
    "ResNet152V2",
    "VGG16",
    "VGG19",
    "Xception",
)
# Names of KerasCV's presets that say the architecture alone.
KERAS_CV = (
    *(f"csp_darknet_{size}" for size in ("tiny", "s", "m", "l", "xl")),
    *(f"densenet{depth}" for depth in (121, 169, 201)),
    *(f"efficientnetlite_b{size}" for size in range(5)),
    *(f"efficientnetv1_b{size}" for size in range(8)),
    *(f"efficientnetv2_b{size}" for size in range(4)),
    *(f"efficientnetv2_{size}" for size in "sml"),
    *(f"mit_b{size}" for size in range(6)),
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"resnet{depth}_v2" for depth in (18, 34, 50, 101, 152)),
    *(f"vitdet_{size}" for size in ("base", "large", "huge")),
    *(f"yolo_v8_{size}_backbone" for size in ("xs", "s", "m", "l", "xl")),
)
_LIBRARIES = {"keras_applications": KERAS_APPLICATIONS, "keras_cv": KERAS_CV}
_DEPTHS = (18, 34, 50, 101)
_WIDEST = 16
_DEEPEST = 1000
# What messages on unknown names choose from.
_NAMES = (
    "wrn_28_2",
    "wrn_28_8",
    *(f"resnet{depth}" for depth in _DEPTHS),
    "resnet50x2",
    *(
        f"{library}:{name}"
        for library, names in _LIBRARIES.items()
        for name in names
    ),
)
_WRN = re.compile(r"wrn_(0|[1-9][0-9]*)_(0|[1-9][0-9]*)")
_RESNET = re.compile(r"resnet([1-9][0-9]*)(?:x(0|[1-9][0-9]*))?")
# The libraries' own limits, by the beginnings of names; see `smallest_side`.
_SMALLEST = {
    "wrn_": 8,
    "resnet": 8,
    "keras_applications:Inception": 75,
    "keras_applications:Xception": 71,
    "keras_applications:": 32,
    "keras_cv:densenet": 29,
    "keras_cv:mit_": 64,
    "keras_cv:vitdet_": 16,
}
_STEPS = {"keras_cv:csp_darknet_": 2, "keras_cv:mit_": 32}


def check(name: str, flag: str = "backbone") -> None:
    """Checks that there is a backbone of this name.

    Args:
        name: wrn_DEPTH_WIDTH, resnetDEPTH, resnetDEPTHxWIDTH,
            keras_applications:NAME, keras_cv:NAME or custom.
        flag: What named it.

    Raises:
        InputError: There is none.
    """
    if match := _WRN.fullmatch(name):
        depth, width = int(match[1]), int(match[2])
        if (
            not 10 <= depth <= _DEEPEST
            or (depth - 4) % 6
            or not 1 <= width <= _WIDEST
        ):
            raise commandline.InputError(
                f"--{flag}={name}: the depth must be 6n + 4 (10, 16, 22, 28 "
                f"… up to {_DEEPEST}) and the width 1 to {_WIDEST}"
            )
        return
    problem = ""
    if match := _RESNET.fullmatch(name):
        depth, width = int(match[1]), int(match[2] or 1)
        if depth in _DEPTHS and 1 <= width <= _WIDEST:
            return
        problem = (
            f": the width must be 1 to {_WIDEST}"
            if depth in _DEPTHS
            else ": the depth must be 18, 34, 50 or 101"
        )
    library, _, architecture = name.partition(":")
    if name == "custom" or architecture in _LIBRARIES.get(library, ()):
        return
    raise commandline.InputError(
        f"--{flag}={name} is unknown{problem}{_meant(name)}"
    )


def smallest_side(name: str) -> int | None:
    """The least side of images that a backbone takes.

    Args:
        name: One that `check` lets through.

    Returns:
        Pixels; None where there is no limit.
    """
    return _of(_SMALLEST, name)


def side_step(name: str) -> int:
    """What the sides of images must be multiples of.

    Args:
        name: One that `check` lets through.

    Returns:
        Pixels; 1 for most.
    """
    return _of(_STEPS, name) or 1


def check_side(name: str, side: int, flag: str = "backbone") -> None:
    """Checks that a backbone takes images of this side.

    Args:
        name: One that `check` lets through.
        side: Pixels.
        flag: What named it.

    Raises:
        InputError: It does not.
    """
    least, step = smallest_side(name) or 1, side_step(name)
    if side < least or side % step:
        multiple = f", and a multiple of {step}" if step > 1 else ""
        raise commandline.InputError(
            f"--{flag}={name} takes images with sides of at least {least}"
            f"{multiple}, not {side}: give another --image_size"
        )


def _of(table: dict[str, int], name: str) -> int | None:
    for beginning, value in table.items():
        if name.startswith(beginning):
            return value
    return None


def _letters(name: str) -> str:
    """What is left of a name that may be written in another way."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _meant(name: str) -> str:
    """The end of a message on an unknown name: what may have been meant."""
    library, _, wanted = name.rpartition(":")
    found = []
    for known in _NAMES:
        known_library, _, architecture = known.rpartition(":")
        alike = difflib.SequenceMatcher(
            None, _letters(wanted), _letters(architecture)
        ).ratio()
        # Its own library first; another one's name must be alike indeed.
        same = not library or library == known_library
        if alike >= (0.6 if same else 0.9):
            found.append((alike == 1, same, alike, known))
    # Of equals, the first in the list.
    found.sort(key=lambda f: f[:3], reverse=True)
    if found and found[0][0]:
        found = [f for f in found if f[0]]
    names = [f[-1] for f in found[:3]]
    if names:
        return f"; did you mean {' or '.join(names)}?"
    if library in _LIBRARIES:
        return f"; known of {library}: {', '.join(_LIBRARIES[library])}"
    return (
        "; known: wrn_DEPTH_WIDTH (such as wrn_28_2), resnet18, resnet34, "
        "resnet50, resnet101 (resnet50x2: twice as wide), keras_cv:NAME, "
        "keras_applications:NAME"
    )
