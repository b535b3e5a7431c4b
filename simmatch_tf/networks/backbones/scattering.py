"""A small network on a scattering transform, for runs of minutes on a CPU.

The first layer is not learned: `networks.wavelets` measures how much the
brightness varies around each place in each direction. A few hundred labels are
too few to learn such filters. Three stages of trained convolutions follow, each
a convolution and one with a shortcut around it.

References:
    Oyallon et al., Scattering Networks for Hybrid Representation Learning, PAMI
    2018, https://arxiv.org/abs/1809.06367 (trained layers on a scattering
    transform)
    He et al., Deep Residual Learning for Image Recognition, CVPR 2016,
    https://arxiv.org/abs/1512.03385 (shortcuts)
"""

from __future__ import annotations

from simmatch_tf import registry
from simmatch_tf.lazy import keras
from simmatch_tf.networks.backbones import wide_resnet

_LEAST_HALVED = 24  # side of the images from which on the first layer halves it
_WIDEST = 512


def _check(filters: str) -> str:
    if 1 <= int(filters) <= _WIDEST:
        return ""
    return f": the number of filters must be from 1 to {_WIDEST}"


@registry.networks.register(
    r"scatter_(\d+)",
    examples=("scatter_32",),
    check=_check,
    min_side=8,
    usual_side=32,
)
def scattering(
    image_shape: tuple[int, int, int], filters: int | str
) -> keras.Model:
    """Builds scatter_FILTERS: images → features after the global pool.

    Args:
        image_shape: (height, width, channels), sides of at least 8.
        filters: F, the number of filters of the first stage.

    Returns:
        A Keras model, [N, H, W, C] normalized floats → [N, 4 F].
    """
    # Imported here, for they import TensorFlow.
    from simmatch_tf.networks import batch_norm, wavelets

    filters = int(filters)
    stride = 2 if min(image_shape[:2]) >= _LEAST_HALVED else 1
    images = keras.Input(image_shape, name="images")
    x = wavelets.WaveletEnergies(stride, name="wavelets")(images)
    # Without scale and offset, which the convolution behind it has.
    x = batch_norm.BatchNormalization(
        momentum=0.999, epsilon=1e-3, center=False, scale=False, name="bn"
    )(x)
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
    return keras.Model(images, x, name=f"scatter_{filters}")
