"""Every operation against Pillow's own."""

import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageFilter
import PIL.ImageOps
import pytest
import tensorflow as tf

from simmatch_tf.data import randaugment

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
    found = randaugment.apply(
        tf.constant(x), tf.constant(operation), tf.constant(strengths)
    ).numpy()
    for image, ours, r in zip(x, found, strengths, strict=True):
        wanted = pillow(image, name, float(r))
        difference = np.abs(ours.astype(int) - wanted.astype(int))
        assert difference.max() <= 1, (name, r)


def test_constant_and_two_valued_images():
    for x in (np.full([1, 8, 8, 1], 9, np.uint8), np.uint8([[[[0], [9]]] * 8])):
        for name in ("AutoContrast", "Equalize"):
            found = randaugment.apply(
                tf.constant(np.resize(x, [1, 8, 8, 1])),
                tf.constant([randaugment.OPERATIONS.index(name)]),
                tf.constant([0.5]),
            )
            wanted = pillow(np.resize(x, [8, 8, 1]), name, 0.5)
            np.testing.assert_array_equal(found[0], wanted)


def seeds(count):
    return tf.stack(
        [tf.fill([count], 7), tf.zeros([count], tf.int32), tf.range(count)], 1
    )


def drawn(monkeypatch, **options):
    """What `rand_augment` draws: (operation, strength) of each slot."""
    found = []

    def note(images, operation, strength):
        found.append((operation.numpy(), strength.numpy()))
        return images

    monkeypatch.setattr(randaugment, "apply", note)
    count = 7000
    x = np.zeros([count, 8, 8, 1], np.uint8)
    randaugment.rand_augment(x, seeds(count), **options)
    return found


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
