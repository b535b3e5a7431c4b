import numpy as np
import PIL.Image
import pytest

from simmatch_tf.evaluation import baselines
from simmatch_tf.labeling import features


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_thumbnails_are_upright_and_bad_files_have_reasons(tmp_path):
    left = np.zeros([40, 60, 3], np.uint8)
    left[:, :30] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # upside down
    PIL.Image.fromarray(left).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_bytes(b"")
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg")]
    small = features.thumbnails(paths)
    assert small.pixels.shape == (3, 32, 32, 3)
    assert (
        small.pixels[0, :, :14].max() < 30 < 220 < small.pixels[0, :, 18:].min()
    )
    assert small.reasons[1] == "the file is empty"
    assert small.reasons[2] == "No such file or directory"
    again = features.thumbnails(paths)
    np.testing.assert_array_equal(again.pixels, small.pixels)
    assert again.reasons == small.reasons


def test_features_of_pixels_keep_distances_and_are_computed_once(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, [30, 32, 32, 3])
    pixels = pixels.astype(np.uint8)
    monkeypatch.setattr(features, "_BLOCK", 7)
    values = features.of_pixels(pixels)
    expected = baselines.handmade(pixels)
    expected = expected - expected.mean(axis=0)
    np.testing.assert_allclose(
        values @ values.T, expected @ expected.T, atol=1e-3
    )
    monkeypatch.setattr(baselines, "handmade", None)
    np.testing.assert_array_equal(features.of_pixels(pixels), values)
