"""Encoded images to a network's input: the short way and the long way."""

import io

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tensorflow as tf

from simmatch_tf.serving import preprocessing

RNG = np.random.default_rng(0)
SHAPE = {"L": (8, 8, 1), "RGB": (8, 8, 3)}


def encoded(pixels, kind="PNG", **more):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **more)
    return file.getvalue()


def pixels(mode, height=8, width=8):
    size = (height, width) if mode == "L" else (height, width, 3)
    return RNG.integers(0, 256, size).astype(np.uint8)


def gamma():
    chunks = PIL.PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", (45455).to_bytes(4, "big"))
    return chunks


def turned():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif


def plainly(how, data):
    """By the short way, if the image is one for it; and by the long one."""
    plain = bool(how._is_plain(tf.constant(data)))
    short = how._decode_plain(tf.constant(data)) if plain else None
    return short, how._decode_any(tf.constant(data))


@pytest.mark.parametrize("mode", SHAPE)
@pytest.mark.parametrize("more", ["", "transparent", "gamma"])
def test_the_short_way_changes_nothing(mode, more):
    how = preprocessing.Preprocessing(SHAPE[mode], None)
    image = pixels(mode)
    chosen = int(image[0, 0]) if mode == "L" else tuple(map(int, image[0, 0]))
    options = {
        "": {},
        "transparent": {"transparency": chosen},
        "gamma": {"pnginfo": gamma()},
    }[more]
    short, long = plainly(how, encoded(image, **options))
    np.testing.assert_array_equal(short, long)
    np.testing.assert_array_equal(short, image.reshape(SHAPE[mode]))


@pytest.mark.parametrize("mode", SHAPE)
def test_what_takes_the_long_way(mode):
    how = preprocessing.Preprocessing(SHAPE[mode], None)
    image, other = pixels(mode), pixels("RGB" if mode == "L" else "L")
    alpha = RNG.integers(0, 256, [8, 8, 4]).astype(np.uint8)
    for data in (
        encoded(image, exif=turned()),
        encoded(pixels(mode, 8, 9)),
        encoded(other),
        encoded(alpha),
        encoded(image, "JPEG"),
        encoded(image)[:20],
    ):
        assert not how._is_plain(tf.constant(data))
    np.testing.assert_array_equal(
        how.decode(tf.constant(encoded(image, exif=turned())))[..., 0],
        np.rot90(image.reshape(SHAPE[mode])[..., 0], -1),
    )
    # Resized beyond its own side and cropped: never.
    larger = preprocessing.Preprocessing(SHAPE[mode], 9)
    assert not larger._is_plain(tf.constant(encoded(image)))


@pytest.mark.parametrize("mode", SHAPE)
def test_batches_of_all_kinds(mode):
    how = preprocessing.Preprocessing(SHAPE[mode], None)
    decode = tf.function(
        how.decode_batch,
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    plain = [encoded(pixels(mode)) for _ in range(5)]
    others = [
        encoded(pixels("RGB", 30, 20), kind)
        for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP")
    ]
    for batch in (plain, others, plain + others, others[:1], []):
        found = decode(tf.constant(batch, tf.string))
        assert found.shape == (len(batch), *SHAPE[mode])
        for image, data in zip(found, batch, strict=True):
            np.testing.assert_array_equal(
                image, how._decode_any(tf.constant(data))
            )
    # Damaged behind what is looked at first.
    for batch in (plain, others):
        broken = [*batch[:3], plain[0][:-30], *batch[3:], b"no image"]
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"bytes\[3 6\]"
        ):
            decode(tf.constant(broken))
    broken = [*plain[:2], plain[0][:-30]]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"bytes\[2\]"):
        decode(tf.constant(broken))
