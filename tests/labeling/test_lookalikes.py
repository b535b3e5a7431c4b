import time

import numpy as np
import PIL.Image
import pytest

from simmatch_tf.labeling import lookalikes


@pytest.fixture
def paths(tmp_path):
    """Three patterns, of each three images that differ in noise."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 256, [3, 4, 4, 3])
    names = []
    for number in range(9):
        pixels = np.kron(patterns[number % 3], np.ones([8, 8, 1]))
        pixels = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255)
        names.append(str(tmp_path / f"{number}.png"))
        PIL.Image.fromarray(pixels.astype(np.uint8)).save(names[-1])
    return names


def test_images_of_one_pattern_are_most_alike(paths):
    like = lookalikes.LookAlikes(paths, list(range(9)))
    like.start()
    like.start()  # once is enough
    while like.progress() != (9, 9):
        time.sleep(0.01)
    for index in range(9):
        nearest = like.like(index)
        assert nearest[0] == index and sorted(nearest) == list(range(9))
        assert {other % 3 for other in nearest[:3]} == {index % 3}
    like.stop()


def test_an_image_is_compared_with_those_seen_so_far(paths):
    like = lookalikes.LookAlikes(paths, list(range(9)))
    assert like.like(4) == [4]
    assert like.like(7) == [7, 4]
    assert like.progress() == (2, 9)
    like.stop()


def test_images_of_equal_pixels_differ_by_their_colour(tmp_path):
    colours = ("black", "white", "red", "#f01010")
    names = [str(tmp_path / f"{number}.png") for number in range(4)]
    for name, colour in zip(names, colours, strict=True):
        PIL.Image.new("RGB", (9, 9), colour).save(name)
    like = lookalikes.LookAlikes(names, [])
    for index in range(4):
        like.like(index)
    assert like.like(2)[:2] == [2, 3]


def test_images_that_cannot_be_read(paths, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("text")
    like = lookalikes.LookAlikes([*paths, str(bad)], list(range(9, -1, -1)))
    with pytest.raises(ValueError, match="is no JPEG"):
        like.like(9)
    like.start()
    while like.progress()[0] < 9:
        time.sleep(0.01)
    assert 9 not in like.like(0)
    like.stop()
