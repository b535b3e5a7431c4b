"""Measures how fast views are made, compared with Pillow.

    taskset -c 0 python tools/benchmarks/benchmark_input.py

Makes both views of each image in two ways: as the input pipeline does, in
batches, and image by image with Pillow, as the published PyTorch code does. The
two take turns in one process. Prints images per second on one core, the ratio
of the medians, and the time of each part. Recipes: `cifar` (32×32 images in
memory; flip and crop, RandAugment, cutout) and `imagenet` (JPEGs of 500×375;
crops of 224×224, MoCo's strong view). Both end in arrays of bytes;
normalization is not measured. `startup` measures what a run of ImageNet's size
does before its first batch, and what a resumed run repeats, with an index of
1,281,167 images and no pixels.
"""

import dataclasses
import json
import os
import pathlib
import random
import resource
import statistics
import sys
import time
from collections.abc import Callable

from absl import flags

RECIPE = flags.DEFINE_enum(
    "recipe",
    "all",
    ["all", "cifar", "imagenet", "startup"],
    "Recipe to measure.",
)
ROUNDS = flags.DEFINE_integer("rounds", 7, "Number of rounds over all parts.")
IMAGES = flags.DEFINE_integer("images", None, "Number of images in a round.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


Part = Callable[[int], object]


def cifar(images: int) -> dict[str, Part]:
    """Returns name → a call that does this part for all images of a round."""
    import numpy as np
    import pillow_views
    import tensorflow as tf

    from simmatch_tf.data import views
    from simmatch_tf.data.augment import geometry, randaugment
    from simmatch_tf.data.sources import source

    pixels = np.random.default_rng(0).integers(0, 256, [images, 8, 8, 3])
    pixels = pixels.astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    recipe = views.Recipe(side=32, strong="randaugment")
    held = source.Images(pixels, np.zeros(images, int))
    index = tf.range(images, dtype=tf.int64)

    def both(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _both(recipe, held, index, seed)

    draws = recipe.draws(_seeds(index, tf.constant(0)))
    x = tf.constant(pixels)
    return {
        "both views": _compiled(both),
        "Pillow": lambda seed: _pillow(pillow_views.cifar, pixels, seed),
        "draws": _compiled(
            lambda seed: [
                each.draws(_seeds(index, seed))
                for each in _weak_and_strong(recipe).values()
            ]
        ),
        "flip and crop, twice": _compiled(
            lambda seed: [
                geometry.flip_crop(x, numbers[:, :3], flip=True, pad=4)
                for numbers in (draws, draws[::-1])
            ]
        ),
        "RandAugment": _compiled(
            lambda seed: randaugment.rand_augment(x, draws[:, 3:-2])
        ),
        "cutout": _compiled(
            lambda seed: geometry.cutout(x, draws[:, -2:], side=16)
        ),
    }


def imagenet(images: int) -> dict[str, Part]:
    """Returns name → a call that does this part for all images of a round."""
    import pillow_views
    import tensorflow as tf

    from simmatch_tf.data import decoding, views
    from simmatch_tf.data.augment import moco

    photos = _Photos(images)
    recipe = views.Recipe(side=224, crop="resized_crop", strong="moco")
    index = tf.range(images, dtype=tf.int64)

    def both(seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return _both(recipe, photos, index, seed)

    draws = recipe.draws(_seeds(index, tf.constant(0)))
    whole = decoding.centre_crops(photos, index, side=224)

    def decode(seed: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda i: tf.reduce_max(decoding.decode(*photos.read(i))),
            index,
            fn_output_signature=tf.uint8,
        )

    def crops(seed: tf.Tensor) -> list[tf.Tensor]:
        recipes = _weak_and_strong(recipe)
        seeds = {n: _seeds(index, seed + i) for i, n in enumerate(recipes)}
        return list(views.crops(recipes, photos, index, seeds).values())

    return {
        "both views": _compiled(both),
        "Pillow": lambda seed: _pillow(
            pillow_views.imagenet, photos.bytes, seed
        ),
        "decode whole": _compiled(decode),
        "decode, crop and resize, twice": _compiled(crops),
        "colors and blur": _compiled(
            lambda seed: moco.color(whole, draws[:, 3:])
        ),
    }


def startup() -> dict[str, float]:
    """Returns the seconds of each part of a start."""
    import tempfile

    import numpy as np

    from simmatch_tf.data import pipeline, splits, views
    from simmatch_tf.data.sources import source

    size, classes = 1_281_167, 1000
    photos = _Photos(1)
    photos.labels = np.arange(size, dtype=np.int32) % classes
    photos.names = [f"n{i % classes:08}_{i}.JPEG" for i in range(size)]
    names = [str(name) for name in range(classes)]
    data = source.Source("big", names, photos, None, True, image_size=224)
    seconds, began = {}, time.perf_counter()

    def note(part: str) -> None:
        seconds[part] = time.perf_counter() - began - sum(seconds.values())

    split = splits.draw(
        data,
        labels=None,
        label_fraction=0.1,
        split_seed=0,
        validation_fraction=0.0,
        unlabeled_includes_labeled=False,
    )
    note("draw the split")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "split.json")
        splits.write(path, split, data)
        note("write it")
        split = splits.read(path, data)
        note("read it again")
    weak = views.Recipe(side=224, crop="resized_crop")
    batches = pipeline.Pipeline(
        source=data,
        split=split,
        labeled_views={"weak": weak},
        unlabeled_views={
            "weak": weak,
            "strong": dataclasses.replace(weak, strong="moco"),
        },
        batch_size=64,
        unlabeled_batch_size=320,
        seed=0,
    )
    for step in (0, 1_000_000):  # a million batches are not replayed
        next(iter(batches.dataset(step, step + 1)))
        note(f"first batch from step {step:,}")
    return seconds


class _Photos:
    """JPEGs of 500×375, about 90 KB each; see `source.Encoded`."""

    encoded = True
    names = None

    def __init__(self, count: int) -> None:
        import io

        import numpy as np
        import PIL.Image
        import tensorflow as tf

        rng = np.random.default_rng(0)
        self.labels = np.zeros(count, np.int32)
        self.bytes = []
        for _ in range(count):
            pixels = rng.normal(size=[375, 500, 1]) * 0.28
            for cell in (8, 16, 64, 128):  # detail at every scale
                small = rng.normal(size=[375 // cell + 2, 500 // cell + 2, 3])
                pixels = pixels + tf.image.resize(
                    small, [375, 500], method="bicubic"
                )
            pixels = np.array(pixels)
            pixels -= pixels.min()
            pixels = (pixels / pixels.max() * 255).astype(np.uint8)
            file = io.BytesIO()
            PIL.Image.fromarray(pixels).save(file, "JPEG", quality=95)
            self.bytes.append(file.getvalue())
        self._tensor = tf.constant(self.bytes)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index):
        import tensorflow as tf

        place = index % len(self.bytes)
        return tf.gather(self._tensor, place), tf.constant(1)


def _seeds(index, epoch):
    import tensorflow as tf

    from simmatch_tf.data import randomness

    key = randomness.key(0, "benchmark")
    return randomness.seeds(key, tf.fill(tf.shape(index), epoch), index)


def _both(recipe, images, index, seed):
    """Makes both views, as the input pipeline does in one batch."""
    from simmatch_tf.data import views

    recipes = _weak_and_strong(recipe)
    seeds = {n: _seeds(index, 2 * seed + i) for i, n in enumerate(recipes)}
    crops = views.crops(recipes, images, index, seeds)
    return [
        each.finish(crops[name], each.draws(seeds[name]))
        for name, each in recipes.items()
    ]


def _weak_and_strong(recipe):
    """The recipes of a weak and of a strong view, by name."""
    return {
        "weak": dataclasses.replace(recipe, strong="none"),
        "strong": recipe,
    }


def _compiled(function) -> Part:
    import tensorflow as tf

    traced = tf.function(function, autograph=False)

    def call(seed: int) -> object:
        return tf.nest.map_structure(
            lambda tensor: tensor.numpy(), traced(tf.constant(seed))
        )

    return call


def _pillow(view, images, seed: int) -> object:
    import numpy as np

    source = random.Random(seed)
    weak, strong = zip(*(view(x, source) for x in images), strict=True)
    return np.stack(weak), np.stack(strong)


def measure(parts: dict[str, Part], rounds: int) -> dict[str, float]:
    """Returns the median seconds of each part over alternating rounds."""
    for call in parts.values():
        call(0)
    seconds = {name: [] for name in parts}
    for round_ in range(rounds):
        for name, call in parts.items():
            began = time.perf_counter()
            call(1 + round_)
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(v) for name, v in seconds.items()}


def main() -> None:
    """Measures, prints, and writes the figures if asked to."""
    flags.FLAGS(sys.argv)
    import tensorflow as tf

    from simmatch_tf import runtime

    runtime.keep_memory()
    if cores := len(os.sched_getaffinity(0)) - 1:
        print(f"{cores + 1} cores: 'taskset -c 0' gives figures for one")
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    figures = {}
    for name, make, images in (
        ("cifar", cifar, IMAGES.value or 448),
        ("imagenet", imagenet, IMAGES.value or 64),
    ):
        if RECIPE.value not in ("all", name):
            continue
        medians = measure(make(images), ROUNDS.value)
        ours = medians["both views"]
        figures[name] = {"images": images, "median_seconds": medians}
        print(f"\n{name}: {medians['Pillow'] / ours:.2f} × Pillow")
        for part, seconds in medians.items():
            print(
                f"  {part:32} {images / seconds:9,.0f} images/s "
                f"{1e3 * seconds / images:8.3f} ms an image"
            )
    if RECIPE.value in ("all", "startup"):
        figures["startup"] = seconds = startup()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"\nstartup: {sum(seconds.values()):.1f} s, {memory:.2f} GiB")
        for part, value in seconds.items():
            print(f"  {part:32} {value:9.2f} s")
    if OUTPUT.value:
        text = json.dumps(figures, indent=1) + "\n"
        pathlib.Path(OUTPUT.value).write_text(text)


if __name__ == "__main__":
    main()
