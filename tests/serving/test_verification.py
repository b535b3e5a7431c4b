import numpy as np
import PIL.Image
import tensorflow as tf

from simmatch_tf.data import decoding, records
from simmatch_tf.serving import preprocessing, verification
from tests.serving.helpers import photograph


def test_files_are_decoded_as_in_evaluation(tmp_path):
    """Not by the decoding of the export, which is to be checked."""
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 256, [30, 20, 3], np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    preprocess = preprocessing.Preprocessing((8, 8, 3), 10)
    examples = verification.of_files(str(tmp_path), preprocess)
    assert len(examples.encoded) == 1
    decoded = preprocess.decode(tf.constant(examples.encoded[0]))
    np.testing.assert_array_equal(examples.pixels[0], decoded)
    image.save(tmp_path / "a.jpg")  # without the orientation
    upright = verification.of_files(str(tmp_path), preprocess)
    assert (upright.pixels != examples.pixels).any()


class TurnedRecords(records.RecordImages):
    """One record with an orientation, which training ignores."""

    def __init__(self):
        pass

    labels = np.zeros([1], np.int32)

    def __len__(self):
        return 1

    def read(self, index):
        return tf.constant(photograph()), tf.constant(1)


def test_records_are_compared_upright():
    images = TurnedRecords()
    examples = verification.of_source(images, side=8, resize=10)
    preprocess = preprocessing.Preprocessing((8, 8, 3), 10)
    served = preprocess.decode_batch(tf.constant(examples.encoded))
    np.testing.assert_array_equal(examples.pixels, served)
    stored = decoding.centre_crops(images, tf.range(1), side=8, resize=10)
    assert (stored != served).numpy().any()
