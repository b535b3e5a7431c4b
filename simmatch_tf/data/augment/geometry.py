"""Flips, crops and cutout of whole batches, as functions of random draws.

They consist of gathers and arithmetic, so they run in the input pipeline and on
an accelerator. The result for an image depends on its own draws alone, not on
the rest of the batch.

References:
    DeVries and Taylor, "Improved Regularization of Convolutional Neural
    Networks with Cutout", 2017, https://arxiv.org/abs/1708.04552
"""

from collections.abc import Callable

import tensorflow as tf

CUTOUT_GREY = 127


def integers(draws: tf.Tensor, count: int) -> tf.Tensor:
    """Converts draws in [0, 1) to integers 0 … count - 1, int32."""
    return tf.cast(tf.floor(draws * count), tf.int32)


def flip_crop(
    images: tf.Tensor, draws: tf.Tensor, *, flip: bool, pad: int
) -> tf.Tensor:
    """Flips half of the images, and crops them out of a reflected border.

    Args:
        images: uint8 [N, H, W, C].
        draws: float32 [N, 3] in [0, 1): shift down, shift right, and whether to
            flip.
        flip: Whether to flip at all.
        pad: Width of the border in pixels, smaller than the image's sides. The
            border reflects the image without repeating its edge.

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
    # One gather of whole pixels: first rows and then columns is slower.
    rows += tf.range(tf.shape(images)[0])[:, None] * height
    pixels = rows[:, :, None] * width + columns[:, None, :]  # [N, H, W]
    return tf.gather(tf.reshape(images, [-1, channels]), pixels)


# Compiled, as tf.where alone takes twenty times as long as XLA's copy.
@tf.function(autograph=False, jit_compile=True)
def flip(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Flips the images whose draw is below 0.5.

    Args:
        images: uint8 [N, H, W, C].
        draws: float32 [N, 1] in [0, 1).

    Returns:
        uint8 [N, H, W, C].
    """
    mirrored = draws[:, :, None, None] < 0.5
    return tf.where(mirrored, tf.reverse(images, [2]), images)


def cutout(images: tf.Tensor, draws: tf.Tensor, *, side: int) -> tf.Tensor:
    """Paints a grey square around a random centre, clipped at the border.

    Args:
        images: uint8 [N, H, W, C].
        draws: float32 [N, 2] in [0, 1): row and column of the centre.
        side: Side of the square in pixels; 0 changes nothing.

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

    # By bits, as tf.where takes three times as long on uint8.
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
    """Applies an operation to the images that have drawn it.

    Args:
        images: [N, …].
        drawn: bool [N].
        operation: From images [n, …] and n of each argument to images of the
            same shape and dtype, each a function of its own inputs alone.
        *arguments: Tensors [N, …].
        dense: True applies the operation to all images and then chooses, with
            static shapes as XLA needs them. False gathers the drawn images
            first, which saves the work on the others. The result is the same.

    Returns:
        [N, …]; the other images are unchanged.
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
