"""Encoded images inside TFRecord files, each found by its place.

A pass over the files notes where every record begins, its class and its name.
That index is kept (a few dozen bytes an image), so it is made once; images are
then read one by one, in any order.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import tensorflow as tf
from absl import logging

from simmatch_tf import io
from simmatch_tf.data.sources import shards
from simmatch_tf.flags.commandline import InputError

_FRAME = 16  # bytes around a record: length, two checksums
_BUFFER = 64 * 1024  # of a file that is opened for one image
_SCAN_BUFFER = 8 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Index:
    """Where the records of a data set are.

    Attributes:
        files: Paths of the record files.
        shard: Of each record, the number of its file, int32 [N].
        offset: Of each record, where it begins in it, int64 [N].
        labels: int32 [N], -1 where the class is not known.
        names: bytes [N], or None.
    """

    files: Sequence[str]
    shard: np.ndarray
    offset: np.ndarray
    labels: np.ndarray
    names: np.ndarray | None

    def __len__(self) -> int:
        """Number of records."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class RecordImages:
    """Encoded images in TFRecord files; see `source.Encoded`.

    Attributes:
        index: Where they are.
        feature: Key of the encoded image in a record.
    """

    encoded: ClassVar[bool] = True
    index: Index
    feature: str = "image"

    @property
    def labels(self) -> np.ndarray:
        """Classes, int32 [N]; -1 where one is not known."""
        return self.index.labels

    @functools.cached_property
    def names(self) -> Sequence[str] | None:
        """N names, or None."""
        if self.index.names is None:
            return None
        return [name.decode(errors="replace") for name in self.index.names]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.index)

    def join(self, other: Self) -> Self:
        """These images, then those of other record files."""
        ours, theirs = self.index, other.index
        named = ours.names is not None and theirs.names is not None
        index = Index(
            files=[*ours.files, *theirs.files],
            shard=np.concatenate([ours.shard, theirs.shard + len(ours.files)]),
            offset=np.concatenate([ours.offset, theirs.offset]),
            labels=np.concatenate([ours.labels, theirs.labels]),
            names=np.concatenate([ours.names, theirs.names]) if named else None,
        )
        return RecordImages(index, self.feature)

    def take(self, places: np.ndarray) -> Self:
        """The images at `places` [n], n at least 1."""
        found = self.index
        names = found.names
        index = Index(
            files=found.files,
            shard=found.shard[places],
            offset=found.offset[places],
            labels=found.labels[places],
            names=None if names is None else names[places],
        )
        return RecordImages(index, self.feature)

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One image's bytes (scalar string), and 1: as stored."""
        files, shard, offset = self._tensors
        records = _records(
            tf.gather(files, tf.gather(shard, index))[None],
            buffer=_BUFFER,
            offsets=tf.gather(offset, index)[None],
        )
        record = records.take(1).get_single_element()
        parsed = tf.io.parse_single_example(
            record, {self.feature: tf.io.FixedLenFeature([], tf.string)}
        )
        # As stored, whatever EXIF says: so TFDS itself decodes a dataset's
        # images, published results are on such, and so are our own.
        return parsed[self.feature], tf.constant(1)

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.init_scope(), tf.device("CPU"):
            return (
                tf.constant(list(self.index.files)),
                tf.convert_to_tensor(self.index.shard),
                tf.convert_to_tensor(self.index.offset),
            )


def _records(
    files: tf.Tensor, *, buffer: int, offsets: tf.Tensor | None = None
) -> tf.data.Dataset:
    """Raw records; `offsets`: where in each file to begin."""
    if offsets is None:
        return tf.data.TFRecordDataset(files, buffer_size=buffer)
    # The public class takes no offsets; the operation behind it does.
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=files,
        compression_type="",
        buffer_size=tf.constant(buffer, tf.int64),
        byte_offsets=offsets,
    )
    return tf.data.experimental.from_variant(
        variant, tf.TensorSpec([], tf.string)
    )


