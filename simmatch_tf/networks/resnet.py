"""Residual networks of ImageNet, as in the published runs (v1.5)."""

import keras

from simmatch_tf.networks import batch_norm

# Depth → (blocks of each of the four groups, whether they are bottlenecks).
DEPTHS = {
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
}
# A bottleneck's output has so many times the filters of its inner layers.
EXPANSION = 4
SMALLEST = 8  # side of an image


class _Layers:
    """The layers of one network, made under torchvision's names.

    With "_" for ".": layer1_0_conv1, layer1_0_bn1, layer1_0_downsample_0.
    """

    def __init__(self, momentum: float, synchronized: bool) -> None:
        self._batch_norm = {
            "momentum": momentum,
            "epsilon": 1e-5,
            "synchronized": synchronized,
        }

    def convolution(
        self,
        x: keras.KerasTensor,
        name: str,
        filters: int,
        size: int,
        stride: int = 1,
    ) -> keras.KerasTensor:
        """A convolution that pads symmetrically at any stride."""
        if stride > 1 and size > 1:
            # "same" would pad more behind than in front.
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

    def batch_norm(self, x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return batch_norm.BatchNormalization(**self._batch_norm, name=name)(x)

    def block(
        self,
        x: keras.KerasTensor,
        name: str,
        filters: int,
        stride: int,
        bottleneck: bool,
    ) -> keras.KerasTensor:
        """Convolutions, BN behind each; around them the shortcut."""
        shortcut = x
        # Kernel size, stride and filters of each. v1.5: a bottleneck's stride
        # is at the 3×3.
        if bottleneck:
            plan = (
                (1, 1, filters),
                (3, stride, filters),
                (1, 1, EXPANSION * filters),
            )
        else:
            plan = ((3, stride, filters), (3, 1, filters))
        for number, (size, step, width) in enumerate(plan, 1):
            x = self.convolution(x, f"{name}_conv{number}", width, size, step)
            x = self.batch_norm(x, f"{name}_bn{number}")
            if number < len(plan):
                x = keras.layers.ReLU(name=f"{name}_relu{number}")(x)
        if stride > 1 or shortcut.shape[-1] != x.shape[-1]:
            shortcut = self.convolution(
                shortcut, f"{name}_downsample_0", x.shape[-1], 1, stride
            )
            shortcut = self.batch_norm(shortcut, f"{name}_downsample_1")
        x = keras.layers.Add(name=f"{name}_add")([x, shortcut])
        return keras.layers.ReLU(name=f"{name}_relu")(x)


def resnet(
    depth: int,
    width: int,
    image_shape: tuple[int, int, int],
    *,
    batch_norm_momentum: float | None = None,
    synchronized: bool = False,
) -> keras.Model:
    """Builds ResNet-depth v1.5: images → features after the global pool.

    Args:
        depth: 18, 34, 50 or 101.
        width: Multiplier ≥ 1 of the 64, 128, 256 and 512 filters.
        image_shape: (height, width, channels), sides of at least 8.
        batch_norm_momentum: Weight of the old statistics; default: the
            published 0.9.
        synchronized: BatchNorm over all replicas.

    Returns:
        A Keras model, [N, H, W, C] normalised floats → [N, 512 · width], with
        bottlenecks (50, 101) [N, 2048 · width].

    Raises:
        ValueError: An argument is out of its range.
    """
    if depth not in DEPTHS:
        raise ValueError(f"depth={depth}: must be one of {list(DEPTHS)}")
    if width < 1:
        raise ValueError(f"width={width}: must be at least 1")
    if min(image_shape[:2]) < SMALLEST:
        raise ValueError(
            f"image_shape={image_shape}: sides must be at least {SMALLEST}"
        )
    layers = _Layers(
        0.9 if batch_norm_momentum is None else batch_norm_momentum,
        synchronized,
    )
    groups, bottleneck = DEPTHS[depth]
    images = keras.Input(image_shape, name="images")
    x = layers.convolution(images, "conv1", 64 * width, 7, 2)
    x = keras.layers.ReLU(name="relu")(layers.batch_norm(x, "bn1"))
    # Behind a ReLU a border of zeros is never the only maximum.
    x = keras.layers.ZeroPadding2D(1, name="maxpool_pad")(x)
    x = keras.layers.MaxPooling2D(3, 2, name="maxpool")(x)
    for group, blocks in enumerate(groups):
        for block in range(blocks):
            x = layers.block(
                x,
                f"layer{group + 1}_{block}",
                64 * width * 2**group,
                stride=2 if group and not block else 1,
                bottleneck=bottleneck,
            )
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    name = f"resnet{depth}" + (f"x{width}" if width > 1 else "")
    return keras.Model(images, x, name=name)
