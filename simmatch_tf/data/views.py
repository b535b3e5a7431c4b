"""Views of images: random crops, flips, colours and shapes, in two stages.

Crops are cut on the host, where images are read. Views are finished from them
one batch at a time, on the host or on the device of the step. Both stages are
functions of the images and of numbers drawn beforehand, so the place changes
nothing, and one image's views are the same whatever else is in the batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import tensorflow as tf

from simmatch_tf.data import decoding, randomness
from simmatch_tf.data.augment import geometry as geometry_lib
from simmatch_tf.data.augment import moco, randaugment
from simmatch_tf.data.sources import source


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How one view is made.

    Attributes:
        side: Height and width of the crop in pixels. With "flip_crop", images
            in memory whose shorter side already has this length are not
            resized.
        crop: "flip_crop": flip, and shift within a reflected border;
            "resized_crop": a random crop, resized, and flip.
        strong: What a strong view adds: "randaugment" and cutout, "moco"
            (colour jitter, grayscale, blur), "jitter" (the same without the
            blur), "keras_cv" (RandAugment of that library) and cutout, or
            "none" (a weak view).
        flip: Flip half of the images horizontally.
        pad: Width of the reflected border in pixels.
        crop_area: Least and greatest share of the image's area in a resized
            crop.
        cutout: Side of the square cutout in pixels; 0 for none.
        operations: RandAugment's n, operations to sample; 0 for none.
        probability: Probability of applying each sampled operation.
        low: Smallest strength of an operation, in [0, 1].
        high: Largest strength.
        levels: Number of strengths between the two; 0 for any.
    """

    side: int
    crop: str = "flip_crop"
    strong: str = "none"
    flip: bool = True
    pad: int = 4
    crop_area: tuple[float, float] = (0.2, 1.0)
    cutout: int = 16
    operations: int = 2
    probability: float = 0.5
    low: float = 0.1
    high: float = 0.9
    levels: int = 9

    def draws(self, seeds: tf.Tensor) -> tf.Tensor:
        """Draws the numbers in [0, 1) that finish a view.

        Args:
            seeds: int32 [n, 3].

        Returns:
            float32 [n, draws].
        """
        drawn = [_draw(seeds, "flip_crop", 3)]
        if self.strong == "randaugment":
            drawn.append(randomness.uniform(seeds, 4 * self.operations))
        if self.strong in ("randaugment", "keras_cv"):
            drawn.append(_draw(seeds, "cutout", 2))
        if self.strong in ("moco", "jitter"):
            drawn.append(_draw(seeds, "moco", moco.DRAWS))
        return tf.concat(drawn, axis=1)

    def finish(
        self, crops: tf.Tensor, draws: tf.Tensor, *, dense: bool = False
    ) -> tf.Tensor:
        """Makes views from crops: the second stage.

        Args:
            crops: uint8 [n, H, W, C].
            draws: float32 [n, draws], see `draws`.
            dense: Apply every operation to every image and choose afterwards,
                at static shapes, as accelerators want it; False: apply only
                what was drawn. The views are the same.

        Returns:
            uint8 [n, H, W, C].
        """
        geometry, rest = draws[:, :3], draws[:, 3:]
        if self.crop == "flip_crop":
            views = geometry_lib.flip_crop(
                crops, geometry, flip=self.flip, pad=self.pad
            )
        else:
            views = crops
            if self.flip:
                views = geometry_lib.flip(crops, geometry[:, 2:])
        if self.strong == "none":
            return views
        if self.strong == "jitter":
            rest = moco.without_blur(rest)
        if self.strong in ("moco", "jitter"):
            return moco.color(views, rest, dense=dense)
        if self.strong == "keras_cv":
            views = _keras_cv(self)(views)
        else:
            views = randaugment.rand_augment(
                views,
                rest[:, :-2],
                operations=self.operations,
                probability=self.probability,
                low=self.low,
                high=self.high,
                levels=self.levels,
                dense=dense,
            )
        return geometry_lib.cutout(views, rest[:, -2:], side=self.cutout)


def crops(
    recipes: Mapping[str, Recipe],
    images: source.Images | source.Encoded,
    indices: tf.Tensor,
    seeds: Mapping[str, tf.Tensor],
) -> dict[str, tf.Tensor]:
    """Cuts one crop for each view of the images: the first stage.

    Views that differ only in their draws are cut together, so that an
    encoded image is decoded once for them.

    Args:
        recipes: Name of the view → how it is made.
        images: The set.
        indices: Which of its images, int64 [n].
        seeds: Name of the view → int32 [n, 3].

    Returns:
        Name of the view → uint8 [n, H, W, C].
    """
    groups: dict[tuple, list[str]] = {}
    for name, recipe in recipes.items():
        area = recipe.crop_area if recipe.crop == "resized_crop" else None
        groups.setdefault((recipe.side, area), []).append(name)
    cropped = {}
    for (side, area), names in groups.items():
        if area is None:
            crop = decoding.centre_crops(images, indices, side=side)
            cropped |= dict.fromkeys(names, crop)
            continue
        draws = [
            _draw(seeds[name], "resized_crop", decoding.BOX_DRAWS)
            for name in names
        ]
        cut = decoding.random_crops(
            images, indices, tf.stack(draws, axis=1), side=side, area=area
        )
        cropped |= dict(zip(names, cut, strict=True))
    return {name: cropped[name] for name in recipes}


def _draw(seeds: tf.Tensor, stream: str, count: int) -> tf.Tensor:
    """Draws numbers in [0, 1) for this view alone: [N, count]."""
    key = randomness.key(0, stream)
    offset = tf.constant([key, 0, 0], tf.int32)
    return randomness.uniform(tf.bitwise.bitwise_xor(seeds, offset), count)


@functools.cache
def _keras_cv(recipe: Recipe) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns KerasCV's layer that comes closest to the recipe."""
    import keras_cv  # slow to import, needed here only

    with tf.init_scope():
        layer = keras_cv.layers.RandAugment(
            value_range=(0, 255),
            augmentations_per_image=recipe.operations,
            rate=recipe.probability,
            magnitude=(recipe.low + recipe.high) / 2,
            # The deviation of a uniform strength.
            magnitude_stddev=(recipe.high - recipe.low) / 12**0.5,
        )

    @tf.function  # the layer is written for AutoGraph
    def apply(images: tf.Tensor) -> tf.Tensor:
        grey = images.shape[-1] == 1
        views = tf.image.grayscale_to_rgb(images) if grey else images
        views = layer(tf.cast(views, tf.float32), training=True)
        if grey:
            views = tf.image.rgb_to_grayscale(views)
        return tf.cast(tf.clip_by_value(tf.round(views), 0, 255), tf.uint8)

    return apply
