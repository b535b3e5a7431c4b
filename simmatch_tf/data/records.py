"""TFRecord files: encoded images in them, and whether the files are whole.

A pass over the files notes where every record begins, its class and its name.
That index is kept in the cache (a few dozen bytes for each image); images are
then read one by one, in any order. Importing this module does not import
TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import ClassVar, Self

from simmatch_tf import terminal
from simmatch_tf.data import cache
from simmatch_tf.flags.errors import InputError
from simmatch_tf.lazy import np, tf

# A record is framed by its length and the length's checksum of 4 bytes, and
# followed by its own checksum of 4 bytes.
_LENGTH = struct.Struct("<Q")
_HEADER = _LENGTH.size + 4
_FRAME = _HEADER + 4
_BUFFER = 64 * 1024  # of a file that is opened for one image
_COUNT_BUFFER = 1024 * 1024
_SCAN_BUFFER = 8 * 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Index:
    """The places of records in files.

    Attributes:
        files: Paths of the record files.
        shard: int32 [N], number of each record's file.
        offset: int64 [N], where each record begins in its file.
        labels: int32 [N], -1 where the class is not known.
        names: bytes [N], or None.
    """

    files: Sequence[str]
    shard: np.ndarray
    offset: np.ndarray
    labels: np.ndarray
    names: np.ndarray | None

    def __len__(self) -> int:
        """Returns the number of records."""
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class RecordImages:
    """Encoded images in TFRecord files; see `source.Encoded`.

    Attributes:
        index: Their places.
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
        """Returns the number of images."""
        return len(self.index)

    def join(self, other: Self) -> Self:
        """Returns these images, then those of other record files."""
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

    def take(self, indices: np.ndarray) -> Self:
        """Returns the images at `indices` [n], n at least 1."""
        names = self.index.names
        index = Index(
            files=self.index.files,
            shard=self.index.shard[indices],
            offset=self.index.offset[indices],
            labels=self.index.labels[indices],
            names=None if names is None else names[indices],
        )
        return RecordImages(index, self.feature)

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns an image's bytes and the orientation 1: EXIF is ignored.

        TFDS ignores EXIF as well when it decodes a dataset's images, and so do
        published results on these datasets.
        """
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
        return parsed[self.feature], tf.constant(1)

    def files(self) -> Sequence[str]:
        """Returns the paths of the files that hold any of the images."""
        used = np.unique(self.index.shard)
        return [self.index.files[number] for number in used]

    def layout(self) -> bytes:
        """Returns the images' places in `files`, and their key."""
        index = self.index
        # Files are numbered by those in use: another one changes nothing.
        shards = np.searchsorted(np.unique(index.shard), index.shard)
        offsets = np.asarray(index.offset, np.int64)
        return shards.tobytes() + offsets.tobytes() + self.feature.encode()

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Tensors for all graphs; constants in each would be copies."""
        with tf.init_scope(), tf.device("CPU"):
            return (
                tf.constant(list(self.index.files)),
                tf.convert_to_tensor(self.index.shard),
                tf.convert_to_tensor(self.index.offset),
            )


def _records(
    files: tf.Tensor, *, buffer: int, offsets: tf.Tensor | None = None
) -> tf.data.Dataset:
    """Returns raw records of each file, from an offset on."""
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


# ---------------------------------------------------------------- the index --


def scan(
    files: Sequence[str],
    *,
    label: str | None,
    name: str | None,
    cache_name: str,
    promised: Sequence[int] | None = None,
) -> Index:
    """Makes the index of record files, or reads it from the cache.

    Args:
        files: Paths, in order.
        label: Key of the class in a record; None: not known.
        name: Key of the image's name; None: it has none.
        cache_name: Readable part of the cached file's name. A digest that
            differs for each state of the data is added.
        promised: Number of records that each file must have; None: not known.

    Raises:
        InputError: A file cannot be read, or lacks these features, or has
            another number of records.
    """
    path = cache.path(_cache_name(files, cache_name, (label, name)))
    kept = {}
    if path is not None:
        columns = ("shard", "offset", "labels")
        kept = cache.read(
            path,
            lambda arrays: {
                **{column: arrays[column] for column in columns},
                "names": arrays["names"] if "names" in arrays else None,
            },
        )
    if kept:
        index = Index(files=list(files), **kept)
        _check_index(index, promised)
        return index
    terminal.say(
        f"{cache_name}: finding each image's place in its file; this is done "
        "once"
    )
    parts = [
        _scan_file(file, label, name, wanted)
        for file, wanted in zip(
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
    _check_index(index, promised)
    if path is not None:
        arrays = {n: getattr(index, n) for n in ("shard", "offset", "labels")}
        if index.names is not None:
            arrays["names"] = index.names
        cache.write(path, arrays)
    return index


def _check_index(index: Index, promised: Sequence[int] | None) -> None:
    if promised is not None:
        counts = np.bincount(index.shard, minlength=len(index.files))
        _check_counts(index.files, counts.tolist(), promised)


def _scan_file(
    path: str, label: str | None, name: str | None, promised: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns offsets, classes and names of a file's records; see `scan`."""
    features = {}
    if label is not None:
        features[label] = tf.io.FixedLenFeature([], tf.int64)
    if name is not None:
        features[name] = tf.io.FixedLenFeature([], tf.string)

    def parse(batch: tf.Tensor) -> dict[str, tf.Tensor]:
        columns = {"length": tf.strings.length(batch)}
        if features:
            parsed = tf.io.parse_example(batch, features)
            columns |= {f"feature {key}": parsed[key] for key in features}
        return columns

    dataset = _records([path], buffer=_SCAN_BUFFER).batch(256)
    dataset = dataset.map(tf.autograph.experimental.do_not_convert(parse))
    try:
        batches = list(dataset.as_numpy_iterator())
    except tf.errors.DataLossError:
        if promised is not None:
            check([path], [promised])
        raise damaged(path) from None
    except tf.errors.OpError as error:
        raise InputError(f"{path}: cannot be read ({error.message})") from None

    def column(key: str, dtype: type) -> np.ndarray:
        if not batches:
            return np.zeros(0, dtype)
        return np.concatenate([b[key] for b in batches]).astype(dtype)

    lengths = column("length", np.int64) + _FRAME
    labels = np.full(len(lengths), -1, np.int32)
    if label is not None:
        labels = column(f"feature {label}", np.int32)
    names = None if name is None else column(f"feature {name}", np.bytes_)
    return np.cumsum(lengths) - lengths, labels, names


