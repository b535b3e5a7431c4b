"""RandAugment in its common form, a whole batch at a time.

Nearly every operation is one projective transform, or one table of 256 values
for each image and channel. So an operation slot is one transform, one table
look-up and two blends over the batch, each the identity for the images that
drew something else.
"""

import math

import tensorflow as tf

from simmatch_tf.data import randomness

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
    seeds: tf.Tensor,
    *,
    operations: int = 2,
    probability: float = 0.5,
    low: float = 0.1,
    high: float = 0.9,
    levels: int = 9,
) -> tf.Tensor:
    """Applies operations drawn with replacement, each at its own strength.

    The defaults are RandAugment(2, 10). `probability=1, low=0, high=1,
    levels=0, operations=3` is USB's form.

    Args:
        images: uint8 [N, H, W, C], or one image [H, W, C].
        seeds: int32 [N, 3], or [3].
        operations: How many are drawn for each image.
        probability: That a drawn operation is applied.
        low: Least strength r, in [0, 1].
        high: Greatest strength.
        levels: Evenly spaced strengths from low to high; 0: any between.

    Returns:
        uint8, the shape of `images`.
    """
    images, seeds = tf.convert_to_tensor(images), tf.convert_to_tensor(seeds)
    if images.shape.rank == 3:
        images, seeds, one = images[None], seeds[None], True
    else:
        one = False
    draws = randomness.uniform(seeds, 4 * operations)  # [N, 4n]
    for slot in range(operations):
        which, applied, strength, sign = tf.unstack(
            draws[:, 4 * slot : 4 * slot + 4], axis=1
        )
        operation = tf.cast(tf.floor(which * len(OPERATIONS)), tf.int32)
        operation = tf.where(
            applied < probability, operation, OPERATIONS.index("Identity")
        )
        if levels:
            strength = tf.floor(strength * levels) / max(levels - 1, 1)
        r = low + (high - low) * strength
        images = apply(images, operation, tf.where(sign < 0.5, -r, r))
    return images[0] if one else images


def apply(
    images: tf.Tensor, operation: tf.Tensor, strength: tf.Tensor
) -> tf.Tensor:
    """Applies one operation to each image, as Pillow defines it.

    Args:
        images: uint8 [N, H, W, C], C 1 or 3.
        operation: Places in OPERATIONS, int32 [N].
        strength: r in [-1, 1] [N]; its sign is the direction of the geometric
            operations and nothing to the others.

    Returns:
        uint8 [N, H, W, C].
    """
    images = _transform(images, operation, strength)
    r = tf.abs(strength)
    grey = _grey(images)  # [N, H, W, 1]
    images = _look_up(images, _tables(images, grey, operation, r))
    factor = 0.05 + 0.9 * r
    images = _blend_if(operation, "Color", images, grey, factor)
    return _blend_if(operation, "Sharpness", images, _smooth(images), factor)


def _is(operation: tf.Tensor, name: str) -> tf.Tensor:
    return operation == OPERATIONS.index(name)


def _transform(
    images: tf.Tensor, operation: tf.Tensor, strength: tf.Tensor
) -> tf.Tensor:
    """The geometric operations: nearest neighbour, black outside."""
    height, width = images.shape[1:3]

    def amount(name: str, most: float) -> tf.Tensor:
        return tf.where(_is(operation, name), most * strength, 0.0)  # [N]

    angle = amount("Rotate", -math.radians(30.0))  # counter-clockwise
    cos, sin = tf.cos(angle), tf.sin(angle)
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
    # Pillow puts centres at half pixels and rounds halves up; the op here has
    # them at whole pixels and rounds halves away from 0.
    upward = 1e-4
    c += 0.5 * (a + b) - 0.5 + upward
    f += 0.5 * (d + e) - 0.5 + upward
    zero = tf.zeros_like(a)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([a, b, c, d, e, f, zero, zero], axis=1),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def _grey(images: tf.Tensor) -> tf.Tensor:
    """Luminance, uint8 [N, H, W, 1], in Pillow's integers."""
    if images.shape[-1] == 1:
        return images
    weights = tf.constant([19595, 38470, 7471])
    total = tf.reduce_sum(
        tf.cast(images, tf.int32) * weights, axis=-1, keepdims=True
    )
    return tf.cast(tf.bitwise.right_shift(total + 0x8000, 16), tf.uint8)


def _histograms(images: tf.Tensor) -> tf.Tensor:
    """Counts of each value: [N, H, W, C] → int32 [N, C, 256]."""
    count, height, width, channels = images.shape
    count = count or tf.shape(images)[0]
    values = tf.reshape(images, [count, height * width, channels])
    place = tf.range(count * channels) * 256
    place = tf.reshape(place, [count, 1, channels])
    flat = tf.reshape(tf.cast(values, tf.int32) + place, [-1])
    counts = tf.math.unsorted_segment_sum(
        tf.ones_like(flat), flat, count * channels * 256
    )
    return tf.reshape(counts, [count, channels, 256])


