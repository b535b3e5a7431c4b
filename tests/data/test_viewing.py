import io
import os
import subprocess
import sys

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from simmatch_tf.data import viewing


def saved(path, image, **options):
    image.save(path, **options)
    return str(path)


@pytest.fixture
def corner():
    """A dark image with one light corner."""
    pixels = np.zeros([12, 20, 3], np.uint8)
    pixels[:4, :6] = 255
    return PIL.Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(
    tmp_path, corner, orientation
):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", corner, exif=exif, quality=95)
    with PIL.Image.open(path) as image:
        expected = np.asarray(PIL.ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(viewing.picture(path, 100), expected)
    # A planted fault: without the turn it is another image.
    if orientation > 1:
        untouched = np.asarray(PIL.Image.open(path))
        assert not np.array_equal(untouched, expected)


def test_large_ones_are_scaled_down_and_small_ones_kept(tmp_path):
    path = saved(tmp_path / "a.png", PIL.Image.new("RGB", (300, 60)))
    assert viewing.picture(path, 100).size == (100, 20)
    assert viewing.picture(path, 500).size == (300, 60)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_all_modes_become_rgb(tmp_path, mode):
    ending = "jpg" if mode == "CMYK" else "png"
    image = PIL.Image.new(mode, (4, 4))
    path = saved(tmp_path / f"a.{ending}", image)
    assert viewing.picture(path, 10).mode == "RGB"


def test_of_16_bits_the_upper_byte_is_shown(tmp_path):
    image = PIL.Image.fromarray(np.full([4, 4], 0x7F21, np.uint16))
    path = saved(tmp_path / "a.png", image)
    assert viewing.picture(path, 10).getpixel((0, 0)) == (0x7F,) * 3


def test_files_that_cannot_be_shown(tmp_path, monkeypatch):
    file = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).save(file, "JPEG")
    half = file.getvalue()[:-30]
    contents = {
        b"": "empty",
        b"text": "is no JPEG",
        half: "cannot be decoded",
        file.getvalue(): "has 64×64 pixels",
    }
    path = tmp_path / "a.jpg"
    for content, message in contents.items():
        path.write_bytes(content)
        with monkeypatch.context() as patch:
            if "64×64" in message:
                patch.setattr(viewing, "MAX_PIXELS", 4000)
            with pytest.raises(ValueError, match=message):
                viewing.picture(str(path), 100)
    with pytest.raises(ValueError, match="No such file"):
        viewing.picture(str(tmp_path / "b.jpg"), 100)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ValueError, match="no regular file"):
        viewing.picture(str(tmp_path / "pipe.jpg"), 100)


def test_without_tensorflow():
    program = (
        "import sys; from simmatch_tf.data import viewing; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
