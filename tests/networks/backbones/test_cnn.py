"""The small network: its size, by hand, and its maps at any image size."""

import keras
import numpy as np
import pytest

from simmatch_tf import registry
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks.backbones import cnn


def test_size_by_hand():
    model = cnn.cnn((32, 32, 3), "32")
    kernels = (
        5 * 5 * 3 * 32
        + 9 * (32 * 32 + 32 * 32)
        + 9 * (32 * 64 + 64 * 64)
        + 9 * (64 * 128 + 128 * 128)
    )
    scales = 2 * (32 + 2 * (32 + 64 + 128))
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert trained == kernels + scales == 298_272
    assert model.output_shape == (None, 128)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((8, 8, 1), [8, 4, 2]),
        ((28, 28, 1), [14, 7, 3]),
        ((32, 32, 3), [16, 8, 4]),
        ((64, 64, 3), [16, 8, 4]),
        ((224, 224, 3), [16, 8, 4]),
    ],
)
def test_maps_are_of_one_size(shape, sides):
    model = cnn.cnn(shape, 8)
    added = [
        layer.output.shape[1]
        for layer in model.layers
        if isinstance(layer, keras.layers.Add)
    ]
    assert added == sides
    # Every pixel of the image counts.
    x = np.random.default_rng(0).normal(size=[1, *shape]).astype(np.float32)
    corner = x.copy()
    corner[0, -1, -1] += 1
    assert np.abs(model(x) - model(corner)).max() > 0


@pytest.mark.parametrize("name", ["cnn_0", "cnn_1000"])
def test_widths_that_make_no_sense(name):
    with pytest.raises(InputError, match="must be from 1 to 512"):
        registry.networks.find(name, flag="backbone")
