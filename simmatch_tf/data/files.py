"""Encoded images in files, and the inspection that they pass before training.

Every file is decoded once: an unreadable image is found at the start, not on
the third day. `examination` says what can be used, and how it is read.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import numpy as np
import PIL
import tensorflow as tf
import tqdm
from absl import logging

from simmatch_tf import io, terminal
from simmatch_tf.data import examination
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.commandline import InputError

# Share of bad files up to which --on_bad_image=skip leaves them out.
MAX_BAD = 0.01
_SHOWN = 10
# Files that a thread takes at once, at most.
_CHUNK = 32


@dataclasses.dataclass(frozen=True)
class FileImages:
    """Encoded images in files, any sizes; see `source.Encoded`.

    Attributes:
        paths: N absolute paths.
        labels: int32 [N], classes from 0; -1 where the class is not known.
        names: N names that lists of labeled images and reports use.
        orientations: uint8 [N], EXIF 1 … 8.
        channel_mean: Mean of the red, green and blue of all pixels of the
            whole images, in units of 1 (white).
        channel_std: Their standard deviation.
        digests: uint8 [N, 16], of the files' contents; None: not known.
    """

    encoded: ClassVar[bool] = True
    paths: Sequence[str]
    labels: np.ndarray
    names: Sequence[str]
    orientations: np.ndarray
    channel_mean: Sequence[float]
    channel_std: Sequence[float]
    digests: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Checks lengths and labels."""
        lengths = {
            name: len(getattr(self, name))
            for name in ("paths", "labels", "names", "orientations")
        }
        if len(set(lengths.values())) > 1 or not len(self.paths):
            raise ValueError(
                f"there are {lengths}, but as many of each, at least 1, are "
                "wanted"
            )
        labels = source_lib.check_labels(np.asarray(self.labels))
        object.__setattr__(self, "labels", labels)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def take(self, places: np.ndarray) -> Self:
        """The images at `places` [n], n at least 1."""
        return dataclasses.replace(
            self,
            paths=[self.paths[place] for place in places],
            labels=self.labels[places],
            names=[self.names[place] for place in places],
            orientations=self.orientations[places],
            digests=None if self.digests is None else self.digests[places],
        )

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One image's bytes and orientation; for use inside tf.data.

        Args:
            index: Which image, int64 scalar.

        Returns:
            The encoded image, a scalar string, and its EXIF orientation, an
            int32 scalar.
        """
        paths, orientations = self._tensors
        orientation = tf.cast(tf.gather(orientations, index), tf.int32)
        return tf.io.read_file(tf.gather(paths, index)), orientation

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Made once: a constant in a graph would be a copy in each."""
        with tf.init_scope(), tf.device("CPU"):
            # As bytes: a path need not be valid UTF-8.
            paths = tf.constant([os.fsencode(path) for path in self.paths])
            return paths, tf.constant(self.orientations, tf.uint8)


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What was found in N files; a bad file's figures are 0.

    Attributes:
        reasons: Index of each bad file → why it cannot be used.
        orientations: uint8 [N], EXIF 1 … 8; 0 where not known.
        pixels: int64 [N].
        sums: uint64 [N, 3], sum of each channel's values 0 … 255.
        squares: uint64 [N, 3], sum of their squares.
        digests: uint8 [N, 16], of the files' contents.
        remarks: uint8 [N], see `examination.warn`.
    """

    reasons: dict[int, str]
    orientations: np.ndarray
    pixels: np.ndarray
    sums: np.ndarray
    squares: np.ndarray
    digests: np.ndarray
    remarks: np.ndarray

    @classmethod
    def empty(cls, files: int) -> "Inspection":
        """One of so many files, none of them seen yet."""
        return cls(
            reasons={},
            orientations=np.zeros(files, np.uint8),
            pixels=np.zeros(files, np.int64),
            sums=np.zeros([files, 3], np.uint64),
            squares=np.zeros([files, 3], np.uint64),
            digests=np.zeros([files, 16], np.uint8),
            remarks=np.zeros(files, np.uint8),
        )

    def statistics(self, indices: np.ndarray) -> source_lib.Statistics:
        """Mean and standard deviation of the channels of some files.

        Args:
            indices: Which files; none of them bad.

        Returns:
            Two lists of 3 numbers, in units of 1 (white).
        """
        pixels = self.pixels[indices].sum()
        mean = self.sums[indices].sum(axis=0) / pixels
        spread = self.squares[indices].sum(axis=0) / pixels - mean**2
        std = np.sqrt(np.maximum(spread, 0)) / 255
        return (mean / 255).tolist(), np.maximum(std, 1e-3).tolist()


# What is kept of each file, beside its key.
_COLUMNS = (
    *("orientations", "pixels", "sums", "squares", "digests", "remarks"),
)


def usable(
    paths: Sequence[str], inspection: Inspection, on_bad_image: str
) -> np.ndarray:
    """Decides what becomes of bad files.

    Args:
        paths: N paths, for the messages.
        inspection: What was found in them.
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
        f"{io.printable(paths[i])}: {inspection.reasons[i]}"
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
        logging.warning("%s", line)
    logging.warning("%s, and are left out (--on_bad_image=skip)", count)
    return np.setdiff1d(np.arange(len(paths)), bad)


