"""Every operation against Pillow's own."""

import functools

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import PIL.ImageOps
import pytest
import tensorflow as tf

from simmatch_tf.data.augment import randaugment

N, SIDE = 6, 20


def images(channels, seed=0):
    """Smooth patches, so that nearest-neighbour ties do not decide a test."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, size=[N, 5, 5, channels]).astype(np.uint8)
    x = x.repeat(4, axis=1).repeat(4, axis=2)
    noise = rng.integers(0, 30, size=x.shape)
    return np.clip(x.astype(int) + noise, 0, 255).astype(np.uint8)


def pillow(image, name, r):
    """The operation by Pillow's functions; r with its sign."""
    flat = image[..., 0] if image.shape[-1] == 1 else image
    pil = PIL.Image.fromarray(flat)
    strength = abs(r)
    factor = 0.05 + 0.9 * strength
    affine = {
        "ShearX": (1, 0.3 * r, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, 0.3 * r, 1, 0),
        "TranslateX": (1, 0, 0.3 * r * SIDE, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, 0.3 * r * SIDE),
    }
    if name == "Identity":
        out = pil
    elif name == "AutoContrast":
        out = PIL.ImageOps.autocontrast(pil)
    elif name == "Equalize":
        out = PIL.ImageOps.equalize(pil)
    elif name == "Posterize":
        out = PIL.ImageOps.posterize(pil, int(4 * strength) + 4)
    elif name == "Solarize":
        out = PIL.ImageOps.solarize(pil, 256 - int(256 * strength))
    elif name == "Rotate":
        out = pil.rotate(30 * r)
    elif name in affine:
        out = pil.transform(pil.size, PIL.Image.Transform.AFFINE, affine[name])
    else:
        out = getattr(PIL.ImageEnhance, name)(pil).enhance(factor)
    return np.asarray(out).reshape(image.shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", randaugment.OPERATIONS)
def test_equals_pillow(name, channels):
    x = images(channels)
    strengths = np.float32([0.1, -0.3, 0.5, -0.7, 0.9, -0.9])
    operation = np.full(N, randaugment.OPERATIONS.index(name), np.int32)
    results = randaugment.apply(
        tf.constant(x), tf.constant(operation), tf.constant(strengths)
    ).numpy()
    for image, ours, r in zip(x, results, strengths, strict=True):
        wanted = pillow(image, name, float(r))
        difference = np.abs(ours.astype(int) - wanted.astype(int))
        assert difference.max() <= 1, (name, r)


def test_constant_and_two_valued_images():
    for x in (np.full([1, 8, 8, 1], 9, np.uint8), np.uint8([[[[0], [9]]] * 8])):
        for name in ("AutoContrast", "Equalize"):
            result = randaugment.apply(
                tf.constant(np.resize(x, [1, 8, 8, 1])),
                tf.constant([randaugment.OPERATIONS.index(name)]),
                tf.constant([0.5]),
            )
            wanted = pillow(np.resize(x, [8, 8, 1]), name, 0.5)
            np.testing.assert_array_equal(result[0], wanted)


def draws(count, columns, seed=0):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.random([count, columns], np.float32))


