import numpy as np
import PIL.Image

from simmatch_tf.data.sources import digits, folder
from simmatch_tf.evaluation import pixels


def test_encoded_images_are_read_small(tmp_path):
    """The pixels are those that a file of that size has."""
    random = np.random.default_rng(0)
    pictures = random.integers(0, 255, [6, 32, 32, 3], np.uint8)
    for number, picture in enumerate(pictures):
        path = tmp_path / "data" / "labeled" / "ab"[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture).save(path / f"{number}.png")
    train = folder.load(
        str(tmp_path / "data"), on_bad_image="error", need_unlabeled=False
    ).train
    order = [5, 0, 3]
    (small,) = pixels.read(train, np.array(order), when="in a test")
    files = [int(train.names[index][-5]) for index in order]
    np.testing.assert_array_equal(small, pictures[files])


def test_images_in_memory_are_read_as_they_are():
    train = digits.load(8).train
    order = np.arange(300)[::-1]
    batches = [*pixels.read(train, order, when="in a test")]
    assert len(batches) == 2
    np.testing.assert_array_equal(np.concatenate(batches), train.images[order])
