"""RandAugment on whole batches, in the form that FixMatch uses.

Every operation runs only on the images that have drawn it, in integers where
Pillow computes in integers.

References:
    Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a
    Reduced Search Space", NeurIPS 2020, https://arxiv.org/abs/1909.13719
    Sohn et al., "FixMatch", NeurIPS 2020, https://arxiv.org/abs/2001.07685,
    appendix D
"""

import math

import tensorflow as tf

from simmatch_tf.data.augment import geometry

OPERATIONS = (
    "AutoContrast",
    "Equalize",
    "Identity",
    "Brightness",
    "Color",
    "Contrast",
    "Sharpness",
    "Posterize",
    "Solarize",
    "Rotate",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
)


def rand_augment(
    images: tf.Tensor,
    draws: tf.Tensor,
    *,
    operations: int = 2,
    probability: float = 0.5,
    low: float = 0.1,
    high: float = 0.9,
    levels: int = 9,
    dense: bool = False,
) -> tf.Tensor:
    """Applies random operations, drawn with replacement, at random strengths.

    The defaults are RandAugment(2, 10). `probability=1, low=0, high=1,
    levels=0, operations=3` is USB's form.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3.
        draws: float32 [N, 4 · operations] in [0, 1): for each operation which
            one, whether to apply it, its strength and its direction.
        operations: Number of operations for each image, n.
        probability: Probability of applying each sampled operation.
        low: Smallest strength r, in [0, 1].
        high: Largest strength.
        levels: Number of evenly spaced strengths from low to high; 0 for a
            continuous range.
        dense: See `geometry.on_drawn`.

    Returns:
        uint8 [N, H, W, C].
    """
    for slot in range(operations):
        which, applied, strength, sign = tf.unstack(
            draws[:, 4 * slot : 4 * slot + 4], axis=1
        )
        operation = tf.where(
            applied < probability,
            geometry.integers(which, len(OPERATIONS)),
            OPERATIONS.index("Identity"),
        )
        if levels:
            strength = tf.floor(strength * levels) / max(levels - 1, 1)
        r = low + (high - low) * strength
        r = tf.where(sign < 0.5, -r, r)
        images = apply(images, operation, r, dense=dense)
    return images


def apply(
    images: tf.Tensor,
    operation: tf.Tensor,
    strength: tf.Tensor,
    *,
    dense: bool = False,
) -> tf.Tensor:
    """Applies one operation to each image, as Pillow defines it.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3.
        operation: Indices into OPERATIONS, int32 [N].
        strength: float32 [N], r in [-1, 1]. The sign is the direction of
            geometric operations; others ignore it.
        dense: See `geometry.on_drawn`.

    Returns:
        uint8 [N, H, W, C].
    """
    for name, change in _CHANGES.items():
        images = geometry.on_drawn(
            images,
            _is(operation, name),
            change,
            tf.abs(strength),
            dense=dense,
        )
    return geometry.on_drawn(
        images,
        operation >= OPERATIONS.index("Rotate"),
        _transform,
        operation,
        strength,
        dense=dense,
    )


def _is(operation: tf.Tensor, name: str) -> tf.Tensor:
    return operation == OPERATIONS.index(name)


def _each(numbers: tf.Tensor) -> tf.Tensor:
    """Reshapes one number for each image: [n] → [n, 1, 1, 1]."""
    return numbers[:, None, None, None]


