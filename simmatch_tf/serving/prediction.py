"""Labels images in files, as fast as they can be decoded."""

import hashlib
import json
import os
import pathlib
import stat
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import tqdm

from simmatch_tf import io, terminal
from simmatch_tf.data import examination, selection
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import models, outputs, review


def choose(
    model: models.Model, explain: bool
) -> Callable[..., dict[str, tf.Tensor]]:
    """The function that predicts.

    Raises:
        InputError: It is to explain, and cannot.
    """
    if not explain:
        return model.classify
    if model.explain is None:
        raise InputError(f"--explain: {model.why_not}")
    return model.explain


def predict(
    model: models.Model,
    chosen: selection.Selection,
    output: pathlib.Path,
    *,
    explain: bool = False,
    overwrite: bool = False,
    page_images: int = 0,
    batch_size: int = 64,
    parallel_calls: int | None = None,
    show: Callable[[review.Review], None] = lambda found: None,
) -> review.Review:
    """Writes the class of each image, and what it rests on, if wanted.

    Args:
        model: See `models.open_model`.
        chosen: The images.
        output: The file to write: .csv, .jsonl or .parquet.
        explain: Whether the labeled neighbors are written, too.
        overwrite: Whether an output that was begun is started anew.
        page_images: Number of the least certain images to review.
        batch_size: Images that the network takes at once.
        parallel_calls: Images decoded at once; None: twice the cores.
        show: Called with what came of it before the output is complete: where
            it fails, the rows are kept, and the same command calls it again.

    Returns:
        What became of them.

    Raises:
        InputError: The output cannot be written, or nothing can be explained.
    """
    function = choose(model, explain)
    names = [io.printable(name) for name in chosen.names]
    neighbors = model.neighbors if explain else None
    terminal.say(f"labeling {len(names)} images")
    stats = [_stat(path) for path in chosen.paths]
    about = {
        "model": model.identity,
        "images": _digest(names, stats),
        "neighbors": neighbors,
    }
    with (
        outputs.Rows(output, about, overwrite=overwrite) as rows,
        _bar(len(names), rows.done) as bar,
        examination.silent_pillow(),
    ):
        place = rows.done
        remarks = np.zeros(len(names), np.uint8)

        def add(made: dict[int, outputs.Row], stop: int) -> None:
            """Rows up to `stop`: what was not made could not be read."""
            rows.add(
                {"file": names[i], **made[i], "error": None}
                if i in made
                else outputs.unreadable(
                    names[i], why(chosen.paths[i]), neighbors
                )
                for i in range(place, stop)
            )
            bar.update(stop - place)

        regular = [s is not None and stat.S_ISREG(s.st_mode) for s in stats]
        readable = np.flatnonzero(regular[place:]) + place
        for places, safe, marked, images in decoded(
            model,
            readable,
            # As bytes: a path need not be valid UTF-8.
            [os.fsencode(chosen.paths[i]) for i in readable],
            tf.io.read_file,
            batch_size=batch_size,
            parallel_calls=parallel_calls,
        ):
            good = as_shown(chosen.paths, places, safe)
            note_remarks(remarks, chosen.paths, places[good & marked])
            made = {}
            if good.any():
                found = function(
                    images=tf.cast(images[good], model.input_dtype)
                )
                made = dict(
                    zip(places[good].tolist(), _rows(found, model), strict=True)
                )
            add(made, int(places[-1]) + 1)
            place = int(places[-1]) + 1
        add({}, len(names))
        examination.warn(names, remarks)
        found = review.make(
            outputs.read(rows.partial, skip=1),
            model.class_names,
            page_images,
        )
        show(found)
        rows.finish()
    return found


