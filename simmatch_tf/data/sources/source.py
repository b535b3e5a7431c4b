"""Image sources: the contract, and images that are held in memory.

A source is a function from a run's flags to a `Source`, registered under the
name that --dataset takes:

    @registry.sources.register("table", sizes={"table": (10, 1_000)})
    def load(config: config.Config) -> source.Source: ...

Such a file is imported before TensorFlow and must not import it: it takes `tf`
and `np` from `simmatch_tf.lazy`. The keyword arguments of `register` are facts
that are read before the images are, and before TensorFlow is imported. All are
optional:

    sizes             {NAME: (classes, training images)}, by which --labels is
                      checked.
    flags             A frozen dataclass based on commandline.HyperParameters,
                      whose fields become flags. --table.label_column is
                      config.source.label_column.
    needs_data_dir    True: the images are in the folder --data_dir, which is
                      then required. Other sources refuse that flag.
    has_labels        True: some of the training images have a class and the
                      others none, so that no flag need say which are labeled.
    reads_labels_csv  True: it reads --labels_csv; other sources refuse it.
    skips_bad_images  True: it follows --on_bad_image=skip.
    sized_by_backbone True: without --image_size the side of the images depends
                      on the backbone.
    from_python       True: the images are an argument of `simmatch_tf.fit`.
    is_prepared       Config → whether its record files are in --tfds_dir, where
                      it has such. Otherwise loading may download them.
    can_score         Config → whether there are images to measure a result on;
                      without it there are.
    check_images      Config → None. Raises InputError where the flags name
                      images that do not exist.
    fingerprint       (Config, fingerprint.Fingerprint that the run began with)
                      → Fingerprint of the files now, or None where it is not
                      known before the images are loaded. By default, a run
                      that goes on loads the images and compares their pixels.
    outline           Config → Outline, without reading the images of a large
                      dataset. By default, the images are loaded.
    load_for_transfer Config → Source whose images have their own size and
                      whose `validation` is set where the dataset has such
                      images; unlabeled images may be left out. By default, the
                      registered function.
    examples          Names that a pattern matches, for help and suggestions.

A set of images is either in memory and of one size (`Images`), or encoded and
of any sizes (`files.FileImages`, `records.RecordImages`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol, Self

from simmatch_tf import registry
from simmatch_tf.data import fingerprint as fingerprint_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.lazy import np, tf

# Mean and standard deviation of each channel; white is 1.
Statistics = tuple[list[float], list[float]]
# Of ImageNet, as published weights expect them.
IMAGENET: Statistics = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_COUNTED = 1024  # images whose values are counted at once


class Encoded(Protocol):
    """Encoded RGB images of any sizes, decoded when they are needed.

    Attributes:
        labels: int32 [N], classes from 0; -1 where the class is not known.
        names: N names, by which lists and reports refer to images, or None.
    """

    encoded: ClassVar[bool] = True
    labels: np.ndarray
    names: Sequence[str] | None

    def __len__(self) -> int:
        """Returns the number of images."""

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns an image's bytes and its orientation; for tf.data graphs.

        Args:
            index: Which image, int64 scalar.

        Returns:
            The bytes, a scalar string, and the EXIF orientation 1 … 8, an int32
            scalar. A source whose images count as they are stored, whatever
            EXIF says, gives 1.
        """

    def take(self, indices: np.ndarray) -> Self:
        """Returns the images at `indices` [n], n at least 1."""

    def files(self) -> Sequence[str]:
        """Returns the paths of the files that hold the images."""

    def layout(self) -> bytes:
        """Returns what besides its files' contents identifies the set."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images of one size in memory.

    Attributes:
        images: uint8 [N, H, W, C], N at least 1, C 1 or 3.
        labels: int32 [N], classes from 0; -1 where the class is not known.
        names: N names, by which lists and reports refer to images, or None.
    """

    encoded: ClassVar[bool] = False
    images: np.ndarray
    labels: np.ndarray
    names: Sequence[str] | None = None

    def __post_init__(self) -> None:
        """Checks dtypes and shapes.

        Raises:
            ValueError: One is wrong.
        """
        for name in ("images", "labels"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images are {self.images.dtype} of shape {self.images.shape}, "
                "but must be uint8 [N, H, W, C]"
            )
        if self.images.shape[-1] not in (1, 3):
            raise ValueError(
                f"images have {self.images.shape[-1]} channels, but must have "
                "1 or 3"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels have shape {self.labels.shape}, but must have "
                f"[{len(self.images)}], one for each image"
            )
        if not len(self.images):
            raise ValueError("there are 0 images, but at least 1 is needed")
        if self.names is not None and len(self.names) != len(self.images):
            raise ValueError(
                f"there are {len(self.names)} names for {len(self.images)} "
                "images, but each image needs one"
            )
        object.__setattr__(self, "labels", check_labels(self.labels))

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def join(self, other: Self) -> Self:
        """Returns these images, then those of another set of their shape."""
        names = self.names and other.names and [*self.names, *other.names]
        return Images(
            np.concatenate([self.images, other.images]),
            np.concatenate([self.labels, other.labels]),
            names,
        )

    def take(self, indices: np.ndarray) -> Self:
        """Returns the images at `indices` [n], n at least 1."""
        names = self.names and [self.names[index] for index in indices]
        return Images(self.images[indices], self.labels[indices], names)

    def fetch(self, indices: tf.Tensor) -> tf.Tensor:
        """Returns the images at `indices` [n], uint8 [n, H, W, C]."""
        return tf.gather(self._tensor, indices)

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        """One tensor for all graphs; a constant in each would be a copy."""
        with tf.init_scope(), tf.device("CPU"):
            tensor = tf.convert_to_tensor(self.images)
        # The array shares the tensor's memory, so that its own can be freed.
        object.__setattr__(self, "images", np.asarray(memoryview(tensor)))
        return tensor


