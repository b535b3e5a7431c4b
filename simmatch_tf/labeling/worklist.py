"""Which images are to be labeled, in which order.

Nothing is read of the images but their names, so that a folder of tens of
thousands opens at once.
"""

import csv
import dataclasses
import hashlib
import io as io_lib
import os
from collections.abc import Iterable, Mapping, Sequence

from simmatch_tf import io, terminal
from simmatch_tf.data import layout, selection
from simmatch_tf.flags.errors import InputError

# Number of images that are asked about where nobody says how many.
COUNT = 40
_TESTS = ("test", "val", "valid", "validation")
_SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class Worklist:
    """Images to label.

    Attributes:
        folder: Absolute path of their folder.
        names: N paths from the folder, in composed form (NFC), by which the
            answers name the images; sorted.
        paths: N absolute paths.
        order: Indices of all images, in the order in which to ask.
        listed: Number of images at the beginning of `order` that a list names;
            0 without a list.
        clusters: Index → cluster, where the list has them.
        classes: Classes that folders of labeled images name.
    """

    folder: str
    names: Sequence[str]
    paths: Sequence[str]
    order: Sequence[int]
    listed: int
    clusters: Mapping[int, str]
    classes: Sequence[str]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.names)


def make(
    images: str,
    chosen: str | None = None,
    classes: Iterable[str] = (),
    *,
    missing: bool = False,
) -> Worklist:
    """Finds the images of a folder, and the order in which to ask.

    Images in labeled/CLASS have a class, and those in test/CLASS or val/CLASS
    are left for measuring, as `train --labels_from` reads such a folder.

    Args:
        images: The folder.
        chosen: A table whose column `file` names images in the order in which
            to ask; `cluster`, if there is one, their cluster. The others come
            behind them. None: all in an order that looks random, and in which
            images keep their order when others are added.
        classes: Classes that are known. If none of those in test/ or val/ is,
            a line says that their images are left out.
        missing: Whether the table may name images that are gone.

    Raises:
        InputError: There is no such folder, it has no image to label, or the
            table is wrong.
    """
    folder = os.path.abspath(io.expand(images))
    if not os.path.isdir(folder):
        kind = "is a file" if os.path.exists(folder) else "does not exist"
        raise InputError(f"--images={images}: {kind}; give a folder of images")
    walker = selection.Walker(folder, layout.ENDINGS)
    placed, tests = _parts(walker, classes, images)
    skip = {*tests, *(["labeled"] if placed else [])}
    files = {}
    for path in sorted(walker.images(skip=skip)):
        name = io.nfc(io.printable(path))
        if name in files:
            raise InputError(
                f"{folder}/{name}: is the name of two images, in two forms of "
                "Unicode (NFC and NFD); rename one of them"
            )
        files[name] = path
    if not files:
        raise InputError(_why_empty(images, walker, skip))
    walker.warn(f"--images={images}")
    names = sorted(files)
    indices = {name: index for index, name in enumerate(names)}
    listed = clusters = {}
    if chosen is not None:
        clusters = _read(chosen, indices, folder, missing)
        listed = dict.fromkeys(clusters)
    rest = sorted(
        (name for name in names if indices[name] not in listed), key=_digest
    )
    return Worklist(
        folder,
        names,
        [os.path.join(folder, files[name]) for name in names],
        [*listed, *(indices[name] for name in rest)],
        len(listed),
        {index: cluster for index, cluster in clusters.items() if cluster},
        placed,
    )


def _parts(
    walker: selection.Walker, classes: Iterable[str], images: str
) -> tuple[list[str], list[str]]:
    """Returns the classes in labeled/, and folders of test images.

    The latter hold folders alone, of classes that need not be known yet.
    """
    tops = {path for path, _ in walker.list("")[0]}

    def inside(top: str) -> list[str]:
        if top not in tops:
            return []
        return sorted(
            io.nfc(io.printable(os.path.basename(path)))
            for path, _ in walker.list(top)[0]
        )

    placed = inside("labeled")
    known = {*placed, *classes}
    tests = [top for top in _TESTS if inside(top) and not walker.list(top)[1]]
    for top in tests:
        if not known.intersection(inside(top)):
            terminal.say(
                f"--images={images}: {top}/ is left out, as its folders name "
                "the classes of images to measure by; rename it to label them"
            )
    walker.left_out.clear()
    return placed, tests


def _digest(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _why_empty(
    images: str, walker: selection.Walker, skip: Iterable[str]
) -> str:
    text = f"--images={images}: has no image to label"
    if skip:
        text += f" beside those in {', '.join(f'{top}/' for top in skip)}"
    if walker.left_out:
        text += f"; of other files it has {selection.endings(walker.left_out)}"
    return f"{text}; images end in {', '.join(layout.ENDINGS)}"


def _read(
    chosen: str, indices: Mapping[str, int], folder: str, missing: bool
) -> dict[int, str]:
    """Reads the images of a list in its order: index → cluster or "".

    Images are named by paths from the folder, or by absolute ones in it.

    Raises:
        InputError: It is no such table, or names an image that there is not,
            or one twice.
    """
    given, rows = f"--list={chosen}", _rows(chosen)
    listed: dict[int, str] = {}
    unknown = []
    for number, row in enumerate(rows, 2):
        name = io.nfc(row["file"] or "")
        if name.startswith(io.nfc(io.printable(folder)) + "/"):
            name = name[len(io.nfc(io.printable(folder))) + 1 :]
        index = indices.get(name)
        if index is None:
            unknown.append(f"{name!r} (row {number})")
        elif index in listed:
            raise InputError(f"{given}, row {number}: {name!r} is there twice")
        else:
            listed[index] = row.get("cluster") or ""
    if unknown and not missing:
        raise InputError(
            f"{given}: {len(unknown)} of {len(rows)} rows name no image to "
            f"label in {folder}, such as {', '.join(unknown[:_SHOWN])}; make "
            "the list again with --images of this folder"
        )
    return listed


def files(chosen: str) -> list[str]:
    """Returns the files that a list names, in composed form.

    Raises:
        InputError: It is no such table.
    """
    return [io.nfc(row["file"] or "") for row in _rows(chosen)]


def _rows(chosen: str) -> list[dict[str, str]]:
    """Reads the rows of a list.

    Raises:
        InputError: It is no such table.
    """
    given = f"--list={chosen}"
    text = io.read_text(io.expand(chosen), given)
    for separator in (",", ";", "\t"):
        lines = io_lib.StringIO(text, newline="")
        rows = list(csv.DictReader(lines, delimiter=separator))
        if rows and "file" in rows[0]:
            return rows
    raise InputError(
        f"{given}: must be a CSV file with a column file, separated by commas, "
        "semicolons or tabs, such as simmatch_tf.select writes, and at least "
        "one row"
    )
