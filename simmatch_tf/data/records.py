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
class RecordImages:
    """Encoded images in TFRecord files; see `source.Encoded`.

    Attributes:
        paths: Paths of the record files.
        shard: int32 [N], number of each image's file.
        offset: int64 [N], where its record begins in the file.
        labels: int32 [N], -1 where the class is not known.
        names: N names, or None.
        feature: Key of the encoded image in a record.
    """

    encoded: ClassVar[bool] = True
    paths: Sequence[str]
    shard: np.ndarray
    offset: np.ndarray
    labels: np.ndarray
    names: Sequence[str] | None
    feature: str = "image"

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)

    def join(self, other: Self) -> Self:
        """Returns these images, then those of other record files."""
        return dataclasses.replace(
            self,
            paths=[*self.paths, *other.paths],
            shard=np.concatenate([self.shard, other.shard + len(self.paths)]),
            offset=np.concatenate([self.offset, other.offset]),
            labels=np.concatenate([self.labels, other.labels]),
            names=self.names and other.names and [*self.names, *other.names],
        )

    def take(self, indices: np.ndarray) -> Self:
        """Returns the images at `indices` [n], n at least 1."""
        return dataclasses.replace(
            self,
            shard=self.shard[indices],
            offset=self.offset[indices],
            labels=self.labels[indices],
            names=self.names and [self.names[index] for index in indices],
        )

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns an image's bytes and the orientation 1: EXIF is ignored.

        TFDS ignores EXIF as well when it decodes a dataset's images, and so do
        published results on these datasets.
        """
        paths, shard, offset = self._tensors
        # The public class takes no offsets; the operation behind it does.
        variant = tf.raw_ops.TFRecordDatasetV2(
            filenames=tf.gather(paths, tf.gather(shard, index))[None],
            compression_type="",
            buffer_size=tf.constant(_BUFFER, tf.int64),
            byte_offsets=tf.gather(offset, index)[None],
        )
        records = tf.data.experimental.from_variant(
            variant, tf.TensorSpec([], tf.string)
        )
        record = records.take(1).get_single_element()
        parsed = tf.io.parse_single_example(
            record, {self.feature: tf.io.FixedLenFeature([], tf.string)}
        )
        return parsed[self.feature], tf.constant(1)

    def files(self) -> Sequence[str]:
        """Returns the paths of the files that hold any of the images."""
        return [self.paths[number] for number in np.unique(self.shard)]

    def layout(self) -> bytes:
        """Returns the images' places in `files`, and their key."""
        # Files are numbered by those in use: another one changes nothing.
        shards = np.searchsorted(np.unique(self.shard), self.shard)
        offsets = np.asarray(self.offset, np.int64)
        return shards.tobytes() + offsets.tobytes() + self.feature.encode()

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Tensors for all graphs; constants in each would be copies."""
        with tf.init_scope(), tf.device("CPU"):
            return (
                tf.constant(list(self.paths)),
                tf.convert_to_tensor(self.shard),
                tf.convert_to_tensor(self.offset),
            )


# ---------------------------------------------------------------- the index --


def scan(
    files: Sequence[str],
    *,
    label: str | None,
    name: str | None,
    cache_name: str,
    feature: str = "image",
    promised: Sequence[int] | None = None,
) -> RecordImages:
    """Finds the images in record files, or reads from the cache where they are.

    Args:
        files: Paths, in order.
        label: Key of the class in a record; None: not known.
        name: Key of the image's name; None: it has none.
        cache_name: Readable part of the cached file's name. A digest that
            differs for each state of the data is added.
        feature: Key of the encoded image.
        promised: Number of records that each file must have; None: not known.

    Raises:
        InputError: A file cannot be read, or lacks these features, or has
            another number of records.
    """
    path = cache.path(_cache_name(files, cache_name, (label, name)))
    arrays = cache.read(path) if path is not None else {}
    if not arrays:
        terminal.say(
            f"{cache_name}: finding each image's place in its file; this is "
            "done once"
        )
        counts = promised or [None] * len(files)
        parts = [
            _scan_file(file, label, name, count)
            for file, count in zip(files, counts, strict=True)
        ]
        offsets, labels, names = zip(*parts, strict=True)
        arrays = {
            "shard": np.repeat(
                np.arange(len(files), dtype=np.int32), [len(o) for o in offsets]
            ),
            "offset": np.concatenate(offsets),
            "labels": np.concatenate(labels),
        }
        if name is not None:
            arrays["names"] = np.concatenate(names)
        if path is not None:
            cache.write(path, arrays)
    if promised is not None:
        counts = np.bincount(arrays["shard"], minlength=len(files))
        _check_counts(files, counts.tolist(), promised)
    names = arrays.pop("names", None)
    if names is not None:
        names = [name.decode(errors="replace") for name in names]
    return RecordImages(list(files), **arrays, names=names, feature=feature)


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

    dataset = tf.data.TFRecordDataset([path], buffer_size=_SCAN_BUFFER)
    dataset = dataset.batch(256)
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