def check_labels(labels: np.ndarray) -> np.ndarray:
    """Returns labels [N] as int32.

    Raises:
        ValueError: They are no integers, or one is below -1 or too large.
    """
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are {labels.dtype}, but must be integers")
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
        train: Images from which the labeled and unlabeled ones are drawn.
        test: Images to report results on; None: the validation images are
            used.
        flip: Whether a mirrored image still belongs to its class.
        image_size: Side of the square views of encoded images. Images in
            memory have their own size by default; with an `image_size`, they
            must be square.
        validation: Images to choose hyper-parameters by in transfer, if the
            dataset has some. Training sets labeled images aside instead.
        set_aside: Indices of training images [n] that training sets aside to
            choose the best step, in place of --validation_fraction. By default
            none.
        measure: Computes the statistics of encoded training images.
        origin: Returns the fingerprint of the files; None: there are no files,
            or they are not known.
        overview: What each place of the images became, in lines for people; ""
            for nothing to say.
    """

    name: str
    class_names: Sequence[str]
    train: Images | Encoded
    test: Images | Encoded | None
    flip: bool
    image_size: int | None = None
    validation: Images | Encoded | None = None
    measure: Callable[[], Statistics] | None = None
    origin: Callable[[], fingerprint_lib.Fingerprint] | None = None
    set_aside: np.ndarray | Sequence[int] = ()
    overview: str = ""

    def __post_init__(self) -> None:
        """Checks that labels, names and the sets of images fit together.

        Raises:
            ValueError: They do not.
        """
        if self.train.encoded and self.image_size is None:
            raise ValueError(f"{self.name}: encoded images need an image_size")
        for images in (self.train, self.validation, self.test):
            if self.image_size is not None and images and not images.encoded:
                self._check_square(images)
        self._check_labels("train", self.train, low=-1)
        self._check_labels("validation", self.validation, low=0)
        self._check_labels("test", self.test, low=0)
        if self.test is None or self.image_size is not None:
            return
        if self.train.encoded or self.test.encoded:
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
                f"{self.name}: images in memory are {height}×{width} with "
                f"{channels} channels, but with an image_size all must be "
                f"square and have {self.image_shape[-1]} channels"
            )

    def _check_labels(
        self, split: str, images: Images | Encoded | None, *, low: int
    ) -> None:
        if images is None:
            return
        if images.labels.max(initial=0) >= self.num_classes:
            raise ValueError(
                f"{self.name}: label {images.labels.max()} in {split}, but "
                f"there are {self.num_classes} classes (labels from 0)"
            )
        if images.labels.min() < low:
            raise ValueError(
                f"{self.name}: label {images.labels.min()} in {split}, but the "
                f"class of every {split} image must be known"
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
        """Returns mean and standard deviation of the training images' channels.

        Returns:
            Two lists of C numbers; white is 1.
        """
        if self.measure is not None:
            return self.measure()
        images = self.train.images
        counts = np.zeros([images.shape[-1], 256], np.int64)
        # Histograms give exact sums. In parts: NumPy counts 8 bytes a value.
        for start in range(0, len(images), _COUNTED):
            add_counts(counts, images[start : start + _COUNTED])
        return statistics(counts)

    def fingerprint(self) -> fingerprint_lib.Fingerprint:
        """Returns the fingerprint of the files or, without files, the images.

        Raises:
            InputError: A file cannot be read.
        """
        if self.origin is not None:
            return self.origin()
        sets = {
            "train": self.train,
            "validation": self.validation,
            "test": self.test,
        }
        return fingerprint_lib.Fingerprint(
            {
                name: _state(images)
                for name, images in sets.items()
                if images is not None
            }
        )

    def identity(self) -> str:
        """Returns a digest by which workers know that they have these images.

        Of images in memory the pixels count, however they are stored; of files
        their names, sizes and known digests, but not their times. Classes do
        not count.

        Returns:
            64 hexadecimal digits.

        Raises:
            InputError: A file cannot be read.
        """
        result, encoded = hashlib.sha256(), False
        for name, images in (("train", self.train), ("test", self.test)):
            result.update(name.encode())
            if images is None:
                continue
            encoded |= images.encoded
            if images.encoded:
                result.update(images.layout())
            else:
                result.update(digest(images).encode())
        if encoded:
            states = [
                (name, size, content)
                for name, (size, _, content) in self.fingerprint().files.items()
            ]
            result.update(repr(sorted(states)).encode())
        return result.hexdigest()


def digest(images: Images | Encoded) -> str:
    """Returns a digest of images in their order; their classes do not count.

    Args:
        images: Of encoded images, the files are read.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: A file cannot be read.
    """
    result = hashlib.sha256()
    if images.encoded:
        result.update(images.layout())
        digests = fingerprint_lib.digests(images.files(), "sha256")
        parts = map(bytes.fromhex, digests)
    else:
        pixels = np.ascontiguousarray(images.images)
        parts = [repr(pixels.shape).encode(), hashlib.sha256(pixels).digest()]
    for part in parts:
        result.update(part)
    return result.hexdigest()


def _state(images: Images | Encoded) -> tuple[int, int, str]:
    """Returns a set's entry in a fingerprint: bytes, no time, and a digest.

    Of encoded images, the files are not read.
    """
    result = hashlib.sha256(images.labels.astype("<i4").tobytes())
    result.update(repr(images.names and list(images.names)).encode())
    if not images.encoded:
        result.update(digest(images).encode())
        return images.images.nbytes, 0, result.hexdigest()
    try:
        size = sum(os.stat(path).st_size for path in set(images.files()))
    except OSError as error:
        raise InputError(
            f"{error.filename}: cannot be read ({error.strerror})"
        ) from None
    return size, 0, result.hexdigest()


@dataclasses.dataclass(frozen=True)
class Outline:
    """What is known of a dataset without its images.

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
    """Adds a histogram of images [..., C] uint8 to `counts` [C, 256]."""
    for channel in range(images.shape[-1]):
        values = images[..., channel].ravel()
        counts[channel] += np.bincount(values, minlength=256)


def statistics(counts: np.ndarray) -> Statistics:
    """Returns mean and standard deviation from histograms [C, 256]."""
    values = np.arange(256)
    total = counts.sum(axis=1)
    mean = counts @ values / total
    spread = (counts * (values - mean[:, None]) ** 2).sum(axis=1) / total
    std = np.maximum(np.sqrt(spread) / 255, 1e-3)
    return (mean / 255).tolist(), std.tolist()


@registry.sources.register("custom", from_python=True, examples=())
def load_from_python(config: Any) -> Source:
    """Refuses to load images that only `simmatch_tf.fit` can be given.

    Raises:
        InputError: Always.
    """
    del config
    raise InputError(
        "--dataset=custom: the images are given from Python: "
        "simmatch_tf.fit(config, source=…)"
    )
