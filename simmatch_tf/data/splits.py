"""Which images are labeled: drawn once, written to the run's folder."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from simmatch_tf import io
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags import commandline

InputError = commandline.InputError
_SHOWN = 3
UNKNOWN_SLOTS = (
    "which images the imported memory holds is not known; import the file "
    "again with --labeled_list=FILE, one image a line in the memory's order"
)


@dataclasses.dataclass(frozen=True)
class Split:
    """The labeled images. A memory slot is a place in `labeled`, for ever.

    Attributes:
        labeled: Indices into the training images [K], in class order, then by
            index; of an imported memory in its own order, and -1 where it is
            not known which images it holds.
        validation: Indices of the labeled images set aside to choose the best
            step; may be empty.
        unlabeled: Indices of the unlabeled images.
    """

    labeled: np.ndarray
    validation: np.ndarray
    unlabeled: np.ndarray


def draw(
    source: source_lib.Source,
    *,
    labels: int | None,
    label_fraction: float | None,
    listed: np.ndarray | None = None,
    split_seed: int,
    validation_fraction: float,
    unlabeled_includes_labeled: bool,
) -> Split:
    """Draws a class-balanced split; the same arguments give the same split.

    Args:
        source: The dataset.
        labels: Labeled images in all, or None.
        label_fraction: Labeled share of each class, or None.
        listed: Indices of the labeled images, if they are given; if all three
            are None, every image of a known class is labeled.
        split_seed: Decides which.
        validation_fraction: Share of the labeled images of each class, at
            least one, that is moved out of training, memory and the unlabeled
            set; so are files of the same content in the unlabeled set.
        unlabeled_includes_labeled: Labeled images are unlabeled ones as well.

    Raises:
        InputError: There are not enough images, or none would be left.
    """
    all_labels = source.train.labels
    candidates = np.arange(len(all_labels)) if listed is None else listed
    # By class, then by index: a class is a run of this order.
    order = candidates[np.argsort(all_labels[candidates], kind="stable")]
    ends = np.searchsorted(
        all_labels[order], np.arange(source.num_classes + 1), "left"
    )
    generator = np.random.default_rng(split_seed)
    labeled, validation = [], []
    for label, name in enumerate(source.class_names):
        # One permutation a class: 40 labels are among the 400 of that seed.
        pool = generator.permutation(order[ends[label] : ends[label + 1]])
        count = _count(source, labels, label_fraction, len(pool), name)
        held = 0
        if validation_fraction:
            held = max(1, round(validation_fraction * count))
        if held >= count:
            raise InputError(
                f"--validation_fraction={validation_fraction}: class {name!r} "
                f"has {count} labeled image{'s' * (count > 1)}, and with "
                f"{held} set aside none would be left to train on; "
                + _more_labels(source)
            )
        labeled.append(np.sort(pool[: count - held]))
        validation.append(np.sort(pool[count - held : count]))
    labeled, validation = np.concatenate(labeled), np.concatenate(validation)
    unlabeled = _unlabeled(
        source, labeled, validation, unlabeled_includes_labeled
    )
    return Split(labeled, validation, unlabeled)


def _more_labels(source: source_lib.Source) -> str:
    """What to do where a class has too few labels to set one aside."""
    none_aside = "give --validation_fraction=0"
    if source.test is not None:
        return f"{none_aside}, as there are test images, or use more labels"
    if source.name != "folder":
        return "use more labels"
    return (
        "label another image of it, or place images to score by in test/CLASS/ "
        f"and {none_aside}"
    )


def _unlabeled(
    source: source_lib.Source,
    labeled: np.ndarray,
    validation: np.ndarray,
    includes_labeled: bool,
) -> np.ndarray:
    gone = [validation] if includes_labeled else [validation, labeled]
    mask = np.ones(len(source.train), bool)
    mask[np.concatenate(gone)] = False
    others = np.setdiff1d(np.flatnonzero(mask), labeled)
    mask[_copies(source, validation, others)] = False
    if not mask.any():
        raise InputError(
            f"no unlabeled image is left: {source.name} has "
            f"{len(source.train)} training images, {len(labeled)} of them "
            f"labeled and {len(validation)} set aside"
        )
    return np.flatnonzero(mask)


def _copies(
    source: source_lib.Source, validation: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """Those of `others` that are files of the same content as one set aside.

    The result would be of images that were trained on. It is said which they
    are; where contents are not known there are none.
    """
    # Only files have it: not images in memory, nor those of a record.
    digests = getattr(source.train, "digests", None)
    if digests is None or not len(validation):
        return np.zeros([0], np.int64)
    aside = {digests[index].tobytes(): index for index in validation}
    copies = [i for i in others if digests[i].tobytes() in aside]
    if copies:
        names = source.train.names
        first = [
            f"{names[i]} is {names[aside[digests[i].tobytes()]]}"
            for i in copies[:_SHOWN]
        ]
        logging.warning(
            "unlabeled images that are copies of those set aside to choose "
            "and score by: %d (%s%s): they are left out",
            len(copies),
            ", ".join(first),
            ", …" * (len(copies) > _SHOWN),
        )
    return np.asarray(copies, np.int64)


def _count(
    source: source_lib.Source,
    labels: int | None,
    label_fraction: float | None,
    available: int,
    name: str,
) -> int:
    """Labeled images of one class."""
    if labels is not None and labels % source.num_classes:
        raise InputError(
            f"--labels={labels} is not divisible by the {source.num_classes} "
            f"classes of {source.name}"
        )
    if labels is not None:
        count = labels // source.num_classes
        if count > available:
            raise InputError(
                f"--labels={labels}: {count} images of each class are wanted, "
                f"but class {name!r} of {source.name} has {available}"
            )
    elif not available:
        raise InputError(
            f"class {name!r} of {source.name} has no labeled image"
        )
    elif label_fraction is not None:
        count = max(1, round(label_fraction * available))
    else:
        count = available
    return count


def of_slots(
    source: source_lib.Source,
    labeled: np.ndarray,
    *,
    unlabeled_includes_labeled: bool,
) -> Split:
    """The split whose slots are these images, in this order.

    Raises:
        InputError: No unlabeled image is left.
    """
    none = np.zeros([0], np.int64)
    unlabeled = _unlabeled(source, labeled, none, unlabeled_includes_labeled)
    return Split(labeled, none, unlabeled)


def write(path: pathlib.Path, split: Split, source: source_lib.Source) -> None:
    """Writes a split, with what is needed to rebuild the network.

    Raises:
        InputError: The file cannot be written.
    """
    write_content(path, describe(split, source))


def describe(split: Split, source: source_lib.Source) -> dict[str, Any]:
    """What stands in a split's file."""
    names = source.train.names
    excluded = np.ones(len(source.train), bool)
    excluded[split.unlabeled] = False
    return {
        "dataset": source.name,
        "class_names": list(source.class_names),
        "image_shape": list(source.image_shape),
        "train_images": len(source.train),
        "unlabeled_images": len(split.unlabeled),
        "labeled": split.labeled.tolist(),
        "labels": source.train.labels[split.labeled].tolist(),
        "names": None if names is None else [names[i] for i in split.labeled],
        "train_sha256": _digest(source.train),
        "test_sha256": _digest(source.test),
        "validation": split.validation.tolist(),
        "unlabeled_excludes": np.flatnonzero(excluded).tolist(),
    }


