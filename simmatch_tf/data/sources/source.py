"""Where images come from: the contract, and images held in memory.

A set of images is either in memory, all of one size (`Images`: `fetch`), or
encoded and of any sizes (`files.FileImages`, `records.RecordImages`: `read`).
Both have `labels` [N] and, where there are any, `names`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, Self

import numpy as np
import tensorflow as tf

from simmatch_tf.data import fingerprint

# Mean and standard deviation of each channel, in units of 1 (white).
Statistics = tuple[list[float], list[float]]
# Of ImageNet, as published weights want them.
IMAGENET: Statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_COUNTED = 1024  # images whose values are counted at once


class Encoded(Protocol):
    """Images of any sizes, decoded when they are needed; always RGB.

    Attributes:
        labels: int32 [N], classes from 0; -1 where the class is not known.
        names: N names that lists of labeled images use, or None.
    """

    encoded: ClassVar[bool] = True
    labels: np.ndarray
    names: Sequence[str] | None

    def __len__(self) -> int:
        """Number of images."""

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The image's bytes (scalar string) and EXIF orientation (int32)."""

    def take(self, places: np.ndarray) -> Self:
        """The images at `places` [n], n at least 1."""


@dataclasses.dataclass(frozen=True)
class Images:
    """A set of images of one size, in memory.

    Attributes:
        images: uint8 [N, H, W, C], N at least 1, C 1 or 3.
        labels: int32 [N], classes from 0; -1 where the class is not known.
        names: N names that lists of labeled images may use, or None.
    """

    encoded: ClassVar[bool] = False
    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Checks types and shapes."""
        for name in ("images", "labels"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images are {self.images.dtype} of shape {self.images.shape}, "
                "but uint8 [N, H, W, C] is wanted"
            )
        if self.images.shape[-1] not in (1, 3):
            raise ValueError(
                f"images have {self.images.shape[-1]} channels, but 1 or 3 are "
                "wanted"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels have shape {self.labels.shape}, but "
                f"[{len(self.images)}] is wanted"
            )
        if not len(self.images):
            raise ValueError("there are 0 images, but at least 1 is wanted")
        if self.names is not None and len(self.names) != len(self.images):
            raise ValueError(
                f"there are {len(self.names)} names, but {len(self.images)} "
                "images"
            )
        object.__setattr__(self, "labels", check_labels(self.labels))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def join(self, other: Self) -> Self:
        """These images, then those of another set of the same shape."""
        names = self.names and other.names and [*self.names, *other.names]
        return Images(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
            names,
        )

    def take(self, places: np.ndarray) -> Self:
        """The images at `places` [n], n at least 1."""
        names = self.names and [self.names[place] for place in places]
        return Images(self.images[places], self.labels[places], names)

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """Images [n, H, W, C] uint8 at `indices` [n]."""
        return tf.gather(self._tensor, indices)

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        """The images, once: a constant in a graph would be a copy in each."""
        with tf.init_scope(), tf.device("CPU"):
            tensor = tf.convert_to_tensor(self.images)
        # One memory for both: the array that was copied may be freed.
        object.__setattr__(self, "images", np.asarray(memoryview(tensor)))
        return tensor


def check_labels(labels: np.ndarray) -> np.ndarray:
    """Gives labels [N] as int32.

    Raises:
        ValueError: They are no integers, or not all -1 or more.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}, but integers are wanted")
    low, high = labels.min(), labels.max()
    if low < -1 or high > np.iinfo(np.int32).max:
        raise ValueError(
            f"labels from {low} to {high}: must be classes from 0, or -1 "
            "where the class is not known"
        )
    return labels.astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset.

    Attributes:
        name: As in --dataset.
        class_names: L names.
        train: Images to draw labeled and unlabeled ones from.
        test: Images for the results; None: the validation images are.
        flip: Whether a mirrored image is still of its class.
        image_size: Side of the square views of encoded images; of images in
            memory, which must be square then, default: their own.
        validation: Images that were set aside to choose by, if any.
        measure: Computes the statistics of encoded training images.
        origin: Says which files the images are from; None: not known.
    """

    name: str
    class_names: Sequence[str]
    train: Images | Encoded
    test: Images | Encoded | None
    flip: bool
    image_size: int | None = None
    validation: Images | Encoded | None = None
    measure: Callable[[], Statistics] | None = None
    origin: Callable[[], fingerprint.Fingerprint] | None = None

    def __post_init__(self) -> None:
        """Checks that labels, names and the two sets go together."""
        if self.train.encoded and self.image_size is None:
            raise ValueError(f"{self.name}: encoded images need an image_size")
        for images in (self.train, self.validation, self.test):
            if self.image_size is not None and images and not images.encoded:
                self._check_square(images)
        self._check_labels("train", self.train.labels)
        if self.validation is not None:
            self._check_labels("validation", self.validation.labels)
            self._check_known("validation", self.validation.labels)
        if self.test is None:
            return
        self._check_labels("test", self.test.labels)
        self._check_known("test", self.test.labels)
        if self.train.encoded or self.test.encoded:
            return
        if self.image_size is not None:
            return
        train, test = (x.images.shape[1:] for x in (self.train, self.test))
        if train != test:
            raise ValueError(
                f"{self.name}: training images have shape {train}, test images "
                f"{test}; they must be equal"
            )

    def _check_square(self, images: Images) -> None:
        height, width, channels = images.images.shape[1:]
        if height != width or channels != self.image_shape[-1]:
            raise ValueError(
                f"{self.name}: images of {height}×{width} with {channels} "
                "channels in memory, but for an image_size square ones are "
                f"wanted, all with {self.image_shape[-1]} channels"
            )

    def _check_known(self, split: str, labels: np.ndarray) -> None:
        if labels.min() < 0:
            raise ValueError(
                f"{self.name}: label {labels.min()} in {split}, but the class "
                f"of every {split} image must be known"
            )

    def _check_labels(self, split: str, labels: np.ndarray) -> None:
        if labels.max(initial=0) >= self.num_classes:
            raise ValueError(
                f"{self.name}: label {labels.max()} in {split}, but there "
                f"are {self.num_classes} classes (labels from 0)"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, L."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the views."""
        channels = 3 if self.train.encoded else self.train.images.shape[-1]
        if self.image_size is not None:
            return self.image_size, self.image_size, channels
        return tuple(self.train.images.shape[1:])

    def statistics(self) -> Statistics:
        """Mean and standard deviation of the training images' channels.

        Returns:
            Two lists of C numbers, in units of 1 (white).
        """
        if self.measure is not None:
            return self.measure()
        images = self.train.images
        counts = np.zeros([images.shape[-1], 256], np.int64)
        # By histograms: exact sums. In parts, as NumPy counts in 8 bytes each.
        for start in range(0, len(images), _COUNTED):
            add_counts(counts, images[start : start + _COUNTED])
        return statistics(counts)


@dataclasses.dataclass(frozen=True)
class Outline:
    """What can be said of a dataset without its images.

    Attributes:
        class_names: L names.
        image_shape: (height, width, channels) of the views.
        train_images: Number of training images, or None.
        statistics: See `Source.statistics`, or None.
    """

    class_names: Sequence[str]
    image_shape: tuple[int, int, int]
    train_images: int | None
    statistics: Statistics | None


def add_counts(counts: np.ndarray, images: np.ndarray) -> None:
    """Adds the values in images [..., C] uint8 to `counts` [C, 256]."""
    for channel in range(images.shape[-1]):
        values = images[..., channel].ravel()
        counts[channel] += np.bincount(values, minlength=256)


def statistics(counts: np.ndarray) -> Statistics:
    """Mean and standard deviation from counts [C, 256] of each value."""
    values = np.arange(256)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    spread = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    std = np.maximum(np.sqrt(spread) / 255, 1e-3)
    return (mean / 255).tolist(), std.tolist()
