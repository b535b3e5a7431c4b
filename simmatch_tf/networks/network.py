"""The whole network: normalization, backbone and heads in one Keras model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import keras
import numpy as np

from simmatch_tf import io, registry
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import (
    batch_norm,
    library_backbone,  # noqa: F401 (registers its classes with Keras)
    wavelets,  # noqa: F401 (likewise)
)
from simmatch_tf.networks import heads as heads_lib

# From features [N, width], a Keras tensor, to the head's output.
MakeHead = Callable[[keras.KerasTensor], keras.KerasTensor]
# A head of the features, or the name of another output and a head of that.
Head = MakeHead | tuple[str, MakeHead]


def build(
    backbone: str | Callable[..., keras.Model],
    *,
    image_shape: tuple[int, int, int],
    num_classes: int | None,
    projection_dim: int | None,
    mean: Sequence[float],
    std: Sequence[float],
    heads: Mapping[str, Head] | None = None,
    feature_norm: bool = False,
    batch_norm_momentum: float | None = None,
    synchronized: bool = False,
    frozen: bool = False,
    options: Mapping[str, Any] | None = None,
) -> keras.Model:
    """Builds images → {"features", "logits", "embeddings"} and other heads.

    Args:
        backbone: A name of `registry.networks`, or a function from an image
            shape to a Keras model that takes normalized images.
        image_shape: (height, width, channels); height and width None for
            images of several sizes.
        num_classes: Number of classes L; None leaves the classifier out.
        projection_dim: Width D of the embeddings; None leaves the projection
            head out.
        mean: Mean of each channel, in units of 1 (white).
        std: Standard deviation of each channel, likewise.
        heads: Further heads: the name of an output → a function from features
            [N, width] in float32 to it, such as
            `{"rotation": lambda x: keras.layers.Dense(4)(x)}`. Its layers
            compute in float32 at least, and may have a BatchNorm. A pair
            `("projection", function)` is a head of an output that stands
            before it, as a predictor is.
        feature_norm: Whether classifier and projection head get the features
            by way of a LayerNorm that they share.
        batch_norm_momentum: Weight of the old statistics in every BatchNorm;
            by default that of each layer.
        synchronized: Whether every BatchNorm averages over all replicas.
        frozen: Whether every BatchNorm of the backbone keeps its averages and
            weights; see `batch_norm.adjust`.
        options: Keyword arguments of the backbone's maker.

    Returns:
        A Keras model from images [N, H, W, C], uint8 or float from 0 to 255,
        to a dict: `features` [N, width]; `logits` [N, L], float32, if there
        is a classifier; `embeddings` [N, D], float32 unit rows, if there is a
        projection head; and the outputs of the other heads.

    Raises:
        ValueError: The backbone does not take such images, or does not return
            [N, width]; or a head has the name of another output, or is a head
            of one that is not there.
    """
    make, groups, facts = backbone, (), {}
    if isinstance(backbone, str):
        entry, match = registry.networks.find(backbone)
        if None not in image_shape:
            registry.networks.check_side(backbone, min(image_shape[:2]))
        make, groups, facts = entry.value, match.groups(), entry.facts
    initializer = facts.get("initializer", "glorot_normal")

    images = keras.Input(image_shape, name="images")
    trunk = make(image_shape, *groups, **(options or {}))
    x = images
    if facts.get("normalized", True):
        x = heads_lib.Normalize(list(mean), list(std), name="normalize")(images)
    features = trunk(x)
    if len(features.shape) != 2 or features.shape[1] is None:
        raise ValueError(
            f"the backbone returns shape {features.shape}, but [N, width] is "
            "wanted: end it with a global pool"
        )
    width = features.shape[1]
    outputs = {"features": features}
    x = heads_lib.feature_norm(width)(features) if feature_norm else features
    if num_classes is not None:
        head = heads_lib.classifier(width, num_classes, initializer)
        outputs["logits"] = head(x)
    if projection_dim is not None:
        head = heads_lib.projection_head(width, projection_dim, initializer)
        outputs["embeddings"] = head(x)
    for name, head in (heads or {}).items():
        if name in outputs:
            raise ValueError(f"heads: the network has an output {name} already")
        below, make_head = head if type(head) is tuple else ("features", head)
        if below not in outputs:
            raise ValueError(
                f"heads: {name} is a head of {below}, but the outputs before "
                f"it are {', '.join(outputs)}"
            )
        x = outputs[below]
        outputs[name] = heads_lib.head(name, x.shape[1], make_head)(x)
    model = keras.Model(images, outputs, name="network")
    if frozen:
        batch_norm.adjust(trunk, momentum=None, synchronized=False, frozen=True)
    batch_norm.adjust(
        model, momentum=batch_norm_momentum, synchronized=synchronized
    )
    return model


def with_linear_classifier(
    model: keras.Model,
    mean: np.ndarray,
    deviation: np.ndarray,
    kernel: np.ndarray,
    bias: np.ndarray,
    *,
    most: float,
) -> keras.Model:
    """Puts a linear classifier of standardized features on a network.

    Args:
        model: A network of `build`; it shares its backbone with the new one.
        mean: Means of the features, [width].
        deviation: Their deviations, [width].
        kernel: [width, L].
        bias: [L].
        most: Deviations from the mean at which features are cut off.

    Returns:
        A network images → {"features", "logits"}.
    """
    features = model.output["features"]
    classifier = heads_lib.StandardizedLinear(
        len(bias), most, name="classifier"
    )
    outputs = {"features": features, "logits": classifier(features)}
    classifier.set_weights([mean, deviation, kernel, bias])
    return keras.Model(model.input, outputs, name="network")


def parts(model: keras.Model) -> dict[str, keras.Layer]:
    """The parts of a network of `build`, by name.

    Returns:
        `backbone`; and `normalize`, `feature_norm`, `classifier`,
        `projection_head` and other heads, as far as the network has them.

    Raises:
        ValueError: It is no such network.
    """
    outputs = getattr(model, "output", None)
    if not isinstance(outputs, dict) or "features" not in outputs:
        raise ValueError(f"{model.name} is not a network of simmatch_tf")
    backbone = outputs["features"]._keras_history.operation
    return {
        "backbone" if layer is backbone else layer.name: layer
        for layer in model.layers
        if not isinstance(layer, keras.layers.InputLayer)
    }


@keras.saving.register_keras_serializable("simmatch_tf")
class Network(keras.Model):
    """A network of `build` as it is saved: with the names of its classes.

    Attributes:
        class_names: Names of the columns of the logits.
    """

    class_names: Sequence[str] = ()

    def get_config(self) -> dict:
        """Returns the layers and the names of the classes."""
        return {**super().get_config(), "class_names": list(self.class_names)}

    @classmethod
    def from_config(
        cls, config: dict, custom_objects: dict | None = None
    ) -> Self:
        """Builds the layers."""
        config = dict(config)
        class_names = config.pop("class_names")
        model = super().from_config(config, custom_objects)
        model.class_names = class_names
        return model


def save(
    model: keras.Model,
    path: str | os.PathLike,
    class_names: Sequence[str],
) -> None:
    """Saves a network and the names of its classes, whole or not at all.

    `keras.saving.load_model` reads the file back, as `load` does.

    Args:
        model: A network of `build`.
        path: File whose name ends in .keras.
        class_names: Names of the columns of the logits.

    Raises:
        OSError: It cannot be written.
    """
    network = Network(model.input, model.output, name=model.name)
    network.class_names = [str(name) for name in class_names]
    with io.replacing(path) as temporary:
        network.save(temporary)


def load(path: str | os.PathLike) -> keras.Model:
    """Loads a network that `save` wrote.

    Returns:
        The network, with the attribute `class_names`.

    Raises:
        InputError: It cannot be read, or is no such network.
    """
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras lets through whatever goes wrong
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read ({lines[0]})") from error
    if not isinstance(model, Network):
        raise InputError(f"{path}: is not a network of simmatch_tf")
    return model
