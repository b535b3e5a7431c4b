"""Normalization and heads. All of them compute in float32 at least."""

from collections.abc import Callable

import keras
import numpy as np


@keras.saving.register_keras_serializable("simmatch_tf")
class Normalize(keras.layers.Layer):
    """Normalizes images: (x / 255 - mean) / std.

    Mean and standard deviation are weights, so that checkpoints hold them.

    Attributes:
        checks: Whether to refuse values that cannot be from 0 to 255. Values
            are not known, and not checked, while a graph is traced.
    """

    checks: bool = False

    def __init__(self, mean: list[float], std: list[float], **kwargs) -> None:
        """Takes the statistics.

        Args:
            mean: Mean of each channel, in units of 1 (white).
            std: Standard deviation of each channel, likewise, above 0.
            **kwargs: Arguments of `keras.Layer`.
        """
        # Half precision would round values up to 255 before `call`.
        super().__init__(**{"trainable": False, **kwargs}, autocast=False)
        self._initial = {"mean": list(mean), "std": list(std)}

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the two weights [C]."""
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
        """Normalizes images [N, H, W, C] of any dtype, from 0 to 255."""
        if self.checks and hasattr(images, "numpy"):
            _check_range(images.numpy())
        x = keras.ops.cast(images, "float32") / 255.0
        x = (x - self.mean) / self.std
        return keras.ops.cast(x, self.compute_dtype)

    def get_config(self) -> dict:
        """Returns the layer's configuration, for saving."""
        return {**super().get_config(), **self._initial}


def _check_range(values: np.ndarray) -> None:
    """Refuses images that are normalized already.

    Raises:
        ValueError: A value is negative, or all are from 0 to 1 and some are
            fractions.
    """
    if not values.size:
        return
    low, high = float(values.min()), float(values.max())
    if low < 0 or (high <= 1 and (values % 1).any()):
        raise ValueError(
            f"images are from {low:.3g} to {high:.3g}, but must be from 0 "
            "(black) to 255 (white): the network normalizes them itself"
        )


def initializers(name: str, fan_in: int) -> dict[str, keras.Initializer]:
    """Returns the initializers of a Dense layer, as its keyword arguments.

    Args:
        name: "glorot_normal": Glorot normal kernel, biases of 0 (for WRNs);
            "fan_in_uniform": kernel and biases uniform within ±1/√fan_in (for
            ResNets).
        fan_in: Width of the layer's input.

    Raises:
        ValueError: The name is neither of these.
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


@keras.saving.register_keras_serializable("simmatch_tf")
class StandardizedLinear(keras.layers.Layer):
    """Logits of standardized features: clip((x - mean) / deviation) · w + b.

    Its weights are given, not trained. Their names are those of no other
    layer, so that no classifier of features as they are is filled with them.
    """

    def __init__(self, num_classes: int, most: float, **kwargs) -> None:
        """Takes the sizes.

        Args:
            num_classes: Number of classes L.
            most: Where standardized features are cut off, above 0.
            **kwargs: Arguments of `keras.Layer`.
        """
        # Half precision would round features and statistics before `call`.
        super().__init__(
            **{"trainable": False, "dtype": "float32", **kwargs}, autocast=False
        )
        self._num_classes, self._most = num_classes, most

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the weights [D], [D], [D, L] and [L]."""
        width, classes = input_shape[-1], self._num_classes
        self.mean, self.deviation, self.coefficients, self.intercepts = (
            self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype="float32",
                trainable=False,
                autocast=False,
            )
            for name, shape, initializer in (
                ("feature_mean", (width,), "zeros"),
                ("feature_deviation", (width,), "ones"),
                ("coefficients", (width, classes), "zeros"),
                ("intercepts", (classes,), "zeros"),
            )
        )

    def call(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """Returns logits [N, L], float32, of features [N, D]."""
        x = keras.ops.cast(features, "float32")
        x = (x - self.mean) / self.deviation
        x = keras.ops.clip(x, -self._most, self._most)
        return keras.ops.matmul(x, self.coefficients) + self.intercepts

    def get_config(self) -> dict:
        """Returns the layer's configuration, for saving."""
        sizes = {"num_classes": self._num_classes, "most": self._most}
        return {**super().get_config(), **sizes}


def _features(width: int) -> tuple[keras.KerasTensor, str]:
    """A head's input and dtype, which is that of the weights."""
    dtype = keras.config.dtype_policy().variable_dtype
    return keras.Input((width,), name="features", dtype=dtype), dtype


def feature_norm(width: int) -> keras.Model:
    """Builds the LayerNorm in front of both heads.

    Args:
        width: Width of the features.

    Returns:
        A Keras model, features [N, width] → [N, width] float32.
    """
    features, dtype = _features(width)
    x = keras.layers.LayerNormalization(
        epsilon=1e-5, dtype=dtype, name="feature_norm"
    )(features)
    return keras.Model(features, x, name="feature_norm")


def classifier(width: int, num_classes: int, initializer: str) -> keras.Model:
    """Builds the classifier φ: one Dense layer.

    Args:
        width: Width of the features.
        num_classes: Number of classes L.
        initializer: See `initializers`.

    Returns:
        A Keras model, features [N, width] → logits [N, L] float32.
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
    """Builds the projection head g: Dense, ReLU, Dense and L2 normalization.

    Args:
        width: Width of the features and of the hidden layer.
        dim: Width D of the embeddings.
        initializer: See `initializers`.

    Returns:
        A Keras model, features [N, width] → unit embeddings [N, D] float32.
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
        width: Width of the head's input, such as the features.
        make: From the input [N, width] to the head's output.

    Returns:
        A Keras model, [N, width] → the head's output.
    """
    features, dtype = _features(width)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        return keras.Model(features, make(features), name=name)
    finally:
        keras.config.set_dtype_policy(before)
