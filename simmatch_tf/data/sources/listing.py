"""The user's own images in folders, by their names alone.

  DIR/labeled/CLASS/*   one folder a class, with sub-folders if wanted
  DIR/unlabeled/**      images without a class, in any folders
  DIR/test/CLASS/*      images for the results, if there are any

JPEG, PNG, BMP and GIF by the ending of the name, in any sizes. What begins
with a dot is left out, and so are the folders in which file servers and systems
keep thumbnails and deleted files. Symbolic links are followed; one to a folder
that is not there is an error. The order depends on the names alone, which are
compared and sorted in Unicode's composed form.

Nothing here imports TensorFlow: a wrong folder is answered at once.
"""

import collections
import difflib
import os
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

from simmatch_tf import io
from simmatch_tf.flags.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
PARTS = ("labeled", "unlabeled", "test")
# Folders that Synology, QNAP, Windows, macOS and Linux make by themselves: with
# thumbnails, deleted files or older versions.
SYSTEM_FOLDERS = frozenset(
    ("@eaDir", "#recycle", "#snapshot", "@Recycle", "@Recently-Snapshot")
    + ("$RECYCLE.BIN", "System Volume Information", "__MACOSX", "lost+found")
)
_LAYOUT = (
    "expected are labeled/CLASS/* with a folder for each class, unlabeled/** "
    "and, where there is one, test/CLASS/*"
)
# What people call images to choose by.
_VALIDATION = ("val", "valid", "validation", "dev")
_SHOWN = 10  # places or names in a line


