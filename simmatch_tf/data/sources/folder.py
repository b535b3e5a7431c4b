"""The user's own images in folders.

`data.layout` has the layouts. Before training, every image is decoded once:
`load` reports images that cannot be used and images that exist twice.
"""

from __future__ import annotations

import collections
import functools
import typing
from collections.abc import Mapping, Sequence

from simmatch_tf import registry, tables, terminal
from simmatch_tf.data import fingerprint as fingerprint_lib
from simmatch_tf.data import layout
from simmatch_tf.data.sources import source
from simmatch_tf.lazy import np

if typing.TYPE_CHECKING:
    from simmatch_tf import config as config_lib
    from simmatch_tf.data import files

IMAGE_SIZE = 224
_SHOWN_COPIES = 3
# The warning on images that exist twice, by the parts that they are in. Labeled
# images in unlabeled/ are no error: labeled images are unlabeled ones as well,
# and copies of validation images are left out when the split is drawn.
_COPIES = {
    "two classes": ("images in two classes", ": one of the two is wrong"),
    ("test", "labeled"): (
        "test images that are labeled ones, too, and trained on with their "
        "class",
        ": the result will be too good; remove them from one of the two",
    ),
    ("test", "unlabeled"): (
        "test images that are unlabeled ones, too, and trained on without "
        "their class",
        ": the result may be better than on new images",
    ),
    ("validation", "labeled"): (
        "validation images that are labeled ones, too, and trained on with "
        "their class",
        ": they cannot choose the best step; remove them from one of the two",
    ),
    ("test", "validation"): (
        "test images that are validation ones, too, and choose the best step",
        ": its result will be too good; remove them from one of the two",
    ),
    ("labeled", "labeled"): (
        "labeled images that exist twice",
        ": of one that --validation_fraction sets aside, the other may be "
        "trained on",
    ),
    ("test", "test"): ("test images that exist, and count, twice", ""),
}


def check(config: config_lib.Config) -> None:
    """Checks that --data_dir has the right layout, and a table fits it.

    Raises:
        InputError: It has not, or does not.
    """
    layout.of_flags(config).check(
        need_unlabeled=config.needs_unlabeled_folder()
    )


def can_score(config: config_lib.Config) -> bool:
    """Returns whether a run has images to measure its result on."""
    if config.validation_fraction or config.split_file:
        return True
    listing = layout.of_flags(config)
    return listing.has_test or "validation" in listing.parts


def fingerprint(
    config: config_lib.Config, then: fingerprint_lib.Fingerprint
) -> fingerprint_lib.Fingerprint:
    """Returns the fingerprint of the images in --data_dir.

    Raises:
        InputError: There is no such folder, or its layout is wrong.
    """
    del then
    return layout.of_flags(config).fingerprint()


def _load_for_transfer(config: config_lib.Config) -> source.Source:
    return load(
        config.data_dir,
        config.labels_csv,
        config.labels_from,
        on_bad_image=config.on_bad_image,
        for_transfer=True,
    )


@registry.sources.register(
    "folder",
    needs_data_dir=True,
    has_labels=True,
    reads_labels_csv=True,
    skips_bad_images=True,
    sized_by_backbone=True,
    check_images=check,
    can_score=can_score,
    fingerprint=fingerprint,
    load_for_transfer=_load_for_transfer,
)
def load_for_run(config: config_lib.Config) -> source.Source:
    """Loads the folder that the flags name; see `load`."""
    notes = {}
    drawn = config.labeled_by()
    if drawn is not None:
        notes["labeled"] = f"; {drawn} chooses from them, the rest is unlabeled"
    notes["validation"] = "; they choose the best step"
    if config.validation_fraction:
        notes["validation"] += (
            f", instead of --validation_fraction={config.validation_fraction}"
        )
    fact = functools.partial(registry.networks.fact, config.backbone)
    image_size = config.image_size
    if image_size is None and config.init_from is not None:
        image_size = fact("side_with_weights")
    return load(
        config.data_dir,
        config.labels_csv,
        config.labels_from,
        image_size=image_size,
        usual_side=fact("usual_side"),
        on_bad_image=config.on_bad_image,
        need_unlabeled=config.needs_unlabeled_folder(),
        notes=notes,
    )


