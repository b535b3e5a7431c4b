"""The split of the training images: labeled, validation and unlabeled.

A run draws it once and writes it to its folder. The labeled images can also be
listed in a file, one name or index a line, as the published splits of ImageNet
are.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from simmatch_tf import io, terminal
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.errors import InputError

_SHOWN = 3  # copies in a message
UNKNOWN_SLOTS = (
    "which images the imported memory holds is not known; import the file "
    "again with --labeled_list=FILE, one image a line in the memory's order"
)


@dataclasses.dataclass(frozen=True)
class Split:
    """The split of a run. A place in `labeled` is a slot of the memory bank.

    Attributes:
        labeled: Indices into the training images [K], by class, then by index.
            An imported memory keeps its own order, with -1 where its images are
            not known.
        validation: Indices of labeled images that are set aside to choose the
            best step; may be empty.
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
    every_class: bool = True,
    split_seed: int,
    validation_fraction: float,
    unlabeled_includes_labeled: bool,
) -> Split:
    """Draws a class-balanced split, the same for the same arguments.

    Args:
        source: The dataset.
        labels: Number of labeled images in all, or None.
        label_fraction: Labeled share of each class, or None.
        listed: Indices of the labeled images, or None. If all three are None,
            every image of a known class is labeled.
        every_class: Whether each class must have a labeled image.
        split_seed: Random seed.
        validation_fraction: Share of the labeled images of each class, at
            least one, that is set aside: in neither the labeled nor the
            unlabeled set. Unlabeled files of the same content are left out. A
            dataset that has such images itself sets only these aside.
        unlabeled_includes_labeled: Whether labeled images are unlabeled ones
            as well.

    Raises:
        InputError: There are not enough images, or none would be left.
    """
    all_labels = source.train.labels
    candidates = listed
    if listed is None:
        candidates = not_aside(source)
    else:
        _check_listed(source, listed)
    aside = np.asarray(source.set_aside, np.int64)
    if aside.size:
        validation_fraction = 0
    # By class, then by index: the images of a class are neighbours.
    order = candidates[np.argsort(all_labels[candidates], kind="stable")]
    ends = np.searchsorted(
        all_labels[order], np.arange(source.num_classes + 1), "left"
    )
    generator = np.random.default_rng(split_seed)
    labeled, validation = [], []
    for label, name in enumerate(source.class_names):
        # One permutation a class: the images of --labels=40 are among those of
        # --labels=400 with the same seed.
        pool = generator.permutation(order[ends[label] : ends[label + 1]])
        if not (len(pool) or every_class):
            continue
        count = _count(source, labels, label_fraction, len(pool), name)
        held = 0
        if validation_fraction:
            held = max(1, round(validation_fraction * count))
        if held >= count:
            raise InputError(
                f"--validation_fraction={validation_fraction}: class {name!r} "
                f"has {count} labeled image{'s' * (count > 1)}, and with "
                f"{held} set aside none would be left to train on; label more "
                "of them, leave the class out, or give --validation_fraction=0 "
                "(without test images, the accuracy is then not measured)"
            )
        labeled.append(np.sort(pool[: count - held]))
        validation.append(np.sort(pool[count - held : count]))
    labeled = np.concatenate(labeled)
    validation = np.concatenate([*validation, aside])
    unlabeled = _unlabeled(
        source, labeled, validation, unlabeled_includes_labeled
    )
    return Split(labeled, validation, unlabeled)


def not_aside(source: source_lib.Source) -> np.ndarray:
    """Returns the images of a known class, without those set aside.

    Args:
        source: The dataset.

    Returns:
        Their indices, sorted.
    """
    mask = source.train.labels >= 0
    mask[np.asarray(source.set_aside, np.int64)] = False
    return np.flatnonzero(mask)


