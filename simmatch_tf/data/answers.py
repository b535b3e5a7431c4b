"""The log of a person's answers, labels.jsonl: which image is of which class.

One JSON object a line, only ever appended to, so that a kill at any moment
loses no answer that was acknowledged. The first line is the head:

    {"version": 1, "images": "/home/ann/photos", "classes": ["cat", "dog"]}

Each further line is an answer, of which the last about a file counts, or a
class that was added:

    {"file": "a/1.jpg", "answer": "class", "class": "cat", "time": …}
    {"file": "a/2.jpg", "answer": "none", "time": …}
    {"file": "a/3.jpg", "answer": "skip", "time": …}
    {"file": "a/1.jpg", "answer": "undo", "time": …}
    {"answer": "add_class", "class": "fox", "time": …}

"none": none of the classes, and the image stays out of training; "skip": no
answer for now; "undo": as if it had never been answered. `file` is the path
from the images folder, composed (NFC), with "/" between folders. A line may
have further keys, which `Answers.lines` keeps.

Nothing here imports TensorFlow.
"""

import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, Self

from simmatch_tf import io
from simmatch_tf.flags.errors import InputError

VERSION = 1
# What an answer about a file may be.
ANSWERS = ("class", "none", "skip", "undo")


@dataclasses.dataclass
class Answers:
    """What has been answered about the images of a folder.

    Attributes:
        images: The folder, an absolute path.
        classes: Names of the classes, in the order they were added.
        labels: File → class.
        none: Files that show none of the classes.
        skipped: Files without an answer for now, in the order of skipping.
        lines: All lines behind the head, in order.
    """

    images: str
    classes: list[str] = dataclasses.field(default_factory=list)
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    none: set[str] = dataclasses.field(default_factory=set)
    skipped: list[str] = dataclasses.field(default_factory=list)
    lines: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def of(self, file: str) -> tuple[str, str | None] | None:
        """Returns a file's answer and class, or None if it has no answer."""
        if file in self.labels:
            return "class", self.labels[file]
        if file in self.none:
            return "none", None
        return ("skip", None) if file in self.skipped else None

    def add(self, line: Mapping[str, Any]) -> None:
        """Enters a line.

        Args:
            line: As in the file.

        Raises:
            ValueError: It is no such line; the message says why.
        """
        _check(line, self.classes)
        answer, name = line["answer"], line.get("class")
        if answer == "add_class":
            self.classes.append(name)
        else:
            file = line["file"]
            self.labels.pop(file, None)
            self.none.discard(file)
            if file in self.skipped:
                self.skipped.remove(file)
            if answer == "class":
                self.labels[file] = name
            elif answer == "none":
                self.none.add(file)
            elif answer == "skip":
                self.skipped.append(file)
        self.lines.append(dict(line))

    def counts(self) -> dict[str, int]:
        """Returns the number of labeled images of each class."""
        counts = dict.fromkeys(self.classes, 0)
        for name in self.labels.values():
            counts[name] += 1
        return counts


def class_name(name: str, others: Iterable[str] = ()) -> str:
    """Returns the name of a class without surrounding spaces, composed (NFC).

    Args:
        name: The name, as somebody typed it.
        others: The classes there are.

    Raises:
        ValueError: It cannot name a class, which may become a folder; or
            another class has it, perhaps in other letter cases.
    """
    composed = io.nfc(name).strip()
    if not composed or composed != io.one_line(composed):
        raise ValueError(f"{name!r} is no name: it must be a line of text")
    if "/" in composed or "\\" in composed or composed.startswith("."):
        raise ValueError(
            f"{composed!r} must neither have / or \\ in it nor begin with a "
            "dot, as a class may become a folder"
        )
    if len(composed.encode()) > 200:
        raise ValueError(
            f"{composed[:20]}… has {len(composed.encode())} bytes, more than "
            "200"
        )
    for other in others:
        if other.casefold() == composed.casefold():
            raise ValueError(f"{composed!r} exists already, as {other!r}")
    return composed