def load(
    data_dir: str,
    labels_csv: str | None = None,
    labels_from: str | None = None,
    *,
    on_bad_image: str,
    image_size: int | None = None,
    usual_side: int | None = None,
    need_unlabeled: bool = True,
    for_transfer: bool = False,
    notes: Mapping[str, str] | None = None,
) -> source.Source:
    """Loads a folder as a dataset.

    Args:
        data_dir: The folder.
        labels_csv: See `layout.Listing`.
        labels_from: See `layout.Listing`.
        on_bad_image: "error" or "skip", see `files.usable`.
        image_size: Side of the views. Default: `usual_side`, or that of the
            images if they are smaller.
        usual_side: See there; None: 224, even if the images are smaller.
        need_unlabeled: Whether there must be unlabeled images, if they are
            read.
        for_transfer: Leave out unlabeled images, and keep validation images
            apart instead of among the training images.
        notes: Part → what to add about it in the overview.

    Raises:
        InputError: The folder's layout is wrong, or images cannot be used.
    """
    from simmatch_tf.data import files  # imports TensorFlow

    listing = layout.Listing(
        data_dir, labels_csv, labels_from, unlabeled=not for_transfer
    )
    need_unlabeled = need_unlabeled and not for_transfer
    listing.check(need_unlabeled=need_unlabeled)
    listing.warn()
    paths = [f"{listing.root}/{path}" for path in listing.paths]
    inspection = files.inspect(paths, cache=files.cache_path(listing.root))
    contents = inspection.contents
    kept = files.usable(paths, inspection, on_bad_image)
    # Leaving out bad images may have emptied a class.
    listing.check(kept.tolist(), need_unlabeled=need_unlabeled)
    digests = [digest.tobytes().hex() for digest in contents.digests]
    _warn_of_copies(listing, kept.tolist(), digests)
    files.warn([listing.names[i] for i in kept], contents.remarks[kept])

    parts = np.array(listing.parts)[kept]
    validation = kept[parts == "validation"]
    learned = kept[(parts == "labeled") | (parts == "unlabeled")]
    statistics = inspection.statistics(learned)
    if image_size is None:
        image_size = IMAGE_SIZE
        if usual_side is not None:
            image_size = min(usual_side, inspection.side(learned))
    train, apart = np.concatenate([learned, validation]), None
    if for_transfer and validation.size:
        train, apart = learned, validation

    def images(indices: np.ndarray) -> files.FileImages:
        return files.FileImages(
            paths=[paths[i] for i in indices],
            labels=np.array(listing.labels, np.int32)[indices],
            names=[listing.names[i] for i in indices],
            orientations=contents.orientations[indices],
            digests=contents.digests[indices],
        )

    known = {listing.names[i]: digests[i] for i in kept}
    return source.Source(
        name="folder",
        class_names=listing.class_names,
        train=images(train),
        test=images(kept[parts == "test"]) if listing.has_test else None,
        flip=True,
        image_size=image_size,
        validation=None if apart is None else images(apart),
        set_aside=np.arange(len(learned), len(train)),
        measure=lambda: statistics,
        origin=lambda: listing.fingerprint(known),
        overview=tables.plain(listing.overview(kept.tolist(), notes or {})),
    )


def _warn_of_copies(
    listing: layout.Listing, indices: Sequence[int], digests: Sequence[str]
) -> None:
    """Warns about images that exist twice, by their files' contents."""
    counts = collections.Counter(digests[index] for index in indices)
    # Content → the first file of it in each part and class.
    first: dict[str, dict[tuple[str, int], int]] = {}
    # What is wrong → image → the names of it and the other.
    copies = collections.defaultdict(dict)
    # The parts come in the order of `PARTS`.
    for index in indices:
        if counts[digests[index]] == 1:
            continue
        part, label = listing.parts[index], listing.labels[index]
        others = first.setdefault(digests[index], {})
        for (other_part, other_label), other in others.items():
            kind = (part, other_part)
            if -1 not in (label, other_label) and label != other_label:
                kind = "two classes"
            pair = f"{listing.names[index]} is {listing.names[other]}"
            copies[kind].setdefault(index, pair)
        others.setdefault((part, label), index)
    for kind, (images, consequence) in _COPIES.items():
        pairs = list(copies[kind].values())
        if pairs:
            terminal.warn(
                f"{images}: {len(pairs)} ({', '.join(pairs[:_SHOWN_COPIES])}"
                f"{', …' * (len(pairs) > _SHOWN_COPIES)}){consequence}"
            )
