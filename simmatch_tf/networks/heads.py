"""Classifier and projection head. Both compute in float32 at least."""

from collections.abc import Callable

import keras
import numpy as np


@keras.saving.register_keras_serializable("simmatch_tf")
class Normalize(keras.layers.Layer):
    """(x / 255 - mean) / std, the two kept as weights, so in checkpoints.

    Attributes:
        checks: Refuse values that cannot be from 0 to 255, where they can be
            seen: not while a graph is traced.
    """

    checks: bool = False

    def __init__(self, mean: list[float], std: list[float], **kwargs) -> None:
        """Sets the statistics.

        Args:
            mean: Of each channel, in units of 1 (white).
            std: Likewise, above 0.
            **kwargs: Keras' own.
        """
        # Half precision would round values up to 255 before `call`.
        super().__init__(**{"trainable": False, **kwargs}, autocast=False)
        self._initial = {"mean": list(mean), "std": list(std)}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the two weights [C]."""
        self.mean, self.std = (
            self.add_weight(
                name=name,
                shape=(input_shape[-1],),
                initializer=lambda shape, dtype, v=value: (
                    keras.ops.broadcast_to(keras.ops.cast(v, dtype), shape)
                ),
                dtype="float32",
                trainable=False,
                autocast=False,
            )
            for name, value in self._initial.items()
        )

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Normalises [N, H, W, C] of any dtype, 0 to 255."""
        if self.checks and hasattr(images, "numpy"):
            _check_range(images.numpy())
        x = keras.ops.cast(images, "float32") / 255.0
        x = (x - self.mean) / self.std
        return keras.ops.cast(x, self.compute_dtype)

    def get_config(self) -> dict:
        """The layer's configuration, for saving."""
        return {**super().get_config(), **self._initial}


def _check_range(values: np.ndarray) -> None:
    """Refuses images that are scaled already.

    Raises:
        ValueError: They are from 0 to 1 with fractions, or below 0.
    """
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if low < 0 or (high <= 1 and (values % 1).any()):
        raise ValueError(
            f"images are from {low:.3g} to {high:.3g}, but from 0 (black) to "
            "255 (white) is wanted: the network scales them itself"
        )


def initializers(name: str, fan_in: int) -> dict[str, keras.Initializer]:
    """Initializers of a Dense layer, as its arguments.

    Args:
        name: "glorot_normal": that, and biases of 0 (WRN); "fan_in_uniform":
            ±1/√fan_in for kernel and bias (the ResNets).
        fan_in: Width of its input.

    Raises:
        ValueError: The name is none of these.
    """
    if name == "glorot_normal":
        return {"kernel_initializer": name}
    if name != "fan_in_uniform":
        raise ValueError(
            f"initializer {name!r}: must be glorot_normal or fan_in_uniform"
        )
    bound = fan_in**-0.5
    return {
        f"{part}_initializer": keras.initializers.RandomUniform(-bound, bound)
        for part in ("kernel", "bias")
    }


def _features(width: int) -> tuple[keras.KerasTensor, str]:
    """A head's input, and the dtype of all in it: that of the weights."""
    dtype = keras.config.dtype_policy().variable_dtype
    return keras.Input((width,), name="features", dtype=dtype), dtype


def classifier(width: int, num_classes: int, initializer: str) -> keras.Model:
    """φ: one Dense layer, features [N, width] → logits [N, L] float32.

    Args:
        width: Of the features.
        num_classes: L.
        initializer: See `initializers`.
    """
    features, dtype = _features(width)
    logits = keras.layers.Dense(
        num_classes,
        **initializers(initializer, width),
        dtype=dtype,
        name="logits",
    )(features)
    return keras.Model(features, logits, name="classifier")


def projection_head(width: int, dim: int, initializer: str) -> keras.Model:
    """g: Dense–ReLU–Dense and L2 norm, features → unit embeddings [N, D].

    Args:
        width: Of the features, and of the hidden layer.
        dim: D.
        initializer: See `initializers`.
    """
    features, dtype = _features(width)
    x = keras.layers.Dense(
        width,
        activation="relu",
        **initializers(initializer, width),
        dtype=dtype,
        name="hidden",
    )(features)
    x = keras.layers.Dense(
        dim,
        **initializers(initializer, width),
        dtype=dtype,
        name="embedding",
    )(x)
    x = keras.layers.UnitNormalization(axis=-1, dtype=dtype)(x)
    return keras.Model(features, x, name="projection_head")


def head(
    name: str,
    width: int,
    make: Callable[[keras.KerasTensor], keras.KerasTensor],
) -> keras.Model:
    """Builds a further head, which computes in float32 at least.

    Args:
        name: Name of the model.
        width: Width of the features.
        make: From features [N, width] to the head's output.

    Returns:
        A Keras model, features [N, width] → the head's output.
    """
    features, dtype = _features(width)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return keras.Model(features, make(features), name=name)
    finally:
        keras.config.set_dtype_policy(before)
