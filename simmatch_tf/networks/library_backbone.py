"""Architectures of Keras Applications and of KerasCV as Keras models.

Layers, names and order of the variables are those of the library, so weights
that were published for an architecture can be loaded.
"""

import copy
import re
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf.networks import batch_norm, keras_cv_presets


@keras.saving.register_keras_serializable("simmatch_tf")
class Preprocess(keras.layers.Layer):
    """Scales images as an architecture needs them, in float32."""

    def __init__(self, module: str | None = None, **kwargs) -> None:
        """Takes the kind of scaling.

        Args:
            module: Module of keras.applications whose `preprocess_input` is
                applied; None scales nothing.
            **kwargs: Arguments of `keras.Layer`.
        """
        # In bfloat16, values up to 255 would be rounded before `call`.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.module = module

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """[N, H, W, 1 or 3] of any dtype, 0 to 255 → [N, H, W, 3]."""
        x = keras.ops.cast(images, self.compute_dtype)
        if x.shape[-1] == 1:
            x = keras.ops.repeat(x, 3, axis=-1)
        if self.module is None:
            return x
        module = getattr(keras.applications, self.module)
        return module.preprocess_input(x, data_format="channels_last")

    def get_config(self) -> dict:
        """Returns the layer's configuration, for saving."""
        return {**super().get_config(), "module": self.module}


