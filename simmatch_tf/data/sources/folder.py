"""The user's own images, in folders; see `listing` for how these are laid out.

All are inspected before training: those that cannot be used are found, and
those that are there twice.
"""

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np
from absl import logging

from simmatch_tf.data import examination, files, fingerprint
from simmatch_tf.data.sources import listing, source

IMAGE_SIZE = 224
_SHOWN = 3
# What is said of images that are there twice, by the parts that they are in.
# Of labeled ones in unlabeled/ nothing: labeled images are unlabeled ones as
# well, and copies of those set aside are left out when the split is drawn.
_COPIES = {
    "two classes": ("images in two classes", ": one of the two is wrong"),
    ("test", "labeled"): (
        "test images that are in labeled/, too, and trained on with their "
        "class",
        ": the result will be too good; remove them from one of the two",
    ),
    ("test", "unlabeled"): (
        "test images that are in unlabeled/, too, and trained on without "
        "their class",
        ": the result may be better than on new images",
    ),
    ("labeled", "labeled"): (
        "labeled images that are there twice",
        ": of one that --validation_fraction sets aside, the other may be "
        "trained on",
    ),
    ("test", "test"): ("test images that are there, and count, twice", ""),
}


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images in a folder.

    Attributes:
        listing: Their names, and those of the classes.
        digests: Name → digest of the file's content, of those that are used.
        train: The labeled images, by class, then by name; then the unlabeled
            ones by name, with label -1.
        test: The images for the results, with labels as in `train`; or None.
    """

    listing: listing.Listing
    digests: dict[str, str]
    train: files.FileImages
    test: files.FileImages | None

    @property
    def class_names(self) -> list[str]:
        """The names of the folders in labeled/, by code point."""
        return self.listing.class_names


def load(
    data_dir: str,
    *,
    on_bad_image: str,
    image_size: int | None = None,
    unlabeled: bool = True,
    need_unlabeled: bool = True,
) -> source.Source:
    """Loads a folder as a dataset.

    Args:
        data_dir: The folder.
        on_bad_image: "error" or "skip", see `files.usable`.
        image_size: Side of the views; default: 224.
        unlabeled: See `read`.
        need_unlabeled: See `read`.

    Raises:
        InputError: As from `read`.
    """
    found = read(
        data_dir,
        on_bad_image=on_bad_image,
        unlabeled=unlabeled,
        need_unlabeled=need_unlabeled,
    )
    train = found.train
    return source.Source(
        name="folder",
        class_names=found.class_names,
        train=train,
        test=found.test,
        flip=True,
        image_size=image_size or IMAGE_SIZE,
        measure=lambda: (list(train.channel_mean), list(train.channel_std)),
        origin=lambda: fingerprint.of_listing(found.listing, found.digests),
    )


def read(
    data_dir: str | None,
    *,
    on_bad_image: str,
    unlabeled: bool = True,
    need_unlabeled: bool = True,
) -> Folder:
    """Finds a folder's images and inspects them.

    Args:
        data_dir: The folder.
        on_bad_image: "error" or "skip", see `files.usable`.
        unlabeled: Whether those in unlabeled/ are wanted, too.
        need_unlabeled: Whether there must be some, if they are wanted.

    Raises:
        InputError: The folder does not hold what is expected, or images that
            cannot be used.
    """
    found = listing.Listing(data_dir, unlabeled=unlabeled)
    need_unlabeled = need_unlabeled and unlabeled
    found.check(need_unlabeled=need_unlabeled)
    found.warn()
    paths = [f"{found.root}/{path}" for path in found.paths]
    inspection = files.inspect(paths, cache=files.cache_path(found.root))
    kept = files.usable(paths, inspection, on_bad_image)
    # Leaving out bad images may have emptied a class.
    found.check(kept.tolist(), need_unlabeled=need_unlabeled)
    digests = [digest.tobytes().hex() for digest in inspection.digests]
    _warn_of_copies(found, _repeated(inspection.digests, kept), digests)
    examination.warn([found.names[i] for i in kept], inspection.remarks[kept])

    is_test = np.array([part == "test" for part in found.parts])[kept]
    train = kept[~is_test]
    mean, std = inspection.statistics(train)

    def images(indices: np.ndarray) -> files.FileImages:
        return files.FileImages(
            paths=[paths[i] for i in indices],
            labels=np.array(found.labels, np.int32)[indices],
            names=[found.names[i] for i in indices],
            orientations=inspection.orientations[indices],
            channel_mean=mean,
            channel_std=std,
            digests=inspection.digests[indices],
        )

    return Folder(
        listing=found,
        digests={found.names[i]: digests[i] for i in kept},
        train=images(train),
        test=images(kept[is_test]) if found.has_test else None,
    )


def _repeated(digests: np.ndarray, kept: np.ndarray) -> list[int]:
    """Those of `kept` whose digest, uint8 [N, 16], another of them has."""
    keys = np.ascontiguousarray(digests[kept]).view(np.uint64)
    order = np.lexsort(keys.T)
    same = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    places = np.union1d(order[1:][same], order[:-1][same])
    return kept[places].tolist()


def _warn_of_copies(
    found: listing.Listing, places: Sequence[int], digests: Sequence[str]
) -> None:
    """Says which images are there twice, by their files' contents."""
    # Content → the first file of it in each part and class.
    known: dict[str, dict[tuple[str, int], int]] = {}
    # What is wrong → image → it and the other.
    copies = collections.defaultdict(dict)
    # The parts come in the order labeled, unlabeled, test.
    for place in places:
        part, label = found.parts[place], found.labels[place]
        others = known.setdefault(digests[place], {})
        for (other_part, other_label), other in others.items():
            kind = (part, other_part)
            if -1 not in (label, other_label) and label != other_label:
                kind = "two classes"
            pair = f"{found.names[place]} is {found.names[other]}"
            copies[kind].setdefault(place, pair)
        others.setdefault((part, label), place)
    for kind, (what, so) in _COPIES.items():
        pairs = list(copies[kind].values())
        if pairs:
            logging.warning(
                "%s: %d (%s%s)%s",
                what,
                len(pairs),
                ", ".join(pairs[:_SHOWN]),
                ", …" * (len(pairs) > _SHOWN),
                so,
            )