def read(path: str | os.PathLike) -> Answers:
    """Reads a log.

    The start of a line at the end of the file, left by a kill or a full disk
    while it was written, is ignored: nobody was told that it was kept.

    Args:
        path: The file.

    Returns:
        The answers.

    Raises:
        InputError: It cannot be read, is no such file, or a line is damaged;
            the message has the line's number.
    """
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error})"
        ) from None
    answers, _ = _parse(os.fspath(path), content)
    if answers is None:
        raise InputError(
            f"{path}: has no first line with the images folder and the "
            "classes, so it is no file of answers of simmatch_tf.label"
        )
    return answers


class Writer:
    """Appends answers to a log, which no other process may do meanwhile.

    It is used by one thread at a time.

    Attributes:
        path: The file, an absolute path.
        answers: All that the file says.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        images: str | os.PathLike,
        classes: Iterable[str] = (),
    ) -> None:
        """Opens or creates a log, and locks it.

        Args:
            path: The file.
            images: The folder of the images.
            classes: Classes that are added unless the file has them.

        Raises:
            InputError: It cannot be written, another process has it, it is of
                another folder, a line is damaged, or a class has no good name.
        """
        self.path = os.path.abspath(path)
        names: list[str] = []
        for name in classes:
            try:
                names.append(class_name(name, names))
            except ValueError as error:
                raise InputError(f"the class {error}") from None
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            self._file = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise InputError(
                f"{path}: cannot be written ({error.strerror})"
            ) from None
        try:
            self._open(os.path.abspath(images), names)
        except OSError as error:
            self.close()
            raise InputError(
                f"{path}: cannot be written ({error.strerror or error})"
            ) from None
        except BaseException:
            self.close()
            raise

    def _open(self, images: str, classes: list[str]) -> None:
        if not io.lock(self._file):
            raise InputError(
                f"{self.path}: another process is writing to it; end that "
                "first, or give another file"
            )
        content = pathlib.Path(self.path).read_bytes()
        answers, self._end = _parse(self.path, content)
        if answers is None:
            os.ftruncate(self._file, 0)  # half a head
            self.answers = Answers(io.printable(images), classes)
            self._write(
                {
                    "version": VERSION,
                    "images": self.answers.images,
                    "classes": classes,
                }
            )
            self._keep_name()
            return
        if os.path.realpath(answers.images) != os.path.realpath(images) and (
            answers.images != io.printable(images)
        ):
            raise InputError(
                f"{self.path}: has answers about the images in "
                f"{answers.images}, not in {io.printable(images)}; give "
                "another file, or correct its first line if the folder was "
                "moved"
            )
        self.answers = answers
        os.ftruncate(self._file, self._end)  # half a line of a kill
        if not content[: self._end].endswith(b"\n"):
            # The newline is all that is missing of the last line.
            self._write_bytes(b"\n")
        known = {name.casefold() for name in answers.classes}
        for name in classes:
            if name.casefold() not in known:
                self.add_class(name)

    def append(self, *lines: Mapping[str, Any]) -> None:
        """Appends lines, and returns when they are on the disk.

        Args:
            *lines: Of the same moment; `time` is added.

        Raises:
            ValueError: One is no such line.
            OSError: They cannot be written; then none of them is kept.
        """
        time = datetime.datetime.now(datetime.UTC).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
        stamped = [{**line, "time": time} for line in lines]
        for line in stamped:
            _check(line, self.answers.classes)
        self._write(*stamped)
        for line in stamped:
            self.answers.add(line)

    def add_class(self, name: str, **keys: Any) -> str:
        """Adds a class, and returns when it is on the disk.

        Args:
            name: Its name.
            **keys: Further keys of the line.

        Returns:
            The name that it has in the file.

        Raises:
            ValueError: See `class_name`.
            OSError: See `append`.
        """
        name = class_name(name, self.answers.classes)
        self.append({"answer": "add_class", "class": name, **keys})
        return name

    def close(self) -> None:
        """Closes the file, and so frees it for others."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _write(self, *lines: Mapping[str, Any]) -> None:
        text = "".join(
            json.dumps(line, ensure_ascii=False) + "\n" for line in lines
        )
        self._write_bytes(text.encode())

    def _write_bytes(self, content: bytes) -> None:
        """Appends bytes: all of them and onto the disk, or none."""
        self._check_place()
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(content)

    def _check_place(self) -> None:
        """Checks that the file is as it was left, where readers look for it.

        Raises:
            OSError: It is not.
        """
        own = os.fstat(self._file)
        current = os.stat(self.path)  # raises an OSError if it was removed
        if (own.st_dev, own.st_ino) != (current.st_dev, current.st_ino):
            raise FileNotFoundError(
                None, "was replaced by another file meanwhile", self.path
            )
        if own.st_size != self._end:
            raise OSError(
                None, "was changed by another program meanwhile", self.path
            )

    def _keep_name(self) -> None:
        """Writes the new file's entry in its folder to the disk."""
        folder = os.open(os.path.dirname(self.path), os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _check(line: Mapping[str, Any], classes: Iterable[str]) -> None:
    """Checks a line behind the head.

    Raises:
        ValueError: It is no such line; the message says why.
    """
    answer, name = line.get("answer"), line.get("class")
    if answer == "add_class":
        if not isinstance(name, str):
            raise ValueError(f"has the class {name!r}, which is no text")
        if class_name(name, classes) != name:
            raise ValueError(f"has the class {name!r} with spaces around it")
        return
    if answer not in ANSWERS:
        kinds = ", ".join((*ANSWERS, "add_class"))
        raise ValueError(f"has the answer {answer!r}, which is none of {kinds}")
    file = line.get("file")
    if not isinstance(file, str) or not file:
        raise ValueError(f"has the file {file!r}, which is no path")
    if answer == "class" and name not in classes:
        raise ValueError(
            f"has the class {name!r}, which no line before it names; the "
            f"classes are {', '.join(classes) or 'none'}"
        )


def _parse(path: str, content: bytes) -> tuple[Answers | None, int]:
    """Reads the lines of a log.

    Returns:
        The answers, None without a whole first line; and the number of bytes
        that count.

    Raises:
        InputError: A line is damaged that does not end the file.
    """
    answers, length = None, 0
    lines = content.split(b"\n")
    for number, encoded in enumerate(lines, 1):
        last = number == len(lines)
        if last and not encoded:
            break
        try:
            line = json.loads(encoded.decode())
        except ValueError as error:
            if last:  # cut off while it was written
                break
            reason = f"is no JSON in UTF-8 ({error})"
            raise InputError(f"{path}, line {number}: {reason}") from None
        try:
            if answers is None:
                answers = _head(line)
            else:
                if not isinstance(line, dict):
                    raise ValueError("is no JSON object")
                for key in ("file", "class"):
                    if isinstance(line.get(key), str):
                        line[key] = io.nfc(line[key])
                answers.add(line)
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
        length += len(encoded) + (not last)
    return answers, length


def _head(line: Any) -> Answers:
    """Reads the first line.

    Raises:
        ValueError: It is none.
    """
    line = line if isinstance(line, dict) else {}
    if line.get("version") != VERSION:
        raise ValueError(
            f"has the version {line.get('version')!r}, but {VERSION} is what "
            "simmatch_tf.label writes into its first line"
        )
    images, classes = line.get("images"), line.get("classes")
    if not isinstance(images, str) or not os.path.isabs(images):
        raise ValueError(f"has the images {images!r}, which is no full path")
    if not isinstance(classes, list):
        raise ValueError(f"has the classes {classes!r}, which is no list")
    answers = Answers(images)
    for name in classes:
        if not isinstance(name, str):
            raise ValueError(f"has the class {name!r}, which is no text")
        answers.classes.append(class_name(name, answers.classes))
    return answers
