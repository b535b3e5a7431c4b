"""The whole network: normalisation, backbone and heads in one Keras model."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence

import keras

from simmatch_tf.networks import batch_norm, heads, resnet, wide_resnet, zoo

# (image_shape) → a Keras model from images [N, H, W, C] to features [N, width].
MakeBackbone = Callable[[tuple[int, int, int]], keras.Model]


@dataclasses.dataclass(frozen=True)
class Backbone:
    """How a backbone is made, and what goes with it.

    Attributes:
        make: Makes it.
        initializer: Of the heads behind it; see `heads.initializers`.
        normalized: It takes normalised images; else images from 0 to 255,
            for it has a normalisation of its own.
    """

    make: MakeBackbone
    initializer: str = "glorot_normal"
    normalized: bool = True


def backbone(
    name: str,
    *,
    batch_norm_momentum: float | None = None,
    stem_stride: int = 1,
    synchronized: bool = False,
) -> Backbone:
    """Finds a backbone by its name.

    Args:
        name: "wrn_DEPTH_WIDTH", "resnetDEPTH", "resnetDEPTHxWIDTH",
            "keras_cv:NAME" or "keras_applications:NAME".
        batch_norm_momentum: Default: the published one.
        stem_stride: Of a WRN's first convolution.
        synchronized: BatchNorm over all replicas.

    Raises:
        ValueError: There is no such backbone.
    """
    norm = {
        "batch_norm_momentum": batch_norm_momentum,
        "synchronized": synchronized,
    }
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        make = functools.partial(
            wide_resnet.wide_resnet,
            int(match[1]),
            int(match[2]),
            stem_stride=stem_stride,
            **norm,
        )
        return Backbone(make)
    if match := re.fullmatch(r"resnet(\d+)(?:x(\d+))?", name):
        make = functools.partial(
            resnet.resnet, int(match[1]), int(match[2] or 1), **norm
        )
        return Backbone(make, initializer="fan_in_uniform")
    library, _, inner = name.partition(":")
    if inner:
        make = functools.partial(zoo.make, library, inner, **norm)
        return Backbone(make, initializer="fan_in_uniform", normalized=False)
    raise ValueError(f"backbone {name!r} is unknown; known: wrn_28_2, resnet50")


def own(
    make: MakeBackbone,
    *,
    batch_norm_momentum: float | None = None,
    synchronized: bool = False,
) -> Backbone:
    """A caller's own backbone.

    Args:
        make: Makes it.
        batch_norm_momentum: Of every BatchNorm in it; default: its own.
        synchronized: BatchNorm over all replicas.
    """

    def adjusted(image_shape: tuple[int, int, int]) -> keras.Model:
        model = make(image_shape)
        batch_norm.adjust(
            model, momentum=batch_norm_momentum, synchronized=synchronized
        )
        return model

    return Backbone(adjusted)


def build(
    backbone: Backbone,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
    projection_dim: int | None,
    mean: Sequence[float],
    std: Sequence[float],
) -> keras.Model:
    """Builds images → {"features", "logits", "embeddings"}.

    Args:
        backbone: See `backbone`.
        image_shape: (height, width, channels).
        num_classes: L; None leaves the classifier out.
        projection_dim: D; None leaves the projection head out.
        mean: Of each channel, in units of 1 (white).
        std: Likewise.

    Returns:
        A Keras model from images [N, H, W, C], uint8 or float from 0 to 255,
        to a dict: `features` [N, width]; `logits` [N, L], float32, if there
        is a classifier; `embeddings` [N, D], float32 unit rows, if there is a
        projection head.

    Raises:
        ValueError: The backbone does not return [N, width].
    """
    images = keras.Input(image_shape, name="images")
    trunk = backbone.make(image_shape)
    x = images
    if backbone.normalized:
        x = heads.Normalize(list(mean), list(std), name="normalize")(images)
    features = trunk(x)
    if len(features.shape) != 2 or features.shape[1] is None:
        raise ValueError(
            f"the backbone returns shape {features.shape}, but [N, width] is "
            "wanted: end it with a global pool"
        )
    width = features.shape[1]
    outputs = {"features": features}
    if num_classes is not None:
        head = heads.classifier(width, num_classes, backbone.initializer)
        outputs["logits"] = head(features)
    if projection_dim is not None:
        head = heads.projection_head(
            width, projection_dim, backbone.initializer
        )
        outputs["embeddings"] = head(features)
    return keras.Model(images, outputs, name="network")


def parts(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """The parts of a network of `build`, by name.

    Returns:
        `backbone`; and `normalize`, `classifier`, `projection_head`, as far
        as the network has them.

    Raises:
        ValueError: It is no such network.
    """
    found = {}
    for layer in model.layers:
        if layer.name in ("normalize", "classifier", "projection_head"):
            found[layer.name] = layer
        elif not isinstance(layer, keras.layers.InputLayer):
            if "backbone" in found:
                raise ValueError(f"{model.name} is not a network of ours")
            found["backbone"] = layer
    if "backbone" not in found:
        raise ValueError(f"{model.name} is not a network of ours")
    return found
