"""Classifies images in files, or images given from Python."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import tensorflow as tf

from simmatch_tf import io, terminal
from simmatch_tf.data import files, selection, viewing
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import classifier, loading, prediction_file

# Classes of an image in the printed table, and images named in a message.
_LISTED = 5
# Beginnings of Pillow's modes with more than eight bits, which it would clip.
_DEEP_MODES = ("I", "F")


@dataclasses.dataclass(frozen=True)
class _Images:
    """Images to classify: files, or encoded images in memory.

    Attributes:
        names: N names, for people.
        paths: N absolute paths of files, or None.
        encoded: N encoded images, or None.
    """

    names: Sequence[str]
    paths: Sequence[str] | None = None
    encoded: Sequence[bytes] | None = None


def _outputs(
    model: loading.Model,
    function: Callable[..., dict[str, tf.Tensor]],
    images: _Images,
    indices: np.ndarray,
    *,
    batch_size: int,
    parallel_calls: int | None = None,
) -> Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]:
    """Runs a model over images.

    Args:
        model: The model.
        function: Its `classify` or `explain`.
        images: All images.
        indices: Indices of those to read, in ascending order.
        batch_size: Images in a batch.
        parallel_calls: Images decoded at once; default: twice the cores.

    Yields:
        Index of the last image of a batch; indices of its readable images [n];
        output → values [n, …], empty if n = 0.
    """
    if not len(indices):
        return
    if images.paths is None:
        items, read = [images.encoded[i] for i in indices], tf.identity
    else:
        # As bytes: a path need not be valid UTF-8.
        items = [os.fsencode(images.paths[i]) for i in indices]
        read = tf.io.read_file

    def decode(index: tf.Tensor, item: tf.Tensor) -> tuple:
        encoded = read(item)
        return index, _is_exact(encoded), model.preprocessing.decode(encoded)

    dataset = tf.data.Dataset.from_tensor_slices(
        (indices, np.array(items, object))
    ).map(
        tf.autograph.experimental.do_not_convert(decode),
        num_parallel_calls=parallel_calls or 2 * (os.cpu_count() or 1),
        deterministic=True,
    )
    # An image that cannot be decoded is missing from its batch.
    dataset = dataset.ignore_errors().batch(batch_size).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    dataset = dataset.with_options(options)
    for batch, good, pixels in dataset.as_numpy_iterator():
        if images.paths is not None:
            good = good.copy()
            for place in np.flatnonzero(~good):
                good[place] = not _why_unreadable(images.paths[batch[place]])
        values = {}
        if good.any():
            inputs = tf.cast(pixels[good], model.input_dtype)
            outputs = function(images=inputs)
            values = {name: tensor.numpy() for name, tensor in outputs.items()}
        yield int(batch[-1]), batch[good], values


def _is_exact(encoded: tf.Tensor) -> tf.Tensor:
    """Whether TensorFlow is known to decode an image as viewers show it.

    This holds for PNGs, and for JPEGs that are not CMYK. Other images must be
    examined first.
    """
    return tf.cond(
        tf.equal(tf.strings.substr(encoded, 0, 3), b"\xff\xd8\xff"),
        lambda: tf.io.extract_jpeg_shape(encoded)[2] <= 3,
        lambda: tf.equal(tf.strings.substr(encoded, 0, 4), b"\x89PNG"),
    )


def _why_unreadable(path: str) -> str:
    """Why a file cannot be used, or ""."""
    try:
        files.examine(path)
    except ValueError as error:
        return str(error)
    return ""


def predict_to_file(
    model: loading.Model,
    chosen: selection.Selection,
    output: str | os.PathLike,
    *,
    explain: bool = False,
    overwrite: bool = False,
    batch_size: int = 64,
    parallel_calls: int | None = None,
    most_shown: int = 0,
    show: Callable[[prediction_file.Summary], None] | None = None,
) -> prediction_file.Summary:
    """Writes the class of each image to a file.

    Args:
        model: See `loading.open_model`.
        chosen: The images.
        output: The file, ending in .csv, .jsonl or .parquet.
        explain: Write the most similar labeled images, too.
        overwrite: Replace the file if it exists.
        batch_size: Images in a batch.
        parallel_calls: Images decoded at once; default: twice the cores.
        most_shown: Number of the least certain images in the summary.
        show: Called with the summary before the output is complete: if it
            fails, the rows are kept and the same call continues from there.

    Returns:
        The summary of all rows.

    Raises:
        InputError: The output cannot be written, or the model cannot explain.
    """
    if explain and model.explain is None:
        raise InputError(f"--explain: {model.why_not}")
    names = [io.printable(name) for name in chosen.names]
    images = _Images(names, chosen.paths)
    neighbors = model.neighbors if explain else None
    terminal.say(f"labeling {len(names)} images")
    stats = [_stat(path) for path in chosen.paths]
    identity = {
        "model": model.identity,
        "images": _digest(names, stats),
        "neighbors": neighbors,
    }
    with (
        prediction_file.PredictionFile(
            io.expand(output), identity, overwrite=overwrite
        ) as file,
        terminal.progress(len(names), "image", done=file.done) as bar,
        viewing.silent_pillow(),
    ):
        next_index = file.done

        def add(rows: dict[int, prediction_file.Row], stop: int) -> None:
            """Adds the rows up to `stop`; those not given are unreadable."""
            file.add(
                {"file": names[i], **rows[i], "error": None}
                if i in rows
                else prediction_file.unreadable(
                    names[i],
                    _why_missing(images, i),
                    neighbors,
                )
                for i in range(next_index, stop)
            )
            bar.update(stop - next_index)

        # Reading a named pipe, say, would wait for ever.
        regular = [s is not None and stat.S_ISREG(s.st_mode) for s in stats]
        for last, indices, values in _outputs(
            model,
            model.explain if explain else model.classify,
            images,
            np.flatnonzero(regular[next_index:]) + next_index,
            batch_size=batch_size,
            parallel_calls=parallel_calls,
        ):
            rows = _rows(values, model.class_names)
            add(dict(zip(indices.tolist(), rows, strict=True)), last + 1)
            next_index = last + 1
        add({}, len(names))
        summary = prediction_file.summarize(
            file.rows(), model.class_names, most_shown
        )
        if show is not None:
            show(summary)
        file.finish()
    return summary


def guesses(
    model: loading.Model, paths: Sequence[str], *, batch_size: int = 64
) -> Iterator[tuple[int, str, float]]:
    """Yields the likeliest class of each file that can be read.

    Args:
        model: See `loading.open_model`.
        paths: N absolute paths.
        batch_size: Images in a batch.

    Yields:
        Place in the paths, name of the class, and its probability.
    """
    indices = np.flatnonzero([os.path.isfile(path) for path in paths])
    for _, readable, values in _outputs(
        model,
        model.classify,
        _Images(paths, paths),
        indices,
        batch_size=batch_size,
        parallel_calls=1,
    ):
        for place, p in zip(
            readable.tolist(), values.get("probabilities", ()), strict=True
        ):
            best = int(p.argmax())
            yield place, model.class_names[best], float(p[best])


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _digest(
    names: Sequence[str], stats: Sequence[os.stat_result | None]
) -> str:
    """Returns a digest of the images' names, sizes and times."""
    digest = hashlib.sha256()
    for name, status in zip(names, stats, strict=True):
        key = [status.st_size, status.st_mtime_ns] if status else None
        digest.update(json.dumps([name, key]).encode() + b"\n")
    return digest.hexdigest()


