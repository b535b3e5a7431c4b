"""Features of images, computed once and kept in a cache.

The features of a set are a NumPy file, float32 [N, width], named by a digest
of what they depend on: the network, the images and how these are prepared. It
is read through a memory map.
"""

import hashlib
import pathlib
from collections.abc import Iterator

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


def extract(
    encoder: encoders.Encoder,
    task: tasks.Task,
    subset: str,
    *,
    folder: pathlib.Path | None = None,
    batch_size: int,
    parallel_calls: int = 2,
    progress: bool = False,
) -> np.ndarray:
    """Returns the features of a set of images.

    The shorter side is resized to that of the network's images by bicubic
    interpolation, and the center is cropped. Grey images are repeated to
    three channels, or colors made grey, as the network needs it.

    Args:
        encoder: The network.
        task: The dataset.
        subset: "train", "validation" or "test".
        folder: The cache, created if it does not exist; by default features/
            in the user's cache folder.
        batch_size: Images of a batch.
        parallel_calls: Batches that are prepared at once.
        progress: Whether to show a progress bar.

    Returns:
        float32 [N, width], memory-mapped, read-only.

    Raises:
        InputError: An image cannot be read, the cache cannot be written, or a
            feature is not finite.
    """
    folder = folder or io.cache_folder() / "features"
    path = folder / f"{_key(encoder, task.digests[subset])}.npy"
    images, title = getattr(task, subset), f"{task.name} {subset}"
    if not path.is_file():
        batches = _batches(encoder, images, batch_size, parallel_calls)
        shape = len(images), encoder.network.output["features"].shape[-1]
        shown = terminal.progress(shape[0], "img", title=title, shown=progress)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (
                shown as bar,
                io.replacing(path) as temporary,
                open(temporary, "wb") as file,
            ):
                np.lib.format.write_array_header_1_0(file, header)
                for rows in batches:
                    if not np.isfinite(rows).all():
                        raise InputError(
                            f"{encoder.name}: its features of {title} are not "
                            "finite"
                        )
                    file.write(rows.tobytes())
                    bar.update(len(rows))
        except OSError as error:
            raise InputError(
                f"--cache_dir={folder}: features cannot be kept there "
                f"({error.strerror})"
            ) from None
    try:
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); remove it, and it is computed "
            "again"
        ) from None


def _batches(
    encoder: encoders.Encoder,
    images: tasks.Set,
    batch_size: int,
    parallel_calls: int,
) -> Iterator[np.ndarray]:
    """Yields the features of batches of images, float32 [B, width]."""
    network, channels = encoder.network, encoder.image_shape[-1]

    @tf.function(autograph=False)
    def forward(batch: tf.Tensor) -> tf.Tensor:
        outputs = network(match_channels(batch, channels), training=False)
        return tf.cast(outputs["features"], tf.float32)

    return evaluator.outputs(
        forward,
        images,
        np.arange(len(images)),
        batch_size=batch_size,
        side=encoder.image_shape[0],
        resize=encoder.image_shape[0],
        kernel=KERNEL,
        parallel_calls=parallel_calls,
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
