"""A small convolutional network for training runs of minutes on a CPU.

A large first convolution with a stride brings images of any size to a map of
about 16 pixels, so that the time of a step hardly depends on the image size.
Three stages follow, each a convolution and one with a shortcut around it
(He et al., CVPR 2016, https://arxiv.org/abs/1512.03385).
"""

from __future__ import annotations

from simmatch_tf import registry
from simmatch_tf.lazy import keras
from simmatch_tf.networks.backbones import wide_resnet

_MAP = 16  # pixels of a side behind the first convolution, about
_WIDEST = 512


def _check(filters: str) -> str:
    if 1 <= int(filters) <= _WIDEST:
        return ""
    return f": the number of filters must be from 1 to {_WIDEST}"


@registry.networks.register(
    r"cnn_(\d+)",
    examples=("cnn_32",),
    check=_check,
    min_side=8,
    usual_side=64,
)
def cnn(image_shape: tuple[int, int, int], filters: int | str) -> keras.Model:
    """Builds cnn_FILTERS: images → features after the global pool.

    Args:
        image_shape: (height, width, channels), sides of at least 8.
        filters: F, the number of filters of the first two convolutions.

    Returns:
        A Keras model, [N, H, W, C] normalized floats → [N, 4 F].
    """
    filters = int(filters)
    stride = max(1, round(min(image_shape[:2]) / _MAP))
    images = keras.Input(image_shape, name="images")
    x = wide_resnet.convolution(images, "conv", filters, 2 * stride + 1, stride)
    x = wide_resnet.activate(x, "bn")
    for stage, width in enumerate((filters, 2 * filters, 4 * filters)):
        name = f"stage{stage + 1}"
        x = wide_resnet.convolution(x, f"{name}_conv1", width, 3)
        if stage:
            x = keras.layers.MaxPooling2D(2, name=f"{name}_pool")(x)
        x = shortcut = wide_resnet.activate(x, f"{name}_bn1")
        x = wide_resnet.convolution(x, f"{name}_conv2", width, 3)
        x = wide_resnet.activate(x, f"{name}_bn2")
        x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    x = keras.layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(images, x, name=f"cnn_{filters}")
