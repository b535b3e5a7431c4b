"""Encoded images in files, and their check before training.

Every file is decoded once, so that an unreadable image is reported at the
start and not on the third day. What TensorFlow 2.21 reads, compared with what
viewers show (Pillow's `ImageOps.exif_transpose(image).convert("RGB")`):

  JPEG, RGB or grey, baseline or progressive   the same, exactly
  JPEG, CMYK as Adobe writes it                the same within 4 grey levels
  JPEG, CMYK without Adobe's mark              refused: colours are inverted
  PNG, 1 to 8 bits, palette, interlaced        the same, exactly
  PNG, 16 bits                                 the upper byte
  PNG, alpha or a transparent colour           alpha is dropped, as by Pillow
  PNG, animated                                its still image
  GIF, opaque                                  the first frame, exactly
  GIF, first frame transparent or too small    refused: black there
  BMP, 24 or 32 bits, 8 bits of grey           the same, exactly
  BMP, palette of colours                      refused: indices taken for grey
  BMP, 1, 4 or 16 bits, OS/2                   refused: cannot be decoded
  WebP, opaque, not animated                   the same, exactly
  WebP, alpha or animated                      refused: cannot be decoded
  one of these under another's name            by content, as above
  1×1 pixel                                    the same, exactly
  truncated, empty, text, any other format     refused
  more than 200 megapixels                     refused by its header

The table compares pixels as stored. They are turned by the EXIF orientation, as
in a served model (`decoding.exif_orientation`). A warning names files that
viewers turn in another way, such as by XMP. Files of formats that TensorFlow
and Pillow may read differently are compared one by one, so that the table also
holds with a newer TensorFlow.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import re
import stat
import threading
from collections.abc import Callable, Sequence
from typing import BinaryIO, ClassVar, NamedTuple, Self

import numpy as np
import PIL
import PIL.Image
import tensorflow as tf

from simmatch_tf import io as io_lib
from simmatch_tf import terminal
from simmatch_tf.data import cache as cache_lib
from simmatch_tf.data import decoding, fingerprint, viewing
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.errors import InputError

# Share of bad files up to which --on_bad_image=skip leaves them out.
MAX_BAD = 0.01
_SHOWN = 10  # bad files in a message
_CHUNK = 32  # files that a thread takes at once, at most
# Grey levels by which TensorFlow's reading may differ from Pillow's.
_TOLERANCE = 4
# What marks EXIF data in a file: in JPEG, PNG and WebP.
_EXIF = (b"Exif", b"eXIf", b"EXIF")
_PNG_DEPTH = 24  # place of a PNG's bits a channel
# 16-bit values that only use 12 bits have an upper byte below this.
_DARK = 16
# Remarks on images that can be used: bits, and the warning on each.
TURNED, DARK = 1, 2
_REMARKS = {
    TURNED: (
        "are turned by viewers in another way than here",
        "only the orientation in EXIF is read, also by exports, and these "
        "images have it elsewhere, such as in XMP: they are used as stored; "
        "save them upright, or write the orientation into EXIF",
    ),
    DARK: (
        "have 16 bits a channel, but all values below 4096",
        "only the upper 8 bits are read, so they are nearly black; multiply "
        "the values by 16 if they have 12 bits, or save them with 8 bits",
    ),
}


@dataclasses.dataclass(frozen=True)
class FileImages:
    """Encoded images in files; see `source.Encoded`.

    Attributes:
        paths: N absolute paths.
        labels: int32 [N], classes from 0; -1 where the class is not known.
        names: N names, by which lists and reports refer to images.
        orientations: uint8 [N], EXIF 1 … 8.
        digests: uint8 [N, 16], digests of the files; None: not known.
    """

    encoded: ClassVar[bool] = True
    paths: Sequence[str]
    labels: np.ndarray
    names: Sequence[str]
    orientations: np.ndarray
    digests: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Checks lengths and labels.

        Raises:
            ValueError: They are wrong.
        """
        lengths = {
            name: len(getattr(self, name))
            for name in ("paths", "labels", "names", "orientations")
        }
        if len(set(lengths.values())) > 1 or not len(self.paths):
            raise ValueError(
                f"there are {lengths}, but as many of each, at least 1, are "
                "needed"
            )
        labels = source_lib.check_labels(np.asarray(self.labels))
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.paths)

    def take(self, indices: np.ndarray) -> Self:
        """Returns the images at `indices` [n], n at least 1."""
        return dataclasses.replace(
            self,
            paths=[self.paths[index] for index in indices],
            labels=self.labels[indices],
            names=[self.names[index] for index in indices],
            orientations=self.orientations[indices],
            digests=None if self.digests is None else self.digests[indices],
        )

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns an image's bytes and orientation; see `source.Encoded`."""
        paths, orientations = self._tensors
        orientation = tf.cast(tf.gather(orientations, index), tf.int32)
        return tf.io.read_file(tf.gather(paths, index)), orientation

    def files(self) -> Sequence[str]:
        """Returns the paths of the images."""
        return self.paths

    def layout(self) -> bytes:
        """Returns the orientations; the rest is in the files."""
        return np.asarray(self.orientations, np.uint8).tobytes()

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Tensors for all graphs; constants in each would be copies."""
        with tf.init_scope(), tf.device("CPU"):
            # As bytes: a path need not be valid UTF-8.
            paths = tf.constant([os.fsencode(path) for path in self.paths])
            return paths, tf.constant(self.orientations, tf.uint8)


# --------------------------------------------------------- inspecting files --


# What is kept of each file; of a bad one, zeros.
_CONTENTS = np.dtype(
    [
        ("orientations", np.uint8),  # EXIF, 1 … 8
        ("pixels", np.int64),  # number of them
        ("sums", np.uint64, 3),  # of each channel's values 0 … 255
        ("squares", np.uint64, 3),  # sums of their squares
        ("digests", np.uint8, 16),  # of the file; see `fingerprint.digest`
        ("remarks", np.uint8),  # see `warn`
    ]
)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """The contents of N files.

    Attributes:
        contents: Array [N] with the fields of `_CONTENTS`.
        reasons: Index of a bad file → why it cannot be used.
    """

    contents: np.recarray
    reasons: dict[int, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def empty(cls, files: int) -> "Inspection":
        """Returns the inspection of files before any has been read."""
        return cls(np.zeros(files, _CONTENTS).view(np.recarray))

    def statistics(self, indices: np.ndarray) -> source_lib.Statistics:
        """Returns mean and standard deviation of the channels of some files.

        Args:
            indices: Which files; none of them bad.

        Returns:
            Two lists of 3 numbers; white is 1.
        """
        chosen = self.contents[indices]
        pixels = chosen.pixels.sum()
        mean = chosen.sums.sum(axis=0) / pixels
        spread = chosen.squares.sum(axis=0) / pixels - mean**2
        std = np.sqrt(np.maximum(spread, 0)) / 255
        return (mean / 255).tolist(), np.maximum(std, 1e-3).tolist()

    def side(self, indices: np.ndarray) -> int:
        """Returns the median side of some files, as if they were square.

        Args:
            indices: Which files, at least one; none of them bad.

        Returns:
            Pixels, the square root of the median area.
        """
        return round(float(np.median(self.contents[indices].pixels)) ** 0.5)


def inspect(paths: Sequence[str], *, cache: pathlib.Path | None) -> Inspection:
    """Decodes every file once, except those that were inspected before.

    Args:
        paths: N absolute paths.
        cache: File that keeps the inspection for the next time, or None. A
            cache that cannot be used is only warned about.
    """
    inspection = Inspection.empty(len(paths))
    keys = np.zeros([len(paths), 2], np.uint64)

    def note_key(index: int) -> None:
        keys[index] = _key(paths[index])

    def inspect_file(index: int) -> None:
        try:
            inspection.contents[index] = _contents(paths[index])
        except ValueError as error:
            inspection.reasons[index] = str(error)

    with viewing.silent_pillow():
        if cache is not None:
            _in_threads(note_key, np.arange(len(paths)))
            _read_cache(cache, keys, inspection.contents)
        unseen = np.flatnonzero(inspection.contents.orientations == 0)
        if not len(unseen):
            return inspection
        terminal.say(f"checking {len(unseen)} new images; this is done once")
        try:
            _in_threads(inspect_file, unseen, bar=True)
        finally:  # After an interruption the next start goes on from here.
            if cache is not None:
                _write_cache(cache, keys, inspection.contents)
    return inspection


def usable(
    paths: Sequence[str], inspection: Inspection, on_bad_image: str
) -> np.ndarray:
    """Refuses bad files, or leaves them out.

    Args:
        paths: N paths, for the messages.
        inspection: Of the files.
        on_bad_image: "error" or "skip".

    Returns:
        Indices of the files to use, int64, increasing.

    Raises:
        InputError: A file is bad and `on_bad_image` is "error", or more than
            1 % of them are.
    """
    bad = sorted(inspection.reasons)
    if not bad:
        return np.arange(len(paths))
    lines = [
        f"{io_lib.printable(paths[i])}: {inspection.reasons[i]}"
        for i in bad[:_SHOWN]
    ]
    count = f"{len(bad)} of {len(paths)} images cannot be used"
    if len(bad) > MAX_BAD * len(paths):
        raise InputError(
            f"{lines[0]}. In all, {count}, more than the {MAX_BAD:.0%} that "
            "--on_bad_image=skip may leave out: remove or repair them"
        )
    if on_bad_image == "error":
        raise InputError(
            f"{lines[0]}. In all, {count}: remove or repair "
            f"{'it' if len(bad) == 1 else 'them'}, or leave out such images "
            "with --on_bad_image=skip"
        )
    for line in lines:
        terminal.warn(line)
    terminal.warn(f"{count}, and are left out (--on_bad_image=skip)")
    return np.setdiff1d(np.arange(len(paths)), bad)


def cache_path(data_dir: str) -> pathlib.Path | None:
    """Returns the file that keeps a folder's inspection, or None.

    Args:
        data_dir: The folder; its links are resolved.
    """
    real = os.fsencode(os.path.realpath(data_dir))
    return cache_lib.path(f"folder-{hashlib.sha256(real).hexdigest()[:16]}.npz")


def _in_threads(
    work: Callable[[int], None], items: np.ndarray, *, bar: bool = False
) -> None:
    """Calls `work` on each item, in threads.

    Args:
        work: May be called in any order.
        items: int64 [n].
        bar: Whether to show a progress bar on a terminal.
    """
    size = min(_CHUNK, 1 + len(items) // 1000)
    chunks = [items[i : i + size] for i in range(0, len(items), size)]
    stopped = threading.Event()

    def work_on(chunk: np.ndarray) -> int:
        for item in chunk.tolist():
            if stopped.is_set():  # A chunk of large photographs takes seconds.
                break
            work(item)
        return len(chunk)

    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    with terminal.progress(len(items), "image", shown=bar) as progress:
        try:
            for done in pool.map(work_on, chunks):
                progress.update(done)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def _key(path: str) -> np.ndarray:
    """Returns numbers that differ between states of a file, uint64 [2]."""
    try:
        status = os.stat(path)
    except OSError:
        return np.zeros(2, np.uint64)
    # A program may set the modification time back, but not the time at which
    # it did so.
    state = b"%b\0%d %d %d %d" % (
        os.fsencode(path),
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_ino,
    )
    digest = hashlib.blake2b(state, digest_size=16).digest()
    return np.frombuffer(digest, np.uint64)


def _version() -> str:
    """Returns the versions that an inspection depends on."""
    return f"4 {tf.__version__} {PIL.__version__}"


def _read_cache(
    cache: pathlib.Path, keys: np.ndarray, contents: np.recarray
) -> None:
    """Enters the files that were inspected before."""
    kept = cache_lib.read(cache)
    if kept.get("version") != _version():
        return
    known = kept["keys"]
    rows = np.searchsorted(known[:, 0], keys[:, 0])
    rows = np.minimum(rows, len(known) - 1)
    same = np.flatnonzero((known[rows] == keys).all(axis=1))
    contents[same] = kept["contents"][rows[same]]


def _write_cache(
    cache: pathlib.Path, keys: np.ndarray, contents: np.recarray
) -> None:
    """Keeps the inspection of good files.

    A bad one is inspected again: it may be repaired without a trace in its
    size and times, as on another machine's disk.
    """
    good = np.flatnonzero((contents.orientations > 0) & keys.any(axis=1))
    if not len(good):
        return
    good = good[np.argsort(keys[good, 0], kind="stable")]
    arrays = {
        "version": np.array(_version()),
        "keys": keys[good],
        "contents": np.asarray(contents[good]),
    }
    cache_lib.write(cache, arrays)


def _contents(path: str) -> tuple:
    """Returns the fields of `_CONTENTS` for a file.

    Raises:
        ValueError: It cannot be used; the message says why.
    """
    image = examine(path)
    counts = PIL.Image.fromarray(image.pixels).histogram()
    counts = np.reshape(counts, [3, 256])
    values = np.arange(256)
    return (
        image.orientation,
        image.pixels.size // 3,
        counts @ values,
        counts @ values**2,
        np.frombuffer(image.digest, np.uint8),
        image.remarks,
    )


# ----------------------------------------------------------------- one file --


class Examined(NamedTuple):
    """The contents of an image file.

    Attributes:
        orientation: EXIF, 1 … 8.
        pixels: As stored, uint8 [H, W, 3].
        digest: Of the file; see `fingerprint.digest`.
        remarks: See `warn`.
    """

    orientation: int
    pixels: np.ndarray
    digest: bytes
    remarks: int


def examine(path: str) -> Examined:
    """Reads an image file as training does.

    Raises:
        ValueError: It cannot be used; the message says why.
    """
    try:
        # A named pipe would wait for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ValueError("is no regular file")
        with open(path, "rb") as file:
            return _examine(file)
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError) and os.path.islink(path):
            reason = "a symbolic link to a file that is not there"
        raise ValueError(reason) from None


def _examine(file: BinaryIO) -> Examined:
    if not os.fstat(file.fileno()).st_size:
        raise ValueError("the file is empty")
    image = viewing.header(file)
    file.seek(0)
    data = file.read()
    orientation = _own_orientation(data)
    pixels = _decode(data)
    if image.format not in ("JPEG", "MPO", "PNG") or image.mode == "CMYK":
        _compare(image, pixels)
    remarks = TURNED * (viewing.orientation(image, data) != orientation)
    if image.format == "PNG" and data[_PNG_DEPTH] == 16:
        remarks += DARK * bool(pixels.max() < _DARK)
    return Examined(orientation, pixels, fingerprint.digest(data), remarks)


def _decode(data: bytes) -> np.ndarray:
    try:
        if data.startswith(b"\xff\xd8"):
            # As viewers do it; the default is faster and less exact.
            pixels = tf.io.decode_jpeg(
                data, channels=3, dct_method="INTEGER_ACCURATE"
            )
        else:
            pixels = tf.io.decode_image(
                data, channels=3, expand_animations=False
            )
    except tf.errors.OpError as error:
        message = re.sub(r"\{\{.*?\}\} | \[Op:\w+\]", "", error.message)
        raise ValueError(f"TensorFlow cannot decode it ({message})") from None
    return pixels.numpy()


def _compare(image: PIL.Image.Image, pixels: np.ndarray) -> None:
    """Refuses an image that TensorFlow and Pillow read differently."""
    try:
        shown = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders may raise anything
        raise ValueError(f"Pillow cannot decode it ({error!r})") from None
    if shown.shape == pixels.shape:
        apart = np.maximum(shown, pixels) - np.minimum(shown, pixels)
        if apart.max() <= _TOLERANCE:
            return
    raise ValueError(
        f"TensorFlow reads this {image.format} image (mode {image.mode}) "
        "otherwise than viewers show it; save it as an RGB PNG"
    )


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def _read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    return decoding.exif_orientation(encoded)


def _own_orientation(data: bytes) -> int:
    """Returns the orientation by which this package turns a file."""
    if not any(mark in data for mark in _EXIF):  # most files: without a call
        return 1
    with tf.device("CPU"):
        return int(_read_orientation(tf.constant(data)))


def small(path: str, side: int) -> PIL.Image.Image:
    """Opens a file for a thumbnail, as training and prediction see it.

    Args:
        path: The file.
        side: A JPEG is decoded at a size that is at least this, if possible.

    Raises:
        Exception: Whatever Pillow's parsers and decoders raise.
    """
    with open(path, "rb") as file:
        data = file.read()
    image = PIL.Image.open(io.BytesIO(data))
    return viewing.turned(viewing.draft(image, side), _own_orientation(data))


def warn(names: Sequence[str], remarked: np.ndarray) -> None:
    """Warns about images that can be used, one line for each kind of remark.

    Args:
        names: N names.
        remarked: Their remarks [N]: bits of `TURNED` and `DARK`.
    """
    for bit, (remark, consequence) in _REMARKS.items():
        indices = np.flatnonzero(np.asarray(remarked) & bit)
        if len(indices):
            terminal.warn(
                f"{len(indices)} of {len(names)} images {remark} (such as "
                f"{names[indices[0]]}): {consequence}"
            )
