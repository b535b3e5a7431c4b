"""The colour augmentation of MoCo v2: jitter, grayscale and blur, as in Pillow.

Each pixel is one float32 number, r + 256 g + 65536 b, so that all three
channels are in registers at once. Every sum of products here is a whole number
below 2^24, or such a number over a power of two, and so exact in float32; a
product that is not exact stands alone. Therefore the result does not depend on
the device, on fused multiply-adds, or on which of the two forms below computes
it.

References:
    Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020,
    https://arxiv.org/abs/2003.04297; https://github.com/facebookresearch/moco
"""

import itertools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

# Draws of one image: whether to jitter it, the order and the strengths of the
# four operations, whether to turn it grey, whether to blur it, and the sigma.
DRAWS = 9

_JITTER, _GREY, _BLUR = 0.8, 0.2, 0.5  # probabilities
_ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)
# Factors 0.6 … 1.4 in steps of 2^-14: times a grey level, 23 bits.
_FACTOR_STEP = 2.0**-14
_FACTOR_LOW, _FACTOR_COUNT = 9830, 13108
_HUE = 0.1 * 255  # greatest shift, in steps of the hue
_SIGMAS = np.linspace(0.1, 2.0, 1024)
_SMALL = int(np.sum(_SIGMAS <= 1.0))  # the first ones need half the radius
_RADIUS = 6  # of the blur: 3 sigma at most
# Padding of the blur at each side. Of columns there are a few more than it
# reads, to keep rows aligned in memory.
_ROWS, _COLUMNS = _RADIUS, 8
_PARALLEL = 32  # images of a batch that are worked on at once, at most

# At these hues the formula gives a whole number, but Pillow's float32 falls
# short of it and is one step lower.
_SHORT = (
    *range(1, 32),
    *range(88, 105, 4),
    *range(129, 150, 2),
    *range(153, 210, 4),
    *(176, 184),
)


def color(
    images: tf.Tensor, draws: tf.Tensor, *, dense: bool = False
) -> tf.Tensor:
    """Applies colour jitter, grayscale and blur, each with a probability.

    With probability 0.8, brightness, contrast and saturation are multiplied by
    factors in 0.6 … 1.4 and the hue turns by -0.1 … 0.1 of the circle, in
    random order. With probability 0.2, the image turns grey; with probability
    0.5, it is blurred with a sigma of 0.1 … 2.0 pixels.

    Args:
        images: uint8 [N, H, W, C], H and W static, C 1 or 3; at most 2^22
            pixels, so that their sum fits into int32.
        draws: Random numbers in [0, 1), float32 [N, DRAWS].
        dense: True computes everything for every image and then chooses, with
            static shapes as accelerators need them. False works on one image
            after the other, and only does what was drawn. The result is the
            same, bit for bit.

    Returns:
        uint8 [N, H, W, C].
    """
    images = tf.convert_to_tensor(images)
    draws = tf.convert_to_tensor(draws)
    if dense:
        return _dense(images, draws)
    return tf.map_fn(
        lambda element: _one(*element),
        (images, draws),
        fn_output_signature=tf.TensorSpec(images.shape[1:], tf.uint8),
        parallel_iterations=1 if tf.executing_eagerly() else _PARALLEL,
    )


def without_blur(draws: tf.Tensor) -> tf.Tensor:
    """Returns the same draws [N, DRAWS], by which no image is blurred."""
    *before, _, sigma = tf.unstack(draws, axis=-1)
    return tf.stack([*before, tf.ones_like(sigma), sigma], axis=-1)


