"""Datasets of `transfer`: training, validation and test images."""

import dataclasses
import functools
import hashlib

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

    def __post_init__(self) -> None:
        """Checks that every class can be learned.

        Raises:
            InputError: A class has no training image, or there is only one.
        """
        known = np.unique(self.train.labels)
        for title, images in (
            ("test", self.test),
            ("validation", self.validation),
        ):
            if images is None:
                continue
            missing = np.setdiff1d(images.labels, known)
            if missing.size:
                names = ", ".join(self.class_names[i] for i in missing[:5])
                raise InputError(
                    f"--datasets={self.name}: no training image is of "
                    f"{missing.size} classes that {title} images have: "
                    f"{names}{', …' if missing.size > 5 else ''}"
                )
        if known.size < 2:
            raise InputError(
                f"--datasets={self.name}: all training images are of one "
                f"class, {self.class_names[known[0]]}"
            )

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


def load(
    name: str,
    *,
    data_dir: str | None = None,
    tfds_dir: str | None = None,
    tfds_manual_dir: str | None = None,
    on_bad_image: str = "error",
) -> Task:
    """Loads a dataset, and prepares it first if it is not.

    Args:
        name: One of --datasets.
        data_dir: Folder of the images of "folder".
        tfds_dir: Folder of prepared TFDS datasets; by default, TFDS's own.
        tfds_manual_dir: Folder of archives that TFDS cannot download itself.
        on_bad_image: "error" or "skip", for "folder".

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
        data_dir=data_dir if facts.get("needs_data_dir") else None,
        on_bad_image=(
            on_bad_image if facts.get("skips_bad_images") else "error"
        ),
        tfds_dir=tfds_dir,
        tfds_manual_dir=tfds_manual_dir,
    )
    load_source = facts.get("load_for_transfer", entry.value)
    try:
        source = load_source(config)
    except InputError as error:
        # The message speaks of train's flag.
        text = str(error).replace("--dataset=", "--datasets=")
        raise InputError(text) from None
    return of_source(source)


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
            + ("; place some in test/CLASS/" if source.name == "folder" else "")
        )
    train = source.train
    if labeled.size < len(train):
        train = train.take(labeled)
    task = Task(
        name=source.name,
        class_names=tuple(map(str, source.class_names)),
        train=train,
        validation=source.validation,
        test=source.test,
        flip=source.flip,
    )
    return _without_empty_classes(task)


def _without_empty_classes(task: Task) -> Task:
    """Leaves out classes without images, which EMNIST's letters have."""
    known = np.unique(task.train.labels)
    if known.size == len(task.class_names):
        return task

    def numbered(images: Set) -> Set:
        labels = np.searchsorted(known, images.labels).astype(np.int32)
        return dataclasses.replace(images, labels=labels)

    return dataclasses.replace(
        task,
        class_names=tuple(task.class_names[label] for label in known),
        train=numbered(task.train),
        validation=task.validation and numbered(task.validation),
        test=numbered(task.test),
    )