def parts(split: Split, source: source_lib.Source) -> dict[str, str]:
    """What stands in a split's file, by what it says.

    Returns:
        A name for people → the content, as text.
    """
    kinds = {
        "the classes": ("dataset", "class_names"),
        "the size of the views": ("image_shape",),
        "the number of images, their names or labels": (
            "train_images",
            "train_sha256",
            "test_sha256",
        ),
    }
    content = describe(split, source)
    found = {
        kind: repr([content.pop(key) for key in keys])
        for kind, keys in kinds.items()
    }
    found["which images are labeled, unlabeled or set aside"] = repr(content)
    return found


def write_content(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes a split's file as `read_content` gives it.

    Raises:
        InputError: The file cannot be written.
    """
    io.write_text(
        path, json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    )


def _digest(images: source_lib.Images | source_lib.Encoded | None) -> str:
    """What tells one set of names and classes from another."""
    if images is None:
        return "none"
    digest = hashlib.sha256(images.labels.astype("<i4").tobytes())
    for name in images.names or ():
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()


_RESTORE = (
    "without it the run cannot go on: restore the file, or train anew with "
    "--overwrite"
)
# No advice to throw the run away.
_AS_THEY_ARE = (
    "restore them; or, for a result on the images as they are, export the run "
    "and evaluate --export=DIR, or train anew in another --workdir"
)


def read_content(path: pathlib.Path, advice: str = _RESTORE) -> dict[str, Any]:
    """Reads a split's file as it stands.

    Args:
        path: The file.
        advice: The end of the message, if it cannot be read.

    Returns:
        What `write` wrote. Of an imported memory that does not say which
        images it holds `labeled` is None.

    Raises:
        InputError: The file cannot be read or is no split.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        images = content["train_images"]
        unknown = content["labeled"] is None
        for name in ("labeled", "validation", "unlabeled_excludes")[unknown:]:
            if not all(0 <= index < images for index in content[name]):
                raise ValueError(f"{name}: not all are in [0, {images})")
        if not unknown and len(content["labels"]) != len(content["labeled"]):
            raise ValueError("labels and labeled are not of one length")
        content["class_names"] = [
            io.nfc(name) for name in content["class_names"]
        ]
        content["image_shape"]
        content.setdefault(  # older files lack it
            "unlabeled_images", images - len(content["unlabeled_excludes"])
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot read the run's label split ({error!r}); {advice}"
        ) from None
    return content


def read(
    path: pathlib.Path, source: source_lib.Source, *, resumed: bool = True
) -> Split:
    """Reads the split of a run.

    Args:
        path: Its split.json.
        source: The dataset.
        resumed: It is this run's own, so its views' size must be the same.

    Raises:
        InputError: The file cannot be read, or does not fit the dataset.
    """
    advice, changed = _RESTORE, _AS_THEY_ARE
    if not resumed:
        advice = changed = "name the split.json of a run on these images"
    content = read_content(path, advice)
    images = len(source.train)
    wanted = {
        "train_images": images,
        "class_names": [io.nfc(name) for name in source.class_names],
    }
    if resumed:
        wanted["image_shape"] = list(source.image_shape)
    labeled = slots(content)
    for name, here in wanted.items():
        if content[name] != here:
            raise InputError(
                f"{path}: the split does not fit the dataset {source.name}: "
                f"{name} is {content[name]} there and {here} here"
            )
    if content["labeled"] is not None:
        _check_labeled(path, content, labeled, source)
    for part in ("train", "test") if resumed else ("train",):
        if content.get(f"{part}_sha256") not in (
            None,
            _digest(getattr(source, part)),
        ):
            raise InputError(
                f"{path}: the split does not fit the dataset {source.name}: "
                f"names or classes of its {part} images have changed since; "
                f"{changed}"
            )
    excluded = np.ones(images, bool)
    excluded[np.asarray(content["unlabeled_excludes"], np.int64)] = False
    return Split(
        labeled=labeled,
        validation=np.asarray(content["validation"], np.int64),
        unlabeled=np.flatnonzero(excluded),
    )


def is_of(content: dict[str, Any], source: source_lib.Source) -> bool:
    """Whether a split is of training images of these names and classes.

    Args:
        content: As from `read_content`.
        source: The dataset.
    """
    digest = content.get("train_sha256")  # older files lack it
    if digest is None:
        return content["train_images"] == len(source.train)
    return digest == _digest(source.train)


def slots(content: dict[str, Any]) -> np.ndarray:
    """The images that the slots of `read_content` hold, -1 where unknown."""
    labeled = content["labeled"]
    if labeled is None:
        labeled = [-1] * len(content["labels"])
    return np.asarray(labeled, np.int64)


def identity(class_names: Sequence[str], labeled: np.ndarray) -> dict[str, Any]:
    """What tells a run's data from others: classes, and which slots they have.

    Args:
        class_names: L names.
        labeled: Indices of the labeled images [K], in slot order.
    """
    labeled = np.asarray(labeled, "<i8")
    return {
        "class_names": list(class_names),
        "labeled_images": len(labeled),
        "labeled_sha256": hashlib.sha256(labeled.tobytes()).hexdigest(),
    }


def _check_labeled(
    path: pathlib.Path,
    content: dict[str, Any],
    labeled: np.ndarray,
    source: source_lib.Source,
) -> None:
    """Checks that the labeled images have the classes and names they had."""
    if not np.array_equal(source.train.labels[labeled], content["labels"]):
        raise InputError(
            f"{path}: the split does not fit the dataset {source.name}: the "
            "labeled images have other labels here"
        )
    there, names = content.get("names"), source.train.names
    if there is None or names is None:
        return
    here = [names[i] for i in labeled]
    for old, new in zip(there, here, strict=True):
        if io.nfc(old) != io.nfc(new):
            raise InputError(
                f"{path}: the split does not fit the dataset {source.name}: a "
                f"labeled image is {old!r} there and {new!r} here"
            )


def hand_over(
    path: pathlib.Path,
    source: source_lib.Source,
    *,
    unlabeled_includes_labeled: bool,
) -> Split:
    """Takes the labeled and validation images of another run.

    Raises:
        InputError: The file cannot be read, or does not fit the dataset.
    """
    split = read(path, source, resumed=False)
    if (split.labeled < 0).any():
        raise InputError(f"--split_file={path}: {UNKNOWN_SLOTS}")
    unlabeled = _unlabeled(
        source, split.labeled, split.validation, unlabeled_includes_labeled
    )
    return dataclasses.replace(split, unlabeled=unlabeled)
