"""Datasets of `transfer`: training, validation and test images."""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.errors import InputError

Set = source_lib.Images | source_lib.Encoded

# Datasets whose mean accuracy per class is reported, as in SimCLR and BYOL.
_BY_CLASS = (
    "caltech101",
    "fgvc_aircraft",
    "oxford_flowers102",
    "oxford_iiit_pet",
)
# Share of the training images held out for validation, if there are no others.
_HELD_OUT = 0.2
_SEED = 0  # of the choice of these


@dataclasses.dataclass(frozen=True)
class Task:
    """A dataset whose images all have a class.

    Attributes:
        name: Its name in --datasets.
        class_names: Names of the L classes.
        train: Training images.
        validation: Validation images; None holds some of `train` out.
        test: Test images.
        flip: Whether a mirrored image is still of its class.
    """

    name: str
    class_names: tuple[str, ...]
    train: Set
    validation: Set | None
    test: Set
    flip: bool

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """Digests of its sets of images, by name."""
        sets = {"train": self.train, "test": self.test}
        if self.validation is not None:
            sets["validation"] = self.validation
        return {
            name: source_lib.digest(images) for name, images in sets.items()
        }

    @functools.cached_property
    def identity(self) -> str:
        """A digest of all images and their classes, and of the metric."""
        digest = hashlib.sha256(repr((self.metric, self.digests)).encode())
        for images in (self.train, self.validation, self.test):
            if images is not None:
                digest.update(images.labels.astype("<i4").tobytes())
        return digest.hexdigest()

    @property
    def metric(self) -> str:
        """The reported accuracy: "top1" or "mean_per_class"."""
        by_class = config_lib.base_name(self.name) in _BY_CLASS
        return "mean_per_class" if by_class else "top1"

    @functools.cached_property
    def held_out(self) -> np.ndarray:
        """Which training images are held out for validation, bool [N].

        None if the dataset has validation images. Otherwise a fifth of each
        class, always the same images; none of a class with a single image.
        """
        held = np.zeros(len(self.train), bool)
        if self.validation is not None:
            return held
        random = np.random.default_rng(_SEED)
        for label in np.unique(self.train.labels):
            places = random.permutation(
                np.flatnonzero(self.train.labels == label)
            )
            count = min(max(1, round(_HELD_OUT * len(places))), len(places) - 1)
            held[places[:count]] = True
        if not held.any():
            raise InputError(
                f"--datasets={self.name}: every class has only one training "
                "image, so none can be held out for validation"
            )
        return held


def load(name: str, flags: Any) -> Task:
    """Loads a dataset, and prepares it first if it is not.

    Args:
        name: One of --datasets.
        flags: The flags of `transfer`.

    Raises:
        InputError: It cannot be loaded, or has no classes, no test images, or
            a class without a training image.
    """
    entry, _ = registry.sources.find(name)
    facts = entry.facts
    # A run whose training images are all labeled.
    config = config_lib.Config(
        dataset=name,
        label_fraction=1.0,
        steps=1,
        data_dir=flags.data_dir if facts.get("needs_data_dir") else None,
        **{
            name: getattr(flags, name)
            for name in config_lib.TABLES
            if facts.get("reads_labels_csv")
        },
        on_bad_image=(
            flags.on_bad_image if facts.get("skips_bad_images") else "error"
        ),
        tfds_dir=flags.tfds_dir,
        tfds_manual_dir=flags.tfds_manual_dir,
    )
    return of_source(facts.get("load_for_transfer", entry.value)(config))


def of_source(source: source_lib.Source) -> Task:
    """Returns a task of a dataset's images that have a class.

    Raises:
        InputError: See `load`.
    """
    labeled = np.flatnonzero(source.train.labels >= 0)
    if not labeled.size:
        raise InputError(
            f"--datasets={source.name}: no training image has a class"
        )
    if source.test is None:
        raise InputError(
            f"--datasets={source.name}: has no test images of known classes"
            + (
                "; place some in test/CLASS/, or mark rows of a table by "
                "test in a column part"
                if source.name == "folder"
                else ""
            )
        )
    train = source.train
    if labeled.size < len(train):
        train = train.take(labeled)
    names = tuple(map(str, source.class_names))
    known = np.unique(train.labels)
    if known.size < 2:
        raise InputError(
            f"--datasets={source.name}: all training images are of one class, "
            f"{names[known[0]]}"
        )

    def numbered(title: str, images: Set | None) -> Set | None:
        """Numbers the classes that have images, as in EMNIST's letters."""
        if images is None:
            return None
        missing = np.setdiff1d(images.labels, known)
        if missing.size:
            raise InputError(
                f"--datasets={source.name}: no training image is of "
                f"{missing.size} classes that {title} images have: "
                f"{', '.join(names[label] for label in missing[:5])}"
            )
        if known.size == len(names):
            return images
        labels = np.searchsorted(known, images.labels).astype(np.int32)
        return dataclasses.replace(images, labels=labels)

    return Task(
        name=source.name,
        class_names=tuple(names[label] for label in known),
        train=numbered("training", train),
        validation=numbered("validation", source.validation),
        test=numbered("test", source.test),
        flip=source.flip,
    )
