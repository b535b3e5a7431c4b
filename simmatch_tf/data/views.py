"""Weak and strong views, in two stages.

Crops are cut on the host, where images are read. Views are finished from them
a whole batch at a time, on the host or on the device of the step: functions of
the crops and of numbers drawn beforehand, so the place changes nothing. One
image's views are the same whatever else is in the batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from simmatch_tf.data import decoding, randomness
from simmatch_tf.data.augment import geometry as geometry_lib
from simmatch_tf.data.augment import moco, randaugment
from simmatch_tf.data.sources import source

# The views of a batch; all but the last are weak.
VIEWS = ("labeled_weak", "unlabeled_weak", "unlabeled_strong")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The two views of one run.

    Attributes:
        side: Of the crops of encoded images.
        weak: "flip_crop": mirror, and shift within a reflected border;
            "resized_crop": a random crop, resized, and mirror.
        strong: What the strong view adds: "randaugment" and cutout, "moco"
            (colour jitter, grey, blur), "keras_cv" (that library's
            RandAugment) and cutout, or "none".
        flip: Mirror half of the images.
        pad: Pixels of the reflected border.
        crop_area: Least share of the image in a resized crop.
        cutout: Side of the square cutout in pixels; 0: none.
        operations: RandAugment's n; 0: none.
        probability: That a drawn operation is applied.
        low: Least strength, in [0, 1].
        high: Greatest strength.
        levels: Number of strengths between them; 0: any.
    """

    side: int
    weak: str = "flip_crop"
    strong: str = "randaugment"
    flip: bool = True
    pad: int = 4
    crop_area: float = 0.2
    cutout: int = 16
    operations: int = 2
    probability: float = 0.5
    low: float = 0.1
    high: float = 0.9
    levels: int = 9

    def crops(
        self,
        images: source.Images | source.Encoded,
        indices: tf.Tensor,
        seeds: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        """The first stage: one crop for each view of the images.

        Args:
            images: The set.
            indices: Which of them, int64 [n].
            seeds: Of each view, int32 [n, 3].

        Returns:
            uint8 [n, H, W, C] for each view.
        """
        if self.weak == "flip_crop":
            crop = decoding.centre_crops(images, indices, side=self.side)
            return [crop] * len(seeds)
        draws = [_draw(s, "resized_crop", decoding.BOX_DRAWS) for s in seeds]
        return decoding.random_crops(
            images,
            indices,
            tf.stack(draws, axis=1),
            side=self.side,
            area=self.crop_area,
        )

    def draws(self, seeds: tf.Tensor, *, strong: bool) -> tf.Tensor:
        """The numbers in [0, 1) that finish a view: float32 [n, draws].

        Args:
            seeds: int32 [n, 3].
            strong: Of a strong view, not a weak one.
        """
        drawn = [_draw(seeds, "flip_crop", 3)]
        if strong and self.strong == "randaugment":
            drawn.append(randomness.uniform(seeds, 4 * self.operations))
        if strong and self.strong in ("randaugment", "keras_cv"):
            drawn.append(_draw(seeds, "cutout", 2))
        if strong and self.strong == "moco":
            drawn.append(_draw(seeds, "moco", moco.DRAWS))
        return tf.concat(drawn, axis=1)

    def finish(
        self,
        crops: tf.Tensor,
        draws: tf.Tensor,
        *,
        strong: bool,
        dense: bool = False,
    ) -> tf.Tensor:
        """The second stage: views from crops.

        Args:
            crops: uint8 [n, H, W, C].
            draws: See `draws`.
            strong: A strong view, not a weak one.
            dense: Do everything to every image and choose, at static shapes,
                as accelerators want it; False: only what was drawn.

        Returns:
            uint8 [n, H, W, C].
        """
        geometry, rest = draws[:, :3], draws[:, 3:]
        if self.weak == "flip_crop":
            views = geometry_lib.flip_crop(
                crops, geometry, flip=self.flip, pad=self.pad
            )
        else:
            views = crops
            if self.flip:
                views = geometry_lib.flip(crops, geometry[:, 2:])
        if not strong or self.strong == "none":
            return views
        if self.strong == "moco":
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

    def finish_batch(
        self, batch: dict[str, tf.Tensor], *, dense: bool = False
    ) -> dict[str, tf.Tensor]:
        """Finishes all views of a batch; its draws are used up."""
        batch = dict(batch)
        for view in VIEWS:
            if view in batch:
                batch[view] = self.finish(
                    batch[view],
                    batch.pop(f"draws/{view}"),
                    strong=view.endswith("strong"),
                    dense=dense,
                )
        return batch


def _draw(seeds: tf.Tensor, stream: str, count: int) -> tf.Tensor:
    """[N, count] numbers in [0, 1) that only this view uses."""
    key = randomness.key(0, stream)
    offset = tf.constant([key, 0, 0], tf.int32)
    return randomness.uniform(tf.bitwise.bitwise_xor(seeds, offset), count)


@functools.cache
def _keras_cv(recipe: Recipe) -> Callable[[tf.Tensor], tf.Tensor]:
    """That library's layer, as near to the recipe as its arguments allow."""
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
