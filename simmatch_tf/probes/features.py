"""Features of images, computed once and kept in a cache.

The features of a set are a NumPy file, float32 [N, width], named by a digest
of what they depend on: the network, the images and how these are prepared. It
is read through a memory map. An interrupted extraction resumes.
"""

import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import tensorflow as tf

from simmatch_tf import io, terminal
from simmatch_tf.data import decoding
from simmatch_tf.evaluation import evaluator
from simmatch_tf.flags.errors import InputError
from simmatch_tf.probes import encoders, tasks

# Version of what is computed here: another number, other features.
_VERSION = 1
KERNEL = "keyscubic"


def default_folder() -> pathlib.Path:
    """Returns where features are kept if no flag says otherwise.

    Raises:
        InputError: The user has no home folder.
    """
    try:
        return io.cache_folder() / "features"
    except RuntimeError as error:
        raise InputError(
            f"--cache_dir=None: there is no default folder ({error}); name one"
        ) from None


class Extractor:
    """Computes features, or reads those in the cache."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        batch_size: int,
        parallel_calls: int = 2,
        progress: bool = False,
    ) -> None:
        """Takes settings that change at most the last bit of the features.

        Args:
            folder: The cache; it is created if it does not exist.
            batch_size: Images of a batch.
            parallel_calls: Batches that are prepared at once.
            progress: Whether to show a progress bar.
        """
        self._folder, self._batch_size = folder, batch_size
        self._parallel_calls, self._progress = parallel_calls, progress

    def features(
        self, encoder: encoders.Encoder, task: tasks.Task, subset: str
    ) -> np.ndarray:
        """Returns the features of a set of images.

        The shorter side is resized to that of the network's images by bicubic
        interpolation, and the center is cropped. Grey images are repeated to
        three channels, or colors made grey, as the network needs it.

        Args:
            encoder: The network.
            task: The dataset.
            subset: "train", "validation" or "test".

        Returns:
            float32 [N, width], memory-mapped, read-only.

        Raises:
            InputError: An image cannot be read, the cache cannot be written,
                or a feature is not finite.
        """
        images, title = getattr(task, subset), f"{task.name} {subset}"
        path = self._folder / f"{_key(encoder, task.digests[subset])}.npy"
        shape = len(images), encoder.network.output["features"].shape[-1]
        if not path.is_file():
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                with open(path.with_suffix(".rows"), "ab") as file:
                    self._extract(encoder, images, path, shape, title, file)
            except OSError as error:
                raise InputError(
                    f"--cache_dir={self._folder}: features cannot be kept "
                    f"there ({error.strerror})"
                ) from None
        try:
            features = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); remove it, and it is "
                "computed again"
            ) from None
        if features.shape != shape:
            raise InputError(
                f"{path}: has shape {features.shape}, but must have {shape}; "
                "remove it, and it is computed again"
            )
        return features

    def _extract(
        self,
        encoder: encoders.Encoder,
        images: tasks.Set,
        path: pathlib.Path,
        shape: tuple[int, int],
        title: str,
        file: BinaryIO,
    ) -> None:
        """Computes features: first as bare rows in a file of their own."""
        if not io.lock(file):
            raise InputError(
                f"{file.name}: another process computes these features now"
            )
        if path.is_file():
            return  # another process has computed them since
        row_bytes = 4 * shape[1]
        # Whole batches are kept, so that the others give the same bits.
        done = os.fstat(file.fileno()).st_size // row_bytes
        done -= 0 if done == shape[0] else done % self._batch_size
        file.truncate(done * row_bytes)
        with terminal.progress(
            shape[0], "img", done=done, title=title, shown=self._progress
        ) as bar:
            for rows in self._batches(encoder, images, done):
                if not np.isfinite(rows).all():
                    raise InputError(
                        f"{encoder.name}: its features of {title} are not "
                        "finite"
                    )
                file.write(rows.tobytes())
                bar.update(len(rows))
        file.flush()
        with io.replacing(path) as temporary:
            np.save(temporary, np.memmap(file.name, "<f4", "r", shape=shape))
        os.unlink(file.name)

    def _batches(
        self, encoder: encoders.Encoder, images: tasks.Set, start: int
    ) -> Iterator[np.ndarray]:
        """Yields the features of batches from image `start` on."""
        network, channels = encoder.network, encoder.image_shape[-1]

        @tf.function(autograph=False)
        def forward(batch: tf.Tensor) -> tf.Tensor:
            outputs = network(match_channels(batch, channels), training=False)
            return tf.cast(outputs["features"], tf.float32)

        return evaluator.outputs(
            forward,
            images,
            np.arange(start, len(images)),
            batch_size=self._batch_size,
            side=encoder.image_shape[0],
            resize=encoder.image_shape[0],
            kernel=KERNEL,
            parallel_calls=self._parallel_calls,
            when="for its features",
        )


def match_channels(images: tf.Tensor, channels: int) -> tf.Tensor:
    """Returns uint8 images [..., 1 or 3] with 1 or 3 channels."""
    if images.shape[-1] == channels:
        return images
    if channels == 1:
        return decoding.grey(images)
    return tf.image.grayscale_to_rgb(images)


def _key(encoder: encoders.Encoder, images: str) -> str:
    """A digest of all that features depend on."""
    how = repr((_VERSION, KERNEL, encoder.digest, images))
    return hashlib.sha256(how.encode()).hexdigest()[:32]
