"""Energies of wavelets: by NumPy, and what they do not depend on."""

import math

import keras
import numpy as np
import pytest

from simmatch_tf.networks import wavelets


def transcribed(images, stride):
    """The layer's equations, one place after the other, in float64."""
    count, height, width, channels = images.shape
    colors = np.eye(channels)
    if channels == 3:
        colors = [[1, 1, 1], [1, -1, 0], [0.5, 0.5, -1]]
        colors = [np.array(c) / math.sqrt(np.square(c).sum()) for c in colors]
    padded = np.pad(images, [(0, 0), (4, 4), (4, 4), (0, 0)], mode="reflect")
    rows, columns = range(0, height, stride), range(0, width, stride)
    energies = np.zeros([count, len(rows), len(columns), 8])
    blurred = np.zeros([count, len(rows), len(columns), channels])
    r = np.arange(-4, 5)
    y, x = r[:, None], r[None, :]
    bell = np.exp(-(x**2 + y**2) / (2 * 1.6**2))
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            patch = padded[:, row : row + 9, column : column + 9]
            brightness = patch.sum(axis=-1) / math.sqrt(channels)
            for a in range(8):
                u = x * np.cos(a * np.pi / 8) + y * np.sin(a * np.pi / 8)
                v = y * np.cos(a * np.pi / 8) - x * np.sin(a * np.pi / 8)
                window = np.exp(-(u**2 + v**2 / 4) / (2 * 0.8**2))
                wave = np.exp(0.75j * np.pi * u)
                wave = window * (wave - (window * wave).sum() / window.sum())
                wave /= np.abs(wave).sum()
                response = (brightness * wave).sum(axis=(1, 2))
                energies[:, i, j, a] = np.sqrt(np.abs(response) ** 2 + 1e-6)
            for c, color in enumerate(colors):
                mean = (patch @ color * bell).sum(axis=(1, 2)) / bell.sum()
                blurred[:, i, j, c] = mean
    normalized = np.zeros_like(energies)
    for i in range(len(rows)):
        for j in range(len(columns)):
            around = energies[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            mean = around.mean(axis=(1, 2, 3))[:, None]
            normalized[:, i, j] = np.sqrt(energies[:, i, j] / (mean + 0.02))
    return np.concatenate([normalized, blurred], axis=-1)


@pytest.mark.parametrize(
    ("shape", "stride"), [((2, 12, 10, 3), 2), ((1, 9, 9, 1), 1)]
)
def test_against_numpy(shape, stride):
    images = np.random.default_rng(0).normal(size=shape)
    layer = wavelets.WaveletEnergies(stride)
    np.testing.assert_allclose(
        layer(images.astype(np.float32)),
        transcribed(images, stride),
        rtol=1e-4,
        atol=1e-5,
    )
    assert layer.weights == []


def grating(angle, contrast=1.0):
    y, x = np.mgrid[:32, :32]
    along = x * np.cos(angle) + y * np.sin(angle)
    wave = contrast * np.sin(0.75 * np.pi * along)
    return np.repeat(wave[None, :, :, None], 3, axis=-1).astype(np.float32)


def inner(layer, images):
    """Energies away from the border, [places, 8]."""
    return np.array(layer(images))[0, 4:-4, 4:-4, :8].reshape(-1, 8)


def test_each_direction_has_its_channel():
    layer = wavelets.WaveletEnergies(2)
    for direction in range(8):
        energies = inner(layer, grating(np.pi * direction / 8))
        assert (energies.argmax(axis=1) == direction).all()


def test_contrast_hardly_counts():
    layer = wavelets.WaveletEnergies(2)
    one = inner(layer, grating(0.3))
    stronger = inner(layer, grating(0.3, contrast=3.0))
    np.testing.assert_allclose(stronger, one, rtol=0.05, atol=0.03)
    # An image without edges has none, where a quotient of nothings might be
    # anything.
    flat = np.full([1, 32, 32, 3], 1.7, np.float32)
    assert inner(layer, flat).max() < 0.25
    assert one.max() > 1.5


def test_half_precision_and_saving(tmp_path):
    images = np.random.default_rng(1).normal(size=[2, 16, 16, 3])
    images = images.astype(np.float32)
    layer = wavelets.WaveletEnergies(2, dtype="mixed_bfloat16")
    assert layer(images).dtype == "bfloat16"
    exact = wavelets.WaveletEnergies(2)
    half = keras.ops.cast(layer(images), "float32")
    np.testing.assert_allclose(half, exact(images), atol=0.05)
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, wavelets.WaveletEnergies(1)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
