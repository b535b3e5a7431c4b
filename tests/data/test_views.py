import dataclasses
import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import fixmatch
from simmatch_tf.data import decoding, pipeline, randomness, splits, views
from simmatch_tf.data.augment import geometry
from simmatch_tf.data.sources import source
from simmatch_tf.training import inputs
from tests import runs, variants

SIDE = 24
WEAK = views.Recipe(side=SIDE, pad=3, cutout=12)
FLIP_CROP = dataclasses.replace(WEAK, strong="randaugment")
RESIZED = dataclasses.replace(FLIP_CROP, crop="resized_crop")
RECIPES = {
    "flip_crop, randaugment": FLIP_CROP,
    "flip_crop, moco": dataclasses.replace(FLIP_CROP, strong="moco"),
    "flip_crop, jitter": dataclasses.replace(FLIP_CROP, strong="jitter"),
    "flip_crop, none": dataclasses.replace(FLIP_CROP, strong="none"),
    "resized_crop, randaugment": RESIZED,
    "resized_crop, moco": dataclasses.replace(RESIZED, strong="moco"),
}


class Encoded:
    """JPEGs of several sizes, every other one lying on its side."""

    encoded = True
    names = None

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.labels = np.arange(count, dtype=np.int32) % 2
        self.bytes = []
        for _ in range(count):
            height, width = rng.integers(20, 70, 2)
            small = rng.integers(0, 256, [height // 8 + 1, width // 8 + 1, 3])
            image = PIL.Image.fromarray(small.astype(np.uint8))
            file = io.BytesIO()
            image.resize((width, height)).save(file, "JPEG")
            self.bytes.append(file.getvalue())

    def __len__(self):
        return len(self.bytes)

    def read(self, index):
        orientation = tf.cast(1 + 5 * (index % 2), tf.int32)
        return tf.gather(tf.constant(self.bytes), index), orientation


def in_memory(count, channels=3):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, [count, 4, 4, channels]).astype(np.uint8)
    x = x.repeat(SIDE // 4, axis=1).repeat(SIDE // 4, axis=2)
    return source.Images(x, np.arange(count) % 2)


def seeds(count, epoch=0, seed=0):
    key = randomness.key(seed, "test")
    return randomness.seeds(key, tf.fill([count], epoch), tf.range(count))


def make(recipe, images, **changes):
    data = source.Source(
        "mine", ["a", "b"], images, None, True, image_size=SIDE
    )
    split = splits.draw(
        data,
        labels=6,
        label_fraction=None,
        split_seed=0,
        validation_fraction=0.0,
        unlabeled_includes_labeled=True,
    )
    options = {"batch_size": 4, "unlabeled_batch_size": 8, "seed": 0}
    weak = dataclasses.replace(recipe, strong="none")
    labeled, unlabeled = {"weak": weak}, {"weak": weak, "strong": recipe}
    return pipeline.Pipeline(
        data, split, labeled, unlabeled, **{**options, **changes}
    )


def read(dataset):
    return [{k: v.numpy() for k, v in batch.items()} for batch in dataset]


def assert_equal(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.slow
@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize(
    "name", variants.of(RECIPES, ("flip_crop, randaugment",))
)
def test_batches_are_the_same_however_they_are_made(name, encoded):
    images = Encoded(20) if encoded else in_memory(20)
    input_pipeline = make(RECIPES[name], images, parallel_calls=1)
    whole = read(input_pipeline.dataset(0, 4))
    for view in ("labeled_weak", "unlabeled_weak", "unlabeled_strong"):
        assert whole[0][view].dtype == np.uint8
        assert whole[0][view].shape[1:] == (SIDE, SIDE, 3)
    strong, weak = whole[0]["unlabeled_strong"], whole[0]["unlabeled_weak"]
    assert (strong != weak).any(axis=(1, 2, 3)).mean() > 0.7
    # From a later step, several at once, half of each on each of two replicas.
    many = dataclasses.replace(input_pipeline, parallel_calls=7)
    context = tf.distribute.InputContext(1, 0, 2)
    halves = read(many.dataset(2, 4, context))
    assert_equal(
        whole[2:],
        [
            {k: np.concatenate([one[k], other[k]]) for k in one}
            for one, other in zip(halves[::2], halves[1::2], strict=True)
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", variants.of(RECIPES, ("flip_crop, randaugment",))
)
def test_finished_in_front_of_the_step(name):
    input_pipeline = make(RECIPES[name], Encoded(20))
    crops = dataclasses.replace(input_pipeline, finished=False).dataset(0, 2)
    host = read(input_pipeline.dataset(0, 2))
    finish = tf.function(
        lambda batch: input_pipeline.finish(batch, dense=True),
        autograph=False,
    )
    device = read([finish(batch) for batch in crops])
    assert_equal(host, device)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_in_memory(channels):
    for recipe in (FLIP_CROP, RESIZED):
        input_pipeline = make(recipe, in_memory(20, channels))
        batch = read(input_pipeline.dataset(0, 1))[0]
        assert batch["unlabeled_strong"].shape == (8, SIDE, SIDE, channels)


def test_epoch_and_seed_change_the_view():
    x = in_memory(64).images
    for recipe in (WEAK, FLIP_CROP):

        def view(s, recipe=recipe):
            return recipe.finish(x, recipe.draws(s)).numpy()

        first = view(seeds(64))
        for other in (seeds(64, epoch=1), seeds(64, seed=1)):
            changed = (view(other) != first).any(axis=(1, 2, 3))
            assert changed.mean() > 0.8


def test_weak_views_have_the_geometry_alone():
    x = in_memory(40).images
    draws = WEAK.draws(seeds(40))
    np.testing.assert_array_equal(
        WEAK.finish(x, draws),
        geometry.flip_crop(x, draws, flip=True, pad=3),
    )
    resized = dataclasses.replace(WEAK, crop="resized_crop")
    draws = resized.draws(seeds(40))
    view = resized.finish(x, draws).numpy()
    mirrored = (view != x).any(axis=(1, 2, 3))
    assert 0.2 < mirrored.mean() < 0.8
    np.testing.assert_array_equal(view[mirrored], x[mirrored][:, :, ::-1])
    still = dataclasses.replace(resized, flip=False)
    np.testing.assert_array_equal(still.finish(x, draws), x)


# Both ends of every range that a flag of the views declares.
BOUNDS = [
    {"randaugment_operations": 0},
    {"randaugment_operations": 0, "cutout": 0.0},
    {"randaugment_operations": 14},
    {"randaugment_probability": 0.0},
    {"randaugment_probability": 1.0},
    {"randaugment_low": 0.0, "randaugment_high": 0.0},
    {"randaugment_low": 1.0, "randaugment_high": 1.0},
    {"randaugment_levels": 0},
    {"randaugment_levels": 1},
    {"cutout": 0.0},
    {"cutout": 1.0},
    {"weak": "resized_crop", "crop_area": 0.01},
    {"weak": "resized_crop", "crop_area": 1.0},
]


@pytest.mark.parametrize(
    "flags", BOUNDS, ids=lambda flags: " ".join(map(str, flags.items()))
)
def test_the_flags_own_bounds(flags, tmp_path):
    config = runs.config(tmp_path, **{"strong": "randaugment", **flags})
    data = source.Source(
        "mine", ["a", "b"], in_memory(20), None, True, image_size=SIDE
    )
    split = splits.draw(
        data,
        labels=6,
        label_fraction=None,
        split_seed=0,
        validation_fraction=0.0,
        unlabeled_includes_labeled=True,
    )
    input_pipeline = inputs.make_pipeline(
        config, data, split, fixmatch.FixMatch
    )
    recipe = input_pipeline.unlabeled_views["strong"]
    indices, numbers = tf.range(4, dtype=tf.int64), seeds(4)
    (crops,) = views.crops(
        {"strong": recipe}, data.train, indices, {"strong": numbers}
    ).values()
    finished = {}
    for name, dense in (("host", False), ("device", True)):
        draws = recipe.draws(numbers)
        finished[name] = recipe.finish(crops, draws, dense=dense)
    assert finished["host"].shape == (4, SIDE, SIDE, 3)
    np.testing.assert_array_equal(finished["host"], finished["device"])
    if not config.randaugment_operations:
        weak = dataclasses.replace(recipe, strong="none")
        draws = recipe.draws(numbers)
        plain = weak.finish(crops, draws)
        wanted = geometry.cutout(plain, draws[:, 3:], side=recipe.cutout)
        np.testing.assert_array_equal(finished["host"], wanted)


@pytest.mark.slow
def test_keras_cv_s_own_layer():
    recipe = dataclasses.replace(FLIP_CROP, strong="keras_cv", cutout=0)
    input_pipeline = make(recipe, in_memory(20))
    batch = read(input_pipeline.dataset(0, 1))[0]
    strong = batch["unlabeled_strong"]
    assert strong.dtype == np.uint8 and strong.shape == (8, SIDE, SIDE, 3)
    weak = dataclasses.replace(recipe, strong="none")
    plain = read(make(weak, in_memory(20)).dataset(0, 1))[0]
    changed = (strong != plain["unlabeled_strong"]).any(axis=(1, 2, 3))
    assert changed.any()
    # With no operation it is the geometry, up to nothing.
    none = dataclasses.replace(recipe, operations=0)
    unchanged = read(make(none, in_memory(20)).dataset(0, 1))[0]
    np.testing.assert_array_equal(
        unchanged["unlabeled_strong"], plain["unlabeled_strong"]
    )


def test_crops_are_those_of_their_boxes():
    images = Encoded(6)
    indices = tf.range(6, dtype=tf.int64)
    draws = np.random.default_rng(1).random([6, 2, decoding.BOX_DRAWS])
    draws = tf.constant(draws, tf.float32)
    crops = decoding.random_crops(
        images, indices, draws, side=SIDE, area=(0.3, 1.0)
    )
    assert len(crops) == 2
    for place in range(6):
        encoded, orientation = images.read(tf.constant(place, tf.int64))
        pixels = decoding.decode(encoded, orientation)
        for crop in range(2):
            box = decoding.crop_box(
                draws[place, crop],
                tf.constant(pixels.shape[:2]),
                scale=(0.3, 1.0),
            )
            wanted = decoding.resized_crop(pixels, box, SIDE)
            np.testing.assert_array_equal(crops[crop][place], wanted)


def test_evaluation_sees_the_whole_image_or_its_centre():
    memory = in_memory(5)
    indices = tf.constant([3, 1], tf.int64)
    whole = decoding.centre_crops(memory, indices, side=SIDE)
    np.testing.assert_array_equal(whole, memory.images[[3, 1]])
    resized = decoding.centre_crops(memory, indices, side=16, resize=20)
    wanted = PIL.Image.fromarray(memory.images[3]).resize(
        (20, 20), PIL.Image.Resampling.BILINEAR
    )
    difference = resized[0].numpy().astype(int) - np.asarray(wanted)[2:18, 2:18]
    assert np.abs(difference).max() <= 1
    encoded = Encoded(4)
    crops = decoding.centre_crops(encoded, indices, side=SIDE, resize=30)
    pixels = decoding.decode(*encoded.read(tf.constant(1, tf.int64)))
    np.testing.assert_array_equal(
        crops[1], decoding.fit(pixels, resize=30, side=SIDE)
    )


@pytest.mark.parametrize("kernel", ["triangle", "keyscubic"])
def test_images_in_memory_become_the_size_asked_for(kernel):
    memory = in_memory(5)
    indices = tf.constant([3, 1], tf.int64)
    for options in ({"side": 40}, {"side": 16}, {"side": SIDE, "resize": 30}):
        crops = decoding.centre_crops(memory, indices, kernel=kernel, **options)
        options.setdefault("resize", options["side"])
        for one, place in zip(crops, (3, 1), strict=True):
            pixels = tf.constant(memory.images[place])
            np.testing.assert_array_equal(
                one, decoding.fit(pixels, kernel=kernel, **options)
            )
            others = {"triangle", "keyscubic"} - {kernel}
            other = decoding.fit(pixels, kernel=others.pop(), **options)
            assert (one != other).numpy().any()
    same = decoding.centre_crops(memory, indices, side=SIDE, kernel=kernel)
    np.testing.assert_array_equal(same, memory.images[[3, 1]])


def test_wide_images_in_memory():
    wide = source.Images(in_memory(5).images[:, :12], [0] * 5)
    indices = tf.constant([4, 2], tf.int64)
    same = decoding.centre_crops(wide, indices, side=12)
    np.testing.assert_array_equal(same, wide.images[[4, 2]])
    crops = decoding.centre_crops(wide, indices, side=10)
    np.testing.assert_array_equal(
        crops[1], decoding.fit(tf.constant(wide.images[2]), resize=10, side=10)
    )
