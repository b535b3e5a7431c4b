"""Wide residual networks, as in the code of the FixMatch paper.

References:
    Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016,
    https://arxiv.org/abs/1605.07146
    https://github.com/google-research/fixmatch
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from simmatch_tf import registry
from simmatch_tf.flags import commandline
from simmatch_tf.lazy import keras

LEAK = 0.1  # slope of the leaky ReLU below zero
_WIDEST = 16
_DEEPEST = 1000


@dataclasses.dataclass(frozen=True)
class Flags(commandline.HyperParameters):
    """Flags of the wide residual networks."""

    prefix: ClassVar[str] = ""

    stem_stride: int = commandline.flag(
        1,
        "Stride of the first convolution of a WRN; 2 for large images.",
        low=1,
        high=4,
        rare=True,
    )


def activate(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """BatchNorm and leaky ReLU."""
    # Imported here, for it imports TensorFlow.
    from simmatch_tf.networks import batch_norm

    # The momentum is the published one, made for runs of 2^20 steps.
    x = batch_norm.BatchNormalization(momentum=0.999, epsilon=1e-3, name=name)(
        x
    )
    return keras.layers.LeakyReLU(negative_slope=LEAK, name=f"{name}_relu")(x)


def convolution(
    x: keras.KerasTensor, name: str, filters: int, size: int, stride: int = 1
) -> keras.KerasTensor:
    """A convolution without bias that pads symmetrically at any stride.

    Keras' padding "same" would pad a stride of 2 on one side only, off the
    centres of the strided 1×1 shortcut.
    """
    if stride > 1 and size > 1:
        x = keras.layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    return keras.layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same" if stride == 1 else "valid",
        use_bias=False,
        kernel_initializer=keras.initializers.VarianceScaling(
            2.0, "fan_out", "untruncated_normal"
        ),
        name=name,
    )(x)


def _block(
    x: keras.KerasTensor,
    name: str,
    filters: int,
    stride: int,
    activate_shortcut: bool,
) -> keras.KerasTensor:
    """BatchNorm, activation and convolution, twice, and the shortcut."""
    shortcut = x
    x = activate(x, f"{name}_bn1")
    if activate_shortcut:
        shortcut = x
    x = convolution(x, f"{name}_conv1", filters, 3, stride)
    x = activate(x, f"{name}_bn2")
    x = convolution(x, f"{name}_conv2", filters, 3)
    if shortcut.shape[-1] != filters:
        shortcut = convolution(shortcut, f"{name}_shortcut", filters, 1, stride)
    return keras.layers.Add(name=f"{name}_add")([shortcut, x])


def _check(depth: str, width: str) -> str:
    if (
        10 <= int(depth) <= _DEEPEST
        and (int(depth) - 4) % 6 == 0
        and 1 <= int(width) <= _WIDEST
    ):
        return ""
    return (
        ": the depth must be 6n + 4 (10, 16, 22, 28 … up to "
        f"{_DEEPEST}) and the width 1 to {_WIDEST}"
    )


@registry.networks.register(
    r"wrn_([1-9]\d*)_(\d+)",
    examples=("wrn_28_2", "wrn_28_8"),
    check=_check,
    min_side=8,
    flags=Flags,
)
def wide_resnet(
    image_shape: tuple[int, int, int],
    depth: int | str,
    width: int | str,
    *,
    stem_stride: int = 1,
) -> keras.Model:
    """Builds WRN-depth-width: images → features after the global pool.

    Args:
        image_shape: (height, width, channels), sides of at least 8.
        depth: 6n + 4, n ≥ 1.
        width: Multiplier ≥ 1 of the 16, 32 and 64 filters.
        stem_stride: Stride of the first convolution: 1 as published, for
            small images; with 2 a large image costs a quarter.

    Returns:
        A Keras model, [N, H, W, C] normalized floats → [N, 64 · width].
    """
    depth, width = int(depth), int(width)
    images = keras.Input(image_shape, name="images")
    x = convolution(images, "conv", 16, 3, stem_stride)
    for group, filters in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            first = block == 0
            x = _block(
                x,
                f"group{group + 1}_{block}",
                filters,
                stride=2 if first and group else 1,
                activate_shortcut=first and group == 0,
            )
    x = activate(x, "bn")
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(images, x, name=f"wrn_{depth}_{width}")
