"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import importlib.util
import os
import typing

from simmatch_tf import registry
from simmatch_tf.data import fingerprint as fingerprint_lib
from simmatch_tf.data.sources import source
from simmatch_tf.lazy import np, tf

if typing.TYPE_CHECKING:
    from simmatch_tf import config as config_lib

TRAIN_IMAGES = 1400
_OWN_SIDE = 8


def fingerprint(
    config: config_lib.Config | None = None,
    then: fingerprint_lib.Fingerprint | None = None,
) -> fingerprint_lib.Fingerprint:
    """Returns the fingerprint of scikit-learn's file of digits."""
    del config, then
    package = importlib.util.find_spec("sklearn")
    folder = os.path.dirname(package.origin)
    name = "digits.csv.gz"
    path = os.path.join(folder, "datasets", "data", name)
    contents = {name: fingerprint_lib.digests([path])[0]}
    return fingerprint_lib.of_files({name: path}, contents)


@registry.sources.register(
    "digits",
    sizes={"digits": (10, TRAIN_IMAGES)},
    fingerprint=fingerprint,
    load_for_transfer=lambda config: load(_OWN_SIDE),
)
def load_for_run(config: config_lib.Config) -> source.Source:
    """Loads the digits in the size that the flags ask for; see `load`."""
    return load(config.image_size)


def load(image_size: int | None = None) -> source.Source:
    """Loads 1,400 training and 397 test images of ten classes.

    Training and test images are the same in every run, whatever its seeds.

    Args:
        image_size: Side to which the 8×8 originals are resized; default: 16.
    """
    from sklearn import datasets  # slow to import, needed here only

    size = image_size or 16
    digits = datasets.load_digits()
    images = digits.images[..., None] * (255.0 / 16.0)  # grey from 0 to 16
    images = tf.image.resize(images, [size, size]).numpy().round()
    images = source.Images(images.astype(np.uint8), digits.target)
    # The legacy generator's stream is frozen, and so are training and test.
    order = np.random.RandomState(0).permutation(len(images))
    return source.Source(
        name="digits",
        class_names=[str(name) for name in digits.target_names],
        train=images.take(np.sort(order[:TRAIN_IMAGES])),
        test=images.take(np.sort(order[TRAIN_IMAGES:])),
        flip=False,
        origin=fingerprint,
    )