def inspect(paths: Sequence[str], *, cache: pathlib.Path | None) -> Inspection:
    """Decodes every file once, but for those that were seen before.

    Args:
        paths: N absolute paths.
        cache: File to keep what was found in, for the next time; or None. That
            it cannot be used is logged, no more.
    """
    found = Inspection.empty(len(paths))
    keys = np.zeros([len(paths), 2], np.uint64)
    with examination.silent_pillow():
        if cache is not None:
            _in_threads(
                lambda i: _note_key(keys, i, paths[i]), np.arange(len(paths))
            )
            _recall(cache, keys, found)
        unseen = np.flatnonzero(found.orientations == 0)
        if not len(unseen):
            return found
        logging.info("looking at %d new images, once", len(unseen))
        try:
            _in_threads(lambda i: _note(found, i, paths[i]), unseen, bar=True)
        finally:  # Whoever interrupts need not wait as long again.
            if cache is not None:
                _keep(cache, keys, found)
    return found


def cache_path(data_dir: str) -> pathlib.Path | None:
    """Where the inspection of a folder is kept; None: there is no such place.

    Args:
        data_dir: The folder; however it is reached, the file is the same.
    """
    real = os.fsencode(os.path.realpath(data_dir))
    name = f"folder-{hashlib.sha256(real).hexdigest()[:16]}.npz"
    try:
        return io.cache_folder() / name
    except RuntimeError as error:  # a user without a home
        logging.warning("the inspection cannot be kept (%s)", error)
        return None


def _in_threads(
    work: Callable[[int], None], items: np.ndarray, *, bar: bool = False
) -> None:
    """Calls `work` with each item; with a bar on a terminal, if wanted."""
    size = min(_CHUNK, 1 + len(items) // 1000)
    chunks = [items[i : i + size] for i in range(0, len(items), size)]
    left = threading.Event()

    def work_on(chunk: np.ndarray) -> int:
        for item in chunk.tolist():
            if left.is_set():  # A chunk of large photographs takes seconds.
                break
            work(item)
        return len(chunk)

    shown = bar and not terminal.quiet() and sys.stderr.isatty()
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    with tqdm.tqdm(
        total=len(items), unit="image", dynamic_ncols=True, disable=not shown
    ) as progress:
        try:
            for done in pool.map(work_on, chunks):
                progress.update(done)
        finally:
            left.set()
            pool.shutdown(cancel_futures=True)


def _note_key(keys: np.ndarray, index: int, path: str) -> None:
    """Enters what tells two states of a file apart, uint64 [2]."""
    try:
        found = os.stat(path)
    except OSError:
        return
    # A program may set back the time of the last change, but not the time at
    # which it did so.
    state = b"%b\0%d %d %d %d" % (
        os.fsencode(path),
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_ino,
    )
    digest = hashlib.blake2b(state, digest_size=16).digest()
    keys[index] = np.frombuffer(digest, np.uint64)


def _version() -> np.ndarray:
    """What was found holds for these only."""
    return np.array(f"3 {tf.__version__} {PIL.__version__}")


def _recall(cache: pathlib.Path, keys: np.ndarray, found: Inspection) -> None:
    """Enters what is known from before."""
    try:
        with open(cache, "rb") as file:
            kept = np.load(file, allow_pickle=False)
            if kept["version"] != _version():
                return
            known = kept["keys"]
            rows = np.searchsorted(known[:, 0], keys[:, 0])
            rows = np.minimum(rows, len(known) - 1)
            same = np.flatnonzero((known[rows] == keys).all(axis=1))
            columns = {name: kept[name][rows[same]] for name in _COLUMNS}
    except FileNotFoundError:
        return
    except Exception as error:  # a damaged file may raise anything
        logging.warning("%s: is made anew (%r)", cache, error)
        return
    for name, column in columns.items():
        getattr(found, name)[same] = column


def _keep(cache: pathlib.Path, keys: np.ndarray, found: Inspection) -> None:
    """Keeps what was found in good files.

    A bad one is looked at again: what was wrong may be put right without a
    trace in its size and times, as on another machine's disk.
    """
    good = np.flatnonzero((found.orientations > 0) & keys.any(axis=1))
    if not len(good):
        return
    good = good[np.argsort(keys[good, 0], kind="stable")]
    aside = None
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=cache.parent, prefix=f"{cache.name}.", delete=False
        ) as file:
            aside = pathlib.Path(file.name)
            columns = {name: getattr(found, name)[good] for name in _COLUMNS}
            np.savez(file, version=_version(), keys=keys[good], **columns)
        aside.replace(cache)
    except OSError as error:
        logging.warning("%s: cannot be kept (%s)", cache, error)
        if aside is not None:
            aside.unlink(missing_ok=True)


def _note(found: Inspection, index: int, path: str) -> None:
    """Enters what is in a file."""
    try:
        image = examination.examine_content(path)
    except ValueError as error:
        found.reasons[index] = str(error)
        return
    found.sums[index], found.squares[index] = examination.sums(image.pixels)
    found.pixels[index] = image.pixels.size // 3
    found.digests[index] = np.frombuffer(image.digest, np.uint8)
    found.remarks[index] = image.remarks
    found.orientations[index] = image.orientation  # last: it marks it as seen
