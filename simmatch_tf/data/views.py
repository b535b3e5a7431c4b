"""Weak and strong views of small images, whole batches at a time.

Every function takes uint8 images [N, H, W, C] with seeds [N, 3] (see
`randomness.seeds`), or one image [H, W, C] with its seed [3], and gives the
same view for the same seed whatever else is in the batch.
"""

import dataclasses
import functools
from collections.abc import Callable

import tensorflow as tf

from simmatch_tf.data import randaugment, randomness

CUTOUT_GREY = 127


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The two views of one run.

    Attributes:
        flip: Mirror half of the images.
        pad: Pixels of the reflect-pad crop.
        cutout: Side of the square cutout in pixels; 0: none.
        operations: RandAugment's n; 0: none.
        probability: That a drawn operation is applied.
        low: Least strength, in [0, 1].
        high: Greatest strength.
        levels: Number of strengths between them; 0: any.
    """

    flip: bool
    pad: int
    cutout: int
    operations: int = 2
    probability: float = 0.5
    low: float = 0.1
    high: float = 0.9
    levels: int = 9

    def weak(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """The weak view: flip and crop."""
        return flip_crop(images, seeds, flip=self.flip, pad=self.pad)

    def strong(self, images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        """The strong view: flip and crop, RandAugment, cutout."""
        images = self.weak(images, seeds)
        images = randaugment.rand_augment(
            images,
            seeds,
            operations=self.operations,
            probability=self.probability,
            low=self.low,
            high=self.high,
            levels=self.levels,
        )
        return cutout(images, seeds, side=self.cutout)


def _batched(view: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Lets a function of a batch take one image as well."""

    @functools.wraps(view)
    def wrapper(images: tf.Tensor, seeds: tf.Tensor, **options) -> tf.Tensor:
        images = tf.convert_to_tensor(images)
        seeds = tf.convert_to_tensor(seeds)
        if images.shape.rank == 3:
            return view(images[None], seeds[None], **options)[0]
        return view(images, seeds, **options)

    return wrapper


def _draw(seeds: tf.Tensor, stream: str, count: int) -> tf.Tensor:
    """[N, count] numbers in [0, 1) that only this view uses."""
    key = randomness.key(0, stream)
    offset = tf.constant([key, 0, 0], tf.int32)
    return randomness.uniform(tf.bitwise.bitwise_xor(seeds, offset), count)


def _integers(numbers: tf.Tensor, count: int) -> tf.Tensor:
    """Turns numbers in [0, 1) into integers 0 … count - 1."""
    return tf.cast(tf.floor(numbers * count), tf.int32)


@_batched
def flip_crop(
    images: tf.Tensor, seeds: tf.Tensor, *, flip: bool, pad: int
) -> tf.Tensor:
    """Mirrors half of the images, then crops them out of a reflected border.

    Args:
        images: uint8 [N, H, W, C].
        seeds: int32 [N, 3].
        flip: Whether to mirror at all.
        pad: Width of the border, below the image's sides; the border mirrors
            the image without repeating its edge.

    Returns:
        uint8 [N, H, W, C].
    """
    height, width = images.shape[1:3]
    draws = _draw(seeds, "flip_crop", 3)  # [N, 3]
    shift = _integers(draws[:, :2], 2 * pad + 1) - pad  # [N, 2]

    def reflect(places: tf.Tensor, size: int) -> tf.Tensor:
        last = size - 1
        return last - tf.abs(last - tf.abs(places))

    rows = reflect(tf.range(height) + shift[:, :1], height)  # [N, H]
    columns = reflect(tf.range(width) + shift[:, 1:], width)  # [N, W]
    if flip:
        mirrored = draws[:, 2:] < 0.5  # [N, 1]
        columns = tf.where(mirrored, width - 1 - columns, columns)
    images = tf.gather(images, rows, axis=1, batch_dims=1)
    return tf.gather(images, columns, axis=2, batch_dims=1)


@_batched
def cutout(images: tf.Tensor, seeds: tf.Tensor, *, side: int) -> tf.Tensor:
    """Paints one grey square; its centre is uniform, the border clips it.

    Args:
        images: uint8 [N, H, W, C].
        seeds: int32 [N, 3].
        side: Of the square in pixels; 0 changes nothing.

    Returns:
        uint8 [N, H, W, C].
    """
    if not side:
        return images
    height, width = images.shape[1:3]
    draws = _draw(seeds, "cutout", 2)  # [N, 2]

    def inside(draw: tf.Tensor, size: int) -> tf.Tensor:
        start = _integers(draw, size)[:, None] - side // 2  # [N, 1]
        places = tf.range(size)
        return (places >= start) & (places < start + side)  # [N, size]

    square = (
        inside(draws[:, 0], height)[:, :, None, None]
        & inside(draws[:, 1], width)[:, None, :, None]
    )
    return tf.where(square, tf.constant(CUTOUT_GREY, tf.uint8), images)
