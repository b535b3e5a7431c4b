"""Encoders: networks without heads, whose features are measured."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, registry
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source
from simmatch_tf.flags import commandline
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import library_backbone, network
from simmatch_tf.serving import loading
from simmatch_tf.training import initial, state, workdir

# Default side of the images of a library's architecture.
_SIDE = 224
_UNKNOWN = "–"
# Part of a network → its weights, in Keras' order.
Weights = Mapping[str, Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network from images to pooled features, with given weights.

    Attributes:
        name: Name of its row in the table.
        backbone: Name of the backbone, as in --backbone.
        image_shape: (side, side, channels) of its images.
        flags: The backbone's own flags.
        weights: Weights of its parts: "backbone" and, if it has one,
            "normalize".
        epochs: Epochs that it was trained for, for the table.
    """

    name: str
    backbone: str
    image_shape: tuple[int, int, int]
    flags: commandline.HyperParameters
    weights: Weights = dataclasses.field(repr=False)
    epochs: str = _UNKNOWN

    @functools.cached_property
    def network(self) -> keras.Model:
        """The network of `network.build`, without heads."""
        model = _build(self.backbone, self.image_shape, self.flags)
        parts = network.parts(model)
        for name, values in self.weights.items():
            parts[name].set_weights(values)
        return model

    @functools.cached_property
    def digest(self) -> str:
        """A digest of architecture, image size and weights."""
        values = self.flags.values()
        architecture = [
            self.backbone,
            self.image_shape,
            values.pop("stem_stride", 1),
            *sorted(values.items()),
        ]
        digest = hashlib.sha256(repr(tuple(architecture)).encode())
        for name in sorted(self.weights):
            for value in self.weights[name]:
                digest.update(f"{name} {value.shape} {value.dtype}".encode())
                digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()

    def with_new_weights(self, seed: int) -> "Encoder":
        """Returns the same architecture with newly initialized weights.

        Its normalization is kept, because it belongs to the images.
        """
        model = _build(self.backbone, self.image_shape, self.flags, seed)
        weights = {**self.weights, **_weights(model, ("backbone",))}
        return dataclasses.replace(
            self, name=_new(self.name), weights=weights, epochs="0"
        )


def load(flags: Any) -> list[Encoder]:
    """Loads the models of a command line.

    Args:
        flags: The flags of `transfer`.

    Raises:
        InputError: A model cannot be loaded, or cannot take such images.
    """
    encoders = []
    for named in flags.named_models():
        if named.library is not None:
            encoder = _of_library(named, flags)
        else:
            kind, path = preflight.kind_of_model("model", named.model)
            of = _of_run if kind == "workdir" else _of_export
            encoder = of(named, path, flags)
        encoders.append(encoder)
        if flags.random_backbone:
            encoders.append(encoder.with_new_weights(flags.seed))
    return encoders


def _of_run(named: Any, path: pathlib.Path, flags: Any) -> Encoder:
    folder = workdir.Workdir(path)
    model = state.load(path, weights=flags.weights)
    return _encoder(
        named,
        folder.read_config(),
        _side(named, tuple(model.input_shape[1:]), flags.image_size),
        _weights(model),
        splits.read_content(folder.split)["unlabeled_images"],
    )


def _of_export(named: Any, path: pathlib.Path, flags: Any) -> Encoder:
    export = loading.export(path)
    try:
        config = config_lib.Config.from_recorded(export.card["flags"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"--model={named.model}: was exported by another version ({error})"
        ) from None
    shape = export.preprocessing.image_shape
    model = _build(config.backbone, shape, config.network)
    filled = initial.fill(
        model, named.model, backbone=config.backbone, flag="model"
    )
    if None in filled.values():
        raise InputError(
            f"--model={named.model}: some of its weights are missing"
        )
    shape = _side(named, shape, flags.image_size)
    return _encoder(named, config, shape, _weights(model), None)


def _of_library(named: Any, flags: Any) -> Encoder:
    side = flags.image_size or _SIDE
    registry.networks.check_side(named.model, side, flag="model")
    shape = (side, side, 3)
    own = commandline.HyperParameters()  # a library's networks have none
    model = _build(named.model, shape, own, flags.seed)
    if flags.weights in (None, "imagenet"):
        library, name = named.model.split(":", 1)
        try:
            values = library_backbone.published(library, name, "weights")
        except InputError as error:
            raise InputError(
                f"--model={named.model}: {error}; or give --weights=random for "
                "new ones"
            ) from None
        initial.fill(
            model,
            "imagenet",
            backbone=named.model,
            flag="weights",
            published=values,
        )
    elif flags.weights != "random":
        initial.fill(model, flags.weights, backbone=named.model, flag="weights")
    encoder = Encoder(named.name, named.model, shape, own, _weights(model))
    if flags.weights != "random":
        return encoder
    return dataclasses.replace(encoder, name=_new(named.name), epochs="0")


def _side(
    named: Any, shape: tuple[int, int, int], image_size: int | None
) -> tuple[int, int, int]:
    """Returns the shape of a model's images.

    Raises:
        InputError: They would not be square.
    """
    height, width, channels = shape
    if image_size is not None:
        return image_size, image_size, channels
    if height != width:
        raise InputError(
            f"--model={named.model}: takes images of {height}×{width}, but "
            "they must be square; give --image_size"
        )
    return shape


def _encoder(
    named: Any,
    config: config_lib.Config,
    shape: tuple[int, int, int],
    weights: Weights,
    unlabeled_images: int | None,
) -> Encoder:
    """Returns the encoder of a run, and checks that it can be built."""
    registry.networks.check_side(config.backbone, shape[0], flag="model")
    epochs, steps = config.epochs, config.length()
    if steps is not None and unlabeled_images:
        batch = config.batch_size * config.unlabeled_ratio
        epochs = steps * batch / unlabeled_images
    written = _UNKNOWN
    if epochs is not None:
        written = f"{epochs:.3g}" if epochs < 100 else f"{epochs:.0f}"
    encoder = Encoder(
        named.name,
        config.backbone,
        shape,
        config.network,
        weights,
        written,
    )
    try:
        encoder.network  # noqa: B018 — a size may not suit the weights
    except ValueError as error:
        raise InputError(
            f"--model={named.model}: cannot take images of {shape[0]}×"
            f"{shape[1]}: {error}"
        ) from None
    return encoder


def _new(name: str) -> str:
    return f"{name}, new weights"


def _build(
    name: str,
    shape: tuple[int, int, int],
    flags: commandline.HyperParameters,
    seed: int = 0,
) -> keras.Model:
    """Builds a network without heads, with weights of a seed."""
    channels = shape[-1]
    mean, std = source.IMAGENET
    with state.building(seed, "float32"):
        return network.build(
            name,
            image_shape=shape,
            num_classes=None,
            projection_dim=None,
            mean=mean[:channels],
            std=std[:channels],
            options=dataclasses.asdict(flags),
        )


def _weights(
    model: keras.Model, names: Sequence[str] = ("normalize", "backbone")
) -> Weights:
    """Returns the weights of parts of a network."""
    parts = network.parts(model)
    return {
        name: [np.asarray(value) for value in parts[name].get_weights()]
        for name in names
        if name in parts
    }
