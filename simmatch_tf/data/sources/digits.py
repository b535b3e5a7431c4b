"""The handwritten digits that come with scikit-learn."""

import numpy as np
import tensorflow as tf

from simmatch_tf.data import fingerprint
from simmatch_tf.data.sources import source
from simmatch_tf.flags.commandline import InputError

TRAIN_IMAGES = 1400
_IMAGES = 1797


def load(image_size: int | None = None) -> source.Source:
    """Loads 1,400 training and 397 test images of ten classes.

    The split is the same in every run: it has nothing to do with any seed.

    Args:
        image_size: Side to resize the 8×8 originals to; default: 16.

    Raises:
        InputError: They are not all there.
    """
    from sklearn import datasets  # slow to import, needed here only

    size = image_size or 16
    digits = datasets.load_digits()
    if len(digits.images) != _IMAGES:
        raise InputError(
            f"--dataset=digits: scikit-learn has {len(digits.images)} images "
            f"instead of {_IMAGES}; install it anew"
        )
    images = digits.images[..., None] * (255.0 / 16.0)  # grey from 0 to 16
    images = tf.image.resize(images, [size, size]).numpy().round()
    images = images.astype(np.uint8)
    # The legacy generator's stream is frozen, so the split is, too.
    order = np.random.RandomState(0).permutation(len(images))

    def part(indices: np.ndarray) -> source.Images:
        indices = np.sort(indices)
        return source.Images(images[indices], digits.target[indices])

    return source.Source(
        name="digits",
        class_names=[str(name) for name in digits.target_names],
        train=part(order[:TRAIN_IMAGES]),
        test=part(order[TRAIN_IMAGES:]),
        flip=False,
        origin=fingerprint.of_digits,
    )
