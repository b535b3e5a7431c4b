"""The images to choose from: those of a folder, and the labels they have.

Importing this module does not import TensorFlow.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from simmatch_tf import io
from simmatch_tf.data import layout
from simmatch_tf.flags.errors import InputError


@dataclasses.dataclass(frozen=True)
class Pool:
    """Images, some of which have labels.

    Left out are images of validation and test parts, and those of none of the
    classes.

    Attributes:
        folder: Absolute path of their folder.
        names: N paths from the folder, in composed form (NFC).
        paths: N absolute paths.
        labels: Index of an image → its class.
        class_names: Names of the classes that are known.
    """

    folder: str
    names: Sequence[str]
    paths: Sequence[str]
    labels: Mapping[int, str]
    class_names: Sequence[str]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.names)

    def take(self, indices: Sequence[int]) -> "Pool":
        """Returns the pool of some of the images, in ascending order."""
        return dataclasses.replace(
            self,
            names=[self.names[i] for i in indices],
            paths=[self.paths[i] for i in indices],
            labels={
                place: self.labels[i]
                for place, i in enumerate(indices)
                if i in self.labels
            },
        )


def find(images: str, labels_from: str | None = None) -> Pool:
    """Finds the images of a folder.

    Args:
        images: The folder, as `train --data_dir` reads it; without labels, any
            folder.
        labels_from: A labels.jsonl of `label`, or a CSV file with the columns
            file and class.

    Raises:
        InputError: There is no such folder, it has no image, or the labels do
            not fit it.
    """
    folder = os.path.abspath(io.expand(images))
    if not os.path.isdir(folder):
        kind = "is a file" if os.path.exists(folder) else "does not exist"
        raise InputError(f"--images={images}: {kind}; give a folder of images")
    listing = layout.Listing(folder, labels_from=labels_from, complete=False)
    listing.warn()
    kept = sorted(
        (path, int(label))
        for path, part, label in zip(
            listing.paths, listing.parts, listing.labels, strict=True
        )
        if part in ("labeled", "unlabeled")
    )
    paths = [path for path, _ in kept]
    if not paths:
        raise InputError(
            f"--images={images}: has no image; images end in "
            + ", ".join(layout.ENDINGS)
        )
    names = [io.nfc(io.printable(path)) for path in paths]
    return Pool(
        folder,
        names,
        [os.path.join(folder, path) for path in paths],
        {
            index: listing.class_names[label]
            for index, (_, label) in enumerate(kept)
            if label >= 0
        },
        listing.class_names,
    )
