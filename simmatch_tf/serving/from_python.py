"""Predictions from Python: what `simmatch_tf.predict` does."""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import PIL.Image
import tensorflow as tf

from simmatch_tf.data import files, selection
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import models, prediction

_SHOWN = 5  # classes of an image, and images that are named in a message
# Pillow's modes of more bits than eight, which it would clip.
_DEEP = ("I", "F")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Classes and probabilities of N images; `print` shows a table.

    Attributes:
        names: N names: of files from their folder on, or as they were given;
            of arrays "image 0", "image 1" …
        class_names: L names.
        probabilities: float32 [N, L], in the order of `class_names`.
        note: What is known of the probabilities beyond that, or "".
    """

    names: list[str]
    class_names: list[str]
    probabilities: np.ndarray
    note: str = ""

    @property
    def classes(self) -> list[str]:
        """The likeliest class of each image, N names."""
        return [self.class_names[i] for i in self.probabilities.argmax(axis=1)]

    @property
    def confidences(self) -> np.ndarray:
        """Its probability, float32 [N]."""
        return self.probabilities.max(axis=1)

    def rows(self) -> list[dict[str, Any]]:
        """A dict for each image, such as `pandas.DataFrame` takes.

        Returns:
            "file", "class", "confidence", "second_class" and
            "second_confidence", as in the command's files.
        """
        return [
            {"file": name, **prediction.likeliest(p, self.class_names)}
            for name, p in zip(self.names, self.probabilities, strict=True)
        ]

    def __len__(self) -> int:
        """N, the number of images."""
        return len(self.names)

    def __str__(self) -> str:
        """A line for each image: its likeliest classes, the likeliest first."""
        width = max(map(len, self.names), default=0)
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        lines = [
            f"{name.ljust(width)}  "
            + ", ".join(f"{self.class_names[i]} {p[i]:.1%}" for i in places)
            for name, p, places in zip(
                self.names, self.probabilities, order[:, :_SHOWN], strict=True
            )
        ]
        return "\n".join([*lines, self.note] if self.note else lines)


def predict(
    model: str | os.PathLike,
    images: Any,
    *,
    weights: str | None = None,
    batch_size: int = 64,
) -> Predictions:
    """Classifies images; see `simmatch_tf.predict`."""
    if not isinstance(model, str | os.PathLike):
        raise InputError(
            f"model is of type {type(model).__name__}, but the path of a run's "
            "folder or an export's is wanted: class names and the treatment of "
            "images stand there"
        )
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: must be at least 1")
    paths, names, encoded, remarks = _images(images)
    loaded = models.open_model(os.fspath(model), weights=weights)
    places = np.arange(len(names))
    if paths is not None:
        places = np.array([i for i in places if os.path.isfile(paths[i])], int)
    probabilities = np.full(
        [len(names), len(loaded.class_names)], np.nan, np.float32
    )
    with files.silent_pillow():
        for part, safe, marked, pixels in prediction.decoded(
            loaded,
            places,
            [os.fsencode(paths[i]) for i in places] if paths else encoded,
            tf.io.read_file if paths else tf.identity,
            batch_size=batch_size,
        ):
            good = safe
            if paths:
                good = prediction.as_shown(paths, part, safe)
                prediction.note_remarks(remarks, paths, part[good & marked])
            if good.any():
                given = tf.cast(pixels[good], loaded.input_dtype)
                found = loaded.classify(images=given)["probabilities"]
                probabilities[part[good]] = found.numpy()
        missing = np.flatnonzero(np.isnan(probabilities).any(axis=1))
        if len(missing):
            raise InputError(_unreadable(names, paths, missing))
    files.warn(names, remarks)
    return Predictions(
        names, list(loaded.class_names), probabilities, loaded.note
    )


def _unreadable(
    names: Sequence[str], paths: Sequence[str] | None, missing: np.ndarray
) -> str:
    """Names images that could not be read, with the reasons."""
    lines = [
        f"{names[i]}: {prediction.why(paths[i]) if paths else 'has NaN'}"
        for i in missing[:_SHOWN]
    ]
    more = (
        f" and {len(missing) - _SHOWN} more" if missing[_SHOWN:].any() else ""
    )
    return (
        f"{len(missing)} of {len(names)} images cannot be read: "
        f"{'; '.join(lines)}{more}. Leave them out; `python -m "
        "simmatch_tf.predict` labels the others, and says of each why not"
    )


def _images(
    images: Any,
) -> tuple[Sequence[str] | None, list[str], list[bytes] | None, np.ndarray]:
    """Paths and names of files; or names and PNG bytes of arrays.

    With remarks [N], see `files.warn`.

    Raises:
        InputError: They are neither, or none.
    """
    if isinstance(images, str | os.PathLike):
        found = selection.find(os.fspath(images))
        return (
            found.paths,
            list(found.names),
            None,
            np.zeros(len(found), np.uint8),
        )
    if isinstance(images, PIL.Image.Image):
        images = [images]
    elif hasattr(images, "__array__") and not isinstance(images, list | tuple):
        images = _batch(np.asarray(images))
    if isinstance(images, bytes | dict) or not isinstance(images, Iterable):
        raise InputError(
            f"images are of type {type(images).__name__}, but paths, arrays or "
            "Pillow images are wanted, one or a list of them"
        )
    images = list(images)
    if not images:
        raise InputError("images: there are none")
    of_files = [isinstance(image, str | os.PathLike) for image in images]
    if all(of_files):
        names = [os.fspath(image) for image in images]
        paths = [os.path.abspath(os.path.expanduser(name)) for name in names]
        return paths, names, None, np.zeros(len(names), np.uint8)
    if any(of_files):
        raise InputError("images: some are paths and some are not")
    names = [f"image {number}" for number in range(len(images))]
    remarks = np.zeros(len(names), np.uint8)
    encoded = []
    for place, (name, image) in enumerate(zip(names, images, strict=True)):
        if isinstance(image, PIL.Image.Image):
            image, remarks[place] = _of_pillow(name, image)
        encoded.append(_png(name, image))
    return None, names, encoded, remarks


def _batch(array: np.ndarray) -> Sequence[Any]:
    """The images of one array: a batch, or one in colour or grey.

    Raises:
        InputError: It is neither.
    """
    if array.dtype.kind in "OUS" and array.ndim == 1:  # of paths
        return array.tolist()
    if array.ndim == 4:
        return array
    if array.ndim == 3 and array.shape[-1] in (1, 3):
        return [array]
    raise InputError(
        f"images are an array of shape {array.shape}, but [N, height, width, "
        "channels] is wanted, or one image [height, width, channels], with 1 "
        "channel (grey) or 3 (RGB); a batch of grey images [N, height, width] "
        "is images[..., None] then"
    )


def _of_pillow(name: str, image: PIL.Image.Image) -> tuple[np.ndarray, int]:
    """An image as seen, uint8, and the remarks on it.

    Raises:
        InputError: It cannot be read, or has more bits.
    """
    if image.mode.startswith(_DEEP):
        raise InputError(
            f"{name} is of Pillow's mode {image.mode}, but 8 bits a channel "
            'are wanted, such as of mode "L" or "RGB"'
        )
    try:
        seen, otherwise = files.turned(image)
        seen = np.asarray(seen.convert("L" if seen.mode == "L" else "RGB"))
    except Exception as error:  # Pillow's decoders may raise anything
        raise InputError(
            f"{name}: Pillow cannot read it ({error}); it may be truncated, or "
            "closed already"
        ) from None
    return seen, files.TURNED * otherwise


def _png(name: str, image: Any) -> bytes:
    """An image as a file, so that it is treated as files are.

    Raises:
        InputError: It is no image of 8 bits a channel, grey or RGB.
    """
    try:
        pixels = np.asarray(image)
    except Exception as error:  # lists of several lengths, another device
        raise InputError(
            f"{name}, of type {type(image).__name__}, is no array ({error})"
        ) from None
    if pixels.dtype != np.uint8:
        raise InputError(_no_bytes(name, pixels))
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        alpha = pixels.ndim == 3 and pixels.shape[-1] == 4
        raise InputError(
            f"{name} has shape {np.shape(image)}, but [height, width, "
            "channels] is wanted, with 1 channel (grey) or 3 (RGB) at the end"
            + ("; leave out alpha: image[..., :3]" if alpha else "")
        )
    return tf.io.encode_png(pixels, compression=1).numpy()


def _no_bytes(name: str, pixels: np.ndarray) -> str:
    """What is wrong with an array of other numbers than bytes."""
    if pixels.dtype.kind not in "biuf" or not pixels.size:
        return (
            f"{name} is of type {pixels.dtype}, but an array of uint8 from 0 "
            "to 255, a path or a Pillow image is wanted"
        )
    low, high = float(pixels.min()), float(pixels.max())
    advice = ""
    if 0 <= low and high <= 1:
        advice = "; such as (255 * images).round().astype('uint8')"
    elif 0 <= low and high <= 255:
        advice = "; such as images.round().astype('uint8')"
    return (
        f"{name} is {pixels.dtype} from {low:.3g} to {high:.3g}, but uint8 "
        f"from 0 (black) to 255 (white) is wanted{advice}"
    )
