"""Architectures of Keras Applications, KerasCV and KerasHub as Keras models.

Layers, names and order of the variables are those of the library, so weights
that were published for an architecture can be loaded.
"""

import contextlib
import copy
import functools
import io as io_lib
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend import config

from simmatch_tf import io, terminal
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import batch_norm, keras_cv_presets

_LONGEST_REASON = 300  # characters of a library's message
# Arguments of KerasHub's classes that are the shape of the images.
_SHAPES = ("image_shape", "input_shape", "position_embedding_shape")
# Part of the names of weights that depend on the size of the images.
_POSITIONS = "position_embedding"


@keras.saving.register_keras_serializable("simmatch_tf")
class Preprocess(keras.layers.Layer):
    """Scales images as an architecture needs them, in float32."""

    def __init__(
        self,
        module: str | None = None,
        scale: float | list[float] | None = None,
        offset: float | list[float] | None = None,
        **kwargs,
    ) -> None:
        """Takes the kind of scaling.

        Args:
            module: Module of keras.applications whose `preprocess_input` is
                applied; None applies none.
            scale: Factor, or one of each channel; None is 1.
            offset: What is added then, likewise; None is 0.
            **kwargs: Arguments of `keras.Layer`.
        """
        # In bfloat16, values up to 255 would be rounded before `call`.
        super().__init__(**{"dtype": "float32", **kwargs})
        self.module, self.scale, self.offset = module, scale, offset

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """[N, H, W, 1 or 3] of any dtype, 0 to 255 → [N, H, W, 3]."""
        x = keras.ops.cast(images, self.compute_dtype)
        if x.shape[-1] == 1:
            x = keras.ops.repeat(x, 3, axis=-1)
        if self.scale is not None:
            x *= np.asarray(self.scale, np.float32)
        if self.offset is not None:
            x += np.asarray(self.offset, np.float32)
        if self.module is None:
            return x
        module = getattr(keras.applications, self.module)
        return module.preprocess_input(x, data_format="channels_last")

    def get_config(self) -> dict:
        """Returns the layer's configuration, for saving."""
        own = {"module": self.module}
        own |= {"scale": self.scale, "offset": self.offset}
        return {**super().get_config(), **own}


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
        preset: str | None = None,
        **kwargs,
    ) -> None:
        """Builds the architecture; see `make` for the arguments.

        Args:
            library: See `make`.
            architecture: See `make`.
            image_shape: See `make`.
            preset: Result of `_hub_preset`, of a network of KerasHub that was
                built before; by default it is read.
            **kwargs: Arguments of `keras.Model`.
        """
        if len(image_shape) != 3 or image_shape[2] not in (1, 3):
            raise ValueError("must be (height, width, 1 or 3 channels)")
        shape = (*image_shape[:2], 3)
        if library == "keras_hub":
            preset = preset or _hub_preset(architecture)
            core, scaling = _keras_hub(preset, shape)
        else:
            core, scaling = _LIBRARIES[library](architecture, shape)
        _rescale_in_float32(core)
        images = keras.Input(image_shape, name="images")
        x = Preprocess(**scaling, name="preprocess")(images)
        if isinstance(core.input, dict):
            x = dict.fromkeys(core.input, x)
        # `call`, not `core(x)`: the layers become this model's own instead of
        # a nested model's, so that files of the architecture's weights fit.
        x = core.call(x)
        if len(x.shape) == 4:
            x = keras.layers.GlobalAveragePooling2D(name="features")(x)
        elif len(x.shape) == 3:
            x = _of_tokens(x, getattr(core, "use_class_token", True))
        name = f"{library}_{os.path.basename(architecture)}"
        super().__init__(images, x, **{"name": name, **kwargs})
        self.library, self.architecture = library, architecture
        self.preset = preset
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
            **({"preset": self.preset} if self.preset else {}),
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
        library: "keras_applications", "keras_cv" or "keras_hub".
        name: Name of the architecture, such as "ResNet50", of KerasCV's
            preset, such as "resnet50", or of KerasHub's, such as
            "dinov2_small", or the folder of one.
        image_shape: (height, width, channels), 1 or 3 channels; grey images
            are repeated to three.

    Returns:
        A Keras model, [N, H, W, C], uint8 or float from 0 to 255 → [N, width].

    Raises:
        ValueError: The library has no such architecture, or it cannot take
            such images.
        InputError: A preset of KerasHub cannot be read.
    """
    try:
        return LibraryBackbone(library, name, tuple(image_shape))
    except InputError:
        raise
    except (ArithmeticError, TypeError, ValueError, tf.errors.OpError) as error:
        # Keras writes several lines, some of them in bold.
        text = " ".join(re.sub(r"\x1b\[\d*m", "", str(error)).split())
        raise ValueError(
            f"backbone {library}:{name}, image_shape={image_shape}: {text}"
        ) from error


def _keras_applications(
    name: str, shape: tuple[int, int, int]
) -> tuple[keras.Model, dict[str, str]]:
    """Returns the architecture, and the name of its module for `Preprocess`."""
    function = getattr(keras.applications, name, None)
    if not callable(function):
        raise ValueError(f"Keras Applications has no {name!r}")
    core = function(
        include_top=False, weights=None, pooling="avg", input_shape=shape
    )
    return core, {"module": function.__module__.rpartition(".")[2]}


def _keras_cv(
    name: str, shape: tuple[int, int, int]
) -> tuple[keras.Model, dict]:
    """Returns the architecture, which rescales its images itself, and {}."""
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
    return core, {}


def _hub_place(name: str) -> str:
    """Returns the name of a preset of KerasHub, or the path of its folder."""
    return str(io.expand(name)) if "/" in name else name


def _hub_preset(name: str) -> str:
    """Reads a preset of KerasHub, without its weights.

    Returns:
        JSON of the network, as Keras serializes it, and of the scale and offset
        of its images: all that it needs to be built again elsewhere.

    Raises:
        InputError: It cannot be read, or downloaded.
    """
    published = _published_keras_hub(name)
    with _reading("keras_hub", published, "it cannot be fetched"):
        import keras_hub  # slow to import, needed here only
        from keras_hub.src.utils import preset_utils

        place = _hub_place(name)
        converter = keras_hub.layers.ImageConverter.from_preset(place)
        # Its `get_config` would leave out arguments of some networks.
        core = preset_utils.get_preset_loader(place).config
        for common in ("name", "trainable", "dtype"):
            core["config"].pop(common, None)
        scaling = {"scale": converter.scale, "offset": converter.offset}
        content = {"core": core, "scaling": scaling}
        return json.dumps(content, sort_keys=True)


def _keras_hub(
    preset: str, shape: tuple[int, int, int]
) -> tuple[keras.Model, dict]:
    """Returns the network of a preset, and the scaling of its images.

    Its position embeddings are of the size of the images; see
    `fit_positions`.
    """
    import keras_hub  # noqa: F401 (registers its classes with Keras)

    content = json.loads(preset)
    arguments = content["core"]["config"]
    arguments |= {name: shape for name in _SHAPES if name in arguments}
    core = keras.saving.deserialize_keras_object(content["core"])
    for layer in core._flatten_layers(include_self=False):
        # KerasHub's DINOv2 keeps those of its preset as well, and makes one
        # of the other when it is saved and read: in part, or not at all.
        if hasattr(layer, "interpolated_position_embeddings"):
            for method in ("save_own_variables", "load_own_variables"):
                plain = getattr(keras.layers.Layer, method)
                setattr(layer, method, functools.partial(plain, layer))
    return core, content["scaling"]


def _of_tokens(x: keras.KerasTensor, has_class: bool) -> keras.KerasTensor:
    """Returns the features of tokens [N, T, width]: the class token's."""
    if has_class:
        return x[:, 0]
    return keras.layers.GlobalAveragePooling1D(name="features")(x)


