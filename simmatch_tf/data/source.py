"""Where images come from: the contract, and images held in memory."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Images:
    """A set of images of one size, in memory.

    Attributes:
        images: uint8 [N, H, W, C], N at least 1, C 1 or 3.
        labels: int32 [N], classes from 0; -1 where the class is not known.
    """

    images: np.ndarray
    labels: np.ndarray

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
        if not np.issubdtype(self.labels.dtype, np.integer):
            raise ValueError(
                f"labels are {self.labels.dtype}, but integers are wanted"
            )
        low, high = self.labels.min(), self.labels.max()
        if low < -1 or high > np.iinfo(np.int32).max:
            raise ValueError(
                f"labels from {low} to {high}: must be classes from 0, or -1 "
                "where the class is not known"
            )
        object.__setattr__(self, "labels", self.labels.astype(np.int32))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """Images [n, H, W, C] uint8 at `indices` [n]."""
        return tf.gather(tf.constant(self.images), indices)


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset.

    Attributes:
        name: As in --dataset.
        class_names: L names.
        train: Images to draw labeled and unlabeled ones from.
        test: Images for the results.
        flip: Whether a mirrored image is still of its class.
    """

    name: str
    class_names: Sequence[str]
    train: Images
    test: Images
    flip: bool

    def __post_init__(self) -> None:
        """Checks that labels, names and the two sets go together."""
        train, test = (x.images.shape[1:] for x in (self.train, self.test))
        if train != test:
            raise ValueError(
                f"{self.name}: training images have shape {train}, test images "
                f"{test}; they must be equal"
            )
        if self.test.labels.min() < 0:
            raise ValueError(
                f"{self.name}: label {self.test.labels.min()} in test, but the "
                "class of every test image must be known"
            )
        for split in ("train", "test"):
            labels = getattr(self, split).labels
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
        """(height, width, channels)."""
        return tuple(self.train.images.shape[1:])

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of the training images' channels.

        Returns:
            Two lists of C numbers, in units of 1 (white).
        """
        images = self.train.images
        mean = images.mean(axis=(0, 1, 2), dtype=np.float64) / 255
        std = images.std(axis=(0, 1, 2), dtype=np.float64) / 255
        return mean.tolist(), np.maximum(std, 1e-3).tolist()
