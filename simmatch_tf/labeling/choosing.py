"""How images to label are chosen: features, near-duplicates, labels, picks.

Importing this module does not import TensorFlow; a model does.
"""

import collections
import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from simmatch_tf import preflight, terminal
from simmatch_tf.data import duplicates, labels_csv, picking
from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import features, selected
from simmatch_tf.labeling import pool as pool_lib

# Labels of each class from which on a classifier's uncertainty says something.
_ENOUGH = 4
_SHOWN = 5  # names in a message


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for: flags of `simmatch_tf.select`.

    Attributes:
        images: Folder of the images.
        count: Number of images to choose.
        labels_from: File of labels that there are, or None.
        model: Network whose features are compared; None: pixels.
        library: Library of the model, or None.
        weights: File of the library's model, "random", or None for those that
            the library has published.
        method: One of `picking.METHODS`.
        classes_from: Table of true classes, for "stratified".
        seed: Random seed.
        image_size: Side of the model's images, or None for its own.
        batch_size: Images of a batch of the model's.
        among: Names of the images that may be chosen; None: all.
        fewer: Whether to choose fewer images where there are too few.
    """

    images: str
    count: int
    labels_from: str | None = None
    model: str | None = None
    library: str | None = None
    weights: str | None = None
    method: str = "typical"
    classes_from: str | None = None
    seed: int = 0
    image_size: int | None = None
    batch_size: int = 64
    among: Collection[str] | None = None
    fewer: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """Images that were chosen.

    Attributes:
        pool: The images that there were to choose from.
        rows: The chosen ones, in the order in which to label them.
        facts: Sentences on how they were chosen.
        unreadable: Name of a file that cannot be read → why.
    """

    pool: pool_lib.Pool
    rows: Sequence[selected.Row]
    facts: Sequence[str]
    unreadable: dict[str, str]


def choose(request: Request) -> Choice:
    """Chooses images.

    Raises:
        InputError: There are too few, or a flag does not suit them.
    """
    pool = pool_lib.find(request.images, request.labels_from)
    if request.among is not None:
        pool = pool.take(
            [
                index
                for index, name in enumerate(pool.names)
                if index in pool.labels or name in request.among
            ]
        )
    free = len(pool) - len(pool.labels)
    if request.count > free and not request.fewer:
        raise InputError(
            f"--count={request.count}: must be from 1 to {free:,}, the number "
            "of images without a label"
        )
    if request.model is not None:
        preflight.start(fast=False)
    pool, values, pixels, unreadable = _features(request, pool)
    facts = [_about_features(request)]
    picks = _pick(request, pool, values, pixels, facts)
    facts.append(_about_copies(picks))
    return Choice(pool, selected.rows(picks, values, pool), facts, unreadable)


def _features(
    request: Request, pool: pool_lib.Pool
) -> tuple[pool_lib.Pool, np.ndarray, np.ndarray, dict[str, str]]:
    """Computes features, and leaves out unreadable images.

    Returns:
        The readable images; their features, float32 [N, D]; their thumbnails,
        uint8 [N, 32, 32, 3]; and name of an unreadable file → why.

    Raises:
        InputError: No image can be read.
    """
    terminal.say(f"reading {len(pool):,} images")
    small = features.thumbnails(pool.paths)
    reasons, pixels = small.reasons, small.pixels
    good = np.setdiff1d(np.arange(len(pool)), sorted(reasons))
    values = None
    if request.model is not None and len(good):
        usable, values, refused = features.of_network(
            request.model,
            request.library,
            pool.folder,
            [pool.paths[index] for index in good],
            weights=request.weights,
            image_size=request.image_size,
            batch_size=request.batch_size,
        )
        reasons |= {int(good[i]): reason for i, reason in refused.items()}
        good = good[usable]
    unreadable = {
        pool.names[index]: reason for index, reason in sorted(reasons.items())
    }
    _warn(unreadable, len(pool))
    pixels = pixels[good]
    if values is None:
        terminal.say("comparing them by their pixels")
        values = features.of_pixels(pixels)
    return pool.take(good.tolist()), values, pixels, unreadable


def _warn(unreadable: dict[str, str], images: int) -> None:
    """Warns about unreadable images.

    Raises:
        InputError: They are all.
    """
    lines = [f"{file}: {reason}" for file, reason in unreadable.items()]
    if len(lines) == images:
        raise InputError(f"none of {images} images can be read; {lines[0]}")
    for line in lines[:_SHOWN]:
        terminal.warn(line)
    if lines:
        terminal.warn(
            f"{len(lines)} of {images} images cannot be read, and are left out"
        )


def _pick(
    request: Request,
    pool: pool_lib.Pool,
    values: np.ndarray,
    pixels: np.ndarray,
    facts: list[str],
) -> picking.Picks:
    """Picks images by features; adds to `facts` how."""
    has_label = np.zeros(len(pool), bool)
    has_label[list(pool.labels)] = True
    classes = uncertainty = None
    if request.method == "stratified":
        classes = _true_classes(request, pool)
    elif pool.labels:
        facts.append(_about_labels(request, pool))
        if _enough_labels(request, pool):
            uncertainty = features.uncertainty(
                request.model, pool.paths, batch_size=request.batch_size
            )
    copy_of = duplicates.find(pixels, has_label)
    terminal.say(f"choosing by --method={request.method}")
    count = request.count
    if request.fewer:
        originals = copy_of == np.arange(len(pool))
        count = min(count, int((originals & ~has_label).sum()))
    return picking.pick(
        values,
        count,
        method=request.method,
        seed=request.seed,
        labeled=sorted(pool.labels),
        classes=classes,
        uncertainty=uncertainty,
        copy_of=copy_of,
    )


def _true_classes(request: Request, pool: pool_lib.Pool) -> np.ndarray:
    """Returns the classes of all images, int [N].

    Raises:
        InputError: An image has none.
    """
    table = labels_csv.read(request.classes_from, "classes_from")
    rows = table.find(pool.names, (), pool.folder)
    missing = [
        name
        for index, name in enumerate(pool.names)
        if index not in rows or not rows[index].class_name
    ]
    if missing:
        raise InputError(
            f"--classes_from={request.classes_from}: names no class of "
            f"{len(missing)} of {len(pool)} images, such as {missing[0]}"
        )
    names = [rows[index].class_name for index in range(len(pool))]
    return np.unique(names, return_inverse=True)[1]


def _enough_labels(request: Request, pool: pool_lib.Pool) -> bool:
    """Whether to choose by the uncertainty of --model."""
    counts = collections.Counter(pool.labels.values())
    return (
        request.model is not None
        and request.library is None
        and request.method in ("typical", "maxherding")
        and len(pool.class_names) > 1
        and all(counts[name] >= _ENOUGH for name in pool.class_names)
    )


def _about_labels(request: Request, pool: pool_lib.Pool) -> str:
    text = f"{len(pool.labels):,} images have labels already: "
    if request.method == "random":
        return text + "they are not chosen again."
    if _enough_labels(request, pool):
        return text + (
            f"each class has {_ENOUGH} or more, so the images are chosen that "
            "cover most of what the model is uncertain of."
        )
    return text + "images unlike them come first."


def _about_features(request: Request) -> str:
    if request.method in ("random", "stratified"):
        return f"Chosen by chance (--method={request.method})."
    if request.model is None:
        return (
            "Chosen by pixels alone, without --model: this finds images that "
            "look different, but knows nothing of classes."
        )
    return f"Chosen by the features of {request.model}."


def _about_copies(picks: picking.Picks) -> str:
    copies = int((picks.copy_of != np.arange(len(picks.copy_of))).sum())
    if not copies:
        return "No near-duplicates were rows."
    return (
        f"{copies:,} near-duplicates of other images were set aside: of each "
        "group one image may be chosen, and none if one of it has a label."
    )
