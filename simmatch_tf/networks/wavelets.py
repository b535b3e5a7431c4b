"""The first layer of a scattering network: energies of wavelets.

References:
    Bruna and Mallat, Invariant Scattering Convolution Networks, PAMI 2013,
    https://arxiv.org/abs/1203.1513 (wavelets, their modulus)
    Dalal and Triggs, Histograms of Oriented Gradients for Human Detection, CVPR
    2005 (the normalization by the energy around)
"""

import math

import keras
import numpy as np

# Of the wavelets: side in pixels, deviation of the bell in pixels, and angular
# frequency in 1 / pixel: the finest that pixels can hold.
_SIZE, _WIDTH, _FREQUENCY = 9, 0.8, 0.75 * math.pi
_SLANT = 0.5  # 1 / ratio of the bell's widths across and along the wave
# Energy of a flat place. Images have a deviation of 1.
_FLAT = 0.02
_TINY = 1e-6  # under the root, whose slope is infinite at 0
# Brightness, red against green, and both against blue.
_COLORS = ((1.0, 1.0, 1.0), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))


def morlet(
    size: int, width: float, frequency: float, angle: float
) -> np.ndarray:
    """Returns a Morlet wavelet: a wave of mean 0 under a bell.

    Args:
        size: Side of its square, odd.
        width: Deviation of the bell in the direction of the wave, in pixels;
            across it is twice as much.
        frequency: Angular frequency of the wave, in 1 / pixel.
        angle: Direction of the wave in radians; 0 goes to the right.

    Returns:
        Complex [size, size], whose absolute values sum to 1.
    """
    place = np.arange(size) - size // 2
    y, x = np.meshgrid(place, place, indexing="ij")
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    bell = np.exp(-(along**2 + (_SLANT * across) ** 2) / (2 * width**2))
    wave = bell * np.exp(1j * frequency * along)
    wave -= bell * (wave.sum() / bell.sum())
    return wave / np.abs(wave).sum()


def bell(size: int, width: float) -> np.ndarray:
    """Returns a Gaussian of this deviation in pixels, [size, size], sum 1."""
    place = np.arange(size) - size // 2
    line = np.exp(-(place**2) / (2 * width**2))
    return np.outer(line, line) / line.sum() ** 2


@keras.saving.register_keras_serializable("simmatch_tf")
class WaveletEnergies(keras.layers.Layer):
    """Energy of an image's brightness at each place in each direction.

    With x ⋆ ψ_a the image's brightness convolved with a wavelet of direction a,
    and ⟨…⟩ the mean over all directions and over 3×3 places around:

        e_a = |x ⋆ ψ_a|        s_a = √(e_a / (⟨e⟩ + 0.02))

    The modulus takes the sign from e_a, so that a dark edge is like a bright
    one; the quotient makes s_a nearly independent of contrast. Beside the s_a
    the layer returns blurred brightness and colors. It has no weights.
    """

    def __init__(self, stride: int, directions: int = 8, **kwargs) -> None:
        """Takes the layer's settings.

        Args:
            stride: Stride, 1 or 2.
            directions: Number A of directions.
            **kwargs: Arguments of `keras.Layer`.
        """
        super().__init__(**{"trainable": False, **kwargs})
        self.stride, self.directions = stride, directions

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Computes the filters [9, 9, C, 2 A + C]."""
        channels = input_shape[-1]
        colors = np.eye(channels)
        if channels == 3:
            colors = np.array(_COLORS)
            colors /= np.linalg.norm(colors, axis=1, keepdims=True)
        brightness = np.full(channels, channels**-0.5)
        angles = math.pi * np.arange(self.directions) / self.directions
        waves = [morlet(_SIZE, _WIDTH, _FREQUENCY, angle) for angle in angles]
        blur = bell(_SIZE, 2 * _WIDTH)
        filters = [
            *(wave.real[:, :, None] * brightness for wave in waves),
            *(wave.imag[:, :, None] * brightness for wave in waves),
            *(blur[:, :, None] * color for color in colors),
        ]
        self.filters = np.stack(filters, axis=-1).astype(np.float32)

    def call(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Normalized images [N, H, W, C] → [N, ⌈H/s⌉, ⌈W/s⌉, A + C]."""
        ops, count = keras.ops, self.directions
        border = _SIZE // 2
        borders = [(0, 0), (border, border), (border, border), (0, 0)]
        x = ops.pad(images, borders, mode="reflect")
        x = ops.conv(
            x,
            ops.cast(self.filters, x.dtype),
            strides=self.stride,
            padding="valid",
            data_format="channels_last",
        )
        # Half precision cannot hold the squares of small energies.
        waves = ops.cast(x[..., : 2 * count], "float32")
        squares = ops.square(waves[..., :count]) + ops.square(
            waves[..., count:]
        )
        energies = ops.sqrt(squares + _TINY)
        around = ops.average_pool(
            ops.mean(energies, axis=-1, keepdims=True),
            3,
            strides=1,
            padding="same",
            data_format="channels_last",
        )
        energies = ops.sqrt(energies / (around + _FLAT))
        colors = x[..., 2 * count :]
        return ops.concatenate(
            [ops.cast(energies, colors.dtype), colors], axis=-1
        )

    def get_config(self) -> dict:
        """Returns the layer's configuration, for saving."""
        own = {"stride": self.stride, "directions": self.directions}
        return {**super().get_config(), **own}
