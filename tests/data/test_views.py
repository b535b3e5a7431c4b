import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.data import randomness, views

RECIPE = views.Recipe(flip=True, pad=2, cutout=8)


def images(count, channels=3, side=16):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=[count, side, side, channels])
    return x.astype(np.uint8)


def seeds(count, epoch=0, seed=0):
    key = randomness.key(seed, "test")
    return randomness.seeds(key, tf.fill([count], epoch), tf.range(count))


@pytest.mark.parametrize("view", ["weak", "strong"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_same_eagerly_batched_alone_and_in_tf_data(view, channels):
    x, s = images(9, channels), seeds(9)
    make = getattr(RECIPE, view)
    whole = make(x, s).numpy()
    assert whole.dtype == np.uint8 and whole.shape == x.shape
    assert (whole != x).any()
    np.testing.assert_array_equal(make(x[4:7], s[4:7]), whole[4:7])
    np.testing.assert_array_equal(make(x[5], s[5]), whole[5])
    dataset = tf.data.Dataset.from_tensors((x, s)).map(make)
    np.testing.assert_array_equal(next(iter(dataset)), whole)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_epoch_and_seed_change_the_view(view):
    x = images(64)
    make = getattr(RECIPE, view)
    first = make(x, seeds(64)).numpy()
    for other in (seeds(64, epoch=1), seeds(64, seed=1)):
        changed = (make(x, other).numpy() != first).any(axis=(1, 2, 3))
        assert changed.mean() > 0.8


def test_every_crop_is_one_of_the_reflected_image():
    x = images(500, 1, 8)
    found = views.flip_crop(x, seeds(500), flip=True, pad=2).numpy()
    seen = set()
    for image, view in zip(x, found, strict=True):
        padded = np.pad(image, [[2, 2], [2, 2], [0, 0]], "reflect")
        crops = {
            (flip, y, z): padded[y : y + 8, z : z + 8]
            for flip in (0, 1)
            for y in range(5)
            for z in range(5)
        }
        matches = [
            place
            for place, crop in crops.items()
            if np.array_equal(crop[:, ::-1] if place[0] else crop, view)
        ]
        assert matches
        seen.update(matches)
    assert len(seen) == 50


def test_no_flip_and_no_pad_is_the_identity():
    x = images(20)
    np.testing.assert_array_equal(
        views.flip_crop(x, seeds(20), flip=False, pad=0), x
    )


def test_cutout_is_one_clipped_grey_square():
    x = np.zeros([500, 16, 16, 1], np.uint8)
    found = views.cutout(x, seeds(500), side=8).numpy()[..., 0]
    centres = np.zeros([16, 16])
    for view in found:
        rows, columns = np.nonzero(view == views.CUTOUT_GREY)
        top, left = rows.min(), columns.min()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width  # a rectangle
        assert height == 8 or top == 0 or top + height == 16
        assert 4 <= height <= 8 and 4 <= width <= 8
        # In the corner the square's own corner is the centre.
        centre = [
            start + 4 if start else start + size - 4
            for start, size in ((top, height), (left, width))
        ]
        centres[tuple(centre)] += 1
    assert (centres.sum(axis=0) > 0).all() and (centres.sum(axis=1) > 0).all()
    np.testing.assert_array_equal(views.cutout(x, seeds(500), side=0), x)


def test_draws_are_uniform_and_independent():
    u = randomness.uniform(seeds(4000), 8).numpy()
    assert u.min() >= 0 and u.max() < 1
    for column in u.T:
        counts = np.histogram(column, 20, (0, 1))[0]
        assert ((counts - 200) ** 2 / 200).sum() < 50  # chi², 19 degrees
    correlation = np.corrcoef(u.T) - np.eye(8)
    assert np.abs(correlation).max() < 0.06
    lagged = np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]
    assert abs(lagged) < 0.03
    other = randomness.uniform(seeds(4000, epoch=1), 8).numpy()
    assert abs(np.corrcoef(u.ravel(), other.ravel())[0, 1]) < 0.03


def test_a_longer_draw_begins_with_the_shorter():
    np.testing.assert_array_equal(
        randomness.uniform(seeds(5), 3), randomness.uniform(seeds(5), 9)[:, :3]
    )


@pytest.mark.parametrize("size", [1, 2, 40, 1000])
def test_shuffle_is_a_permutation_of_its_own_for_each_epoch(size):
    def order(epoch):
        index = tf.range(size, dtype=tf.int64)
        return randomness.shuffle(
            3, tf.fill([size], tf.constant(epoch, tf.int64)), index, size
        ).numpy()

    assert sorted(order(0)) == list(range(size))
    if size > 10:
        assert (order(0) != order(1)).mean() > 0.8


def test_shuffle_puts_each_image_at_each_place_alike():
    epochs = tf.repeat(tf.range(2000, dtype=tf.int64), 5)
    index = tf.tile(tf.range(5, dtype=tf.int64), [2000])
    order = randomness.shuffle(3, epochs, index, 5).numpy().reshape(2000, 5)
    for place in order.T:
        counts = np.bincount(place, minlength=5)
        assert ((counts - 400) ** 2 / 400).sum() < 18.5  # chi², 4 degrees


def test_keys_differ():
    keys = {randomness.key(s, t) for s in range(50) for t in ("weak", "strong")}
    assert len(keys) == 100
