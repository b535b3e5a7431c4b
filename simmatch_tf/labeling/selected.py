"""The images to label next: their table, and their page.

Importing this module does not import TensorFlow.
"""

import collections
import csv
import dataclasses
import io as io_lib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from simmatch_tf import io
from simmatch_tf.data import picking
from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import pool as pool_lib
from simmatch_tf.reporting import pages

COLUMNS = ("rank", "file", "cluster", "cluster_size", "typicality", "copies")
# What a page of the command can be told by.
_PAGE = "<!-- simmatch_tf.select -->"
# Images shown of each cluster, beside the one that is picked; picks on the
# page; and copies that are named there.
_MEMBERS = 8
_SHOWN = 200
_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Row:
    """An image to label.

    Attributes:
        rank: From 1.
        index: Of the image in the pool.
        file: Its name.
        cluster: From 1, in the order in which clusters are first picked from.
        cluster_size: Images in the cluster, without copies.
        typicality: See `picking.Picks`; None where it has none.
        copies: Indices of its near-duplicates.
        members: Indices of the most similar images of the cluster.
    """

    rank: int
    index: int
    file: str
    cluster: int
    cluster_size: int
    typicality: float | None
    copies: Sequence[int]
    members: Sequence[int]

    @property
    def shown(self) -> list[int]:
        """Indices of the images that the page shows."""
        return [self.index, *self.members]


def rows(
    picks: picking.Picks, features: np.ndarray, pool: pool_lib.Pool
) -> list[Row]:
    """Returns the rows of the table, in the order of labeling.

    Args:
        picks: What was picked.
        features: float [N, D].
        pool: The N images.
    """
    features = picking.normalized(features)
    own = np.arange(len(pool))
    numbers: dict[int, int] = {}
    copies = collections.defaultdict(list)
    for index in np.flatnonzero(picks.copy_of != own).tolist():
        copies[int(picks.copy_of[index])].append(index)
    table = []
    for rank, index in enumerate(picks.order.tolist(), 1):
        cluster = int(picks.clusters[index])
        inside = np.flatnonzero(
            (picks.clusters == cluster) & (picks.copy_of == own)
        )
        near = np.argsort(-(features[inside] @ features[index]), kind="stable")
        typicality = float(picks.typicality[index])
        table.append(
            Row(
                rank,
                index,
                pool.names[index],
                numbers.setdefault(cluster, len(numbers) + 1),
                len(inside),
                None if np.isnan(typicality) else typicality,
                copies[index],
                [i for i in inside[near].tolist() if i != index][:_MEMBERS],
            )
        )
    return table


def check_output(path: pathlib.Path, given: str) -> None:
    """Checks that a file is missing or a table of this command.

    Raises:
        InputError: It is another file, which would be lost.
    """
    if not path.exists():
        return
    head = io.read_text(path, given).partition("\n")[0].strip()
    if head != ",".join(COLUMNS):
        raise InputError(
            f"{given}: exists, and is no table of this command; name another "
            "file"
        )


def check_page(path: pathlib.Path, given: str) -> None:
    """Checks that a file is missing or a page of this command.

    Raises:
        InputError: It is another file, which would be lost.
    """
    if path.exists() and _PAGE not in io.read_text(path, given):
        raise InputError(
            f"{given}: exists, and is no page of this command; name another "
            "file"
        )


def write_table(path: pathlib.Path, table: Sequence[Row]) -> None:
    """Writes the table as CSV.

    Raises:
        InputError: It cannot be written.
    """
    text = io_lib.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in table:
        typicality = "" if row.typicality is None else f"{row.typicality:.4f}"
        writer.writerow(
            [row.rank, row.file, row.cluster, row.cluster_size, typicality]
            + [len(row.copies)]
        )
    io.write_text(path, text.getvalue())


def shown(table: Sequence[Row]) -> list[int]:
    """Returns the indices of the images that the page shows."""
    return sorted({index for row in table[:_SHOWN] for index in row.shown})


def page(
    table: Sequence[Row],
    pool: pool_lib.Pool,
    pictures: Mapping[int, bytes],
    *,
    facts: Sequence[str],
    unreadable: Mapping[str, str],
) -> str:
    """Returns the page of the images to label, as HTML.

    Args:
        table: The rows.
        pool: The images.
        pictures: Index of an image → its JPEG.
        facts: Sentences about how they were chosen.
        unreadable: File → why it cannot be read.
    """
    items = [
        {
            "row": row,
            "copies": [pool.names[i] for i in row.copies[:_NAMED]],
            "more_copies": max(0, len(row.copies) - _NAMED),
            "members": [
                {"index": i, "name": pool.names[i], "class": pool.labels.get(i)}
                for i in row.members
            ],
        }
        for row in table[:_SHOWN]
    ]
    used = {i for item in table[:_SHOWN] for i in item.shown}
    return pages.render(
        "selected.html",
        items=items,
        picked=len(table),
        folder=pool.folder,
        facts=facts,
        unreadable=list(unreadable.items())[:_SHOWN],
        unreadable_count=len(unreadable),
        pictures={
            index: pages.data_uri(jpeg)
            for index, jpeg in pictures.items()
            if index in used
        },
    )