def every_operation(count=3, height=12, width=17, channels=3):
    """Images, operations and strengths: each operation `count` times."""
    rng = np.random.default_rng(0)
    number = count * len(randaugment.OPERATIONS)
    shape = [number, height, width, channels]
    x = rng.integers(0, 256, shape).astype(np.uint8)
    operation = np.tile(np.arange(len(randaugment.OPERATIONS)), count)
    strength = rng.uniform(-1, 1, number).astype(np.float32)
    return (
        tf.constant(x),
        tf.constant(operation, tf.int32),
        tf.constant(strength),
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dense", [False, True])
def test_an_image_is_the_same_whatever_else_is_in_the_batch(channels, dense):
    arguments = every_operation(channels=channels)
    apply = functools.partial(randaugment.apply, dense=dense)
    whole = apply(*arguments).numpy()
    assert whole.dtype == np.uint8 and whole.shape == arguments[0].shape
    for part in (slice(4, 5), slice(7, 20), slice(30, None)):
        np.testing.assert_array_equal(
            apply(*(argument[part] for argument in arguments)), whole[part]
        )
    compiled = tf.function(apply, autograph=False)
    np.testing.assert_array_equal(compiled(*arguments), whole)
    dataset = tf.data.Dataset.from_tensors(arguments).map(apply)
    np.testing.assert_array_equal(next(iter(dataset)), whole)
    # Batches of no known size.
    dataset = tf.data.Dataset.from_tensor_slices(arguments).batch(16).map(apply)
    parts = [part.numpy() for part in dataset]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_dense_is_equal_and_compiles(channels):
    arguments = every_operation(channels=channels)
    sparse = randaugment.apply(*arguments).numpy()
    dense = randaugment.apply(*arguments, dense=True)
    np.testing.assert_array_equal(dense, sparse)
    compiled = tf.function(
        functools.partial(randaugment.apply, dense=True),
        autograph=False,
        jit_compile=True,
    )
    difference = np.abs(compiled(*arguments).numpy().astype(int) - sparse)
    # XLA may fuse a blend's product and sum, which saves a rounding. So it may
    # in the geometry, but no pixel here is near enough to a tie.
    blends = ["Brightness", "Color", "Contrast", "Sharpness"]
    blends = [randaugment.OPERATIONS.index(name) for name in blends]
    blended = np.isin(arguments[1], blends)
    assert difference[blended].max() <= 1
    assert difference[~blended].max() == 0


def test_nothing_drawn_changes_nothing():
    x = tf.constant(images(3))
    result = randaugment.rand_augment(x, draws(N, 8), probability=0.0)
    np.testing.assert_array_equal(result, x)
    result = randaugment.rand_augment(x, draws(N, 0), operations=0)
    np.testing.assert_array_equal(result, x)


def test_slots_follow_each_other_and_use_their_own_draws():
    x, first, second = images(3), draws(N, 4, 1), draws(N, 4, 2)
    options = {"probability": 1.0}
    result = randaugment.rand_augment(
        tf.constant(x), tf.concat([first, second], 1), **options
    )
    wanted = tf.constant(x)
    for part in (first, second):
        wanted = randaugment.rand_augment(wanted, part, operations=1, **options)
    assert (result.numpy() != x).any(axis=(1, 2, 3)).mean() > 0.5
    np.testing.assert_array_equal(result, wanted)


def drawn(monkeypatch, operations=2, **options):
    """What `rand_augment` draws: (operation, strength) of each slot."""
    slots = []

    def note(images, operation, strength, *, dense):
        assert not dense
        slots.append((operation.numpy(), strength.numpy()))
        return images

    monkeypatch.setattr(randaugment, "apply", note)
    count = 7000
    x = np.zeros([count, 8, 8, 1], np.uint8)
    randaugment.rand_augment(
        x, draws(count, 4 * operations), operations=operations, **options
    )
    return slots


def test_every_operation_is_drawn_alike(monkeypatch):
    slots = drawn(monkeypatch, operations=2, probability=1.0)
    assert len(slots) == 2
    for operation, strength in slots:
        counts = np.bincount(operation, minlength=14)
        assert ((counts - 500) ** 2 / 500).sum() < 34.5  # chi², 13 degrees
        levels, counts = np.unique(np.abs(strength), return_counts=True)
        np.testing.assert_allclose(levels, np.arange(1, 10) / 10, rtol=1e-6)
        assert counts.min() > 650
        assert 0.47 < np.mean(strength > 0) < 0.53
    same = np.mean(slots[0][0] == slots[1][0])
    assert 0.055 < same < 0.088  # 1 in 14: drawn with replacement


@pytest.mark.parametrize("probability", [0.0, 0.5])
def test_probability(monkeypatch, probability):
    ((operation, _),) = drawn(
        monkeypatch, operations=1, probability=probability
    )
    identity = randaugment.OPERATIONS.index("Identity")
    changed = np.mean(operation != identity)
    assert abs(changed - probability * 13 / 14) < 0.02


def test_usb_form_draws_any_strength(monkeypatch):
    slots = drawn(
        monkeypatch,
        operations=3,
        probability=1.0,
        low=0.0,
        high=1.0,
        levels=0,
    )
    assert len(slots) == 3
    for _, strength in slots:
        strength = np.abs(strength)
        assert len(np.unique(strength)) > 6900
        assert strength.min() < 0.01 and strength.max() > 0.99
