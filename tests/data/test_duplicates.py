import io

import numpy as np
import PIL.Image
import pytest

from simmatch_tf.data import duplicates


def pictures(count, side=64, seed=0):
    """Images of smooth random shapes and colors, uint8 [N, S, S, 3]."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = random.integers(0, 256, [9, 9, 3]).astype(np.uint8)
        picture = PIL.Image.fromarray(coarse)
        images.append(
            np.asarray(picture.resize((side, side), PIL.Image.BICUBIC))
        )
    return np.stack(images)


def thumbnails(images):
    small = (duplicates.SIDE,) * 2
    return np.stack(
        [
            np.asarray(PIL.Image.fromarray(i).resize(small, PIL.Image.BILINEAR))
            for i in images
        ]
    )


def encoded(image):
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "JPEG", quality=40)
    return np.asarray(PIL.Image.open(file))


def cropped(image):
    side = len(image)
    box = (1, 2, side - 3, side - 2)  # not from the center
    picture = PIL.Image.fromarray(image).crop(box)
    return np.asarray(picture.resize((side, side), PIL.Image.BICUBIC))


def brightened(image):
    return np.minimum(image * 1.15 + 8, 255).astype(np.uint8)


CHANGES = {
    "copied": lambda image: image,
    "encoded": encoded,
    "cropped": cropped,
    "brightened": brightened,
    "all three": lambda image: encoded(brightened(cropped(image))),
}


def find(images, labeled=()):
    mask = np.zeros(len(images), bool)
    mask[list(labeled)] = True
    return duplicates.find(thumbnails(images), mask)


def test_different_images_are_no_duplicates():
    assert find(pictures(60)).tolist() == list(range(60))


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found(change):
    images = pictures(60)
    changed = np.stack([CHANGES[change](image) for image in images[:20]])
    copy_of = find(np.concatenate([images, changed]))
    assert copy_of.tolist() == [*range(60), *range(20)]


def test_a_labeled_image_is_the_original_of_its_group():
    images = pictures(30)
    images = np.concatenate([images, images[:2], images[:1]])
    copy_of = find(images, labeled=[30])
    assert copy_of[[0, 30, 32]].tolist() == [30] * 3
    assert copy_of[[1, 31]].tolist() == [1, 1]


def test_a_burst_is_one_group():
    images = pictures(30)
    burst = [images[4]]
    for _ in range(6):  # the camera moves on
        burst.append(np.roll(burst[-1], 1, axis=1))
    copy_of = find(np.concatenate([images, burst]))
    assert set(copy_of[30:]) == {4}


def test_another_color_is_another_image():
    images = pictures(30)
    red = images[:1, ..., [1, 0, 2]] // [[1, 2, 2]]
    copy_of = find(np.concatenate([images, red.astype(np.uint8)]))
    assert copy_of[30] == 30


def test_flat_images_are_duplicates_only_where_equal():
    levels = np.array([0, 0, 90, 200, 200], np.uint8)
    flat = np.ones([5, 64, 64, 3], np.uint8) * levels[:, None, None, None]
    copy_of = find(np.concatenate([pictures(20), flat]))
    assert copy_of[20:].tolist() == [20, 20, 22, 23, 23]


def test_images_alike_by_nature_are_told_apart():
    # One shape, whose details differ: as pictures of trousers do.
    shape = pictures(1)[0].astype(float)
    details = pictures(80, seed=1).astype(float) - 128
    images = np.clip(shape + 0.15 * details, 0, 255).astype(np.uint8)
    copy_of = find(np.concatenate([images, images[:5]]))
    assert copy_of.tolist() == [*range(80), *range(5)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_images(count):
    images = pictures(count)
    assert find(images).tolist() == list(range(count))
    assert find(np.concatenate([images, images])).tolist() == [
        *range(count),
        *range(count),
    ]


def test_alignment_explains_what_correlation_does_not():
    images = pictures(12)
    changed = np.stack([cropped(image) for image in images])
    grey = duplicates._blurred(
        thumbnails(np.concatenate([images, changed]))
        .astype(np.float32)
        .mean(axis=-1)
    )
    pairs = np.stack([np.arange(12), np.arange(12, 24)], axis=1)
    rows = grey.reshape(24, -1)
    plain = [1 - np.corrcoef(rows[i], rows[j])[0, 1] for i, j in pairs]
    aligned = duplicates.unexplained(grey, pairs)
    assert aligned.max() < 0.01 < 0.04 < np.min(plain)
