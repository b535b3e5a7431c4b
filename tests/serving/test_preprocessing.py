"""Preprocessing of encoded images, with and without the fast path."""

import io

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tensorflow as tf

from simmatch_tf.serving import preprocessing
from tests.serving.helpers import TEST, photograph, png

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


def both_paths(preprocess, data):
    """Decodes by the fast path, if it applies, and by the general one."""
    plain = bool(preprocess._is_plain(tf.constant(data)))
    short = preprocess._decode_plain(tf.constant(data)) if plain else None
    return short, preprocess._decode_any(tf.constant(data))


@pytest.mark.parametrize("mode", SHAPE)
@pytest.mark.parametrize("more", ["", "transparent", "gamma"])
def test_fast_path_agrees_with_general_path(mode, more):
    preprocess = preprocessing.Preprocessing(SHAPE[mode], None)
    image = pixels(mode)
    chosen = int(image[0, 0]) if mode == "L" else tuple(map(int, image[0, 0]))
    options = {
        "": {},
        "transparent": {"transparency": chosen},
        "gamma": {"pnginfo": gamma()},
    }[more]
    short, long = both_paths(preprocess, encoded(image, **options))
    np.testing.assert_array_equal(short, long)
    np.testing.assert_array_equal(short, image.reshape(SHAPE[mode]))


@pytest.mark.parametrize("mode", SHAPE)
def test_images_that_need_the_general_path(mode):
    preprocess = preprocessing.Preprocessing(SHAPE[mode], None)
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
        assert not preprocess._is_plain(tf.constant(data))
    np.testing.assert_array_equal(
        preprocess.decode(tf.constant(encoded(image, exif=turned())))[..., 0],
        np.rot90(image.reshape(SHAPE[mode])[..., 0], -1),
    )
    # Images that are resized and cropped never take it.
    larger = preprocessing.Preprocessing(SHAPE[mode], 9)
    assert not larger._is_plain(tf.constant(encoded(image)))


@pytest.mark.parametrize("mode", SHAPE)
def test_batches_of_all_kinds(mode):
    preprocess = preprocessing.Preprocessing(SHAPE[mode], None)
    decode = tf.function(
        preprocess.decode_batch,
        input_signature=[tf.TensorSpec([None], tf.string)],
        autograph=False,
    )
    plain = [encoded(pixels(mode)) for _ in range(5)]
    others = [
        encoded(pixels("RGB", 30, 20), kind)
        for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP")
    ]
    for batch in (plain, others, plain + others, others[:1], []):
        images = decode(tf.constant(batch, tf.string))
        assert images.shape == (len(batch), *SHAPE[mode])
        for image, data in zip(images, batch, strict=True):
            np.testing.assert_array_equal(
                image, preprocess._decode_any(tf.constant(data))
            )
    # The damage is behind the header.
    for batch in (plain, others):
        broken = [*batch[:3], plain[0][:-30], *batch[3:], b"no image"]
        with pytest.raises(
            tf.errors.InvalidArgumentError, match=r"bytes\[3 6\]"
        ):
            decode(tf.constant(broken))
    broken = [*plain[:2], plain[0][:-30]]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"bytes\[2\]"):
        decode(tf.constant(broken))


def test_images_of_any_size_and_format(exported):
    _, loaded = exported
    preprocess = loaded.preprocessing
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [30, 20, 3]).astype(np.uint8)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, kind)
        assert preprocess.decode(tf.constant(file.getvalue())).shape == (
            8,
            8,
            1,
        )
    # Grey as Pillow makes it, and unchanged where it is grey already.
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[:8, :8]).save(file, "PNG")
    grey = np.asarray(PIL.Image.fromarray(pixels[:8, :8]).convert("L"))
    decoded = preprocess.decode(tf.constant(file.getvalue()))[..., 0]
    np.testing.assert_array_equal(decoded, grey)
    image = TEST.images[3]
    np.testing.assert_array_equal(
        preprocess.decode(tf.constant(png(image))), image
    )


def test_files_are_turned_upright():
    preprocess = preprocessing.Preprocessing((8, 8, 3), None)
    turned, upright = (
        preprocess.decode(tf.constant(photograph(turned=t)))
        for t in (True, False)
    )
    np.testing.assert_array_equal(turned, upright)