def scan(
    files: Sequence[str],
    *,
    label: str | None,
    name: str | None,
    cache_name: str,
    promised: Sequence[int] | None = None,
) -> Index:
    """Makes the index of record files, or reads the one made before.

    Args:
        files: Paths, in order.
        label: Key of the class in a record; None: not known.
        name: Key of the name; None: there is none.
        cache_name: Of the kept file, readable for people; what tells two
            states of the data apart is added.
        promised: Records that each file must have; None: not known.

    Raises:
        InputError: A file cannot be read, or has no such features, or another
            number of records.
    """
    kept = _kept(files, cache_name, (label, name))
    found = None if kept is None else _read_kept(kept, files)
    if found is not None:
        _check_counts(found, promised)
        return found
    logging.info("%s: noting where every image is, once", cache_name)
    parts = [
        _scan_file(path, label, name, wanted)
        for path, wanted in zip(
            files, promised or [None] * len(files), strict=True
        )
    ]
    offsets, labels, names = zip(*parts, strict=True)
    index = Index(
        files=list(files),
        shard=np.repeat(
            np.arange(len(files), dtype=np.int32), [len(o) for o in offsets]
        ),
        offset=np.concatenate(offsets),
        labels=np.concatenate(labels),
        names=None if name is None else np.concatenate(names),
    )
    _check_counts(index, promised)
    if kept is not None:
        _keep(kept, index)
    return index


def _check_counts(index: Index, promised: Sequence[int] | None) -> None:
    if promised is not None:
        counts = np.bincount(index.shard, minlength=len(index.files))
        shards.check_counts(index.files, counts.tolist(), promised)


def _scan_file(
    path: str, label: str | None, name: str | None, promised: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Offsets, classes and names of one file's records; see `scan`."""
    wanted = {}
    if label is not None:
        wanted[label] = tf.io.FixedLenFeature([], tf.int64)
    if name is not None:
        wanted[name] = tf.io.FixedLenFeature([], tf.string)

    def look(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        found = {"length": tf.strings.length(batch)}
        if wanted:
            parsed = tf.io.parse_example(batch, wanted)
            found |= {f"feature {key}": parsed[key] for key in wanted}
        return found

    dataset = _records([path], buffer=_SCAN_BUFFER).batch(256)
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(look))
    try:
        batches = list(dataset.as_numpy_iterator())
    except tf.errors.DataLossError:
        if promised is not None:
            shards.check([path], [promised])
        raise shards.damaged(path) from None
    except tf.errors.OpError as error:
        raise InputError(f"{path}: cannot be read ({error.message})") from None

    def column(key: str, dtype) -> np.ndarray:
        if not batches:
            return np.zeros(0, dtype)
        return np.concatenate([b[key] for b in batches]).astype(dtype)

    lengths = column("length", np.int64) + _FRAME
    labels = np.full(len(lengths), -1, np.int32)
    if label is not None:
        labels = column(f"feature {label}", np.int32)
    names = None if name is None else column(f"feature {name}", np.bytes_)
    return np.cumsum(lengths) - lengths, labels, names


def _kept(
    files: Sequence[str], cache_name: str, keys: tuple[str | None, ...]
) -> pathlib.Path | None:
    """Where the index is kept; None: there is no such place."""
    state = [repr(keys)]
    for path in files:
        try:
            found = os.stat(path)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror or error}); "
                + shards.advice(path)
            ) from None
        state.append(f"{path} {found.st_size} {found.st_mtime_ns}")
    digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    safe = cache_name.replace("/", "-")
    try:
        return io.cache_folder() / f"records-{safe}-{digest}.npz"
    except RuntimeError as error:  # a user without a home
        logging.warning("the index cannot be kept (%s)", error)
        return None


def _read_kept(path: pathlib.Path, files: Sequence[str]) -> Index | None:
    try:
        with open(path, "rb") as file:
            kept = np.load(file, allow_pickle=False)
            return Index(
                files=list(files),
                shard=kept["shard"],
                offset=kept["offset"],
                labels=kept["labels"],
                names=kept["names"] if "names" in kept else None,
            )
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file may raise anything
        logging.warning("%s: is made anew (%r)", path, error)
        return None


def _keep(path: pathlib.Path, index: Index) -> None:
    """Keeps an index, if the folder can be written."""
    columns = {n: getattr(index, n) for n in ("shard", "offset", "labels")}
    if index.names is not None:
        columns["names"] = index.names
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "wb") as file:
            np.savez(file, **columns)
        aside.replace(path)
    except OSError as error:
        logging.warning("%s: cannot be kept (%s)", path, error)
        with contextlib.suppress(OSError):
            aside.unlink()
