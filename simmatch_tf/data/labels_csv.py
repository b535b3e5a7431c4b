"""Tables that name the classes of images: --labels_csv and --labels_from.

    file,class,part
    IMG_0001.jpg,cat,
    holiday/IMG_0002.jpg,dog,test

`part` is optional, and other columns are ignored, so that a table that
`predict` wrote is read as it is. --labels_from also takes the answers of the
labeling page, labels.jsonl, which become rows of the same kind; see
`data.answers`. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io as io_lib
import os
import pathlib
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from simmatch_tf import io
from simmatch_tf.data import answers as answers_lib
from simmatch_tf.flags.errors import InputError

_SEPARATORS = (",", ";", "\t")
# Excel writes and reads a first line such as "sep=;".
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\r?(?:\n|$)', re.IGNORECASE)
_ANSWERS = ".jsonl"  # ending of a file of answers
_OTHER_FORMATS = (_ANSWERS, ".json", ".parquet", ".xlsx", ".xls", ".ods")
_NEEDED = ("file", "class")
_PART = ("part", "split")  # names of one column
_PARTS = {
    "": "",
    "train": "labeled",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
# A column that a table of `predict` has.
_PREDICTED = "confidence"
_SHOWN = 3  # names in a message


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        number: Its number, as a spreadsheet counts: the head is row 1. 0 for
            an answer.
        file: As written.
        class_name: In composed form, without blanks around it; "" for none.
        part: "labeled", "validation", "test", or "" where the table does not
            say.
        aside: Whether the image is of none of the classes, and so is neither
            labeled nor unlabeled.
    """

    number: int
    file: str
    class_name: str
    part: str
    aside: bool = False

    def shown(self) -> str:
        """Returns what the row says of its image."""
        if self.aside:
            return "none of the classes"
        part = f" of part {self.shown_part()}" * bool(self.part)
        return f"{self.class_name!r}{part}"

    def says(self) -> tuple[str, str]:
        """Returns the class, and the part that the image is of."""
        return self.class_name, self.part or "labeled"

    def shown_part(self) -> str:
        """Returns the part as a table may name it."""
        return {"labeled": "train", "validation": "val"}.get(
            self.part, self.part
        )


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of labels.

    Attributes:
        given: The flag and its value, for messages.
        name: Name of the file, for messages.
        path: Its absolute path.
        rows: The rows that name a file.
        remarks: What to warn of.
        classes: Classes that may be without a row.
        unit: What a row is called.
        origin: Of answers, the folder that they were given about, absolute;
            None: files may be named in several ways.
    """

    given: str
    name: str
    path: str
    rows: Sequence[Row]
    remarks: list[str] = dataclasses.field(default_factory=list)
    classes: Sequence[str] = ()
    unit: str = "row"
    origin: str | None = None

    def error(self, row: Row, text: str) -> InputError:
        """Returns an error about a row."""
        place = f", row {row.number}" * bool(row.number)
        return InputError(f"{self.given}{place}: {text}")

    def find(
        self, names: Sequence[str], unusable: Sequence[str], root: str
    ) -> dict[int, Row]:
        """Finds the images that the rows name.

        Args:
            names: Names of the images, as paths from the root, composed.
            unusable: Files that are no images, as paths from the root.
            root: The folder of the images, absolute.

        Returns:
            Index into `names` → its row. Rows of unusable files are counted in
            a remark.

        Raises:
            InputError: A row names no image, or several, or two rows give one
                image different classes.
        """
        others = [io.nfc(io.printable(path)) for path in unusable]
        look_up: _LookUp | _Answered = _LookUp(
            [*names, *others], root, self.rows
        )
        if self.origin is not None:
            look_up = _Answered([*names, *others], root, self.origin)
        chosen: dict[int, Row] = {}
        unread, unknown = [], []
        for row in self.rows:
            matches = look_up(row.file)
            if not matches:
                unknown.append(row)
            elif len(matches) > 1:
                raise self.error(
                    row,
                    f"{row.file!r} may be any of {len(matches)} images "
                    f"({look_up.shown(matches)}): write the path from "
                    "--data_dir",
                )
            elif matches[0] >= len(names):
                unread.append(row)
            else:
                self._choose(chosen, matches[0], row)
        if unknown:
            why = look_up.why_missing(unknown[0].file)
            why += (
                f"; in all, {len(unknown)} of {len(self.rows)} {self.unit}s "
                "name no image there"
            ) * (len(unknown) > 1)
            if not look_up.may_be_gone or len(unknown) == len(self.rows):
                raise self.error(unknown[0], why)
            self.remarks.append(f"{self.given}: {why}; left out")
        if unread:
            self.remarks.append(
                f"{self.given}: {len(unread)} {self.unit}s are left out, as "
                "their files are of formats that are not read in training "
                f"(such as {unread[0].file})"
            )
        return chosen

    def _choose(self, chosen: dict[int, Row], index: int, row: Row) -> None:
        """Notes the row of an image; one without a class says nothing."""
        other = chosen.get(index)
        if other is None or not other.class_name:
            chosen[index] = row
        elif row.class_name and other.says() != row.says():
            this, that = (
                repr(each.class_name)
                + f" ({each.shown_part()})" * bool(each.part)
                for each in (row, other)
            )
            raise self.error(
                row,
                f"{row.file!r} is {this} here, but {that} in row "
                f"{other.number}; keep one of the two",
            )


class _Answered:
    """Finds the files of answers, which are paths from one folder.

    The folder may have been moved. An answer about a file that does not exist
    is of another folder, unless it is this very one: then the file was removed.

    Attributes:
        may_be_gone: Whether it is this very folder, or one in it.
    """

    def __init__(self, names: Sequence[str], root: str, origin: str) -> None:
        self._root, self._origin = root, origin
        self._exact = collections.defaultdict(list)
        for index, name in enumerate(names):
            self._exact[name].append(index)
        self._folder = ""  # the answers' folder, as a path from the root
        top = io.nfc(io.printable(os.path.realpath(root))).rstrip("/") + "/"
        inside = io.nfc(io.printable(os.path.realpath(origin))) + "/"
        self.may_be_gone = inside.startswith(top)
        if self.may_be_gone:
            self._folder = inside.removeprefix(top)

    def __call__(self, file: str) -> list[int]:
        """Returns the indices of the files that a name may mean."""
        return self._exact.get(self._folder + file, [])

    def shown(self, indices: Sequence[int]) -> str:
        """Returns what the name of several files is."""
        del indices
        return "whose names differ in their form of Unicode"

    def why_missing(self, file: str) -> str:
        """Says why a name means no image."""
        text = f"there is no image {file!r} in {io.printable(self._root)}"
        if self.may_be_gone:
            return text
        return (
            f"{text}; the answers are about images in {self._origin}: give "
            "that folder by --data_dir or, if it has moved, its new place"
        )


class _LookUp:
    """Finds files by names that may be written in several ways."""

    may_be_gone = False

    def __init__(
        self, names: Sequence[str], root: str, rows: Sequence[Row]
    ) -> None:
        self._names, self._root, self._rows = names, root, rows
        self._exact = collections.defaultdict(list)
        self._by_last = collections.defaultdict(list)
        for index, name in enumerate(names):
            self._exact[name].append(index)
            self._by_last[name.rpartition("/")[2]].append(index)
        self._folder: str | None = None

    def __call__(self, file: str) -> list[int]:
        """Returns the indices of the files that a name may mean."""
        matches, short = self._find(file)
        if len(matches) > 1 and short:
            # All names of a table that `predict` wrote begin at one folder.
            inside = f"{self._common_folder()}{short}"
            matches = self._exact.get(inside, matches)
        return matches

    def _find(self, file: str) -> tuple[list[int], str]:
        """Finds a name; if it lacks folders, it is returned as well."""
        for name in self._forms(file):
            if matches := self._exact.get(name):
                return matches, ""
        for name in self._forms(file):
            suffix = f"/{name}"
            matches = [
                index
                for index in self._by_last.get(name.rpartition("/")[2], ())
                if self._names[index].endswith(suffix)
            ]
            if matches:
                return matches, name
        return [], ""

    def _forms(self, file: str) -> Iterator[str]:
        """Yields a name as a path from the root, in the ways it may be one."""
        name = io.nfc(file)
        for each in dict.fromkeys(
            (name, name.strip(), name.strip().replace("\\", "/"))
        ):
            path = os.path.normpath(each)
            while path.startswith("../"):
                path = path[3:]
            for root in (self._root, os.path.realpath(self._root)):
                start = io.nfc(io.printable(root)).rstrip("/") + "/"
                if path.startswith(start):
                    yield path[len(start) :]
            if not path.startswith("/"):
                yield path
            # The folder may have been moved, or `predict` have been called
            # from the folder above it.
            parts = path.split("/")
            top = io.nfc(io.printable(os.path.basename(self._root)))
            for place, part in enumerate(parts[:-1], 1):
                if part == top:
                    yield "/".join(parts[place:])

    def _common_folder(self) -> str:
        """Returns the one folder in which all short names exist, or ""."""
        if self._folder is None:
            common: set[str] | None = None
            for row in self._rows:
                matches, short = self._find(row.file)
                if short:
                    names = (self._names[index] for index in matches)
                    folders = {name.removesuffix(short) for name in names}
                    common = folders if common is None else common & folders
            common = common or set()
            self._folder = common.pop() if len(common) == 1 else ""
        return self._folder

    def shown(self, indices: Sequence[int]) -> str:
        """Returns the first of some names."""
        names = [self._names[index] for index in indices[:_SHOWN]]
        return ", ".join(names) + ", …" * (len(indices) > _SHOWN)

    def why_missing(self, file: str) -> str:
        """Says why a name means no image."""
        root = io.printable(self._root)
        forms = [*self._forms(file)]
        if any(os.path.lexists(os.path.join(self._root, f)) for f in forms):
            return (
                f"{file!r} is left out of the images in {root}: its name or a "
                "folder's begins with a dot, or the folder is one that a "
                "system keeps for itself"
            )
        if os.path.isabs(file.strip()) and not forms:
            return f"{file!r} lies outside of --data_dir, which is {root}"
        text = f"there is no image {file!r} in {root}"
        last = (forms or [file])[0].rpartition("/")[2].casefold()
        for name in self._names:
            other = name.rpartition("/")[2].casefold()
            if last in (other, os.path.splitext(other)[0]):
                return f"{text}; did you mean {name!r}"
        if self._names:
            text += f"; names there are like {self._names[0]!r}"
        return text


def read(value: str, flag: str = "labels_csv") -> Table:
    """Reads a table, or answers of the labeling page.

    Args:
        value: Value of the flag that names the file.
        flag: "labels_csv", or "labels_from", which takes answers, too.

    Raises:
        InputError: It cannot be read, or is no such file.
    """
    given, path = f"--{flag}={value}", io.expand(value)
    ending = path.suffix.lower()
    is_answers = flag == "labels_from" and are_answers(value)
    if ending in _OTHER_FORMATS and not is_answers:
        hint = "save the table as CSV (UTF-8)"
        if ending == _ANSWERS:
            hint = "answers of the labeling page are given by --labels_from"
        raise InputError(
            f"{given}: must be a CSV file with the columns file and class"
            + f", or answers of the labeling page ({_ANSWERS})"
            * (flag == "labels_from")
            + f"; {hint}"
        )
    if not path.exists():
        raise InputError(
            f"{given}: no such file. If the table of a run has moved, put it "
            "back, or start train again with its new place; other commands "
            "find it if it lies in --data_dir"
        )
    if is_answers:
        return _of_answers(given, path)
    head, cells = _parse(io.read_text(path, given), given)
    places = {name: _place(head, [name], given) for name in _NEEDED}
    places["part"] = _place(head, _PART, given)
    predicted = _place(head, [_PREDICTED], given)
    rows, from_predict = [], 0
    for number, row in cells:
        if len(row) > len(head) and any(map(str.strip, row[len(head) :])):
            raise InputError(
                f"{given}, row {number}: has {len(row)} cells, but the head "
                f"names {len(head)} columns; a name with the separator in it "
                'must stand in quotes, as "a,b.jpg"'
            )
        row += [""] * (len(head) - len(row))
        file, class_name, part = (
            "" if place is None else row[place] for place in places.values()
        )
        if not any(map(str.strip, row)):
            continue
        class_name = io.nfc(class_name.strip())
        rows.append(
            Row(
                number, file, class_name, _part(part, class_name, given, number)
            )
        )
        if not file.strip():
            raise InputError(
                f"{given}, row {number}: has no file"
                + f", but the class {class_name!r}" * bool(class_name)
            )
        if predicted is not None and class_name and row[predicted].strip():
            from_predict += 1
    table = Table(given, io.printable(path.name), os.path.abspath(path), rows)
    _check(table, from_predict)
    return table


def are_answers(value: str) -> bool:
    """Returns whether a value of --labels_from names answers, not a table."""
    return io.expand(value).suffix.lower() == _ANSWERS


def _of_answers(given: str, path: pathlib.Path) -> Table:
    """Returns the answers of the labeling page as a table.

    Images that were skipped, or whose answer was undone, have no row: they are
    unlabeled.

    Raises:
        InputError: They cannot be read, or name no class.
    """
    answers = answers_lib.read(path)
    rows = [
        Row(0, file, name, "") for file, name in sorted(answers.labels.items())
    ]
    if not rows:
        raise InputError(
            f"{given}: no image has a class yet; label some on the page: "
            "python -m simmatch_tf.label "
            + shlex.join(
                [
                    f"--images={io.printable(answers.images)}",
                    f"--labels={io.printable(str(path))}",
                ]
            )
        )
    rows += [Row(0, file, "", "", aside=True) for file in sorted(answers.none)]
    return Table(
        given,
        io.printable(path.name),
        os.path.abspath(path),
        rows,
        classes=answers.classes,
        unit="answer",
        origin=answers.images,
    )


def _check(table: Table, from_predict: int) -> None:
    """Checks a table as a whole; remarks on what is likely to be wrong."""
    if not table.rows:
        raise InputError(
            f"{table.given}: is empty; name a file and its class in each row"
        )
    names = sorted({row.class_name for row in table.rows} - {""})
    if not names:
        raise InputError(
            f"{table.given}: no row of {len(table.rows)} has a class; fill "
            "the column class where it is known"
        )
    if from_predict:
        table.remarks.append(
            f"{table.given}: {from_predict} of its rows have a class and a "
            "confidence, as predict writes them; all these classes count as "
            "labels. Delete the rows that nobody has checked, or empty their "
            "class"
        )
    similar = collections.defaultdict(list)
    for name in names:
        similar[" ".join(name.casefold().split())].append(name)
    alike = [each for each in similar.values() if len(each) > 1]
    if alike:
        table.remarks.append(
            f"{table.given}: classes that differ in capitals or blanks alone "
            "count as different: "
            + "; ".join(" and ".join(map(repr, each)) for each in alike)
        )


def _parse(
    text: str, given: str
) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """Parses a table; the separator is the one that splits its head.

    Returns:
        The names of the columns in lower case; number and cells of each row.

    Raises:
        InputError: It has no such head.
    """
    separators = _SEPARATORS
    if match := _SEPARATOR_LINE.match(text):
        separators, text = (match[1],), text[match.end() :]
    if not text.strip():
        raise InputError(f"{given}: is empty; its first row must be file,class")
    heads = {}
    for separator in separators:
        try:
            names = next(_reader(text, separator))
        except (csv.Error, StopIteration):
            continue
        heads[separator] = [name.strip().lower() for name in names]
    for separator, head in heads.items():
        if set(_NEEDED) <= set(head):
            return head, _rows(_reader(text, separator), given)
    most = max(heads.values(), key=len, default=[])
    columns = ", ".join(io.one_line(repr(name)) for name in most[:10])
    missing = [name for name in _NEEDED if name not in most]
    raise InputError(
        f"{given}: has no column {' and no column '.join(missing)}; its first "
        f"row is {columns or 'no head'}, but must name the columns file and "
        "class, separated by commas, semicolons or tabs"
    )


def _reader(text: str, separator: str) -> Iterator[list[str]]:
    lines = io_lib.StringIO(text, newline="")
    return csv.reader(lines, delimiter=separator, strict=True)


def _rows(
    reader: Iterator[list[str]], given: str
) -> Iterator[tuple[int, list[str]]]:
    """Yields number and cells of the rows behind the head."""
    next(reader)
    number = 1
    while True:
        number += 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(
                f"{given}, row {number}: cannot be read ({error}); a quote "
                'that belongs to a name is written twice, as "a""b.jpg"'
            ) from None
        yield number, cells


def _place(head: Sequence[str], names: Sequence[str], given: str) -> int | None:
    """Returns the place of a column, or None.

    Raises:
        InputError: There are several of that name.
    """
    places = [place for place, name in enumerate(head) if name in names]
    if len(places) > 1:
        raise InputError(
            f"{given}: has {len(places)} columns named "
            f"{' or '.join(names)}, but at most one may be"
        )
    return places[0] if places else None


def _part(value: str, class_name: str, given: str, number: int) -> str:
    """Returns the part that a cell names.

    Raises:
        InputError: It names none, or one in which all classes must be known.
    """
    part = _PARTS.get(value.strip().lower())
    if part is None:
        raise InputError(
            f"{given}, row {number}: part {value.strip()!r} is unknown; it "
            "must be train, val or test, or empty for train"
        )
    if part in ("validation", "test") and not class_name:
        raise InputError(
            f"{given}, row {number}: is of part {value.strip()!r}, but has no "
            "class"
        )
    return part
