"""Architectures of Keras Applications and of KerasCV as backbones.

References:
    https://keras.io/api/applications
    https://github.com/keras-team/keras-cv
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import re
from collections.abc import Sequence

from simmatch_tf import registry
from simmatch_tf.flags import errors
from simmatch_tf.lazy import keras
from simmatch_tf.networks import keras_cv_presets


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


def _unknown(name: str, names: Sequence[str]) -> str:
    """The end of a message on a name, "" if it is one of the names."""
    if name in names or not names:
        return ""
    same = [other for other in names if other.lower() == name.lower()]
    if same:
        return f" is unknown; did you mean {same[0]}?"
    return " is unknown" + errors.nearest(name, names)


_of_a_library = functools.partial(
    registry.networks.register,
    normalized=False,
    initializer="fan_in_uniform",
)
_applications = functools.partial(
    _of_a_library,
    check=lambda name: _unknown(name, keras_applications_names()),
)
_keras_cv = functools.partial(
    _of_a_library,
    check=lambda name: _unknown(name, [*keras_cv_presets.PRESETS]),
)


# The lowest decorator registers first, and the first pattern that matches
# counts.
@_applications(
    r"keras_applications:(\w+)",
    min_side=32,
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