def _auto_contrast(images: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
    """Stretches the values of each channel to 0 … 255."""
    del r
    values = tf.cast(images, tf.float32)
    low = tf.reduce_min(values, axis=[1, 2], keepdims=True)
    high = tf.reduce_max(values, axis=[1, 2], keepdims=True)
    # floor(255 (v - low) / (high - low)), as exact as Pillow's float64: the
    # half keeps whole quotients clear of any rounding of the division.
    scale = tf.maximum(high - low, 1.0)
    stretched = tf.floor((255.0 * (values - low) + 0.5) / scale)
    flat = tf.cast(high == low, tf.float32) * low  # one value: it stays
    return tf.cast(stretched + flat, tf.uint8)


def _equalize(images: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
    """Equalizes the histogram of each channel."""
    del r
    channels = images.shape[-1]
    series = tf.shape(images)[0] * channels  # n · C
    offsets = tf.reshape(tf.range(series) * 256, [-1, 1, 1, channels])
    places = tf.cast(images, tf.int32) + offsets
    flat = tf.reshape(places, [-1])
    histograms = tf.reshape(
        tf.math.unsorted_segment_sum(tf.ones_like(flat), flat, series * 256),
        [-1, 256],
    )
    values = tf.range(256)
    last = tf.reduce_max(
        tf.where(histograms > 0, values, 0), axis=1, keepdims=True
    )
    in_last = tf.gather(histograms, last, batch_dims=1)
    total = images.shape[1] * images.shape[2]
    step = (total - in_last) // 255
    below = tf.cumsum(histograms, axis=1, exclusive=True) + step // 2
    table = tf.minimum(below // tf.maximum(step, 1), 255)
    table = tf.cast(tf.where(step > 0, table, values), tf.uint8)
    return tf.gather(tf.reshape(table, [-1]), places)


def _posterize(images: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
    """Keeps the upper int(4 r) + 4 bits of each value."""
    dropped = 4 - tf.cast(4.0 * r, tf.int32)
    kept = tf.cast(tf.bitwise.left_shift(255, dropped) % 256, tf.uint8)
    return tf.bitwise.bitwise_and(images, _each(kept))


def _solarize(images: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
    """Inverts values of at least 256 - int(256 r)."""
    threshold = 256 - tf.cast(256.0 * r, tf.int32)
    bright = tf.cast(images, tf.int32) >= _each(threshold)
    return tf.bitwise.bitwise_xor(images, 255 * tf.cast(bright, tf.uint8))


def _blend(
    images: tf.Tensor, degenerate: tf.Tensor | float, r: tf.Tensor
) -> tf.Tensor:
    """Returns degenerate + factor (image - degenerate), as in Pillow."""
    factor = _each(0.05 + 0.9 * r)
    blend = degenerate + factor * (tf.cast(images, tf.float32) - degenerate)
    return tf.cast(blend, tf.uint8)


def _grey(images: tf.Tensor) -> tf.Tensor:
    """Returns the luminance in whole numbers, float32 [n, H, W, 1]."""
    values = tf.cast(images, tf.float32)
    if images.shape[-1] == 1:
        return values
    red, green, blue = tf.split(values, 3, axis=-1)
    # Pillow's 16-bit weights; float32 holds the sum exactly.
    total = 19595.0 * red + 38470.0 * green + 7471.0 * blue
    return tf.floor((total + 32768.0) / 65536.0)


def _brightness(images: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
    return _blend(images, 0.0, r)


def _color(images: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
    return _blend(images, _grey(images), r)


def _contrast(images: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
    mean = tf.reduce_mean(_grey(images), axis=[1, 2, 3], keepdims=True)
    return _blend(images, tf.floor(mean + 0.5), r)


def _sharpness(images: tf.Tensor, r: tf.Tensor) -> tf.Tensor:
    """Blends with Pillow's SMOOTH filter: 3×3 with weights 1 and 5 over 13.

    Pixels at the edge are not filtered.
    """
    values = tf.cast(images, tf.float32)
    total = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    total = total[:, :, :-2] + total[:, :, 1:-1] + total[:, :, 2:]
    total += 4.0 * values[:, 1:-1, 1:-1]
    inner = [[0, 0], [1, 1], [1, 1], [0, 0]]
    smooth = tf.pad(tf.floor((total + 6.5) / 13.0), inner)  # rounded
    edge = 1.0 - tf.pad(tf.ones_like(total[:1, :, :, :1]), inner)
    return _blend(images, smooth + edge * values, r)


_CHANGES = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
}


def _cos_sin(angle: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns cosine and sine of angles up to 30° by their series, in float32.

    tf.cos and tf.sin round differently depending on the place in the batch.
    """
    cosine = [1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0]
    sine = [1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0]
    square = angle * angle
    return (
        tf.math.polyval(cosine, square),
        angle * tf.math.polyval(sine, square),
    )


def _transform(
    images: tf.Tensor, operation: tf.Tensor, strength: tf.Tensor
) -> tf.Tensor:
    """Applies geometric operations: nearest neighbour, black outside."""
    height, width, channels = images.shape[1:]

    def amount(name: str, most: float) -> tf.Tensor:
        return tf.where(_is(operation, name), most * strength, 0.0)  # [n]

    angle = amount("Rotate", -math.radians(30.0))  # counter-clockwise
    cos, sin = _cos_sin(angle)
    shear_x, shear_y = amount("ShearX", 0.3), amount("ShearY", 0.3)
    # Of the output pixel (x, y), both at pixel centres, the input pixel is
    # (a x + b y + c, d x + e y + f).
    a, b, d, e = cos, sin + shear_x, -sin + shear_y, cos
    centre_x = tf.where(_is(operation, "Rotate"), width / 2, 0.0)
    centre_y = tf.where(_is(operation, "Rotate"), height / 2, 0.0)
    c = amount("TranslateX", 0.3 * width) + centre_x
    c -= a * centre_x + b * centre_y
    f = amount("TranslateY", 0.3 * height) + centre_y
    f -= d * centre_x + e * centre_y
    # Pillow rounds halves up; so do these, however a sum was rounded.
    upward = 1e-4
    a, b, c, d, e, f = (t[:, None, None] for t in (a, b, c, d, e, f))
    x = tf.range(width, dtype=tf.float32) + 0.5  # [W]
    y = tf.range(height, dtype=tf.float32)[:, None] + 0.5  # [H, 1]
    column = tf.floor(a * x + (b * y + (c + upward)))  # [n, H, W]
    row = tf.floor(d * x + (e * y + (f + upward)))
    # What lies outside falls on a black border of one pixel.
    column = tf.clip_by_value(column, -1.0, width) + 1.0
    row = tf.clip_by_value(row, -1.0, height) + 1.0
    pixels = tf.cast(row * (width + 2.0) + column, tf.int32)
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    size = (height + 2) * (width + 2)
    return tf.gather(
        tf.reshape(padded, [-1, size, channels]), pixels, batch_dims=1
    )
