"""Pictures: what stands where, by colour."""

import numpy as np
import pytest

from simmatch_tf.monitoring import pictures

BLUE, ORANGE, GREEN = pictures._BLUE, pictures._ORANGE, pictures._GREEN


def count(picture, colour):
    return int((picture == np.array(colour)).all(axis=-1).sum())


def unlabeled(p_hat, truth=-1, counts=True, **more):
    grey = np.full([8, 8, 1], 128, np.uint8)
    probabilities = {"p_w": np.array(p_hat), "p_hat": np.array(p_hat), **more}
    return pictures.Unlabeled(
        {"weak": grey, "strong": grey}, probabilities, truth, counts
    )


def test_bars_are_as_long_as_probabilities():
    names = ["a", "b"]
    half = pictures.views([unlabeled([0.5, 0.5], counts=False)], names)
    whole = pictures.views([unlabeled([1.0, 0.0], counts=False)], names)
    # Both have bars of the same length in all.
    assert abs(count(half, BLUE) - count(whole, BLUE)) < 12
    agg = np.array([0.0, 1.0])
    three = pictures.views([unlabeled([1.0, 0.0], q_agg=agg)], names)
    assert count(three, ORANGE) > 300 and count(half, ORANGE) == 0


def test_a_frame_where_it_counts():
    names = ["a", "b"]
    with_frame = pictures.views([unlabeled([1.0, 0.0])], names)
    without = pictures.views([unlabeled([1.0, 0.0], counts=False)], names)
    assert count(with_frame, GREEN) > count(without, GREEN) + 400


def test_a_wrong_one_is_marked():
    names = ["a", "b"]
    wrong = pictures.views([unlabeled([1.0, 0.0], truth=1)], names)
    right = pictures.views([unlabeled([1.0, 0.0], truth=0)], names)
    assert count(wrong, pictures._WRONG) > count(right, pictures._WRONG) == 0


def test_neighbors_of_another_class_are_framed():
    image = unlabeled([1.0, 0.0])
    grey = np.full([8, 8, 3], 128, np.uint8)
    same = [pictures.Neighbor(grey, 0, 0.9)] * 2
    other = [pictures.Neighbor(grey, 0, 0.9), pictures.Neighbor(grey, 1, 0.5)]
    names = ["a", "b"]
    assert count(pictures.neighbors([image], [same], names), ORANGE) == 0
    assert count(pictures.neighbors([image], [other], names), ORANGE) > 400


@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
def test_confusion_of_any_size(classes):
    counts = np.diag(np.arange(1, classes + 1))
    names = [str(i) for i in range(classes)]
    shown = pictures.confusion(counts, names, "title")
    assert shown.dtype == np.uint8 and max(shown.shape) <= 1100
    # All in the diagonal: whole shares, in the fullest shade.
    assert count(shown, BLUE) > min(classes - 1, 900)


def test_confusion_without_images_of_a_class():
    shown = pictures.confusion(np.zeros([3, 3], int), ["a", "b", "c"], "t")
    assert count(shown, BLUE) == 0


@pytest.mark.parametrize("name", ["名前", "a\nb", "x" * 300, "", "$x^2$"])
def test_any_name_can_be_drawn(name):
    names = [name, "b"]
    image = unlabeled([0.5, 0.5], truth=1)
    grey = np.full([8, 8, 3], 128, np.uint8)
    neighbors = [[pictures.Neighbor(grey, 0, 0.5)]]
    assert pictures.views([image], names).ndim == 3
    assert pictures.neighbors([image], neighbors, names).ndim == 3
    assert pictures.confusion(np.eye(2, dtype=int), names, "t").ndim == 3


def test_sprite():
    images = [np.full([4, 4, 1], shade, np.uint8) for shade in (10, 20, 30)]
    grid = pictures.sprite(images, 2)
    assert grid.shape == (4, 4, 3)
    assert grid[0, 0, 0] == 10 and grid[0, 2, 0] == 20 and grid[2, 0, 0] == 30
    assert (grid[2:, 2:] == 255).all()
