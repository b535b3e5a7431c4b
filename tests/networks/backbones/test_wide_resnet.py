"""WRNs against published sizes and a transcription in NumPy."""

import keras
import numpy as np
import pytest

from simmatch_tf.networks.backbones import wide_resnet


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_wrn_28_2_has_the_published_size():
    model = wide_resnet.wide_resnet((32, 32, 3), 28, 2)
    # 1,467,610 with the ten-class Dense of the published network.
    assert count(model) + 128 * 10 + 10 == 1_467_610


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (13, 10, 3)])
def test_sizes_and_strides(shape):
    model = wide_resnet.wide_resnet(shape, 10, 1)
    x = np.random.default_rng(0).normal(size=[2, *shape]).astype(np.float32)
    assert model(x).shape == (2, 64)
    sides = {
        layer.output.shape[1:3]
        for layer in model.layers
        if isinstance(layer, keras.layers.Add)
    }
    height, width = shape[:2]
    assert sides == {(-(-height // s), -(-width // s)) for s in (1, 2, 4)}


def numpy_convolution(x, kernel, stride):
    """Padding 1 on every side (0 for 1×1), as in the published weights."""
    size, _, _, filters = kernel.shape
    pad = size // 2
    x = np.pad(x, [[pad, pad], [pad, pad], [0, 0]])
    height = (x.shape[0] - size) // stride + 1
    width = (x.shape[1] - size) // stride + 1
    y = np.zeros([height, width, filters])
    for i in range(height):
        for j in range(width):
            top, left = i * stride, j * stride
            patch = x[top : top + size, left : left + size]
            y[i, j] = np.tensordot(patch, kernel, 3)
    return y


def test_forward_equals_a_numpy_transcription():
    """WRN-10-1 written out: BN, leak 0.1, shortcuts, symmetric padding."""
    keras.utils.set_random_seed(0)
    model = wide_resnet.wide_resnet((8, 8, 1), 10, 1)
    rng = np.random.default_rng(0)
    for v in model.variables:  # statistics and scales that matter
        if len(v.shape) == 1:
            v.assign(rng.uniform(0.5, 1.5, v.shape))
    image = rng.normal(size=[8, 8, 1]).astype(np.float32)
    kernels = iter(
        np.float64(layer.kernel)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    norms = iter(
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )

    def activate(x):
        bn = next(norms)
        gamma, beta, mean, variance = (np.float64(v) for v in bn.variables)
        assert bn.epsilon == 1e-3 and bn.momentum == 0.999
        y = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        return np.where(y > 0, y, 0.1 * y)

    x = numpy_convolution(np.float64(image), next(kernels), 1)
    for stride, changes in ((1, False), (2, True), (2, True)):
        h = activate(x)
        # Only the very first block's shortcut starts at the activation.
        shortcut = x if changes else h
        y = activate(numpy_convolution(h, next(kernels), stride))
        second = next(kernels)
        if changes:
            # Keras lists the shortcut's layer before or after the second
            # convolution; their sizes tell them apart.
            other = next(kernels)
            if second.shape[0] == 1:
                second, other = other, second
            shortcut = numpy_convolution(shortcut, other, stride)
        x = numpy_convolution(y, second, 1) + shortcut
    wanted = activate(x).mean(axis=(0, 1))
    np.testing.assert_allclose(model(image[None])[0], wanted, rtol=1e-4)


def test_he_normal_fan_out():
    keras.utils.set_random_seed(0)
    model = wide_resnet.wide_resnet((8, 8, 3), 10, 4)
    layer = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)][-1]
    kernel = np.array(layer.kernel)
    wanted = np.sqrt(2 / (kernel.shape[0] ** 2 * kernel.shape[3]))
    np.testing.assert_allclose(kernel.std(), wanted, rtol=0.02)
    # Untruncated: some values lie beyond two deviations.
    assert np.abs(kernel).max() > 3 * wanted