def _rows(
    values: dict[str, np.ndarray], class_names: Sequence[str]
) -> list[prediction_file.Row]:
    """The rows of a batch, without names and errors."""
    rounded = prediction_file.rounded
    rows = [
        prediction_file.likeliest(p, class_names)
        for p in values.get("probabilities", ())
    ]
    if "propagated" in values:
        neighbors = classifier.neighbors(values)
        for row, p, nearest in zip(
            rows, values["propagated"], neighbors, strict=True
        ):
            row["propagated_class"] = class_names[int(p.argmax())]
            row["propagated_confidence"] = rounded(p.max())
            for neighbor in nearest:
                for key in ("similarity", "weight"):
                    neighbor[key] = rounded(neighbor[key])
            row["neighbors"] = nearest
    return rows


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Classes and probabilities of N images; `print` shows a table.

    Attributes:
        names: N names: those of files relative to their folder, or as given;
            those of arrays are "image 0", "image 1" …
        class_names: L names.
        probabilities: float32 [N, L], in the order of `class_names`.
        note: A sentence if the probabilities are known to be off, or "".
    """

    names: list[str]
    class_names: list[str]
    probabilities: np.ndarray
    note: str = ""

    @property
    def classes(self) -> list[str]:
        """The most probable class of each image, N names."""
        return [self.class_names[i] for i in self.probabilities.argmax(axis=1)]

    @property
    def confidences(self) -> np.ndarray:
        """The probability of that class, float32 [N]."""
        return self.probabilities.max(axis=1)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a dict for each image, as `pandas.DataFrame` takes them.

        Returns:
            "file", "class", "confidence", "second_class" and
            "second_confidence", as in the files of the command.
        """
        return [
            {"file": name, **prediction_file.likeliest(p, self.class_names)}
            for name, p in zip(self.names, self.probabilities, strict=True)
        ]

    def __len__(self) -> int:
        """Returns N, the number of images."""
        return len(self.names)

    def __str__(self) -> str:
        """Returns a line for each image, its most probable classes first."""
        width = max(map(len, self.names), default=0)
        order = np.argsort(-self.probabilities, axis=1, kind="stable")
        lines = [
            f"{name.ljust(width)}  "
            + ", ".join(f"{self.class_names[i]} {p[i]:.1%}" for i in best)
            for name, p, best in zip(
                self.names, self.probabilities, order[:, :_LISTED], strict=True
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
            f"model is of type {type(model).__name__}: must be the path of a "
            "run's or an export's folder, which has class names and "
            "preprocessing"
        )
    if batch_size < 1:
        raise InputError(f"batch_size={batch_size}: must be at least 1")
    given = _given(images)
    opened = loading.open_model(os.fspath(model), weights=weights)
    indices = np.arange(len(given.names))
    if given.paths is not None:
        indices = np.flatnonzero([os.path.isfile(path) for path in given.paths])
    probabilities = np.full(
        [len(given.names), len(opened.class_names)], np.nan, np.float32
    )
    with viewing.silent_pillow():
        for _, readable, values in _outputs(
            opened, opened.classify, given, indices, batch_size=batch_size
        ):
            if values:
                probabilities[readable] = values["probabilities"]
        missing = np.flatnonzero(np.isnan(probabilities).any(axis=1))
        reasons = [
            f"{given.names[i]}: {_why_missing(given, i)}"
            for i in missing[:_LISTED]
        ]
    if more := len(missing) - len(reasons):
        reasons.append(f"and {more} more")
    if reasons:
        raise InputError(
            f"{len(missing)} of {len(given.names)} images cannot be read: "
            f"{'; '.join(reasons)}. Leave them out; `python -m "
            "simmatch_tf.predict` labels the others and lists these with their "
            "reasons"
        )
    return Predictions(
        list(given.names), list(opened.class_names), probabilities, opened.note
    )


def _why_missing(images: _Images, index: int) -> str:
    """Why an image has no prediction."""
    if images.paths is None:
        return "its probabilities are NaN"
    return _why_unreadable(images.paths[index]) or "could not be decoded"


def _given(images: Any) -> _Images:
    """Takes images as `simmatch_tf.predict` does.

    Raises:
        InputError: They are neither files nor arrays nor Pillow images, or
            there are none.
    """
    if isinstance(images, str | os.PathLike):
        chosen = selection.find(os.fspath(images))
        return _Images(chosen.names, chosen.paths)
    if isinstance(images, PIL.Image.Image):
        images = [images]
    elif hasattr(images, "__array__") and not isinstance(images, list | tuple):
        images = np.asarray(images)
        if images.ndim == 3 and images.shape[-1] in (1, 3):
            images = images[None]
        elif images.ndim not in (1, 4):  # of paths, or a batch
            raise InputError(
                f"images are an array of shape {images.shape}: must be [N, "
                "height, width, channels] with 1 channel (grey) or 3 (RGB); "
                "give grey images [N, height, width] as images[..., None]"
            )
    if isinstance(images, bytes | dict) or not isinstance(images, Iterable):
        raise InputError(
            f"images are of type {type(images).__name__}: must be paths, "
            "arrays or Pillow images, one or a list of them"
        )
    images = list(images)
    if not images:
        raise InputError("images: there are none")
    are_paths = [isinstance(image, str | os.PathLike) for image in images]
    if all(are_paths):
        names = [os.fspath(image) for image in images]
        paths = [os.path.abspath(io.expand(name)) for name in names]
        return _Images(names, paths)
    if any(are_paths):
        raise InputError("images: some are paths and some are not")
    names = [f"image {number}" for number in range(len(images))]
    encoded = [*map(_png, names, images)]
    return _Images(names, encoded=encoded)


def _of_pillow(name: str, image: PIL.Image.Image) -> np.ndarray:
    """Returns the pixels of an upright image, uint8.

    Raises:
        InputError: It cannot be read, or has more than 8 bits a channel.
    """
    if image.mode.startswith(_DEEP_MODES):
        raise InputError(
            f"{name} is of Pillow's mode {image.mode}: must have 8 bits a "
            'channel, such as mode "L" or "RGB"'
        )
    try:
        upright = PIL.ImageOps.exif_transpose(image)
        mode = "L" if upright.mode == "L" else "RGB"
        return np.asarray(upright.convert(mode))
    except Exception as error:  # Pillow's decoders may raise anything
        raise InputError(
            f"{name}: Pillow cannot read it ({error}); it may be truncated, or "
            "closed already"
        ) from None


def _png(name: str, image: Any) -> bytes:
    """Encodes pixels, so that they are preprocessed as files are.

    Raises:
        InputError: They are no image of 8 bits a channel, grey or RGB.
    """
    if isinstance(image, PIL.Image.Image):
        image = _of_pillow(name, image)
    try:
        pixels = np.asarray(image)
    except Exception as error:  # lists of several lengths, another device
        raise InputError(
            f"{name}, of type {type(image).__name__}, is no array ({error})"
        ) from None
    shape = pixels.shape
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8:
        raise InputError(
            f"{name} is {pixels.dtype}: must be uint8 from 0 (black) to 255 "
            "(white), such as (255 * image).round().astype('uint8') of values "
            "from 0 to 1"
        )
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise InputError(
            f"{name} has shape {shape}: must be [height, width, channels], "
            "with 1 channel (grey) or 3 (RGB); leave out alpha: image[..., :3]"
        )
    return tf.io.encode_png(pixels, compression=1).numpy()
