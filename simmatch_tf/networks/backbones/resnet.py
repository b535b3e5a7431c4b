"""Residual networks of ImageNet, as in the published runs (version 1.5).

Layers have torchvision's names with "_" for ".": layer1_0_conv1, layer1_0_bn1,
layer1_0_downsample_0.

References:
    He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
    https://arxiv.org/abs/1512.03385
    https://github.com/pytorch/vision (torchvision/models/resnet.py)
"""

from __future__ import annotations

from simmatch_tf import registry
from simmatch_tf.lazy import keras
from simmatch_tf.networks.backbones import wide_resnet

# Depth → (blocks of each of the four groups, whether they are bottlenecks).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
# A bottleneck's output has this many times the filters of its inner layers.
EXPANSION = 4
_WIDEST = 16


def _batch_norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    # Imported here, for it imports TensorFlow.
    from simmatch_tf.networks import batch_norm

    return batch_norm.BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)(
        x
    )


def _block(
    x: keras.KerasTensor, name: str, filters: int, stride: int, bottleneck: bool
) -> keras.KerasTensor:
    """Convolutions, a BatchNorm after each, and the shortcut around them."""
    shortcut = x
    # Kernel size, stride and filters of each. In version 1.5, the stride of a
    # bottleneck is at the 3×3 convolution.
    if bottleneck:
        plan = (
            (1, 1, filters),
            (3, stride, filters),
            (1, 1, EXPANSION * filters),
        )
    else:
        plan = ((3, stride, filters), (3, 1, filters))
    for number, (size, step, width) in enumerate(plan, 1):
        x = wide_resnet.convolution(
            x, f"{name}_conv{number}", width, size, step
        )
        x = _batch_norm(x, f"{name}_bn{number}")
        if number < len(plan):
            x = keras.layers.ReLU(name=f"{name}_relu{number}")(x)
    if stride > 1 or shortcut.shape[-1] != x.shape[-1]:
        shortcut = wide_resnet.convolution(
            shortcut, f"{name}_downsample_0", x.shape[-1], 1, stride
        )
        shortcut = _batch_norm(shortcut, f"{name}_downsample_1")
    x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def _check(depth: str, width: str | None) -> str:
    if int(depth) not in DEPTHS:
        return ": the depth must be 18, 34, 50 or 101"
    if not 1 <= int(width or 1) <= _WIDEST:
        return f": the width must be 1 to {_WIDEST}"
    return ""


@registry.networks.register(
    r"resnet([1-9]\d*)(?:x(\d+))?",
    examples=("resnet18", "resnet34", "resnet50", "resnet101", "resnet50x2"),
    check=_check,
    min_side=8,
    initializer="fan_in_uniform",
)
def resnet(
    image_shape: tuple[int, int, int],
    depth: int | str,
    width: int | str | None = None,
) -> keras.Model:
    """Builds ResNet-depth v1.5: images → features after the global pool.

    Args:
        image_shape: (height, width, channels), sides of at least 8.
        depth: 18, 34, 50 or 101.
        width: Multiplier ≥ 1 of the 64, 128, 256 and 512 filters, by default
            1.

    Returns:
        A Keras model, [N, H, W, C] normalized floats → [N, 512 · width], with
        bottlenecks (50, 101) [N, 2048 · width].
    """
    depth, width = int(depth), int(width or 1)
    groups, bottleneck = DEPTHS[depth]
    images = keras.Input(image_shape, name="images")
    x = wide_resnet.convolution(images, "conv1", 64 * width, 7, 2)
    x = keras.layers.ReLU(name="relu")(_batch_norm(x, "bn1"))
    # After a ReLU, a border of zeros is never the only maximum.
    x = keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="maxpool")(x)
    for group, blocks in enumerate(groups):
        for block in range(blocks):
            x = _block(
                x,
                f"layer{group + 1}_{block}",
                64 * width * 2**group,
                stride=2 if group and not block else 1,
                bottleneck=bottleneck,
            )
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    name = f"resnet{depth}" + (f"x{width}" if width > 1 else "")
    return keras.Model(images, x, name=name)
