"""Architectures of Keras Applications, KerasCV and KerasHub as backbones.

References:
    https://keras.io/api/applications
    https://github.com/keras-team/keras-cv
    https://github.com/keras-team/keras-hub
"""

from __future__ import annotations

import functools
import importlib.util
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from simmatch_tf import io, registry
from simmatch_tf.flags import errors
from simmatch_tf.lazy import keras
from simmatch_tf.networks import keras_cv_presets

# Folders of keras_hub.models whose networks see images of any size, and make
# one feature vector of them.
_HUB = (
    "cspnet",
    "deit",
    "densenet",
    "dinov2",
    "dinov3",
    "efficientnet",
    "mobilenet",
    "resnet",
    "vgg",
    "vit",
    "xception",
)
# Side of a folder's images if the first weights are published ones. These are
# of 224 pixels and more, which costs five times as much, and know nothing of
# photographs of 32.
_SIDE = 96
_LEAST = 32


@functools.cache
def keras_applications_names() -> tuple[str, ...]:
    """Returns the architectures of the installed Keras Applications.

    They are read from the text of Keras' list of exports, since importing
    Keras takes seconds. There are none if that list is not where it was.
    """
    spec = importlib.util.find_spec("keras")
    for folder in spec.submodule_search_locations if spec else ():
        exports = pathlib.Path(folder, "applications", "__init__.py")
        if exports.is_file():
            text = exports.read_text("utf-8")
            return tuple(re.findall(r"\b([A-Z]\w*) as \1\b", text))
    return ()


@functools.cache
def keras_hub_names() -> tuple[str, ...]:
    """Returns the presets of the installed KerasHub's networks.

    They are read from its text, as those of Keras Applications are.
    """
    spec = importlib.util.find_spec("keras_hub")
    names = []
    for folder in spec.submodule_search_locations if spec else ():
        for model in _HUB:
            place = pathlib.Path(folder, "src", "models", model)
            for file in sorted(place.glob("*_presets.py")):
                text = file.read_text("utf-8")
                names += re.findall(r'^    "(\w+)": \{', text, re.MULTILINE)
    return tuple(names)


def _unknown(name: str, names: Sequence[str]) -> str:
    """The end of a message on a name, "" if it is one of the names."""
    if name in names or not names:
        return ""
    same = [other for other in names if other.lower() == name.lower()]
    if same:
        return f" is unknown; did you mean {same[0]}?"
    return " is unknown" + errors.nearest(name, names)


def _unpublished_preset(name: str) -> str:
    """The end of a message on a preset without weights, or ""."""
    if name in keras_cv_presets.PUBLISHED:
        return ""
    return f"KerasCV has some for {', '.join(keras_cv_presets.PUBLISHED)}"


def _unknown_hub(name: str) -> str:
    """The end of a message on a preset of KerasHub or its folder, or ""."""
    if importlib.util.find_spec("keras_hub") is None:
        return ": keras_hub is not installed; pip install 'simmatch_tf[hub]'"
    if "/" not in name:
        return _unknown(name, keras_hub_names())
    folder = io.expand(name)
    # The run must find it from any folder.
    if not folder.is_absolute():
        return f": give the folder's whole path, such as {folder.absolute()}"
    return ""


def _missing_preset(name: str) -> str:
    """The end of a message on a folder that holds no preset, or ""."""
    if "/" not in name:
        return ""
    folder = io.expand(name)
    for file in ("config.json", "image_converter.json"):
        if not (folder / file).is_file():
            return (
                f": is no folder of a preset, which has a {file}; "
                "docs/models.md says how to make one"
            )
    module = str(_hub_config(name).get("module", ""))
    if not module.startswith(tuple(f"keras_hub.src.models.{m}." for m in _HUB)):
        return f": is not one of the networks {', '.join(_HUB)}"
    return ""


def _hub_config(name: str) -> dict[str, Any]:
    """Returns what a preset's folder says of its network; {} if damaged."""
    try:
        content = (io.expand(name) / "config.json").read_text("utf-8")
        return dict(json.loads(content))
    except (OSError, ValueError, TypeError):
        return {}


def _hub_step(name: str) -> int:
    """Returns the side of the patches that a preset of KerasHub makes."""
    if "/" in name:
        size = _hub_config(name).get("config", {}).get("patch_size", 1)
        return int(size[0] if isinstance(size, list) else size)
    if match := re.search(r"_patch(\d+)", name):
        return int(match[1])
    return {"dinov2": 14, "dinov3": 16}.get(name.partition("_")[0], 1)


def _hub_side(least: int, name: str) -> int:
    """Returns the smallest side from `least` on that patches fill."""
    step = _hub_step(name)
    return -(-least // step) * step


_of_a_library = functools.partial(
    registry.networks.register,
    normalized=False,
    initializer="fan_in_uniform",
)
_applications = functools.partial(
    _of_a_library,
    side_with_weights=_SIDE,
    check=lambda name: _unknown(name, keras_applications_names()),
    unpublished=lambda name: "",
)
_keras_cv = functools.partial(
    _of_a_library,
    side_with_weights=_SIDE,
    check=lambda name: _unknown(name, [*keras_cv_presets.PRESETS]),
    unpublished=_unpublished_preset,
)


# The lowest decorator registers first, and the first pattern that matches
# counts.
@_applications(
    r"keras_applications:(\w+)",
    min_side=_LEAST,
    examples=("keras_applications:ResNet50",),
)
@_applications(r"keras_applications:(Xception)", min_side=71, examples=())
@_applications(r"keras_applications:(Inception\w*)", min_side=75, examples=())
def keras_applications(
    image_shape: tuple[int, int, int], name: str
) -> keras.Model:
    """Builds an architecture of Keras Applications, with new weights."""
    from simmatch_tf.networks import library_backbone

    return library_backbone.make("keras_applications", name, image_shape)


@_keras_cv(r"keras_cv:(\w+)", examples=("keras_cv:resnet50",))
@_keras_cv(r"keras_cv:(csp_darknet_\w+)", side_step=2, examples=())
@_keras_cv(r"keras_cv:(densenet\w+)", min_side=29, examples=())
@_keras_cv(r"keras_cv:(mit_\w+)", min_side=64, side_step=32, examples=())
@_keras_cv(r"keras_cv:(vitdet_\w+)", min_side=16, examples=())
def keras_cv(image_shape: tuple[int, int, int], name: str) -> keras.Model:
    """Builds an architecture of KerasCV, with new weights."""
    from simmatch_tf.networks import library_backbone

    return library_backbone.make("keras_cv", name, image_shape)


@_of_a_library(
    r"keras_hub:(.+)",
    check=_unknown_hub,
    missing=_missing_preset,
    unpublished=lambda name: "",
    side_step=_hub_step,
    min_side=functools.partial(_hub_side, _LEAST),
    side_with_weights=functools.partial(_hub_side, _SIDE),
    examples=("keras_hub:dinov2_small",),
)
def keras_hub(image_shape: tuple[int, int, int], name: str) -> keras.Model:
    """Builds a network of KerasHub, with new weights."""
    from simmatch_tf.networks import library_backbone

    return library_backbone.make("keras_hub", name, image_shape)
