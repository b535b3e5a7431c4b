"""The small network: its size, by hand, and its maps."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from simmatch_tf import registry
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import network
from simmatch_tf.networks.backbones import scattering


def test_size_by_hand():
    model = scattering.scattering((32, 32, 3), "32")
    channels = 8 + 3  # directions and colors
    kernels = 9 * (
        channels * 32 + 32 * 32 + (32 * 64 + 64 * 64) + (64 * 128 + 128 * 128)
    )
    scales = 2 * 2 * (32 + 64 + 128)
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert trained == kernels + scales == 289_760
    assert model.output_shape == (None, 128)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [
        ((8, 8, 1), [8, 4, 2]),
        ((16, 16, 1), [16, 8, 4]),
        ((28, 28, 1), [14, 7, 3]),
        ((32, 32, 3), [16, 8, 4]),
        ((64, 64, 3), [32, 16, 8]),
    ],
)
def test_maps(shape, sides):
    model = scattering.scattering(shape, 8)
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


@pytest.mark.parametrize("name", ["scatter_0", "scatter_1000"])
def test_widths_that_make_no_sense(name):
    with pytest.raises(InputError, match="must be from 1 to 512"):
        registry.networks.find(name, flag="backbone")


@pytest.mark.slow
def test_a_saved_network_is_loaded_by_another_process(tmp_path):
    model = network.build(
        "scatter_4",
        image_shape=(16, 16, 3),
        num_classes=2,
        projection_dim=None,
        mean=[0.5] * 3,
        std=[0.2] * 3,
    )
    network.save(model, tmp_path / "model.keras", ["a", "b"])
    code = (
        "import keras, simmatch_tf\n"
        f"keras.saving.load_model({str(tmp_path / 'model.keras')!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
