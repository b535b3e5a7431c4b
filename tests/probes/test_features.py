"""Features: what is computed, and what is kept."""

import errno
import functools
import itertools
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from simmatch_tf.data.sources import source
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks.backbones import wide_resnet
from simmatch_tf.probes import encoders, features, tasks


def make_encoder(side=8, channels=1, seed=0, **changes):
    network = encoders._build(
        "wrn_10_1", (side, side, channels), wide_resnet.Flags(), seed
    )
    values = {
        "name": "a network",
        "backbone": "wrn_10_1",
        "image_shape": (side, side, channels),
        "flags": wide_resnet.Flags(),
        "weights": encoders._weights(network),
    }
    return encoders.Encoder(**{**values, **changes})


def make_task(count=23, shape=(12, 16, 1), seed=0, labels=None):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, [count, *shape]).astype(np.uint8)
    labels = np.arange(count) % 2 if labels is None else labels
    part = source.Images(images, labels)
    return tasks.Task("noise", ("a", "b"), part, None, part, False)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def extract(folder):
    return functools.partial(features.extract, folder=folder, batch_size=5)


def as_pillow(images, side, channels):
    """Shorter side resized bicubically, centre cropped, grey or repeated."""
    prepared = []
    for image in images:
        image = image[..., 0] if image.shape[-1] == 1 else image
        image = PIL.Image.fromarray(image)
        width, height = image.size
        short = min(width, height)
        size = side * width // short, side * height // short
        image = image.resize(size, PIL.Image.Resampling.BICUBIC)
        left, top = (round((length - side) / 2) for length in image.size)
        image = image.crop((left, top, left + side, top + side))
        image = image.convert("L" if channels == 1 else "RGB")
        prepared.append(np.asarray(image).reshape(side, side, channels))
    return np.stack(prepared)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((12, 16, 1), 1), ((16, 12, 1), 3), ((16, 16, 3), 1), ((8, 8, 3), 3)],
)
def test_they_are_the_network_s_of_images_as_pillow_makes_them(
    extract, shape, channels
):
    encoder, task = make_encoder(channels=channels), make_task(shape=shape)
    extracted = extract(encoder, task, "train")
    assert extracted.dtype == np.float32 and extracted.shape == (23, 64)
    assert isinstance(extracted, np.memmap) and not extracted.flags.writeable
    pixels = as_pillow(task.train.images, 8, channels)
    wanted = encoder.network(pixels, training=False)["features"]
    # A grey level here or there.
    np.testing.assert_allclose(extracted, wanted, atol=2e-3)
    assert np.abs(extracted).max() > 0.1


@pytest.mark.slow
def test_they_are_computed_once_for_equal_content(extract, folder, monkeypatch):
    encoder = make_encoder()
    first = extract(encoder, make_task(), "train")
    (path,) = folder.iterdir()
    calls = []
    compute = features._batches
    monkeypatch.setattr(
        features,
        "_batches",
        lambda *args: calls.append(args) or compute(*args),
    )
    # Equal images and weights in other objects; classes do not matter.
    again = extract(
        make_encoder(name="other"),
        make_task(labels=np.arange(23) % 3 // 2),
        "test",
    )
    np.testing.assert_array_equal(first, again)
    assert not calls and list(folder.iterdir()) == [path]
    weights = dict(encoder.weights)
    weights["normalize"] = [1.01 * value for value in weights["normalize"]]
    for other in (
        (make_encoder(seed=1), make_task()),
        (make_encoder(weights=weights), make_task()),
        (make_encoder(side=9), make_task()),
        (encoder, make_task(seed=1)),
        (encoder, make_task(22)),
    ):
        extract(*other, "train")
    assert len(calls) == 5 and len(list(folder.iterdir())) == 6


def test_a_stopped_extraction_leaves_nothing(extract, folder, monkeypatch):
    encoder, task = make_encoder(), make_task()
    whole = np.array(extract(encoder, task, "train"))
    (path,) = folder.iterdir()
    saved = folder.parent / "saved.npy"
    np.save(saved, whole)
    assert path.read_bytes() == saved.read_bytes()
    path.unlink()
    compute = features._batches

    def full(*args):
        yield from itertools.islice(compute(*args), 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(features, "_batches", full)
        with pytest.raises(InputError, match="there .No space left on dev"):
            extract(encoder, task, "train")
    assert not [*folder.iterdir()]
    np.testing.assert_array_equal(extract(encoder, task, "train"), whole)


def test_damaged_files_and_folders_that_cannot_be_written(
    extract, folder, tmp_path
):
    encoder, task = make_encoder(), make_task()
    extract(encoder, task, "train")
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="remove it, and it is computed again"):
        extract(encoder, task, "train")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--cache_dir=.*cannot be kept there"):
        extract(encoder, task, "train", folder=tmp_path / "file" / "x")


def test_features_that_are_not_finite_are_refused(extract):
    weights = dict(make_encoder().weights)
    weights["backbone"] = [v * np.nan for v in weights["backbone"]]
    with pytest.raises(InputError, match="features of noise train are not fin"):
        extract(make_encoder(weights=weights), make_task(), "train")


def test_channels():
    grey = tf.constant(np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1))
    colors = features.match_channels(grey, 3)
    np.testing.assert_array_equal(colors, np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(features.match_channels(colors, 1), grey)
    assert features.match_channels(grey, 1) is grey


def test_where_they_are_kept_by_default():
    features.extract(make_encoder(), make_task(), "test", batch_size=23)
    cache = pathlib.Path(os.environ["XDG_CACHE_HOME"])
    assert [*cache.glob("simmatch_tf/features/*.npy")]
