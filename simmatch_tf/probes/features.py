"""Features of images, computed once and kept.

A set's features are a NumPy file, float32 [N, width], named by a digest of
what they depend on: the network, the images and how these are prepared. It is
read through the memory map. A killed extraction goes on where it was.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tensorflow as tf
from tqdm import auto

from simmatch_tf import io
from simmatch_tf.data import decoding, pipeline
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.probes import encoders, tasks

# Of what is computed here: another number, other features.
_VERSION = 1
KERNEL = "keyscubic"


def default_folder() -> pathlib.Path:
    """Where features are kept, if no flag says otherwise.

    Raises:
        InputError: The user has no home.
    """
    try:
        return io.cache_folder() / "features"
    except RuntimeError as error:
        raise InputError(
            f"--cache_dir=None: there is no default folder ({error}); name one"
        ) from None


class Extractor:
    """Computes features, or reads those that are kept."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        batch_size: int,
        parallel_calls: int = 2,
        progress: bool = False,
    ) -> None:
        """Takes what decides no bit of them but the last.

        Args:
            folder: That keeps them; made, where it is not.
            batch_size: Images at once.
            parallel_calls: Batches prepared at once.
            progress: A bar, on a terminal.
        """
        self._folder, self._batch_size = folder, batch_size
        self._parallel_calls, self._progress = parallel_calls, progress

    def features(
        self, encoder: encoders.Encoder, task: tasks.Task, which: str
    ) -> np.ndarray:
        """Features of a set of images.

        The shorter side is resized to the network's, bicubically, and the
        centre cropped. Grey images are repeated to three channels, or colours
        made grey, as the network wants them.

        Args:
            encoder: The network.
            task: The dataset.
            which: "train", "validation" or "test".

        Returns:
            float32 [N, width], memory-mapped, read-only.

        Raises:
            InputError: An image cannot be read, the folder not be written, or
                a feature is not finite.
        """
        images, title = getattr(task, which), f"{task.name} {which}"
        path = self._folder / f"{_key(encoder, task.digests[which])}.npy"
        width = encoder.network.output["features"].shape[-1]
        if not path.is_file():
            try:
                self._extract(encoder, images, path, width, title)
            except OSError as error:
                raise InputError(
                    f"--cache_dir={self._folder}: features cannot be kept "
                    f"there ({error.strerror})"
                ) from None
        try:
            found = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); remove it, and it is "
                "computed anew"
            ) from None
        if found.shape != (len(images), width):
            raise InputError(
                f"{path}: has shape {found.shape}, not {(len(images), width)}; "
                "remove it, and it is computed anew"
            )
        return found

    def _extract(
        self,
        encoder: encoders.Encoder,
        images: tasks.Set,
        path: pathlib.Path,
        width: int,
        title: str,
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        size = self._batch_size
        part = path.with_suffix(".part")
        with _locked(part) as file:
            done = _begin(file, (len(images), width), size)
            bar = auto.tqdm(
                total=len(images),
                initial=done,
                unit="img",
                desc=title,
                disable=None if self._progress else True,
            )
            with bar:
                for batch in self._batches(encoder, images, done):
                    values = batch[: len(images) - done]
                    if not np.isfinite(values).all():
                        raise InputError(
                            f"{encoder.name}: its features of {title} are not "
                            "finite"
                        )
                    file.write(values.tobytes())
                    done += len(values)
                    bar.update(len(values))
            file.flush()
            os.fsync(file.fileno())
            part.replace(path)

    def _batches(
        self, encoder: encoders.Encoder, images: tasks.Set, start: int
    ) -> Iterator[np.ndarray]:
        """Features [batch_size, width] from image `start` on."""
        network, channels = encoder.network, encoder.image_shape[-1]
        if start == len(images):
            return  # killed between the last row and the new name

        def forward(batch: tf.Tensor) -> tf.Tensor:
            out = network(match_channels(batch, channels), training=False)
            return tf.cast(out["features"], tf.float32)

        forward = tf.function(forward, autograph=False)
        side = encoder.image_shape[0]
        batches = iter(
            pipeline.evaluation_dataset(
                images,
                np.arange(start, len(images)),
                self._batch_size,
                side=side,
                resize=side,
                kernel=KERNEL,
                parallel_calls=self._parallel_calls,
            )
        )
        while True:
            batch = pipeline.read_next(batches, "for its features")
            if batch is None:
                return
            yield forward(batch).numpy()


def match_channels(images: tf.Tensor, channels: int) -> tf.Tensor:
    """Images [..., 1 or 3] uint8 with 1 or 3 channels."""
    if images.shape[-1] == channels:
        return images
    if channels == 1:
        return decoding.grey(images)
    return tf.image.grayscale_to_rgb(images)


def _key(encoder: encoders.Encoder, images: str) -> str:
    how = repr((_VERSION, KERNEL, encoder.digest, images))
    return hashlib.sha256(how.encode()).hexdigest()[:32]


@contextlib.contextmanager
def _locked(part: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file for appending, for one process at a time."""
    with open(part, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{part}: another process computes these features now"
            ) from None
        if not part.exists() or not os.path.samestat(
            os.fstat(file.fileno()), part.stat()
        ):
            # It was given its name between opening and locking.
            raise InputError(
                f"{part}: another process has just computed these features; "
                "start again"
            )
        yield file


def _begin(file: BinaryIO, shape: tuple[int, int], batch_size: int) -> int:
    """Writes the header, or finds how many rows are behind it.

    Returns:
        Rows to keep: whole batches, so that the rest are the same bits.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    try:
        np.lib.format.read_magic(file)
        found = np.lib.format.read_array_header_1_0(file)
        right = found == (shape, False, np.dtype("<f4"))
    except ValueError:
        right = False
    if not right:
        file.truncate(0)
        np.lib.format.write_array_header_1_0(file, header)
        return 0
    start = file.tell()
    rows = (size - start) // (4 * shape[1])
    rows -= rows % batch_size
    file.truncate(start + 4 * shape[1] * rows)
    return rows
