"""The layouts of a folder of the user's own images: what is labeled, what not.

    DIR/labeled/CLASS/**     labeled images: one folder for each class
    DIR/unlabeled/**         images without a class
    DIR/test/CLASS/**        images to report results on (optional)

or, where there is no labeled/, as torchvision's ImageFolder has them:

    DIR/train/CLASS/**       labeled images
    DIR/unlabeled/**         images without a class (optional)
    DIR/val/CLASS/**         or valid/, validation/ (optional): the test images
                             or, beside a test/, those that choose the best step
    DIR/test/CLASS/**        (optional)

or, with --labels_from or --labels_csv, any tree of images, with labeled/, val/
and test/ as above where their folders are named as classes. Images that the
table does not name are unlabeled; those that it says to be of no class are left
out.

Images are JPEG, PNG, BMP or GIF by the ending of their name, and have any size.
Hidden files are left out, and so are folders in which file servers and systems
keep thumbnails and deleted files. Symbolic links are followed; one that leads
nowhere is an error. The order of the images depends on their names and classes
alone, which are compared and sorted in Unicode's composed form.

Importing this module does not import TensorFlow.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from simmatch_tf import io, terminal
from simmatch_tf.data import fingerprint as fingerprint_lib
from simmatch_tf.data import labels_csv as labels_csv_lib
from simmatch_tf.data import selection
from simmatch_tf.flags.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
# In the order in which a listing has them.
PARTS = ("labeled", "unlabeled", "validation", "test")
_VALIDATION = ("val", "valid", "validation")
_LAYOUT = (
    "expected are labeled/CLASS/* with a folder for each class, unlabeled/** "
    "and, where there is one, test/CLASS/*; or train/CLASS/* with val/CLASS/* "
    "or test/CLASS/*; or images in any folders, whose classes --labels_from="
    "FILE names"
)
_SHOWN = 10  # places or names in a message


class _Image(NamedTuple):
    """An image before all are put in order: its class is None if unknown."""

    path: str
    part: str
    class_name: str | None
    row: labels_csv_lib.Row | None = None


class Listing:
    """The images in a folder, by their names alone.

    Attributes:
        root: The folder's absolute path.
        class_names: The names of the classes, by code point.
        folders: Part → the folder in the root whose subfolders are its classes,
            and "unlabeled" → that of the unlabeled images.
        paths: N paths from the folder: the labeled images by class, then by
            name; the unlabeled ones by name; the validation and the test
            images as the labeled ones.
        names: The same in composed form, printable.
        labels: N classes, -1 for unlabeled images.
        parts: N names of `PARTS`.
        aside: Names of images that the table says to be of no class, sorted.
        has_test: Whether there is a test part.
    """

    def __init__(
        self,
        data_dir: str | None,
        labels_csv: str | None = None,
        labels_from: str | None = None,
        *,
        unlabeled: bool = True,
        complete: bool = True,
    ) -> None:
        """Lists a folder.

        Args:
            data_dir: The folder.
            labels_csv: Table of the images' classes, or None.
            labels_from: The same, by the flag that also takes the labels.jsonl
                of the labeling page. At most one of the two.
            unlabeled: Whether to list unlabeled images.
            complete: Whether there must be two classes with labeled images,
                and none without. False while images are being labeled: any
                tree of images is read as with a table, which may be missing,
                and test/ and val/ are parts if they hold folders alone.

        Raises:
            InputError: There is no such folder, its layout is wrong, or the
                table does not fit it.
        """
        self._given = f"--data_dir={data_dir}"
        self.root = _root(data_dir)
        self._walker = selection.Walker(self.root, ENDINGS)
        self._entries = self._find_entries()
        self._table, self._complete = None, complete
        self.aside: list[str] = []
        if labels_from is not None:
            self._table = labels_csv_lib.read(labels_from, "labels_from")
        elif labels_csv is not None:
            self._table = labels_csv_lib.read(labels_csv)
        elif not complete:  # any tree of images, of which none is named yet
            self._table = labels_csv_lib.Table(self._given, "", self.root, ())
        self.folders = self._find_folders()
        folders = {
            part: self._classes(top)
            for part, top in self.folders.items()
            if part != "unlabeled"
        }
        images = self._in_class_folders(folders)
        if self._table is not None:
            images += self._by_table(self._table, images)
        elif unlabeled and "unlabeled" in self.folders:
            paths = self._walker.images(self.folders["unlabeled"])
            images += [_Image(path, "unlabeled", None) for path in paths]
        classes = {*folders.get("labeled", ())} | {
            image.class_name for image in images if image.part == "labeled"
        }
        if complete:
            self._check_classes(classes, folders, images)
        else:
            classes |= {i.class_name for i in images if i.class_name}
        images = self._without_test(images)
        self.has_test = "test" in self.folders or any(
            image.part == "test" for image in images
        )
        if not unlabeled:
            images = [i for i in images if i.part != "unlabeled"]
        self._expects_unlabeled = unlabeled and "unlabeled" in self.folders
        self._put_in_order(images, sorted(classes))

    def warn(self) -> None:
        """Warns about files that are no images, and about unused folders.

        An empty unlabeled/ is warned about, too.
        """
        root = io.printable(self.root)
        places = collections.defaultdict(list)
        if self._table is not None:  # it may lie among the images
            path = os.path.relpath(self._table.path, self.root)
            if path in self._walker.left_out:
                self._walker.left_out.remove(path)
            for remark in self._table.remarks:
                terminal.warn(remark)
            without = [
                name
                for name in self._table.classes
                if name not in self.class_names
            ]
            if without:
                terminal.warn(
                    f"{self._table.given}: {len(without)} of its classes have "
                    "no labeled image, and are none of this run's classes: "
                    + _first(without)
                )
        for path in self._walker.left_out:
            places[_place(path)].append(path)
        self._walker.warn(
            root,
            _first(
                f"{place} {selection.endings(paths)}"
                for place, paths in sorted(places.items())
            ),
        )
        if self._expects_unlabeled and "unlabeled" not in self.parts:
            terminal.warn(
                f"{root}: there is an unlabeled/, but there are no images in it"
            )
        unused = self._unused()
        if unused:
            *tops, last = self._known_folders()
            terminal.warn(
                f"{root}: not used, as they are none of {', '.join(tops)} and "
                f"{last}: {_first(unused)}{self._rename(unused)}"
            )

    def check(
        self, kept: Sequence[int] | None = None, *, need_unlabeled: bool
    ) -> None:
        """Checks that every class has images.

        Args:
            kept: Indices of the images that can be used; None: all.
            need_unlabeled: Whether there must be unlabeled images, too.

        Raises:
            InputError: Images are missing.
        """
        usable = kept is not None and len(kept) < len(self.paths)
        kind = "images that can be used" if usable else "images"
        indices = range(len(self.paths)) if kept is None else kept
        counts = collections.Counter(
            (self.parts[index], self.labels[index]) for index in indices
        )
        for part in ("labeled", "test") if self.has_test else ("labeled",):
            for label, name in enumerate(self.class_names):
                if not counts[part, label]:
                    raise InputError(
                        f"{self._given}: there are no {kind} "
                        + self._where(part, name)
                    )
        if not need_unlabeled or counts["unlabeled", -1]:
            return
        if self._table is not None:
            missing = (
                f"no unlabeled {kind}: {self._table.name} or a folder names "
                "the class of each"
                + "".join(f". {text}" for text in self._table.remarks)
            )
            labeled = "those"
        else:
            missing = f"no {kind} in unlabeled/{self._others('unlabeled')}"
            labeled = f"{self.folders['labeled']}/"
        raise InputError(
            f"{self._given}: there are {missing}; add some, or give --labels=N "
            f"to label N images of {labeled} and take the rest as unlabeled, "
            "or --algorithm=supervised to train on labels alone"
            + self._instead()
        )

    def fingerprint(
        self, contents: dict[str, str] | None = None
    ) -> fingerprint_lib.Fingerprint:
        """Returns the fingerprint of the images.

        The classes that a table names have entries of their own.

        Args:
            contents: Name → digest of the file's content, where it is known.
        """
        paths = zip(self.names, map(self._absolute, self.paths), strict=True)
        result = fingerprint_lib.of_files(dict(paths), contents)
        # No image's name ends like these.
        classes = [
            f"{self.names[index]} as {self.class_names[self.labels[index]]!r}"
            + f" ({self.parts[index]})" * (self.parts[index] != "labeled")
            for index in self._by_row
        ]
        classes += [f"{name} as none of the classes" for name in self.aside]
        return result.join(
            fingerprint_lib.Fingerprint(dict.fromkeys(classes, (0, 0, None)))
        )

    def overview(
        self, kept: Sequence[int], notes: Mapping[str, str]
    ) -> list[list[str]]:
        """Returns a table of what each folder became; see `tables.plain`.

        Args:
            kept: Indices of the images that can be used.
            notes: Part → what else is to be said of it.
        """
        name = io.printable(os.path.basename(self.root) or self.root)
        rows = [[f"folder {name}", "images", "classes", "fewest", "most"]]
        by_part: dict[str, collections.Counter] = {
            p: collections.Counter() for p in PARTS
        }
        for index in kept:
            by_part[self.parts[index]][self.labels[index]] += 1
        for part, counts in by_part.items():
            if not counts:
                continue
            row = [
                f"{part}: {self._places(part)}{notes.get(part, '')}",
                f"{counts.total():,}",
            ]
            if part == "unlabeled":
                rows.append([*row, "", "", ""])
                continue
            ordered = sorted(counts, key=lambda label: (counts[label], label))
            ends = [
                f"{counts[label]:,} ({self.class_names[label]})"
                for label in (ordered[0], ordered[-1])
            ]
            rows.append([*row, str(len(counts)), *ends])
        if self.aside:
            title = f"set aside: none of the classes ({self._table.name})"
            rows.append([title, f"{len(self.aside):,}", "", "", ""])
        for name, count in self._unused_images()[:_SHOWN]:
            rows.append([f"not used: {name}", count, "", "", ""])
        if len(kept) < len(self.paths):
            unreadable = f"{len(self.paths) - len(kept):,}"
            rows.append(["not used: unreadable", unreadable, "", "", ""])
        return rows

    # ------------------------------------------------------------- the parts --

    def _find_entries(self) -> dict[str, bool]:
        """Returns what the folder holds: name → whether it is a folder."""
        try:
            with os.scandir(self.root) as entries:
                return {
                    entry.name: selection.is_folder(entry)
                    for entry in sorted(entries, key=lambda each: each.name)
                    if not entry.name.startswith(".")
                }
        except OSError as error:
            raise InputError(
                f"{io.printable(self.root)}: cannot be read "
                f"({error.strerror or error})"
            ) from None

    def _find_folders(self) -> dict[str, str]:
        """Returns the attribute `folders`, by the names of the folders."""
        if self._table is not None:
            return self._folders_beside_table(self._table)
        for labeled in ("labeled", "train"):
            if self._entries.get(labeled):
                break
            if dead := selection.dead_link(self._absolute(labeled)):
                raise InputError(f"{self._printable(labeled)}: {dead}")
        else:
            raise InputError(
                f"{self._given}: there is no folder labeled/ or train/ in it; "
                f"{_LAYOUT}{self._hint()}"
            )
        folders = {"labeled": labeled}
        if labeled == "train":
            self._add_one(folders, "validation", _VALIDATION)
        self._add_one(folders, "test", ("test",))
        self._add_one(folders, "unlabeled", ("unlabeled",))
        return folders

    def _folders_beside_table(
        self, table: labels_csv_lib.Table
    ) -> dict[str, str]:
        """Returns `folders` where a table names classes.

        A folder is a part if it holds classes, not only images.
        """
        known = {row.class_name for row in table.rows}
        folders: dict[str, str] = {}
        labeled = self._subfolders("labeled")
        if labeled:
            folders["labeled"] = "labeled"
            known.update(labeled)
        for part, tops in (("validation", _VALIDATION), ("test", ("test",))):
            tops = [top for top in tops if self._is_part(top, known)]
            self._add_one(folders, part, tops)
        return folders

    def _is_part(self, top: str, known: set[str]) -> bool:
        """Whether a folder holds classes, of which all may not be known yet."""
        inside = self._subfolders(top)
        if self._complete or not inside:
            return bool(known & inside)
        return not selection.Walker(self.root, ENDINGS).list(top)[1]

    def _subfolders(self, top: str) -> set[str]:
        """Returns the names of the folders in one, {} if it does not exist."""
        if top not in self._entries:
            return set()
        if dead := selection.dead_link(self._absolute(top)):
            raise InputError(f"{self._printable(top)}: {dead}")
        if not self._entries[top]:
            return set()
        # Another walker: this one's files are counted later.
        folders, _ = selection.Walker(self.root, ENDINGS).list(top)
        return {
            io.nfc(io.printable(os.path.basename(path))) for path, _ in folders
        }

    def _add_one(
        self, folders: dict[str, str], part: str, tops: Sequence[str]
    ) -> None:
        """Adds the one folder of a part that exists, if one does."""
        tops = [top for top in tops if top in self._entries]
        if len(tops) > 1:
            raise InputError(
                f"{self._given}: holds {' and '.join(f'{t}/' for t in tops)}, "
                f"but the {part} images must be in one of them; join or "
                "rename the others"
            )
        folders.update((part, top) for top in tops)

    def _classes(self, top: str) -> dict[str, str]:
        """Returns the class folders in one: composed name → name, sorted.

        Raises:
            InputError: There are images beside them, or two have one name.
        """
        folders, images = self._walker.list(top)
        if images:
            instead = " or, without a class, to unlabeled/" * (top != "labeled")
            raise InputError(
                f"{self._printable(images[0])}: lies directly in {top}/, one "
                f"of {len(images)} images that do; the class is a folder's "
                f"name: move it to {top}/CLASS/{instead}; or name the classes "
                "of images by --labels_from=FILE"
            )
        classes: dict[str, str] = {}
        for path, _ in folders:
            folder = os.path.basename(path)
            if classes.setdefault(io.nfc(folder), folder) != folder:
                raise InputError(
                    f"{self._printable(path)}: has the name of another folder "
                    f"in {top}/, in another form of Unicode (NFC and NFD); "
                    "put their images into one"
                )
        return dict(sorted(classes.items()))

    def _in_class_folders(
        self, folders: Mapping[str, Mapping[str, str]]
    ) -> list[_Image]:
        """Returns the images in class folders, part by part."""
        return [
            _Image(path, part, name)
            for part, classes in folders.items()
            for name, folder in classes.items()
            for path in self._walker.images(f"{self.folders[part]}/{folder}")
        ]

    def _by_table(
        self, table: labels_csv_lib.Table, placed: Sequence[_Image]
    ) -> list[_Image]:
        """Returns all other images, with the classes that a table names.

        Args:
            table: The table.
            placed: The images in class folders, with which it must agree.

        Raises:
            InputError: The table names images that do not exist, or another
                class or part than a folder.
        """
        paths = self._walker.images(skip={*self.folders.values()})
        names = [
            io.nfc(io.printable(path))
            for path in [*(image.path for image in placed), *paths]
        ]
        rows = table.find(names, self._walker.left_out, self.root)
        # A folder's class may have bytes that are not UTF-8.
        classes = {
            io.printable(image.class_name): image.class_name
            for image in placed
            if image.part == "labeled"
        }
        wrong = []
        for index, image in enumerate(placed):
            row = rows.pop(index, None)
            if row is None or not (row.class_name or row.aside):
                continue
            name = io.printable(image.class_name)
            if row.class_name != name or row.part not in ("", image.part):
                wrong.append((row, f"{name!r} in {self.folders[image.part]}/"))
        if wrong:
            row, place = min(wrong)
            raise table.error(
                row,
                f"{row.file!r} is {row.shown()} here, but lies "
                f"under {place}; correct the {table.unit}, or remove it"
                + f" (so are {len(wrong)} {table.unit}s)"
                * (len(wrong) > 1),
            )
        images = []
        for index, path in enumerate(paths, len(placed)):
            row = rows.get(index)
            if row is not None and row.aside:
                self.aside.append(names[index])
                continue
            if row is None or not row.class_name:
                images.append(_Image(path, "unlabeled", None))
                continue
            name = classes.get(row.class_name, row.class_name)
            images.append(_Image(path, row.part or "labeled", name, row))
        return images

    def _check_classes(
        self,
        classes: set[str],
        folders: Mapping[str, Mapping[str, str]],
        images: Sequence[_Image],
    ) -> None:
        """Checks that there are two classes, and none is in other parts alone.

        Raises:
            InputError: There are fewer, or one is.
        """
        names = [io.printable(name) for name in sorted(classes)]
        if len(classes) < 2:
            place = f"{self.folders.get('labeled')}/ has"
            if self._table is not None:
                place = f"{self._table.name} names"
            kind = "classes" if self._table is not None else "class folders"
            raise InputError(
                f"{self._given}: {place} {len(classes)} {kind} "
                f"({', '.join(names) or 'none'}), but at least 2 are needed; "
                + _LAYOUT
            )
        end = ", ".join(names[:20]) + ", …" * (len(names) > 20)
        for part in ("test", "validation"):
            for name in sorted({*folders.get(part, ())} - classes):
                place = f"{self.folders[part]}/{io.printable(name)}"
                owner = (
                    "no labeled image has"
                    if self._table is not None
                    else f"{self.folders['labeled']}/ does not have"
                )
                raise InputError(
                    f"{self._given}: {place} is a class that {owner}; the "
                    f"classes are {end}"
                )
        for image in images:
            if image.row is not None and image.class_name not in classes:
                raise self._table.error(
                    image.row,
                    f"no labeled image has the class {image.class_name!r} of "
                    f"this {image.part} image; the classes are {end}",
                )

    def _without_test(self, images: list[_Image]) -> list[_Image]:
        """Makes validation images the test images where there are no others."""
        self._validation_is_test = False
        if "test" in self.folders or any(i.part == "test" for i in images):
            return images
        self._validation_is_test = True
        if "validation" in self.folders:
            self.folders["test"] = self.folders.pop("validation")
        return [
            image._replace(part="test") if image.part == "validation" else image
            for image in images
        ]

    def _put_in_order(
        self, images: Sequence[_Image], classes: Sequence[str]
    ) -> None:
        """Sets the attributes that list the images."""
        labels = {name: label for label, name in enumerate(classes)}
        labels[None] = -1
        images = sorted(
            images,
            key=lambda image: (
                PARTS.index(image.part),
                labels[image.class_name],
                io.nfc(image.path),
                image.path,
            ),
        )
        self.class_names = [io.printable(name) for name in classes]
        self.paths = [image.path for image in images]
        self.names = [io.nfc(io.printable(path)) for path in self.paths]
        self.labels = [labels[image.class_name] for image in images]
        self.parts = [image.part for image in images]
        self._by_row = [i for i, image in enumerate(images) if image.row]

    # ---------------------------------------------------------- for messages --

    def _known_folders(self) -> tuple[str, ...]:
        """Returns the folders that count in this layout."""
        if self.folders["labeled"] == "train":
            return "train/", "val/", "test/", "unlabeled/"
        return "labeled/", "unlabeled/", "test/"

    def _where(self, part: str, name: str) -> str:
        """Returns where images of a class were expected."""
        if self._table is not None:
            return (
                f"of class {name!r} among the {part} images of "
                f"{self._table.name}; every class needs at least one there"
            )
        place = f"{self.folders[part]}/{name}"
        return (
            f"in {place}{self._others(place)}; every class of "
            f"{self.folders['labeled']}/ needs at least one there"
        )

    def _others(self, place: str) -> str:
        """Returns which files a place has that are no images, for a message."""
        others = [p for p in self._walker.left_out if _place(p) == place]
        if not others:
            return ""
        return (
            f" but files that are no {'/'.join(ENDINGS)}: "
            + selection.endings(others)
        )

    def _unused(self) -> list[str]:
        """Returns what the folder holds beside its parts."""
        if self._table is not None:
            return []
        used = self.folders.values()
        return [
            io.printable(name) + "/" * is_folder
            for name, is_folder in self._entries.items()
            if name not in used
        ]

    def _unused_images(self) -> list[tuple[str, str]]:
        """Returns the name of each unused folder with images, and how many."""
        counts = []
        for name in self._entries if self._table is None else ():
            if name in self.folders.values():
                continue
            if not self._entries[name]:
                count = name.lower().endswith(ENDINGS)
            else:
                try:
                    walker = selection.Walker(self.root, ENDINGS)
                    count = len(walker.images(name))
                except InputError:  # the folder is none of the run's
                    counts.append((f"{io.printable(name)}/", "unknown"))
                    continue
            if count:
                shown = io.printable(name) + "/" * self._entries[name]
                why = self._rename([shown])
                counts.append((shown + why, f"{count:,}"))
        return counts

    def _rename(self, unused: Sequence[str]) -> str:
        """Returns what to do about unused folders that may be test images."""
        if self.folders["labeled"] == "train" or self.has_test:
            return ""
        tops = [f"{top}/" for top in _VALIDATION if f"{top}/" in unused]
        return f" (to measure on {tops[0]}, call it test/)" if tops else ""

    def _instead(self) -> str:
        """Returns the end of a message on what the folder lacks."""
        unused = self._unused()
        return f"; beside these it holds {_first(unused)}" if unused else ""

    def _hint(self) -> str:
        """Returns what to do about a folder that has none of the parts."""
        folders, images = selection.Walker(self.root, ENDINGS).list("")
        if images:
            return (
                f". {len(images)} images lie directly in it, such as "
                f"{io.printable(images[0])}: name the classes of some of them "
                "on the labeling page or in a table, --labels_from=FILE"
            )
        walker = selection.Walker(self.root, ENDINGS)
        classes = [f"{p}/" for p, _ in sorted(folders) if walker.list(p)[1]]
        shown = _first(map(io.printable, classes))
        if len(classes) > 1:
            return (
                f". It holds {shown}: if these are classes, move them to "
                "labeled/"
            )
        names = [name + "/" * top for name, top in self._entries.items()]
        return f". It holds {_first(map(io.printable, names)) or 'nothing'}"

    def _places(self, part: str) -> str:
        """Returns where the images of a part come from, for the overview."""
        places = [f"{self.folders[part]}/"] if part in self.folders else []
        if self._table is not None and part == "unlabeled":
            places.append(f"all that {self._table.name} gives no class")
        elif any(self.parts[index] == part for index in self._by_row):
            places.append(self._table.name)
        text = " and ".join(places)
        if part == "test" and self._validation_is_test:
            text += " (val, as there is no test)"
        return text

    def _absolute(self, path: str) -> str:
        return os.path.join(self.root, path)

    def _printable(self, path: str) -> str:
        return io.printable(self._absolute(path))


def of_flags(flags: Any, *, unlabeled: bool = True) -> Listing:
    """Lists the folder that flags name.

    Args:
        flags: Of a command with --data_dir, --labels_csv and --labels_from.
        unlabeled: See `Listing`.

    Raises:
        InputError: See `Listing`.
    """
    return Listing(
        flags.data_dir,
        flags.labels_csv,
        flags.labels_from,
        unlabeled=unlabeled,
    )


def scored_names(names: Iterable[str], scored_on: str) -> set[str]:
    """Returns the names in fingerprints that may be those of scored images.

    Args:
        names: Of one fingerprint or several; see `Listing.fingerprint`.
        scored_on: "test", or "validation" for labeled images set aside.
    """
    names = set(names)
    tops, ends = ("labeled/", "train/"), ("'", '"')
    if scored_on == "test":
        tops, ends = ("test/",), ("(test)",)
        if not any(name.startswith(tops) for name in names):
            tops = tuple(f"{top}/" for top in _VALIDATION)
    by_row = {name for name in names if name.endswith(ends)}
    images = {
        name[: match.start()]
        for name in by_row
        for match in re.finditer(" as ['\"]", name)
    }
    in_folders = {name for name in names if name.startswith(tops)}
    return in_folders | by_row | (images & names)


def _place(path: str) -> str:
    """Returns the class folder of a file, else the folder in the root."""
    parts = io.printable(path).split("/")
    depth = 2 if parts[0] != "unlabeled" and len(parts) > 2 else 1
    return "/".join(parts[:-1][:depth]) or "."


def _first(items: Iterable[str]) -> str:
    items = list(items)
    return "; ".join(items[:_SHOWN]) + "; …" * (len(items) > _SHOWN)


def _root(data_dir: str | None) -> str:
    """Returns the folder's absolute path.

    Raises:
        InputError: There is no such folder.
    """
    if data_dir is None:
        raise InputError(
            "--dataset=folder needs --data_dir=DIR, the folder of the images; "
            + _LAYOUT
        )
    root = os.path.abspath(io.expand(data_dir))
    if dead := selection.dead_link(root):
        raise InputError(f"--data_dir={data_dir}: {dead}")
    if not os.path.exists(root):
        raise InputError(f"--data_dir={data_dir}: there is no such folder")
    if not os.path.isdir(root):
        raise InputError(f"--data_dir={data_dir}: is a file, not a folder")
    return root
