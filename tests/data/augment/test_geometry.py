import functools

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.data.augment import geometry


def images(count, channels=3, height=16, width=16):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=[count, height, width, channels])
    return tf.constant(x.astype(np.uint8))


def draws(count, columns):
    rng = np.random.default_rng(1)
    return tf.constant(rng.random([count, columns], np.float32))


STEPS = {
    "flip_crop": (functools.partial(geometry.flip_crop, flip=True, pad=2), 3),
    "flip": (geometry.flip, 1),
    "cutout": (functools.partial(geometry.cutout, side=6), 2),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", STEPS)
def test_an_image_is_the_same_whatever_else_is_in_the_batch(step, channels):
    step, columns = STEPS[step]
    x, u = images(9, channels, 12, 17), draws(9, columns)
    whole = step(x, u).numpy()
    assert whole.dtype == np.uint8 and whole.shape == x.shape
    assert (whole != x.numpy()).any()
    np.testing.assert_array_equal(step(x[4:7], u[4:7]), whole[4:7])
    np.testing.assert_array_equal(step(x[5:6], u[5:6]), whole[5:6])
    for jit_compile in (False, True):
        compiled = tf.function(step, autograph=False, jit_compile=jit_compile)
        np.testing.assert_array_equal(compiled(x, u), whole)
    # Batches of no known size.
    dataset = tf.data.Dataset.from_tensor_slices((x, u)).batch(4).map(step)
    parts = [part.numpy() for part in dataset]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_every_crop_is_one_of_the_reflected_image():
    x, u = images(500, 1, 8, 8).numpy(), draws(500, 3).numpy()
    crops = geometry.flip_crop(x, u, flip=True, pad=2).numpy()
    seen = set()
    for image, view, draw in zip(x, crops, u, strict=True):
        mirrored = draw[2] < 0.5
        image = image[:, ::-1] if mirrored else image
        padded = np.pad(image, [[2, 2], [2, 2], [0, 0]], "reflect")
        top, left = np.floor(5 * draw[:2]).astype(int)
        np.testing.assert_array_equal(
            view, padded[top : top + 8, left : left + 8]
        )
        seen.add((top, left, mirrored))
    assert len(seen) == 50


def test_no_flip_and_no_pad_is_the_identity():
    x = images(20)
    np.testing.assert_array_equal(
        geometry.flip_crop(x, draws(20, 3), flip=False, pad=0), x
    )


def test_flip_mirrors_below_a_half():
    x = images(4, height=5, width=7)
    u = tf.constant([[0.0], [0.4999], [0.5], [0.9999]])
    flipped = geometry.flip(x, u)
    np.testing.assert_array_equal(flipped[:2], x[:2, :, ::-1])
    np.testing.assert_array_equal(flipped[2:], x[2:])


def test_cutout_is_one_clipped_grey_square():
    u = draws(500, 2)
    x = tf.zeros([500, 16, 16, 1], tf.uint8)
    views = geometry.cutout(x, u, side=8).numpy()[..., 0]
    centres = np.zeros([16, 16])
    for view, draw in zip(views, u.numpy(), strict=True):
        row, column = np.floor(16 * draw).astype(int)
        wanted = np.zeros([16, 16], np.uint8)
        wanted[max(row - 4, 0) : row + 4, max(column - 4, 0) : column + 4] = (
            geometry.CUTOUT_GREY
        )
        np.testing.assert_array_equal(view, wanted)
        centres[row, column] += 1
    assert (centres.sum(axis=0) > 0).all() and (centres.sum(axis=1) > 0).all()


def test_cutout_leaves_the_rest_alone():
    x, u = images(50), draws(50, 2)
    views = geometry.cutout(x, u, side=5).numpy()
    painted = (views == geometry.CUTOUT_GREY).all(axis=-1, keepdims=True)
    assert 9 <= painted.sum(axis=(1, 2, 3)).min()
    np.testing.assert_array_equal(
        views, np.where(painted, geometry.CUTOUT_GREY, x)
    )
    np.testing.assert_array_equal(geometry.cutout(x, u, side=0), x)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("which", ["none", "some", "all"])
def test_on_drawn_changes_what_was_drawn(which, dense):
    x = images(10)
    add = tf.constant(np.arange(1, 11), tf.uint8)
    drawn = {
        "none": np.zeros(10, bool),
        "some": np.arange(10) % 3 == 0,
        "all": np.ones(10, bool),
    }[which]
    wanted = x.numpy() + np.where(drawn, add, 0)[:, None, None, None]

    def change(x, drawn, add):
        return geometry.on_drawn(
            x,
            drawn,
            lambda x, add: x + add[:, None, None, None],
            add,
            dense=dense,
        )

    for function in (change, tf.function(change, autograph=False)):
        changed = function(x, tf.constant(drawn), add)
        assert changed.shape == x.shape
        np.testing.assert_array_equal(changed, wanted.astype(np.uint8))


def test_only_the_dense_form_touches_all_images():
    sizes = []

    def note(x):
        sizes.append(len(x))
        return x

    x = images(10)
    for drawn in ([False] * 10, [True] * 3 + [False] * 7):
        for dense in (False, True):
            geometry.on_drawn(x, tf.constant(drawn), note, dense=dense)
    assert sizes == [10, 3, 10]
