"""Networks as far as their pooled features: what transfer measures."""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, registry
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.networks import library, network
from simmatch_tf.probes import settings
from simmatch_tf.serving import loading
from simmatch_tf.training import initial, state, workdir

# Of a library's architecture.
_SIDE = 224
_UNKNOWN = "–"
# Weights of a part of a network, in Keras' order.
Weights = Mapping[str, Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A network from images to pooled features, of given weights.

    Attributes:
        name: Of its row in the table.
        backbone: As --backbone has it.
        image_shape: (side, side, channels) of its images.
        stem_stride: Of a WRN's first convolution.
        weights: Of its parts, "backbone" and, where it has one, "normalize".
        epochs: What it was trained for, for the table.
    """

    name: str
    backbone: str
    image_shape: tuple[int, int, int]
    stem_stride: int
    weights: Weights = dataclasses.field(repr=False)
    epochs: str = _UNKNOWN

    @functools.cached_property
    def network(self) -> keras.Model:
        """See `network.build`; with neither of the heads."""
        made = _build(self.backbone, self.image_shape, self.stem_stride)
        _assign(made, self.weights)
        return made

    @functools.cached_property
    def digest(self) -> str:
        """What tells it from others: architecture, size and weights."""
        found = hashlib.sha256(
            repr((self.backbone, self.image_shape, self.stem_stride)).encode()
        )
        for name in sorted(self.weights):
            for value in self.weights[name]:
                found.update(f"{name} {value.shape} {value.dtype}".encode())
                found.update(np.ascontiguousarray(value).tobytes())
        return found.hexdigest()

    def with_new_weights(self, seed: int) -> "Encoder":
        """The same architecture, as it is before training.

        Its normalisation stays: that belongs to the images.
        """
        made = _build(self.backbone, self.image_shape, self.stem_stride, seed)
        weights = {**self.weights, **_weights(made, ("backbone",))}
        return dataclasses.replace(
            self,
            name=_new(self.name),
            weights=weights,
            epochs="0",
        )


def find(
    models: Sequence[settings.Named],
    *,
    weights: str | None = None,
    image_size: int | None = None,
    seed: int = 0,
    random_backbone: bool = False,
) -> list[Encoder]:
    """Loads the models of a command line.

    Args:
        models: What --model names.
        weights: As in --weights.
        image_size: Side of the images in pixels; None: the models' own.
        seed: Of new weights.
        random_backbone: Whether each is followed by its like with new weights.

    Raises:
        InputError: One cannot be loaded, or takes no such images.
    """
    found = []
    for named in models:
        if named.library is not None:
            made = _of_library(named, weights, image_size, seed)
        else:
            kind, path = preflight.kind_of_model("model", named.what)
            made = {"workdir": _of_run, "saved_model": _of_export}[kind](
                named, path, weights, image_size
            )
        found.append(made)
        if random_backbone:
            found.append(made.with_new_weights(seed))
    return found


def _of_run(named, path, weights, image_size) -> Encoder:
    folder = workdir.Workdir(path)
    config = folder.read_config()
    model = state.load(path, weights=weights)
    return _encoder(
        named,
        config,
        _side(named, tuple(model.input_shape[1:]), image_size),
        _weights(model),
        splits.read_content(folder.split)["unlabeled_images"],
    )


def _of_export(named, path, weights, image_size) -> Encoder:
    del weights  # it has but one network's
    export = loading.export(path)
    try:
        config = config_lib.Config.from_recorded(export.card["flags"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"--model={named.what}: was exported by another version ({error})"
        ) from None
    shape = export.preprocessing.image_shape
    made = _build(config.backbone, shape, config.stem_stride)
    taken = initial.fill(
        made, named.what, backbone=config.backbone, flag="model"
    )
    if None in taken.values():
        raise InputError(f"--model={named.what}: its weights are not all there")
    shape = _side(named, shape, image_size)
    return _encoder(named, config, shape, _weights(made), None)


def _of_library(named, weights, image_size, seed) -> Encoder:
    side = image_size or _SIDE
    registry.networks.check_side(named.what, side, flag="model")
    shape = (side, side, 3)
    made = _build(named.what, shape, 1, seed)
    if weights in (None, settings.PUBLISHED):
        try:
            values = library.published(*named.what.split(":"), shape)
            network.parts(made)["backbone"].set_weights(values)
        except ValueError as error:
            raise InputError(
                f"--model={named.what}: {error}; give --weights=FILE, or "
                "--weights=random for new ones"
            ) from None
    elif weights != settings.NEW:
        initial.fill(made, weights, backbone=named.what, flag="weights")
    found = Encoder(named.name, named.what, shape, 1, _weights(made))
    if weights != settings.NEW:
        return found
    return dataclasses.replace(found, name=_new(named.name), epochs="0")


def _side(
    named, shape: tuple[int, int, int], image_size: int | None
) -> tuple[int, int, int]:
    """The shape of its images.

    Raises:
        InputError: They would not be square.
    """
    height, width, channels = shape
    if image_size is not None:
        return image_size, image_size, channels
    if height != width:
        raise InputError(
            f"--model={named.what}: takes images of {height}×{width}, but "
            "square ones are wanted; give --image_size"
        )
    return shape


def _encoder(
    named,
    config: config_lib.Config,
    shape: tuple[int, int, int],
    weights: Weights,
    unlabeled_images: int | None,
) -> Encoder:
    registry.networks.check_side(config.backbone, shape[0], flag="model")
    epochs = config.epochs
    if epochs is None and unlabeled_images:
        batch = config.batch_size * config.unlabeled_ratio
        epochs = config.steps * batch / unlabeled_images
    made = Encoder(
        named.name,
        config.backbone,
        shape,
        config.stem_stride,
        weights,
        _UNKNOWN if epochs is None else _shown(epochs),
    )
    try:
        made.network  # noqa: B018 — a size may not suit the weights
    except ValueError as error:
        raise InputError(
            f"--model={named.what}: takes no images of {shape[0]}×{shape[1]}: "
            f"{error}"
        ) from None
    return made


def _new(name: str) -> str:
    return f"{name}, new weights"


def _shown(epochs: float) -> str:
    return f"{epochs:.3g}" if epochs < 100 else f"{epochs:.0f}"


def _build(
    name: str,
    shape: tuple[int, int, int],
    stem_stride: int,
    seed: int = 0,
) -> keras.Model:
    channels = shape[-1]
    options = {"stem_stride": stem_stride} if stem_stride != 1 else {}
    mean, std = source.IMAGENET
    with state.building(seed, "float32"):
        return network.build(
            name,
            image_shape=shape,
            num_classes=None,
            projection_dim=None,
            mean=mean[:channels],
            std=std[:channels],
            options=options,
        )


def _weights(
    model: keras.Model, names: Sequence[str] = ("normalize", "backbone")
) -> Weights:
    parts = network.parts(model)
    return {
        name: [np.asarray(value) for value in parts[name].get_weights()]
        for name in names
        if name in parts
    }


def _assign(model: keras.Model, weights: Weights) -> None:
    parts = network.parts(model)
    for name, values in weights.items():
        parts[name].set_weights(values)