# XLA fuses what would otherwise be two hundred passes over the batch.
@tf.function(autograph=False, jit_compile=True)
def _dense(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """`color` of images [N, H, W, C], with everything computed for each."""
    order, strengths, grey, sigma = _parameters(draws)
    x = _pack(images)  # [N, H, W]
    for place in range(4):
        which = order[:, place, None, None]  # [N, 1, 1]
        change = x
        for number, operation in enumerate(_OPERATIONS):
            # Not [:, number, None, None]: of a slice of a stack, TensorFlow's
            # optimizer of arithmetic forgets the new axes.
            strength = tf.reshape(strengths[:, number], [-1, 1, 1])
            change = tf.where(which == number, operation(x, strength), change)
        x = change
    x = tf.where(grey[:, None, None], _gray(x), x)
    weights = tf.gather(tf.constant(_WEIGHTS), tf.maximum(sigma, 0))
    blurred = _blur_columns(_planes(x), weights, _RADIUS)
    blurred = _blur_rows(blurred, weights, _RADIUS)
    x = tf.where(sigma[:, None, None] >= 0, blurred, x)
    return _unpack(x, images.shape[-1])


@tf.function(autograph=False, jit_compile=True)
def _one(image: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """`color` of one image [H, W, C]; XLA fuses and vectorises it."""
    order, strengths, grey, sigma = _parameters(draws)
    # Not where they are used: it would be done again for every pixel.
    weights = tf.gather(tf.constant(_WEIGHTS), tf.maximum(sigma, 0))
    x = _pack(image)  # [H, W]

    def jitter(place: tf.Tensor, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # A loop over the places instead of four choices in a row, so that each
        # operation is compiled once.
        x = tf.switch_case(
            order[place],
            [
                lambda f=operation, s=strength: f(x, s)
                for operation, strength in zip(
                    _OPERATIONS, tf.unstack(strengths), strict=True
                )
            ],
        )
        return place + 1, x

    places = tf.where(order[0] >= 0, 4, 0)
    _, x = tf.while_loop(
        lambda place, _: place < places, jitter, (tf.constant(0), x)
    )
    x = tf.cond(grey, lambda: _gray(x), lambda: x)

    def blur() -> tf.Tensor:
        small = sigma < _SMALL
        planes = _planes(x)
        # Two choices, as XLA would otherwise compute the columns again for
        # every tap of the rows.
        columns = tf.cond(
            small,
            lambda: _blur_columns(planes, weights, _RADIUS // 2),
            lambda: _blur_columns(planes, weights, _RADIUS),
        )
        return tf.cond(
            small,
            lambda: _blur_rows(columns, weights, _RADIUS // 2),
            lambda: _blur_rows(columns, weights, _RADIUS),
        )

    x = tf.cond(sigma >= 0, blur, lambda: x)
    return _unpack(x, image.shape[-1])


def _parameters(
    draws: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Converts draws [..., DRAWS] to parameters.

    Returns:
        The operation at each of four places, int32 [..., 4], -1 without jitter;
        the strength of each operation, float32 [..., 4]; whether to turn grey,
        bool [...]; the index of the blur's sigma, int32 [...], -1 without blur.
    """
    jitter, order, *factors, hue, grey, blur, sigma = tf.unstack(draws, axis=-1)
    order = tf.gather(tf.constant(_ORDERS), _integers(order, len(_ORDERS)))
    order = tf.where(jitter[..., None] < _JITTER, order, -1)
    strengths = [
        tf.cast(_integers(factor, _FACTOR_COUNT) + _FACTOR_LOW, tf.float32)
        * _FACTOR_STEP
        for factor in factors
    ]
    hue = (2.0 * hue - 1.0) * _HUE
    strengths.append(tf.sign(hue) * tf.floor(tf.abs(hue)))  # towards 0
    sigma = tf.where(blur < _BLUR, _integers(sigma, len(_SIGMAS)), -1)
    return order, tf.stack(strengths, axis=-1), grey < _GREY, sigma


def _integers(numbers: tf.Tensor, count: int) -> tf.Tensor:
    """Converts numbers in [0, 1) to integers 0 … count - 1."""
    return tf.cast(numbers * count, tf.int32)


def _pack(image: tf.Tensor) -> tf.Tensor:
    """Packs uint8 [..., H, W, C] into float32 [..., H, W]."""
    if image.shape[-1] == 1:  # three equal channels stay equal
        image = tf.concat([image] * 3, axis=-1)
    r, g, b = [tf.cast(c, tf.int32) for c in tf.unstack(image, axis=-1)]
    return tf.cast(r + 256 * g + 65536 * b, tf.float32)


def _unpack(x: tf.Tensor, channels: int) -> tf.Tensor:
    """Unpacks float32 [..., H, W] into uint8 [..., H, W, C]."""
    return tf.bitcast(tf.cast(x, tf.int32), tf.uint8)[..., :channels]


def _split(x: tf.Tensor) -> list[tf.Tensor]:
    b = tf.floor(x * 2.0**-16)
    x = x - 65536.0 * b
    g = tf.floor(x * 2.0**-8)
    return [x - 256.0 * g, g, b]


def _join(r: tf.Tensor, g: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return r + 256.0 * g + 65536.0 * b


# tf.maximum and tf.minimum also handle NaN, which takes three times as long.


def _max(x: tf.Tensor, y: tf.Tensor | float) -> tf.Tensor:
    return tf.where(x > y, x, y)


def _min(x: tf.Tensor, y: tf.Tensor | float) -> tf.Tensor:
    return tf.where(x < y, x, y)


def _luminance(r: tf.Tensor, g: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    total = 19595.0 * r + 38470.0 * g + 7471.0 * b + 32768.0
    return tf.floor(total * 2.0**-16)


def _gray(x: tf.Tensor) -> tf.Tensor:
    return _luminance(*_split(x)) * 65793.0  # three times the same


def _blend(base: tf.Tensor, x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return tf.floor(_min(_max(base + factor * (x - base), 0.0), 255.0))


def _brightness(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return _join(*[tf.floor(_min(c * factor, 255.0)) for c in _split(x)])


def _contrast(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends with the mean luminance, which is rounded."""
    grey = _luminance(*_split(x))
    pixels = grey.shape[-1] * grey.shape[-2]
    columns = tf.cast(tf.reduce_sum(grey, axis=-2, keepdims=True), tf.int32)
    total = tf.reduce_sum(columns, axis=-1, keepdims=True)
    mean = tf.cast((2 * total + pixels) // (2 * pixels), tf.float32)
    return _join(*[_blend(mean, c, factor) for c in _split(x)])


def _saturation(x: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    channels = _split(x)
    grey = _luminance(*channels)
    return _join(*[_blend(grey, c, factor) for c in channels])


def _hue(x: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
    """Shifts the hue in 8-bit HSV, as Pillow, in whole numbers."""
    r, g, b = _split(x)
    value = _max(_max(r, g), b)
    chroma = value - _min(_min(r, g), b)
    # The hue is 255 `around` over 6 chroma, rounded down.
    around = tf.where(
        r == value,
        g - b,
        tf.where(g == value, 2.0 * chroma + b - r, 4.0 * chroma + r - g),
    )
    circle = 6.0 * chroma
    around = 255.0 * tf.where(around < 0, around + circle, around)
    circle = _max(circle, 1.0)
    # With the half, no quotient is so close to a whole number that rounding
    # matters.
    hue = tf.floor((around + 0.5) / circle)
    short = (hue * circle == around) & _is_short(hue)
    hue = tf.where(short, hue - 1.0, hue) + shift
    hue = tf.where(hue < 0, hue + 256.0, hue)
    hue = tf.where(hue > 255.0, hue - 256.0, hue)
    saturation = tf.floor((255.0 * chroma + 0.5) / _max(value, 1.0))
    most = 65025.0 * value + 32512.0
    slope = value * saturation

    def channel(absent: tf.Tensor) -> tf.Tensor:
        # value (1 - saturation clip(absent, 0, 1)), times 255.
        absent = _min(_max(absent, 0.0), 255.0)
        return tf.floor((most - slope * absent) * (1.0 / 65025.0))

    angle = 6.0 * hue  # 255 to each sixth of the circle
    return _join(
        channel(510.0 - tf.abs(angle - 765.0)),
        channel(tf.abs(angle - 510.0) - 255.0),
        channel(tf.abs(angle - 1020.0) - 255.0),
    )


def _is_short(hue: tf.Tensor) -> tf.Tensor:
    """Returns whether a hue is in _SHORT, by its bit in eight words."""
    words = np.zeros(256, np.uint8)
    words[list(_SHORT)] = 1
    words = np.packbits(words, bitorder="little").view("<i4")
    word = tf.constant(words[0])
    for number in range(1, len(words)):
        if words[number] != words[number - 1]:
            word = tf.where(hue >= 32.0 * number, words[number], word)
    # A float in 2^23 … 2^24 has the low bits of its whole number.
    place = tf.bitwise.bitwise_and(tf.bitcast(hue + 2.0**23, tf.int32), 31)
    bits = tf.bitwise.right_shift(word, place)
    return tf.bitwise.bitwise_and(bits, 1) > 0


_OPERATIONS: tuple[Callable[[tf.Tensor, tf.Tensor], tf.Tensor], ...] = (
    _brightness,
    _contrast,
    _saturation,
    _hue,
)


def _blur_weights() -> np.ndarray:
    """Returns half Gaussians for _SIGMAS, in whole numbers.

    Returns:
        float32 [1024, 1 + _RADIUS]. In a row, the first number and twice the
        others sum to 4096.
    """
    k = np.arange(_RADIUS + 1)
    half = np.exp(-(k**2) / (2 * _SIGMAS[:, None] ** 2))
    half *= k <= np.ceil(3 * _SIGMAS[:, None])
    half /= 2 * half.sum(axis=1, keepdims=True) - half[:, :1]
    half = np.round(4096 * half)
    half[:, 0] = 4096 - 2 * half[:, 1:].sum(axis=1)
    return half.astype(np.float32)


_WEIGHTS = _blur_weights()


def _planes(x: tf.Tensor) -> tf.Tensor:
    """Unpacks [..., H, W] to planes [..., 3, H + 2 _ROWS, W + 2 _COLUMNS].

    The padding repeats the edges.
    """
    for axis, count in ((-2, _ROWS), (-1, _COLUMNS)):
        first, last = (
            tf.repeat(tf.gather(x, [place], axis=axis), count, axis=axis)
            for place in (0, x.shape[axis] - 1)
        )
        x = tf.concat([first, x, last], axis=axis)
    return tf.stack(_split(x), axis=-3)


def _blur_columns(x: tf.Tensor, weights: tf.Tensor, radius: int) -> tf.Tensor:
    """Blurs padded planes along W; keeps 12 bits, 4 of them fractional."""
    width = x.shape[-1] - 2 * _COLUMNS
    total = _taps(  # 20 bits
        weights,
        radius,
        lambda by: x[..., _COLUMNS + by : _COLUMNS + by + width],
    )
    return tf.floor((total + 128.0) * 2.0**-8)


def _blur_rows(x: tf.Tensor, weights: tf.Tensor, radius: int) -> tf.Tensor:
    """Blurs padded planes of 12 bits along H and packs them: [..., H, W]."""
    height = x.shape[-2] - 2 * _ROWS
    total = _taps(  # 24 bits
        weights, radius, lambda by: x[..., _ROWS + by : _ROWS + by + height, :]
    )
    r, g, b = tf.unstack(tf.floor((total + 32768.0) * 2.0**-16), axis=-3)
    return _join(r, g, b)


def _taps(
    weights: tf.Tensor, radius: int, shifted: Callable[[int], tf.Tensor]
) -> tf.Tensor:
    """Returns the weighted sum of an image shifted by -radius … radius."""
    weights = tf.unstack(weights[..., None, None, None], axis=-4)
    total = weights[0] * shifted(0)
    for k in range(1, radius + 1):
        total += weights[k] * (shifted(-k) + shifted(k))
    return total
