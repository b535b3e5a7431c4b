"""Wide residual networks, as in the FixMatch paper's own code."""

import keras

from simmatch_tf.networks import batch_norm

LEAK = 0.1


def _activate(
    x: keras.KerasTensor, name: str, momentum: float, synchronized: bool
) -> keras.KerasTensor:
    """BN and leaky ReLU."""
    x = batch_norm.BatchNormalization(
        momentum=momentum, epsilon=1e-3, synchronized=synchronized, name=name
    )(x)
    return keras.layers.LeakyReLU(negative_slope=LEAK, name=f"{name}_relu")(x)


def _convolution(
    x: keras.KerasTensor, name: str, filters: int, size: int, stride: int
) -> keras.KerasTensor:
    """A convolution that pads symmetrically at any stride.

    "same" would pad a stride of 2 on one side only, off the centres of the
    strided 1×1 shortcut.
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
    norm: dict,
    activate_shortcut: bool,
) -> keras.KerasTensor:
    """BN, activation, convolution, twice; around it the shortcut."""
    shortcut = x
    x = _activate(x, f"{name}_bn1", **norm)
    if activate_shortcut:
        shortcut = x
    x = _convolution(x, f"{name}_conv1", filters, 3, stride)
    x = _activate(x, f"{name}_bn2", **norm)
    x = _convolution(x, f"{name}_conv2", filters, 3, 1)
    if shortcut.shape[-1] != filters:
        shortcut = _convolution(
            shortcut, f"{name}_shortcut", filters, 1, stride
        )
    return keras.layers.Add(name=f"{name}_add")([shortcut, x])


def wide_resnet(
    depth: int,
    width: int,
    image_shape: tuple[int, int, int],
    *,
    batch_norm_momentum: float | None = None,
    stem_stride: int = 1,
    synchronized: bool = False,
) -> keras.Model:
    """Builds WRN-depth-width: images → features after the global pool.

    Args:
        depth: 6n + 4, n ≥ 1.
        width: Multiplier ≥ 1 of the 16, 32 and 64 filters.
        image_shape: (height, width, channels), sides of at least 8.
        batch_norm_momentum: Weight of the old statistics; default: the
            published 0.999, made for runs of 2^20 steps.
        stem_stride: Of the first convolution: 1 as published, for small
            images; with 2 a large image costs a quarter.
        synchronized: BatchNorm over all replicas.

    Returns:
        A Keras model, [N, H, W, C] normalised floats → [N, 64 · width].

    Raises:
        ValueError: `depth` is not 6n + 4, or a side is below 8.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth={depth}: must be 6n + 4 with n at least 1")
    if min(image_shape[:2]) < 8:
        raise ValueError(f"image_shape={image_shape}: sides must be at least 8")
    momentum = 0.999 if batch_norm_momentum is None else batch_norm_momentum
    norm = {"momentum": momentum, "synchronized": synchronized}
    images = keras.Input(image_shape, name="images")
    x = _convolution(images, "conv", 16, 3, stem_stride)
    for group, filters in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            first = block == 0
            x = _block(
                x,
                f"group{group + 1}_{block}",
                filters,
                stride=2 if first and group else 1,
                norm=norm,
                activate_shortcut=first and group == 0,
            )
    x = _activate(x, "bn", **norm)
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(images, x, name=f"wrn_{depth}_{width}")