def _check_listed(source: source_lib.Source, listed: np.ndarray) -> None:
    """Checks that no image is listed that is set aside.

    Raises:
        InputError: Such an image is listed.
    """
    both = np.intersect1d(listed, np.asarray(source.set_aside, np.int64))
    if both.size:
        index = int(both[0])
        name = source.train.names and source.train.names[index]
        raise InputError(
            f"{name or f'image {index}'}: is listed as labeled, but is one of "
            f"the validation images of {source.name}, which choose the best "
            "step; leave it out of the list"
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
    """Returns those of `others` whose file equals one that is set aside.

    Such copies are warned about: if they stayed in training, validation would
    score images that were trained on. If contents are not known, nothing is
    returned.
    """
    # Only images in files have digests.
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
        terminal.warn(
            "unlabeled images that are copies of those set aside to choose "
            f"and score by: {len(copies)} ({', '.join(first)}"
            f"{', …' * (len(copies) > _SHOWN)}): they are left out"
        )
    return np.asarray(copies, np.int64)


def _count(
    source: source_lib.Source,
    labels: int | None,
    label_fraction: float | None,
    available: int,
    name: str,
) -> int:
    """Returns the number of labeled images of one class."""
    if labels is not None and labels % source.num_classes:
        raise InputError(
            f"--labels={labels} is not divisible by the {source.num_classes} "
            f"classes of {source.name}"
        )
    if labels is not None:
        count = labels // source.num_classes
        if count > available:
            raise InputError(
                f"--labels={labels}: needs {count} images of each class, but "
                f"class {name!r} of {source.name} has {available}"
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
    """Returns the split with these images as its slots, in this order.

    Raises:
        InputError: No unlabeled image is left.
    """
    none = np.zeros([0], np.int64)
    unlabeled = _unlabeled(source, labeled, none, unlabeled_includes_labeled)
    return Split(labeled, none, unlabeled)


def write(
    path: pathlib.Path,
    split: Split,
    source: source_lib.Source,
    class_prior: Sequence[float] | None = None,
) -> None:
    """Writes split.json, with what is needed to rebuild the network.

    Args:
        path: The file.
        split: The split.
        source: The dataset.
        class_prior: Class shares that the run aligns with, if not equal ones.

    Raises:
        InputError: The file cannot be written.
    """
    content = describe(split, source)
    if class_prior is not None:
        content["class_prior"] = list(class_prior)
    write_content(path, content)


def describe(split: Split, source: source_lib.Source) -> dict[str, Any]:
    """Returns the content of split.json."""
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
    """Returns the content of split.json in parts, to be compared.

    Returns:
        A readable name → that part of the content, as text.
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
    texts = {
        kind: repr([content.pop(key) for key in keys])
        for kind, keys in kinds.items()
    }
    texts["which images are labeled, unlabeled or set aside"] = repr(content)
    return texts


def write_content(path: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes split.json as `read_content` returns it.

    Raises:
        InputError: The file cannot be written.
    """
    io.write_text(
        path, json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    )


def _digest(images: source_lib.Images | source_lib.Encoded | None) -> str:
    """Returns a digest of the names and classes of a set."""
    if images is None:
        return "none"
    digest = hashlib.sha256(images.labels.astype("<i4").tobytes())
    for name in images.names or ():
        digest.update(name.encode() + b"\0")
    return digest.hexdigest()


_RESTORE = (
    "without it the run cannot go on: restore the file, or train again with "
    "--overwrite"
)
# Does not advise to throw the run away.
_AS_THEY_ARE = (
    "restore them; or, for a result on the images as they are, export the run "
    "and evaluate --export=DIR, or train again in another --workdir"
)


def read_content(path: pathlib.Path, advice: str = _RESTORE) -> dict[str, Any]:
    """Reads split.json without a dataset to compare it with.

    Args:
        path: The file.
        advice: End of the message if it cannot be read.

    Returns:
        What `write` wrote; `class_prior` only of a run that does not align
        with equal shares. `labeled` is None for an imported memory whose
        images are not known.

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
        prior = content.get("class_prior")
        if prior is not None and len(prior) != len(content["class_names"]):
            raise ValueError("class_prior and class_names differ in length")
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
    """Reads the split of a run, and compares it with the dataset.

    Args:
        path: Its split.json.
        source: The dataset.
        resumed: Whether the split is this run's own: then the size of its
            views must be the same, too.

    Raises:
        InputError: The file cannot be read, or does not fit the dataset.
    """
    advice, changed = _RESTORE, _AS_THEY_ARE
    if not resumed:
        advice = changed = "name the split.json of a run on these images"
    content = read_content(path, advice)
    images = len(source.train)
    required = {
        "train_images": images,
        "class_names": [io.nfc(name) for name in source.class_names],
    }
    if resumed:
        required["image_shape"] = list(source.image_shape)
    labeled = slots(content)
    for name, here in required.items():
        if content[name] != here:
            raise InputError(
                f"{path}: the split does not fit the dataset {source.name}: "
                f"{name} is {content[name]} there and {here} here"
            )
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
    """Returns whether a split is of training images of these names and classes.

    Args:
        content: From `read_content`.
        source: The dataset.
    """
    digest = content.get("train_sha256")  # older files lack it
    if digest is None:
        return content["train_images"] == len(source.train)
    return digest == _digest(source.train)


def slots(content: dict[str, Any]) -> np.ndarray:
    """Returns the slots' images in `read_content`, -1 where unknown."""
    labeled = content["labeled"]
    if labeled is None:
        labeled = [-1] * len(content["labels"])
    return np.asarray(labeled, np.int64)


def identity(class_names: Sequence[str], labeled: np.ndarray) -> dict[str, Any]:
    """Returns what a checkpoint must have in common with its run.

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


def hand_over(
    path: pathlib.Path,
    source: source_lib.Source,
    *,
    unlabeled_includes_labeled: bool,
) -> Split:
    """Returns a split with the labeled and validation images of another run.

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


# ------------------------------------------------ lists of labeled images --


def read_list(
    path: pathlib.Path, source: source_lib.Source, *, in_order: bool = False
) -> np.ndarray:
    """Reads a file that lists the labeled images; see `find_listed`.

    Args:
        path: The file.
        source: The dataset.
        in_order: See `find_listed`.

    Raises:
        InputError: It cannot be read, or a line names no labeled image.
    """
    lines = io.read_text(path, f"--labeled_list={path}").splitlines()
    return find_listed(
        lines, source, f"--labeled_list={path}", in_order=in_order
    )


def find_listed(
    names: list[str],
    source: source_lib.Source,
    of: str,
    *,
    in_order: bool = False,
) -> np.ndarray:
    """Finds labeled images by file name, with or without folders, or index.

    Args:
        names: File names or indices; empty ones are left out.
        source: The dataset.
        of: Where the names are from, for messages.
        in_order: Keep the order of the names, instead of sorting the indices.

    Returns:
        Indices into the training images, [n] int64.

    Raises:
        InputError: A name matches no image, several, or an image whose class
            is not known; or an image is named twice, or the list is empty.
    """
    look_up = _look_up(source)
    lines: dict[int, int] = {}  # index → number of its line
    for number, line in enumerate(names, 1):
        name = line.strip()
        if not name:
            continue
        place = f"{of}, line {number}: {name!r}"
        index = look_up(name, place)
        if source.train.labels[index] < 0:
            raise InputError(f"{place} has no known class")
        if index in lines:
            raise InputError(f"{place} is the image of line {lines[index]}")
        lines[index] = number
    if not lines:
        raise InputError(f"{of}: names no image")
    return np.asarray(list(lines) if in_order else sorted(lines), np.int64)


def _look_up(source: source_lib.Source) -> Callable[[str, str], int]:
    """Returns a function that turns a name and its place into an index."""
    names = source.train.names or ()
    # Equal names in either form of Unicode must compare equal.
    composed = [io.nfc(name) for name in names]
    # By the last part of the path: lists often have fewer folders than the data
    # have, or more.
    by_last: dict[str, list[int]] = {}
    stems = collections.defaultdict(list)
    for index, name in enumerate(composed):
        last = name.rpartition("/")[2]
        by_last.setdefault(last, []).append(index)
        stems[os.path.splitext(last)[0]].append(index)

    def fits(index: int, name: str) -> bool:
        one, other = f"/{composed[index]}", f"/{name}"
        return one.endswith(other) or other.endswith(one)

    def look_up(name: str, place: str) -> int:
        name = io.nfc(name.replace("\\", "/"))
        same = by_last.get(name.rpartition("/")[2], ())
        matches = [i for i in same if fits(i, name)]
        if len(matches) > 1:  # "a/x.jpg" may end others' paths, too
            matches = [i for i in matches if composed[i] == name] or matches
        if len(matches) > 1:
            raise InputError(f"{place} is the name of several images")
        if matches:
            return matches[0]
        if name.isdecimal() and len(name) < 19:
            index = int(name)
            named = [names[i] for i in stems[name]]
            if named:
                raise InputError(
                    f"{place} may be the image {named[0]!r} or the index "
                    f"{index}; write the image's name, with its ending"
                )
            if names and name != str(index):
                raise InputError(
                    f"{place} is the name of no image, and an index has no "
                    "zeros in front; write the image's name, with its ending"
                )
            if index >= len(source.train):
                raise InputError(
                    f"{place}: {source.name} has {len(source.train)} training "
                    "images (indices from 0)"
                )
            return index
        kind = "no training image of" if names else "not an index into"
        raise InputError(
            f"{place} is {kind} {source.name}"
            + (f"; its names are like {names[0]!r}" if names else "")
        )

    return look_up
