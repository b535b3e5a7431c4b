"""Which images are labeled: drawn once, written to the run's folder."""

import dataclasses
import json
import pathlib
from typing import Any

import numpy as np

from simmatch_tf import commandline
from simmatch_tf.data import source as source_lib

InputError = commandline.InputError


@dataclasses.dataclass(frozen=True)
class Split:
    """The labeled images. A memory slot is a place in `labeled`, for ever.

    Attributes:
        labeled: Indices into the training images [K], in class order, then by
            index.
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
    split_seed: int,
    validation_fraction: float,
    unlabeled_includes_labeled: bool,
) -> Split:
    """Draws a class-balanced split; the same arguments give the same split.

    Args:
        source: The dataset.
        labels: Labeled images in all, or None.
        label_fraction: Labeled share of each class, or None.
        split_seed: Decides which.
        validation_fraction: Share of the labeled images of each class, at
            least one, that is moved out of training, memory and the unlabeled
            set.
        unlabeled_includes_labeled: Labeled images are unlabeled ones as well.

    Raises:
        InputError: There are not enough images, or none would be left.
    """
    all_labels = source.train.labels
    generator = np.random.default_rng(split_seed)
    labeled, validation = [], []
    for label, name in enumerate(source.class_names):
        # One permutation a class: 40 labels are among the 400 of that seed.
        order = generator.permutation(np.flatnonzero(all_labels == label))
        count = _count(source, labels, label_fraction, len(order), name)
        held = 0
        if validation_fraction:
            held = max(1, round(validation_fraction * count))
        if held >= count:
            raise InputError(
                f"--validation_fraction={validation_fraction}: class {name!r} "
                f"has {count} labeled images, and with {held} set aside none "
                "would be left; use more labels"
            )
        labeled.append(np.sort(order[: count - held]))
        validation.append(np.sort(order[count - held : count]))
    labeled, validation = np.concatenate(labeled), np.concatenate(validation)
    gone = validation if unlabeled_includes_labeled else None
    if gone is None:
        gone = np.concatenate([labeled, validation])
    unlabeled = np.setdiff1d(np.arange(len(all_labels)), gone)
    if not len(unlabeled):
        raise InputError(
            f"no unlabeled image is left: {source.name} has {len(all_labels)} "
            f"training images, {len(gone)} of them labeled"
        )
    return Split(labeled, validation, unlabeled)


def _count(
    source: source_lib.Source,
    labels: int | None,
    label_fraction: float | None,
    available: int,
    name: str,
) -> int:
    """Labeled images of one class."""
    if labels is None:
        count = max(1, round(label_fraction * available))
    elif labels % source.num_classes:
        raise InputError(
            f"--labels={labels} is not divisible by the {source.num_classes} "
            f"classes of {source.name}"
        )
    else:
        count = labels // source.num_classes
    if count > available:
        raise InputError(
            f"--labels={labels}: {count} images of each class are wanted, but "
            f"class {name!r} of {source.name} has {available}"
        )
    return count


def write(path: pathlib.Path, split: Split, source: source_lib.Source) -> None:
    """Writes a split, with what is needed to rebuild the network.

    Raises:
        InputError: The file cannot be written.
    """
    content = {
        "dataset": source.name,
        "class_names": list(source.class_names),
        "image_shape": list(source.image_shape),
        "train_images": len(source.train),
        "labeled": split.labeled.tolist(),
        "labels": source.train.labels[split.labeled].tolist(),
        "validation": split.validation.tolist(),
        "unlabeled_excludes": np.setdiff1d(
            np.arange(len(source.train)), split.unlabeled
        ).tolist(),
    }
    aside = path.with_suffix(".tmp")
    try:
        aside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror})"
        ) from None


def read_content(path: pathlib.Path) -> dict[str, Any]:
    """Reads a split's file as it stands.

    Raises:
        InputError: The file cannot be read or is no split.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = content["train_images"]
        for name in ("labeled", "validation", "unlabeled_excludes"):
            if not all(0 <= index < images for index in content[name]):
                raise ValueError(f"{name}: not all are in [0, {images})")
        if len(content["labels"]) != len(content["labeled"]):
            raise ValueError("labels and labeled are not of one length")
        content["class_names"], content["image_shape"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: cannot read the run's label split ({error!r}); without "
            "it the run cannot go on: restore the file, or train anew with "
            "--overwrite"
        ) from None
    return content


def read(path: pathlib.Path, source: source_lib.Source) -> Split:
    """Reads the split of a run that is resumed.

    Raises:
        InputError: The file cannot be read, or does not fit the dataset.
    """
    content = read_content(path)
    images = len(source.train)
    for name, here in (
        ("train_images", images),
        ("image_shape", list(source.image_shape)),
        ("class_names", list(source.class_names)),
    ):
        if content[name] != here:
            raise InputError(
                f"{path}: the split does not fit the dataset {source.name}: "
                f"{name} is {content[name]} there and {here} here"
            )
    labeled = np.asarray(content["labeled"], np.int64)
    if not np.array_equal(source.train.labels[labeled], content["labels"]):
        raise InputError(
            f"{path}: the split does not fit the dataset {source.name}: the "
            "labeled images have other labels here"
        )
    excluded = np.asarray(content["unlabeled_excludes"], np.int64)
    return Split(
        labeled=labeled,
        validation=np.asarray(content["validation"], np.int64),
        unlabeled=np.setdiff1d(np.arange(images), excluded),
    )