def _auto_contrast(histograms: tf.Tensor) -> tf.Tensor:
    """Tables [N, C, 256] that stretch each channel over the whole range."""
    values = tf.range(256)
    present = histograms > 0
    low = tf.reduce_min(tf.where(present, values, 255), axis=2, keepdims=True)
    high = tf.reduce_max(tf.where(present, values, 0), axis=2, keepdims=True)
    # 255 (v - low) / (high - low) in whole numbers, as exact as Pillow's
    # float64 and not off by one where the quotient is whole.
    stretched = 255 * (values - low) // tf.maximum(high - low, 1)
    return tf.where(high > low, tf.clip_by_value(stretched, 0, 255), values)


def _equalize(histograms: tf.Tensor) -> tf.Tensor:
    """Tables [N, C, 256] that make each channel's histogram flat."""
    values = tf.range(256)
    last = tf.reduce_max(
        tf.where(histograms > 0, values, 0), axis=2, keepdims=True
    )
    total = tf.reduce_sum(histograms, axis=2, keepdims=True)
    in_last = tf.reduce_sum(
        tf.where(values == last, histograms, 0), axis=2, keepdims=True
    )
    step = (total - in_last) // 255
    below = tf.cumsum(histograms, axis=2, exclusive=True) + step // 2
    flat = tf.minimum(below // tf.maximum(step, 1), 255)
    return tf.where(step > 0, flat, values)


def _tables(
    images: tf.Tensor, grey: tf.Tensor, operation: tf.Tensor, r: tf.Tensor
) -> tf.Tensor:
    """The table of each image's operation: uint8 [N, C, 256]."""
    r = r[:, None, None]  # [N, 1, 1]
    values = tf.range(256)
    factor = 0.05 + 0.9 * r
    histograms = _histograms(images)
    mean = tf.reduce_mean(tf.cast(grey, tf.float32), axis=[1, 2, 3])  # [N]
    mean = tf.floor(mean + 0.5)[:, None, None]
    bits = tf.cast(4.0 * r, tf.int32) + 4
    threshold = 256 - tf.cast(256.0 * r, tf.int32)
    shift = 8 - bits
    choices = {
        "AutoContrast": _auto_contrast(histograms),
        "Equalize": _equalize(histograms),
        "Brightness": tf.cast(factor * tf.cast(values, tf.float32), tf.int32),
        "Contrast": tf.cast(
            mean + factor * (tf.cast(values, tf.float32) - mean), tf.int32
        ),
        "Posterize": tf.bitwise.left_shift(
            tf.bitwise.right_shift(values + tf.zeros_like(shift), shift), shift
        ),
        "Solarize": tf.where(values < threshold, values, 255 - values),
    }
    table = tf.broadcast_to(values, tf.shape(histograms))
    for name, choice in choices.items():
        table = tf.where(_is(operation, name)[:, None, None], choice, table)
    return tf.cast(table, tf.uint8)


def _look_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Replaces every value by its table's entry."""
    shape = tf.shape(images)
    place = tf.range(shape[0] * shape[3]) * 256
    place = tf.reshape(place, [shape[0], 1, 1, shape[3]])
    return tf.gather(
        tf.reshape(tables, [-1]), tf.cast(images, tf.int32) + place
    )


def _smooth(images: tf.Tensor) -> tf.Tensor:
    """Pillow's SMOOTH filter: 3×3, centre 5 of 13; the edge stays."""
    padded = tf.pad(tf.cast(images, tf.int32), [[0, 0], [1, 1], [1, 1], [0, 0]])
    height, width = images.shape[1:3]
    total = 4 * padded[:, 1 : height + 1, 1 : width + 1]
    for y in range(3):
        for x in range(3):
            total += padded[:, y : y + height, x : x + width]
    inner = tf.pad(tf.ones([height - 2, width - 2], tf.bool), [[1, 1], [1, 1]])[
        None, :, :, None
    ]
    smooth = tf.cast((2 * total + 13) // 26, tf.uint8)  # rounded
    return tf.where(inner, smooth, images)


def _blend_if(
    operation: tf.Tensor,
    name: str,
    images: tf.Tensor,
    degenerate: tf.Tensor,
    factor: tf.Tensor,
) -> tf.Tensor:
    """Degenerate + factor (image - degenerate), where `name` was drawn."""
    base = tf.cast(degenerate, tf.float32)
    factor = factor[:, None, None, None]
    blend = base + factor * (tf.cast(images, tf.float32) - base)
    drawn = _is(operation, name)[:, None, None, None]
    return tf.where(drawn, tf.cast(blend, tf.uint8), images)
