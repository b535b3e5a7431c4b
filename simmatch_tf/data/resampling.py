"""Images resampled as Pillow does, within a grey level."""

import tensorflow as tf


def sample(
    image: tf.Tensor,
    shape: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    size: tuple[int, int],
    kernel: str = "triangle",
) -> tf.Tensor:
    """Resamples by `scale`, then moves by `shift`.

    Args:
        image: uint8 [h, w, C], C static.
        shape: h and w, int32 [2].
        scale: Of height and width, float32 [2].
        shift: Pixels of the result, float32 [2].
        size: Height and width of the result.
        kernel: "triangle" (bilinear) or "keyscubic" (bicubic), widened where
            it shrinks.

    Returns:
        uint8 [*size, C].
    """
    if kernel == "triangle":
        return _sample(image, shape, scale, shift, size, kernel)
    # Pillow goes across first. Its rounding between the two passes, which is
    # nothing to see of a triangle, clips what this kernel overshoots.
    turned = _sample(
        tf.transpose(image, [1, 0, 2]),
        shape[::-1],
        scale[::-1],
        shift[::-1],
        size[::-1],
        kernel,
    )
    return tf.transpose(turned, [1, 0, 2])


def _sample(
    image: tf.Tensor,
    shape: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    size: tuple[int, int],
    kernel: str,
) -> tf.Tensor:
    """`sample`, down and then across.

    One axis after the other, each as the leading axis, with all others folded
    into channels: there, and only there, the op is vectorised. Between the
    two stands a plain matrix transposition, and after them another.
    """
    height, width = size
    channels = image.shape[-1]

    def along_rows(rows: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.raw_ops.ScaleAndTranslate(
            images=rows[None, :, None, :],
            size=[size[axis], 1],
            scale=tf.stack([scale[axis], 1.0]),
            translation=tf.stack([shift[axis], 0.0]),
            kernel_type=kernel,
            antialias=True,
        )[0, :, 0]

    def rounded(values: tf.Tensor) -> tf.Tensor:
        # The weights sum to 1, so these are 0 … 255 if none is negative.
        if kernel != "triangle":
            values = tf.clip_by_value(values, 0.0, 255.0)
        return tf.cast(values + 0.5, tf.uint8)

    rows = tf.reshape(image, [shape[0], shape[1] * channels])
    rows = along_rows(rows, 0)  # [H, w C]
    if kernel != "triangle":
        rows = rounded(rows)
    columns = tf.reshape(tf.transpose(rows), [shape[1], channels * height])
    columns = along_rows(columns, 1)  # [W, C H]
    rows = tf.transpose(tf.reshape(columns, [width * channels, height]))
    return tf.reshape(rounded(rows), [height, width, channels])