class Normalization(keras.layers.Normalization):
    """The normalization of EfficientNetB0 to B7: (x - mean) / variance^(3/4).

    Keras' layer divides by the root of the variance only, and Keras adds a
    second layer that divides by variance^(1/4) when it loads the published
    weights itself; with a new network's variance of 1, both are equal. Keras'
    layer also keeps copies of its statistics, which an assignment to its
    variables does not change.
    """

    def call(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Normalizes [N, H, W, C]."""
        x = keras.ops.cast(inputs, self.compute_dtype)
        return (x - self.adapt_mean) * self.adapt_variance**-0.75


@keras.saving.register_keras_serializable("simmatch_tf")
class LibraryBackbone(keras.Model):
    """An architecture of a library: images → features.

    A file keeps its arguments, from which it is built anew: some layers of
    KerasCV do not survive their own `get_config`.
    """

    def __init__(
        self,
        library: str,
        architecture: str,
        image_shape: tuple[int, int, int],
        **kwargs,
    ) -> None:
        """Builds the architecture; see `make` for the arguments."""
        if len(image_shape) != 3 or image_shape[2] not in (1, 3):
            raise ValueError("must be (height, width, 1 or 3 channels)")
        core, module = _LIBRARIES[library](architecture, (*image_shape[:2], 3))
        _rescale_in_float32(core)
        images = keras.Input(image_shape, name="images")
        x = Preprocess(module, name="preprocess")(images)
        # `call`, not `core(x)`: the layers become this model's own instead of
        # a nested model's, so that files of the architecture's weights fit.
        x = core.call(x)
        if len(x.shape) == 4:
            x = keras.layers.GlobalAveragePooling2D(name="features")(x)
        name = f"{library}_{architecture}"
        super().__init__(images, x, **{"name": name, **kwargs})
        self.library, self.architecture = library, architecture
        self.policy_name = keras.config.dtype_policy().name
        # TensorFlow's checkpoints do not see what Keras keeps in lists: layers
        # inside KerasCV's, and the states of Dropout.
        self.state = tf.Module()
        self.state.values = [v.value for v in self.variables]

    def get_config(self) -> dict:
        """Returns the arguments, the dtype policy and each BatchNorm's form."""
        return {
            "library": self.library,
            "architecture": self.architecture,
            "image_shape": list(self.input_shape[1:]),
            "name": self.name,
            "trainable": self.trainable,
            "policy_name": self.policy_name,
            "batch_norms": [
                [layer.momentum, layer.synchronized]
                for layer in batch_norm.layers(self)
            ],
        }

    @classmethod
    def from_config(
        cls, config: dict, custom_objects: dict | None = None
    ) -> Self:
        """Builds it under the dtype policy under which it was built first."""
        del custom_objects
        config = {**config, "image_shape": tuple(config["image_shape"])}
        trainable, forms = config.pop("trainable"), config.pop("batch_norms")
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(config.pop("policy_name"))
        try:
            model = cls(**config)
        finally:
            keras.config.set_dtype_policy(before)
        model.trainable = trainable
        for layer, form in zip(batch_norm.layers(model), forms, strict=True):
            layer.momentum, layer.synchronized = form
        return model


def make(
    library: str, name: str, image_shape: tuple[int, int, int]
) -> keras.Model:
    """Builds an architecture of a library, with new weights.

    Args:
        library: "keras_applications" or "keras_cv".
        name: Name of the architecture, such as "ResNet50", or of KerasCV's
            preset, such as "resnet50".
        image_shape: (height, width, channels), 1 or 3 channels; grey images
            are repeated to three.

    Returns:
        A Keras model, [N, H, W, C], uint8 or float from 0 to 255 → [N, width].

    Raises:
        ValueError: The library has no such architecture, or it cannot take
            such images.
    """
    try:
        return LibraryBackbone(library, name, tuple(image_shape))
    except (ArithmeticError, TypeError, ValueError, tf.errors.OpError) as error:
        # Keras writes several lines, some of them in bold.
        text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
        raise ValueError(
            f"backbone {library}:{name}, image_shape={image_shape}: {text}"
        ) from error


def _keras_applications(
    name: str, shape: tuple[int, int, int]
) -> tuple[keras.Model, str]:
    """Returns the architecture and the name of its module."""
    function = getattr(keras.applications, name, None)
    if not callable(function):
        raise ValueError(f"Keras Applications has no {name!r}")
    core = function(
        include_top=False, weights=None, pooling="avg", input_shape=shape
    )
    return core, function.__module__.rpartition(".")[2]


def _keras_cv(
    name: str, shape: tuple[int, int, int]
) -> tuple[keras.Model, None]:
    """Returns the architecture, which rescales its images itself."""
    import keras_cv  # slow to import, needed here only

    if name not in keras_cv_presets.PRESETS:
        raise ValueError(f"KerasCV has no {name!r}")
    class_name, arguments = keras_cv_presets.PRESETS[name]
    height, width, _ = shape
    if class_name == "MiTBackbone" and (height != width or height % 32):
        # Some others would give feature maps of wrong shapes, silently.
        raise ValueError("the sides must be equal and a multiple of 32")
    core = getattr(keras_cv.models, class_name)(
        include_rescaling=True, input_shape=shape, **copy.deepcopy(arguments)
    )
    return core, None


def published(
    library: str, name: str, image_shape: tuple[int, int, int]
) -> list[np.ndarray]:
    """Returns weights that a library has published, trained on ImageNet.

    Args:
        library: "keras_applications" or "keras_cv".
        name: See `make`.
        image_shape: See `make`; 3 channels.

    Returns:
        The weights of the backbone that `make` builds, in Keras' order. The
        library downloads them if they are not in its cache.

    Raises:
        ValueError: The library has none, or they cannot be downloaded.
    """
    try:
        if library == "keras_applications":
            model = getattr(keras.applications, name)(
                include_top=False,
                weights="imagenet",
                pooling="avg",
                input_shape=tuple(image_shape),
            )
        else:
            import keras_cv  # slow to import, needed here only

            class_name, _ = keras_cv_presets.PRESETS[name]
            kind = getattr(keras_cv.models, class_name)
            model = kind.from_preset(f"{name}_imagenet")
    except Exception as error:  # files and downloads fail in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"its published weights cannot be loaded ({lines[0][:300]})"
        ) from error
    return model.get_weights()


_LIBRARIES: dict[str, Any] = {
    "keras_applications": _keras_applications,
    "keras_cv": _keras_cv,
}


def _rescale_in_float32(core: keras.Model) -> None:
    """Has the layers that rescale images compute in float32."""
    for layer in core._flatten_layers(include_self=False):
        if isinstance(
            layer, (keras.layers.Rescaling, keras.layers.Normalization)
        ):
            layer.dtype_policy = "float32"
            if layer.weights:
                layer.__class__ = Normalization
            elif isinstance(layer, keras.layers.Normalization):
                layer.build(layer.input.shape)  # its constants in float32