def decoded(
    model: models.Model,
    places: np.ndarray,
    items: Sequence[bytes],
    read: Callable[[tf.Tensor], tf.Tensor],
    *,
    batch_size: int,
    parallel_calls: int | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
    """See `_batches`.

    Args:
        model: What they are decoded for.
        places: Numbers of the images.
        items: As many: what is read.
        read: An item → an encoded image.
        batch_size: Images at once.
        parallel_calls: See --parallel_calls.
    """
    if not len(places):
        return
    dataset = tf.data.Dataset.from_tensor_slices(
        (places, np.array(items, object))
    )

    def decode(place: tf.Tensor, item: tf.Tensor) -> tuple:
        encoded = read(item)
        pixels = model.preprocessing.decode(encoded)
        return place, _is_safe(encoded), examination.is_marked(encoded), pixels

    dataset = dataset.map(
        tf.autograph.experimental.do_not_convert(decode),
        num_parallel_calls=parallel_calls or 2 * (os.cpu_count() or 1),
        deterministic=True,
    )
    # What cannot be decoded is missing then, and its place tells which.
    dataset = dataset.ignore_errors().batch(batch_size).prefetch(2)
    options = tf.data.Options()
    options.autotune.enabled = False
    yield from dataset.with_options(options).as_numpy_iterator()


def _is_safe(encoded: tf.Tensor) -> tf.Tensor:
    """Whether TensorFlow surely reads it as viewers show it.

    So it does with PNGs, and with JPEGs that are not CMYK.
    """
    png, jpeg = (
        tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)
        for magic in (b"\x89PNG", b"\xff\xd8\xff")
    )
    return tf.cond(
        jpeg,
        lambda: tf.io.extract_jpeg_shape(encoded)[2] <= 3,
        lambda: png,
    )


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _digest(
    names: Sequence[str], stats: Sequence[os.stat_result | None]
) -> str:
    """What tells these images from others: names, sizes, times."""
    found = hashlib.sha256()
    for name, at in zip(names, stats, strict=True):
        key = [at.st_size, at.st_mtime_ns] if at else None
        found.update(json.dumps([name, key]).encode() + b"\n")
    return found.hexdigest()


def as_shown(
    paths: Sequence[str], places: np.ndarray, safe: np.ndarray
) -> np.ndarray:
    """Which images TensorFlow reads as viewers show them: bool [n]."""
    good = safe.copy()
    for number in np.flatnonzero(~safe):
        try:
            examination.examine(paths[places[number]])
            good[number] = True
        except ValueError:
            pass
    return good


def note_remarks(
    remarks: np.ndarray, paths: Sequence[str], places: np.ndarray
) -> None:
    """Enters the remarks on the images at `places` into `remarks` [N]."""
    for place in places:
        remarks[place] = examination.remarks(paths[place])


def why(path: str) -> str:
    """Why a file could not be used."""
    try:
        examination.examine(path)
    except ValueError as error:
        return str(error)
    return "could not be decoded"


def _rows(
    found: dict[str, tf.Tensor], model: models.Model
) -> Iterator[outputs.Row]:
    """What a function gave, a row an image."""
    values = {name: tensor.numpy() for name, tensor in found.items()}
    names = model.class_names
    for number, p in enumerate(values["probabilities"]):
        row = likeliest(p, names)
        if "propagated" in values:
            propagated = values["propagated"][number]
            best = int(propagated.argmax())
            row["propagated_class"] = names[best]
            row["propagated_confidence"] = _number(propagated[best])
            row["neighbors"] = [
                {
                    "slot": int(values["neighbor_slots"][number, k]),
                    "id": values["neighbor_ids"][number, k].decode(),
                    "class": values["neighbor_classes"][number, k].decode(),
                    "similarity": _number(values["similarities"][number, k]),
                    "weight": _number(values["weights"][number, k]),
                }
                for k in range(model.neighbors)
            ]
        yield row


def likeliest(p: np.ndarray, class_names: Sequence[str]) -> outputs.Row:
    """The two likeliest classes of an image with the probabilities p [L]."""
    first, second = np.argsort(-p, kind="stable")[:2]
    return {
        "class": class_names[first],
        "confidence": _number(p[first]),
        "second_class": class_names[second],
        "second_confidence": _number(p[second]),
    }


def _number(value: np.floating) -> float:
    """As many digits as mean something."""
    return float(f"{value:.6g}")


def _bar(total: int, done: int) -> tqdm.tqdm:
    """A bar on a terminal; silent below --verbosity=0, as training is."""
    return tqdm.tqdm(
        total=total,
        initial=done,
        unit="image",
        dynamic_ncols=True,
        disable=terminal.quiet() or not sys.stderr.isatty(),
    )
