"""Features: what is computed, and what is kept."""

import errno
import fcntl
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
def extractor(tmp_path):
    return features.Extractor(tmp_path / "kept", batch_size=5)


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
    extractor, shape, channels
):
    encoder, task = make_encoder(channels=channels), make_task(shape=shape)
    extracted = extractor.features(encoder, task, "train")
    assert extracted.dtype == np.float32 and extracted.shape == (23, 64)
    assert isinstance(extracted, np.memmap) and not extracted.flags.writeable
    pixels = as_pillow(task.train.images, 8, channels)
    wanted = encoder.network(pixels, training=False)["features"]
    # A grey level here or there.
    np.testing.assert_allclose(extracted, wanted, atol=2e-3)
    assert np.abs(extracted).max() > 0.1


def test_they_are_computed_once_for_equal_content(extractor, monkeypatch):
    encoder = make_encoder()
    first = extractor.features(encoder, make_task(), "train")
    (path,) = extractor._folder.iterdir()
    calls = []
    compute = features.Extractor._batches
    monkeypatch.setattr(
        features.Extractor,
        "_batches",
        lambda *args: calls.append(args) or compute(*args),
    )
    # Equal images and weights in other objects; classes do not matter.
    again = extractor.features(
        make_encoder(name="other"),
        make_task(labels=np.arange(23) % 3 // 2),
        "test",
    )
    np.testing.assert_array_equal(first, again)
    assert not calls and list(extractor._folder.iterdir()) == [path]
    weights = dict(encoder.weights)
    weights["normalize"] = [1.01 * value for value in weights["normalize"]]
    for other in (
        (make_encoder(seed=1), make_task()),
        (make_encoder(weights=weights), make_task()),
        (make_encoder(side=9), make_task()),
        (encoder, make_task(seed=1)),
        (encoder, make_task(22)),
    ):
        extractor.features(*other, "train")
    assert len(calls) == 5 and len(list(extractor._folder.iterdir())) == 6


def test_a_killed_extraction_goes_on_to_the_same_bits(
    extractor, monkeypatch, tmp_path
):
    encoder, task = make_encoder(), make_task()
    whole = np.array(extractor.features(encoder, task, "train"))
    (path,) = extractor._folder.iterdir()
    content, rows = path.read_bytes(), whole.tobytes()
    started = []
    compute = features.Extractor._batches

    def watch(self, encoder, images, start):
        started.append(start)
        return compute(self, encoder, images, start)

    monkeypatch.setattr(features.Extractor, "_batches", watch)
    # What a kill leaves: half a row; half a row after seven; all of them.
    for size in (100, 7 * 256 + 100, len(rows)):
        path.unlink()
        path.with_suffix(".rows").write_bytes(rows[:size])
        again = extractor.features(encoder, task, "train")
        np.testing.assert_array_equal(again, whole)
        assert path.read_bytes() == content
        assert list(extractor._folder.iterdir()) == [path]
    assert started == [0, 5, 23]


def test_one_process_at_a_time(extractor, monkeypatch):
    encoder, task = make_encoder(), make_task()
    whole = np.array(extractor.features(encoder, task, "train"))
    (path,) = extractor._folder.iterdir()
    content = path.read_bytes()
    path.unlink()
    with open(path.with_suffix(".rows"), "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process computes these"):
            extractor.features(encoder, task, "train")

    def finished(file):
        path.write_bytes(content)
        return True

    # Between opening and locking, the other process finishes.
    monkeypatch.setattr(features.io, "lock", finished)
    monkeypatch.setattr(features.Extractor, "_batches", None)
    again = extractor.features(encoder, task, "train")
    np.testing.assert_array_equal(again, whole)


def test_damaged_files_and_folders_that_cannot_be_written(extractor, tmp_path):
    encoder, task = make_encoder(), make_task()
    extractor.features(encoder, task, "train")
    (path,) = extractor._folder.iterdir()
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match="remove it, and it is computed again"):
        extractor.features(encoder, task, "train")
    np.save(path, np.zeros([3, 64], np.float32))
    with pytest.raises(InputError, match=r"has shape .3, 64., but must"):
        extractor.features(encoder, task, "train")
    (tmp_path / "file").touch()
    other = features.Extractor(tmp_path / "file" / "x", batch_size=5)
    with pytest.raises(InputError, match="--cache_dir=.*cannot be kept there"):
        other.features(encoder, task, "train")


def test_a_full_disk_names_the_flag(extractor, monkeypatch):
    """Extraction continues after the rows that were written."""
    encoder, task = make_encoder(), make_task()

    def full(rows, **how):
        if rows[0, 0] == third[0, 0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return np.isfinite(rows, **how)

    third = np.array(extractor.features(encoder, task, "train"))[10:15]
    (path,) = extractor._folder.iterdir()
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(features, "np", Without(isfinite=full))
        with pytest.raises(InputError, match="there .No space left on dev"):
            extractor.features(encoder, task, "train")
    part = path.with_suffix(".rows")
    assert part.stat().st_size == 10 * 256
    extractor.features(encoder, task, "train")
    assert not part.exists()


class Without:
    """NumPy, but for one function."""

    def __init__(self, **instead):
        self.__dict__.update(instead)

    def __getattr__(self, name):
        return getattr(np, name)


def test_features_that_are_not_finite_are_refused(extractor):
    weights = dict(make_encoder().weights)
    weights["backbone"] = [v * np.nan for v in weights["backbone"]]
    with pytest.raises(InputError, match="features of noise train are not fin"):
        extractor.features(make_encoder(weights=weights), make_task(), "train")


def test_channels():
    grey = tf.constant(np.arange(12, dtype=np.uint8).reshape(1, 3, 4, 1))
    colors = features.match_channels(grey, 3)
    np.testing.assert_array_equal(colors, np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(features.match_channels(colors, 1), grey)
    assert features.match_channels(grey, 1) is grey


def test_where_they_are_kept_by_default(monkeypatch):
    cache = os.environ["XDG_CACHE_HOME"]
    assert str(features.default_folder()) == f"{cache}/simmatch_tf/features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pathlib.Path, "expanduser", no_home)
    with pytest.raises(InputError, match="--cache_dir=None: there is no def"):
        features.default_folder()


def no_home(path):
    raise RuntimeError("could not determine home directory")