class Listing:
    """What is found below a folder.

    Attributes:
        root: The folder's absolute path.
        class_names: The names of the folders in labeled/, by code point.
        paths: Of the images, relative to the folder: the labeled ones by
            class, then by name; the unlabeled ones by name; those for the
            results as the labeled ones.
        names: The same, fit for messages and files, in composed form.
        labels: Of each, its class or -1.
        parts: Of each, the part it is from: labeled, unlabeled or test.
        has_test: Whether there is a test/.
    """

    def __init__(self, data_dir: str | None, *, unlabeled: bool = True) -> None:
        """Finds a folder's images.

        Args:
            data_dir: The folder.
            unlabeled: Whether those in unlabeled/ are wanted, too.

        Raises:
            InputError: There is no such folder, or it is not laid out so.
        """
        self._given = f"--data_dir={data_dir}"
        self.paths: list[str] = []
        self.names: list[str] = []
        self.labels: list[int] = []
        self.parts: list[str] = []
        # (Part or class, ending of the name) → files that are left out.
        self._left_out: collections.Counter = collections.Counter()
        # Those of `SYSTEM_FOLDERS` that are left out, by name.
        self._systems: collections.Counter = collections.Counter()
        self.root = _root(data_dir)
        self._unused = self._find_unused()
        if not os.path.isdir(os.path.join(self.root, "labeled")):
            if dead_link(os.path.join(self.root, "labeled")):
                raise self._dead_link("labeled")
            raise InputError(
                f"{self._given}: there is no folder labeled/ in it; {_LAYOUT}"
                + self._instead()
            )
        classes = self._classes("labeled")
        self.class_names = [io.printable(name) for name in classes]
        if len(classes) < 2:
            raise InputError(
                f"{self._given}: labeled/ has {len(classes)} class folders "
                f"({', '.join(self.class_names) or 'none'}), but at least 2 "
                f"are needed; {_LAYOUT}"
            )
        self.has_test = os.path.lexists(os.path.join(self.root, "test"))
        tests = self._classes("test") if self.has_test else {}
        for name in sorted(set(tests) - set(classes)):
            raise InputError(
                f"{self._given}: test/{io.printable(name)} is a class that "
                "labeled/ does not have; the classes are "
                + ", ".join(self.class_names[:20])
                + (", …" if len(classes) > 20 else "")
            )
        for label, name in enumerate(classes):
            self._add("labeled", label, classes[name])
        self._empty_unlabeled = False
        if unlabeled:
            self._add("unlabeled", -1)
            self._empty_unlabeled = self.parts[-1:] != [
                "unlabeled"
            ] and os.path.lexists(os.path.join(self.root, "unlabeled"))
        for label, name in enumerate(classes if self.has_test else ()):
            self._add("test", label, tests.get(name, name))

    def warn(self) -> None:
        """Says what is left out, and what is not used."""
        root = io.printable(self.root)
        if self._left_out:
            logging.warning(
                "%s: %d files are left out, as their names do not end in %s: "
                "%s",
                root,
                self._left_out.total(),
                " ".join(ENDINGS),
                _first(
                    f"{place} {self._kinds(place)}"
                    for place in sorted({place for place, _ in self._left_out})
                ),
            )
        if self._systems:
            logging.warning(
                "%s: %s",
                root,
                systems_left_out(self._systems),
            )
        if self._empty_unlabeled:
            logging.warning(
                "%s: there is an unlabeled/, but there are no images in it",
                root,
            )
        if self._unused:
            logging.warning(
                "%s: not used, as they are none of labeled/, unlabeled/ and "
                "test/: %s",
                root,
                _first(map(_hinted, self._unused)),
            )

    def check(
        self, kept: Sequence[int] | None = None, *, need_unlabeled: bool
    ) -> None:
        """Checks that there are images of everything.

        Args:
            kept: Indices of the images that can be used; None: of all.
            need_unlabeled: Whether there must be some in unlabeled/.

        Raises:
            InputError: A class has none, or none are unlabeled.
        """
        usable = kept is not None and len(kept) < len(self.paths)
        kind = "images that can be used" if usable else "images"
        places = range(len(self.paths)) if kept is None else kept
        counts = collections.Counter(
            (self.parts[place], self.labels[place]) for place in places
        )
        for part in ("labeled", "test") if self.has_test else ("labeled",):
            for label, name in enumerate(self.class_names):
                if not counts[part, label]:
                    raise InputError(
                        f"{self._given}: there are no {kind} in {part}/{name}"
                        + self._others(f"{part}/{name}")
                        + "; every class of labeled/ needs at least one there"
                    )
        if need_unlabeled and not counts["unlabeled", -1]:
            raise InputError(
                f"{self._given}: there are no {kind} in unlabeled/"
                + self._others("unlabeled")
                + f"; {_LAYOUT}. Without unlabeled/, --labels=N labels N of "
                "the images in labeled/ and leaves the rest unlabeled, and "
                "--algorithm=supervised trains on labels alone"
                + self._instead()
            )

    def _others(self, place: str) -> str:
        """What is left out in a part or class, for a message."""
        kinds = self._kinds(place)
        return f" but files that are no {'/'.join(ENDINGS)}: {kinds}" * bool(
            kinds
        )

    def _kinds(self, place: str) -> str:
        """Endings of what is left out in a place, with their numbers."""
        kinds = [
            (ending, count)
            for (where, ending), count in self._left_out.items()
            if where == place
        ]
        kinds.sort(key=lambda kind: (-kind[1], kind[0]))
        return ", ".join(f"{count} {ending}" for ending, count in kinds)

    def _find_unused(self) -> list[str]:
        """What lies in the folder beside its parts."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(
                    io.printable(entry.name) + "/" * _is_folder(entry)
                    for entry in entries
                    if not entry.name.startswith(".")
                    and entry.name not in PARTS
                )
        except OSError as error:
            raise self._unreadable("", error) from None

    def _instead(self) -> str:
        """What lies in the folder, for a message on what does not."""
        if not self._unused:
            return ""
        return f"; beside these it holds {_first(map(_hinted, self._unused))}"

    def _classes(self, part: str) -> dict[str, str]:
        """Folders in a part by their names in composed form, sorted by these.

        Raises:
            InputError: There are images beside them, or two have one name.
        """
        folders, images = self._list(part)
        if images:
            raise InputError(
                f"{self._place(images[0])}: lies directly in {part}/, one of "
                f"{len(images)} images that do; the class is a folder's name: "
                f"move it to {part}/CLASS/"
            )
        found: dict[str, str] = {}
        for path, _ in folders:
            folder = os.path.basename(path)
            if found.setdefault(io.nfc(folder), folder) != folder:
                raise InputError(
                    f"{self._place(path)}: has the name of another folder "
                    f"in {part}/, in another form of Unicode (NFC and NFD); "
                    "put their images into one"
                )
        return dict(sorted(found.items()))

    def _add(self, part: str, label: int, folder: str = "") -> None:
        """Adds the images of a part, or of one class in it, by name."""
        found = self._walk(f"{part}/{folder}" if folder else part)
        self.paths += found
        self.names += [io.nfc(io.printable(path)) for path in found]
        self.labels += [label] * len(found)
        self.parts += [part] * len(found)

    def _walk(self, top: str) -> list[str]:
        """Images in a folder and below it, each real folder once."""
        images, seen = [], set()
        # Links wait until all real folders are done: a folder that can be
        # reached both ways has the names that do not go through a link.
        folders, links = collections.deque([top]), collections.deque()
        while folders or links:
            path = folders.popleft() if folders else links.popleft()
            try:
                status = os.stat(os.path.join(self.root, path))
            except FileNotFoundError:  # no unlabeled/, no test/CLASS
                if dead_link(os.path.join(self.root, path)):
                    raise self._dead_link(path) from None
                continue
            except OSError as error:
                raise self._unreadable(path, error) from None
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            inside, found = self._list(path)
            images += found
            for name, is_link in sorted(inside):
                (links if is_link else folders).append(name)
        return sorted(images, key=io.nfc)

    def _list(self, path: str) -> tuple[list[tuple[str, bool]], list[str]]:
        """Folders in a folder, with whether they are links; and images."""
        folders, images = [], []
        try:
            with os.scandir(os.path.join(self.root, path)) as entries:
                for entry in entries:
                    name = f"{path}/{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        if entry.name in SYSTEM_FOLDERS:
                            self._systems[entry.name] += 1
                        else:
                            folders.append((name, entry.is_symlink()))
                    elif entry.name.lower().endswith(ENDINGS):
                        images.append(name)
                    elif dead_link(entry.path):
                        raise self._dead_link(name)
                    else:
                        self._leave_out(name)
        except OSError as error:
            raise self._unreadable(path, error) from None
        return folders, sorted(images)

    def _leave_out(self, path: str) -> None:
        parts = io.printable(path).split("/")
        # A class, where it is in one; else labeled, unlabeled or test.
        depth = 2 if parts[0] != "unlabeled" and len(parts) > 2 else 1
        ending = os.path.splitext(parts[-1])[1].lower()
        place = "/".join(parts[:depth])
        self._left_out[place, ending or "without ending"] += 1

    def _dead_link(self, path: str) -> InputError:
        return InputError(
            f"{self._place(path)}: {dead_link(os.path.join(self.root, path))}"
        )

    def _unreadable(self, path: str, error: OSError) -> InputError:
        if dead_link(os.path.join(self.root, path)):
            return self._dead_link(path)
        return InputError(
            f"{self._place(path)}: cannot be read ({error.strerror or error})"
        )

    def _place(self, path: str) -> str:
        """A path in the folder, for a message."""
        return io.printable(f"{self.root}/{path}")


def dead_link(path: str) -> str:
    """What is wrong with a link to something that is not there; else "".

    It may be the folder of a drive that is not mounted, with all its images.
    """
    if not os.path.islink(path):
        return ""
    try:
        os.stat(path)
    except OSError as error:
        target = io.printable(os.readlink(path))
        return (
            f"is a link to {target}, which cannot be found "
            f"({error.strerror or error}); mount or restore that, or remove "
            "the link"
        )
    return ""


def systems_left_out(names: Mapping[str, int]) -> str:
    """Says which of `SYSTEM_FOLDERS` were left out, and how many of each."""
    return (
        "folders in which a system keeps thumbnails or deleted files are left "
        "out: "
        + ", ".join(f"{count} {name}" for name, count in sorted(names.items()))
    )


def _hinted(name: str) -> str:
    """A name of what is not used, and what may have been meant by it."""
    bare = name.removesuffix("/").lower()
    near = difflib.get_close_matches(bare, PARTS, 1, 0.7)
    hint = ""
    if name.endswith("/") and bare in _VALIDATION:
        hint = (
            " (--validation_fraction sets labeled images aside to choose by; "
            "to be scored, images lie in test/)"
        )
    elif name.endswith("/") and near:
        hint = f" (did you mean {near[0]}/?)"
    return f"{name}{hint}"


def _first(items: Iterable[str]) -> str:
    items = list(items)
    return "; ".join(items[:_SHOWN]) + "; …" * (len(items) > _SHOWN)


def _root(data_dir: str | None) -> str:
    """The folder's absolute path.

    Raises:
        InputError: There is no such folder.
    """
    if data_dir is None:
        raise InputError(
            "--dataset=folder needs --data_dir=DIR, the folder of the images; "
            + _LAYOUT
        )
    root = os.path.abspath(os.path.expanduser(data_dir))
    if dead := dead_link(root):
        raise InputError(f"--data_dir={data_dir}: {dead}")
    if not os.path.exists(root):
        raise InputError(f"--data_dir={data_dir}: there is no such folder")
    if not os.path.isdir(root):
        raise InputError(f"--data_dir={data_dir}: is a file, not a folder")
    return root


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