def _cache_name(
    files: Sequence[str], readable: str, keys: tuple[str | None, ...]
) -> str:
    """Returns the cached index's name, which differs for each state of data."""
    state = [repr(keys)]
    for path in files:
        try:
            status = os.stat(path)
        except OSError as error:
            raise _unreadable(path, error) from None
        state.append(f"{path} {status.st_size} {status.st_mtime_ns}")
    digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    return f"records-{readable.replace('/', '-')}-{digest}.npz"


# ------------------------------------------------------ whole files or not? --


def count(path: str) -> int:
    """Counts the whole records in a file by their frames alone.

    Raises:
        InputError: It cannot be read.
    """
    try:
        size = os.stat(path).st_size
        records, place = 0, 0
        with open(path, "rb", buffering=_COUNT_BUFFER) as file:
            while place + _FRAME <= size:
                (length,) = _LENGTH.unpack(file.read(_HEADER)[: _LENGTH.size])
                place += _FRAME + length
                records += place <= size
                file.seek(place)
        return records
    except OSError as error:
        raise _unreadable(path, error) from None


def check(files: Sequence[str], promised: Sequence[int]) -> None:
    """Checks that local files hold as many records as they should.

    Args:
        files: Paths. Remote ones (gs://…) are not checked.
        promised: Number of records that each must have.

    Raises:
        InputError: One cannot be read, or has another number.
    """
    # Only TensorFlow can read a remote folder.
    if not any("://" in path for path in files):
        _check_counts(files, [count(path) for path in files], promised)


def _check_counts(
    files: Sequence[str], counts: Sequence[int], promised: Sequence[int]
) -> None:
    wrong = [
        f"{path} holds {actual} examples, but dataset_info.json beside it "
        f"promises {right}"
        for path, actual, right in zip(files, counts, promised, strict=True)
        if actual != right
    ]
    if wrong:
        more = f" (and {len(wrong) - 1} other files like it)"
        raise InputError(
            f"{wrong[0]}{more * (len(wrong) > 1)}: it was not copied or "
            f"written to its end; {advice(files[0])}"
        )


def damaged(path: str) -> InputError:
    """Returns the error for a file whose records do not fit its checksums."""
    return InputError(
        f"{path}: is damaged: its records do not have its checksums; "
        + advice(path)
    )


def _unreadable(path: str, error: OSError) -> InputError:
    return InputError(
        f"{path}: cannot be read ({error.strerror or error}); " + advice(path)
    )


def advice(path: str) -> str:
    """Returns advice on a damaged file, for the end of a message."""
    return (
        "copy it again, or remove "
        f"{pathlib.Path(path).parent}, and TFDS prepares it again"
    )
