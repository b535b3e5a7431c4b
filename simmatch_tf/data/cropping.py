"""From images of any sizes to crops of one size, image by image."""

import tensorflow as tf

from simmatch_tf.data import decoding
from simmatch_tf.data.sources import source

# Images of a batch that are worked on at once, at most.
_PARALLEL = 32


def whole(
    images: source.Images | source.Encoded,
    indices: tf.Tensor,
    *,
    side: int,
    resize: int | None = None,
    kernel: str = "triangle",
) -> tf.Tensor:
    """The images as evaluation sees them.

    Args:
        images: The set.
        indices: Which of them, int64 [n].
        side: Of the result, where images are encoded or resized; images in
            memory that have it already are taken as they are, if `resize` is
            None.
        resize: Length that the shorter side is resized to before the centre
            is cropped; default: `side`.
        kernel: See `decoding.fit`.

    Returns:
        uint8 [n, H, W, C].
    """
    if not images.encoded and resize is None:
        if side in images.images.shape[1:3]:
            return images.fetch(indices)

    def one(index: tf.Tensor) -> tf.Tensor:
        if images.encoded:
            pixels = decoding.decode(*images.read(index))
        else:
            pixels = images.fetch(index)
        return decoding.fit(
            pixels, resize=resize or side, side=side, kernel=kernel
        )

    shape = [side, side, _channels(images)]
    return _each(one, indices, tf.TensorSpec(shape, tf.uint8))


def resized(
    images: source.Images | source.Encoded,
    indices: tf.Tensor,
    draws: tf.Tensor,
    *,
    side: int,
    area: tuple[float, float],
) -> list[tf.Tensor]:
    """Random crops, resized: one or more of each image.

    Args:
        images: The set.
        indices: Which of them, int64 [n].
        draws: Numbers in [0, 1) [n, crops, decoding.BOX_DRAWS].
        side: Of the crops.
        area: Least and greatest share of the image's area in a crop.

    Returns:
        As many uint8 [n, side, side, C] as there are crops of an image.
    """
    crops = draws.shape[1]

    def one(element: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        index, numbers = element

        if images.encoded:
            encoded, orientation = images.read(index)
            size = decoding.image_size(encoded, orientation)
            boxes = decoding.crop_box(numbers, size, scale=area)
            found = decoding.resized_crops(
                encoded, orientation, boxes, side, size=size
            )
        else:
            pixels = images.fetch(index)
            boxes = decoding.crop_box(numbers, tf.shape(pixels)[:2], scale=area)
            found = [
                decoding.resized_crop(pixels, box, side)
                for box in tf.unstack(boxes)
            ]
        return tf.stack(found)

    shape = [crops, side, side, _channels(images)]
    found = _each(one, (indices, draws), tf.TensorSpec(shape, tf.uint8))
    return tf.unstack(found, axis=1)


def _channels(images: source.Images | source.Encoded) -> int:
    return 3 if images.encoded else images.images.shape[-1]


def _each(function, elements, signature: tf.TensorSpec) -> tf.Tensor:
    return tf.map_fn(
        function,
        elements,
        fn_output_signature=signature,
        # Eagerly there is no such thing, and TensorFlow says so each time.
        parallel_iterations=None if tf.executing_eagerly() else _PARALLEL,
    )