def fit_positions(
    path: str, value: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Fits the position embeddings of a network to images of another size.

    Args:
        path: Path of the weight.
        value: [P + n·n, width] or [1, P + n·n, width], P tokens such as that
            of the class before those of n·n patches.
        shape: The shape that is needed: [P + m·m, width].

    Returns:
        The value, if it has that shape; else the patches' embeddings between
        those of P tokens, interpolated as DINOv2 does. None if it is no
        position embedding, or the shapes do not tell what P is.
    """
    shape = tuple(shape)
    if value.shape == shape:
        return value
    if not is_positions(path) or len(value.shape) != len(shape):
        return None
    if (*value.shape[:-2], value.shape[-1]) != (*shape[:-2], shape[-1]):
        return None
    for others in range(3):
        counts = [s[-2] - others for s in (value.shape, shape)]
        sides = [math.isqrt(max(count, 0)) for count in counts]
        if min(sides) and [side**2 for side in sides] == counts:
            break
    else:
        return None
    before, after = sides
    rows = value.reshape(-1, value.shape[-1])
    patches = keras.ops.image.resize(
        rows[others:].reshape(1, before, before, -1).astype(np.float32),
        (after, after),
        interpolation="bicubic",
        data_format="channels_last",
    )
    patches = keras.ops.convert_to_numpy(patches).reshape(after**2, -1)
    rows = np.concatenate([rows[:others], patches.astype(value.dtype)])
    return rows.reshape(shape)


def is_positions(path: str) -> bool:
    """Returns whether a weight depends on the size of the images."""
    return _POSITIONS in path


class _Published(NamedTuple):
    """Where published weights come from.

    Attributes:
        load: Returns the library's own model with them.
        line: Code that makes a file of them, for a computer with a network.
        instead: What to give then, of the flag {flag}.
    """

    load: Callable[[], keras.Model]
    line: str
    instead: str


def published(
    library: str, name: str, flag: str = "init_from"
) -> list[np.ndarray]:
    """Returns weights that a library has published, trained on ImageNet.

    Args:
        library: "keras_applications", "keras_cv" or "keras_hub".
        name: See `make`.
        flag: Flag that takes a file of weights, for a message.

    Returns:
        The weights of the backbone that `make` builds for images of three
        channels and of any size, in Keras' order, but for `fit_positions`. The
        library downloads them if they are not in its cache.

    Raises:
        InputError: The library has none, or they cannot be downloaded. The
            message says how to make a file of them elsewhere.
    """
    source = _PUBLISHED[library](name)
    failed = "its published weights cannot be fetched"
    with _reading(library, source, failed, flag):
        return source.load().get_weights()


@contextlib.contextmanager
def _reading(
    library: str, source: _Published, failed: str, flag: str = "init_from"
) -> Iterator[None]:
    """Reads what a library downloads, in the body.

    Raises:
        InputError: The body fails.
    """
    # What the library says of its download is no result of a command.
    out = io_lib.StringIO() if terminal.quiet() else sys.stderr
    try:
        with (
            _fetching(),
            contextlib.redirect_stdout(out),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # about the size of the images
            yield
    except Exception as error:  # files and downloads fail in many ways
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"{failed} ({lines[0][:_LONGEST_REASON]}). {library} keeps them in "
            f"{_kept_in(library)}; if a file there is damaged, remove it. On a "
            f'computer with a network: python -c "{source.line}"; bring that '
            f"here and give {source.instead.format(flag=flag)} instead"
        ) from error


def _published_applications(name: str) -> _Published:
    # Without input_shape: the library has weights for some sizes only, and all
    # layers before the classifier take any.
    load = functools.partial(
        getattr(keras.applications, name),
        include_top=False,
        weights="imagenet",
        pooling="avg",
    )
    file = f"{name}.weights.h5"
    return _Published(
        load,
        f"import keras; keras.applications.{name}(include_top=False)."
        f"save_weights('{file}')",
        f"--{{flag}}={file}",
    )


def _published_keras_cv(name: str) -> _Published:
    class_name, _ = keras_cv_presets.PRESETS[name]
    preset, file = f"{name}_imagenet", f"{name}.weights.h5"

    def load() -> keras.Model:
        import keras_cv  # slow to import, needed here only

        return getattr(keras_cv.models, class_name).from_preset(preset)

    return _Published(
        load,
        f"import keras_cv; keras_cv.models.{class_name}.from_preset("
        f"'{preset}').save_weights('{file}')",
        f"--{{flag}}={file}",
    )


def _published_keras_hub(name: str) -> _Published:
    def load() -> keras.Model:
        import keras_hub  # slow to import, needed here only

        return keras_hub.models.Backbone.from_preset(_hub_place(name))

    folder = os.path.basename(name)
    return _Published(
        load,
        f"import keras_hub as h; [c.from_preset('{folder}').save_to_preset("
        f"'{folder}') for c in (h.models.Backbone, h.layers.ImageConverter)]",
        f"keras_hub:/WHERE/IT/IS/{folder}",
    )


def _kept_in(library: str) -> str:
    """Returns the folder in which a library keeps what it has downloaded."""
    if library == "keras_applications":
        return os.path.join(config.keras_home(), "models")
    import kagglehub  # as both others do

    return kagglehub.config.get_cache_folder()


@contextlib.contextmanager
def _fetching() -> Iterator[None]:
    """Waits until no other process of this user fetches weights.

    The libraries write into their caches as they download, so that another
    process would read half a file.
    """
    with contextlib.ExitStack() as stack:
        # No home, or a folder that cannot be written or locked: without it.
        with contextlib.suppress(OSError, RuntimeError):
            folder = io.cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(folder / "fetching.lock", "w"))
            io.lock(file, wait=True)
        yield


_LIBRARIES: dict[str, Any] = {
    "keras_applications": _keras_applications,
    "keras_cv": _keras_cv,
}
_PUBLISHED: dict[str, Any] = {
    "keras_applications": _published_applications,
    "keras_cv": _published_keras_cv,
    "keras_hub": _published_keras_hub,
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
