"""The views' steps on whole batches, as functions of draws.

Where the draws come from is the caller's business: nothing here needs more
than gathers and arithmetic, so the same functions run in the input pipeline
and on an accelerator. An image's result depends on its own draws alone, never
on what else is in the batch.
"""

from collections.abc import Callable

import tensorflow as tf

CUTOUT_GREY = 127


def integers(draws: tf.Tensor, count: int) -> tf.Tensor:
    """Turns draws in [0, 1) into int32 0 … count - 1."""
    return tf.cast(tf.floor(draws * count), tf.int32)


def flip_crop(
    images: tf.Tensor, draws: tf.Tensor, *, flip: bool, pad: int
) -> tf.Tensor:
    """Mirrors half of the images, then crops them out of a reflected border.

    Args:
        images: uint8 [N, H, W, C].
        draws: [N, 3] in [0, 1): how far down, how far right, whether mirrored.
        flip: Whether to mirror at all.
        pad: Width of the border, below the image's sides; the border mirrors
            the image without repeating its edge.

    Returns:
        uint8 [N, H, W, C].
    """
    height, width, channels = images.shape[1:]
    shift = integers(draws[:, :2], 2 * pad + 1) - pad  # [N, 2]

    def reflect(places: tf.Tensor, size: int) -> tf.Tensor:
        last = size - 1
        return last - tf.abs(last - tf.abs(places))

    rows = reflect(tf.range(height) + shift[:, :1], height)  # [N, H]
    columns = reflect(tf.range(width) + shift[:, 1:], width)  # [N, W]
    if flip:
        mirrored = draws[:, 2:] < 0.5  # [N, 1]
        columns = tf.where(mirrored, width - 1 - columns, columns)
    # One gather of whole pixels: rows first and then columns is slower.
    rows += tf.range(tf.shape(images)[0])[:, None] * height
    pixels = rows[:, :, None] * width + columns[:, None, :]  # [N, H, W]
    return tf.gather(tf.reshape(images, [-1, channels]), pixels)


# Compiled: TensorFlow's own choice costs twenty times the copy that XLA makes.
@tf.function(autograph=False, jit_compile=True)
def flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Mirrors the images whose draw is below 0.5.

    Args:
        images: uint8 [N, H, W, C].
        draws: [N, 1] in [0, 1).

    Returns:
        uint8 [N, H, W, C].
    """
    mirrored = draws[:, :, None, None] < 0.5
    return tf.where(mirrored, tf.reverse(images, [2]), images)


def cutout(images: tf.Tensor, draws: tf.Tensor, *, side: int) -> tf.Tensor:
    """Paints one grey square; its centre is uniform, the border clips it.

    Args:
        images: uint8 [N, H, W, C].
        draws: [N, 2] in [0, 1): the centre's row and column.
        side: Of the square in pixels; 0 changes nothing.

    Returns:
        uint8 [N, H, W, C].
    """
    if not side:
        return images
    height, width, channels = images.shape[1:]

    def inside(draw: tf.Tensor, size: int) -> tf.Tensor:
        start = integers(draw, size)[:, None] - side // 2  # [N, 1]
        places = tf.range(size)
        square = (places >= start) & (places < start + side)
        return 255 * tf.cast(square, tf.uint8)  # [N, size]

    # Bits and not tf.where, which takes three times as long on uint8.
    rows = inside(draws[:, 0], height)[:, :, None]
    columns = tf.repeat(inside(draws[:, 1], width), channels, axis=1)
    square = tf.bitwise.bitwise_and(rows, columns[:, None, :])
    square = tf.reshape(square, tf.shape(images))
    return tf.bitwise.bitwise_or(
        tf.bitwise.bitwise_and(images, tf.bitwise.invert(square)),
        tf.bitwise.bitwise_and(square, CUTOUT_GREY),
    )


def on_drawn(
    images: tf.Tensor,
    drawn: tf.Tensor,
    operation: Callable[..., tf.Tensor],
    *arguments: tf.Tensor,
    dense: bool,
) -> tf.Tensor:
    """Applies an operation to the images that drew it, and to no other.

    Args:
        images: [N, …].
        drawn: bool [N].
        operation: Called with images [n, …] and as many of each argument;
            returns images of the same shape and dtype, each a function of its
            own inputs alone.
        *arguments: [N, …] each.
        dense: Apply it to all images and keep what was drawn: every shape is
            static, as XLA wants it. Otherwise the drawn images are gathered
            first, which saves the work on the others. Both give the same.

    Returns:
        [N, …], the images that did not draw it unchanged.
    """
    images = tf.convert_to_tensor(images)
    if dense:
        shape = [-1] + [1] * (images.shape.rank - 1)
        changed = operation(images, *arguments)
        return tf.where(tf.reshape(drawn, shape), changed, images)

    places = tf.where(drawn)  # [n, 1]

    def change() -> tf.Tensor:
        subset = [tf.gather(x, places[:, 0]) for x in (images, *arguments)]
        return tf.tensor_scatter_nd_update(images, places, operation(*subset))

    changed = tf.cond(tf.size(places) > 0, change, lambda: images)
    return tf.ensure_shape(changed, images.shape)
