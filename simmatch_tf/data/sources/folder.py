"""The user's own images in folders.

    DIR/labeled/CLASS/**   labeled images: one folder for each class
    DIR/unlabeled/**       images without a class
    DIR/test/CLASS/**      images to report results on (optional)

Images are JPEG, PNG, BMP or GIF by the ending of their name, and have any size.
Hidden files are left out, and so are folders in which file servers and systems
keep thumbnails and deleted files. Symbolic links are followed; one that leads
nowhere is an error. The order of the images depends on their names alone, which
are compared and sorted in Unicode's composed form.

Before training, every image is decoded once: `read` reports images that cannot
be used and images that exist twice.
"""

from __future__ import annotations

import collections
import os
import typing
from collections.abc import Iterable, Sequence

from simmatch_tf import io, registry, terminal
from simmatch_tf.data import fingerprint as fingerprint_lib
from simmatch_tf.data import selection
from simmatch_tf.data.sources import source
from simmatch_tf.flags.errors import InputError
from simmatch_tf.lazy import np

if typing.TYPE_CHECKING:
    from simmatch_tf import config as config_lib
    from simmatch_tf.data import files

IMAGE_SIZE = 224
ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
PARTS = ("labeled", "unlabeled", "test")
_LAYOUT = (
    "expected are labeled/CLASS/* with a folder for each class, unlabeled/** "
    "and, where there is one, test/CLASS/*"
)
_SHOWN = 10  # places or names in a message
_SHOWN_COPIES = 3
# The warning on images that exist twice, by the parts that they are in. Labeled
# images in unlabeled/ are no error: labeled images are unlabeled ones as well,
# and copies of validation images are left out when the split is drawn.
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
        "labeled images that exist twice",
        ": of one that --validation_fraction sets aside, the other may be "
        "trained on",
    ),
    ("test", "test"): ("test images that exist, and count, twice", ""),
}


class Listing:
    """The images in a folder, by their names alone.

    Attributes:
        root: The folder's absolute path.
        class_names: The names of the folders in labeled/, by code point.
        paths: N paths from the folder: the labeled images by class, then by
            name; the unlabeled ones by name; the test images as the labeled
            ones.
        names: The same in composed form, printable.
        labels: N classes, -1 for unlabeled images.
        parts: N names of parts: labeled, unlabeled or test.
        has_test: Whether the folder has a test/.
    """

    def __init__(self, data_dir: str | None, *, unlabeled: bool = True) -> None:
        """Lists a folder.

        Args:
            data_dir: The folder.
            unlabeled: Whether to list unlabeled/.

        Raises:
            InputError: There is no such folder, or its layout is wrong.
        """
        self._given = f"--data_dir={data_dir}"
        self.paths: list[str] = []
        self.names: list[str] = []
        self.labels: list[int] = []
        self.parts: list[str] = []
        self.root = _root(data_dir)
        self._walker = selection.Walker(self.root, ENDINGS)
        self._unused = self._find_unused()
        if not os.path.isdir(self._absolute("labeled")):
            if dead := selection.dead_link(self._absolute("labeled")):
                raise InputError(f"{self._printable('labeled')}: {dead}")
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
        self.has_test = os.path.lexists(self._absolute("test"))
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
            ] and os.path.lexists(self._absolute("unlabeled"))
        for label, name in enumerate(classes if self.has_test else ()):
            self._add("test", label, tests.get(name, name))

    def warn(self) -> None:
        """Warns about files that are no images, and about unused folders.

        An empty unlabeled/ is warned about, too.
        """
        root = io.printable(self.root)
        places = collections.defaultdict(list)
        for path in self._walker.left_out:
            places[_place(path)].append(path)
        self._walker.warn(
            root,
            _first(
                f"{place} {selection.endings(paths)}"
                for place, paths in sorted(places.items())
            ),
        )
        if self._empty_unlabeled:
            terminal.warn(
                f"{root}: there is an unlabeled/, but there are no images in it"
            )
        if self._unused:
            terminal.warn(
                f"{root}: not used, as they are none of labeled/, unlabeled/ "
                f"and test/: {_first(self._unused)}"
            )

    def check(
        self, kept: Sequence[int] | None = None, *, need_unlabeled: bool
    ) -> None:
        """Checks that every class has images.

        Args:
            kept: Indices of the images that can be used; None: all.
            need_unlabeled: Whether unlabeled/ must have some, too.

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

    def fingerprint(
        self, contents: dict[str, str] | None = None
    ) -> fingerprint_lib.Fingerprint:
        """Returns the fingerprint of the images.

        Args:
            contents: Name → digest of the file's content, where it is known.
        """
        paths = zip(self.names, map(self._absolute, self.paths), strict=True)
        return fingerprint_lib.of_files(dict(paths), contents)

    def _others(self, place: str) -> str:
        """Returns which files a place has that are no images, for a message."""
        others = [p for p in self._walker.left_out if _place(p) == place]
        if not others:
            return ""
        return (
            f" but files that are no {'/'.join(ENDINGS)}: "
            + selection.endings(others)
        )

    def _find_unused(self) -> list[str]:
        """Returns what the folder holds beside its parts."""
        try:
            with os.scandir(self.root) as entries:
                return sorted(
                    io.printable(entry.name) + "/" * selection.is_folder(entry)
                    for entry in entries
                    if not entry.name.startswith(".")
                    and entry.name not in PARTS
                )
        except OSError as error:
            raise InputError(
                f"{io.printable(self.root)}: cannot be read "
                f"({error.strerror or error})"
            ) from None

    def _instead(self) -> str:
        """Returns the end of a message on what the folder lacks."""
        if not self._unused:
            return ""
        return f"; beside these it holds {_first(self._unused)}"

    def _classes(self, part: str) -> dict[str, str]:
        """Returns the class folders in a part: composed name → name, sorted.

        Raises:
            InputError: There are images beside them, or two have one name.
        """
        folders, images = self._walker.list(part)
        if images:
            raise InputError(
                f"{self._printable(images[0])}: lies directly in {part}/, one "
                f"of {len(images)} images that do; the class is a folder's "
                f"name: move it to {part}/CLASS/"
            )
        classes: dict[str, str] = {}
        for path, _ in folders:
            folder = os.path.basename(path)
            if classes.setdefault(io.nfc(folder), folder) != folder:
                raise InputError(
                    f"{self._printable(path)}: has the name of another folder "
                    f"in {part}/, in another form of Unicode (NFC and NFD); "
                    "put their images into one"
                )
        return dict(sorted(classes.items()))

    def _add(self, part: str, label: int, folder: str = "") -> None:
        """Adds the images of a part, or of one class in it."""
        top = f"{part}/{folder}" if folder else part
        paths = sorted(sorted(self._walker.images(top)), key=io.nfc)
        self.paths += paths
        self.names += [io.nfc(io.printable(path)) for path in paths]
        self.labels += [label] * len(paths)
        self.parts += [part] * len(paths)

    def _absolute(self, path: str) -> str:
        return os.path.join(self.root, path)

    def _printable(self, path: str) -> str:
        return io.printable(self._absolute(path))


def _place(path: str) -> str:
    """Returns the class folder of a file; else labeled, unlabeled or test."""
    parts = io.printable(path).split("/")
    depth = 2 if parts[0] != "unlabeled" and len(parts) > 2 else 1
    return "/".join(parts[:depth])


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


# -------------------------------------------------------------- the source --


def check(config: config_lib.Config) -> None:
    """Checks that --data_dir has the right layout.

    Raises:
        InputError: It has not.
    """
    Listing(config.data_dir).check(
        need_unlabeled=config.needs_unlabeled_folder()
    )


def fingerprint(
    config: config_lib.Config, then: fingerprint_lib.Fingerprint
) -> fingerprint_lib.Fingerprint:
    """Returns the fingerprint of the images in --data_dir.

    Raises:
        InputError: There is no such folder, or its layout is wrong.
    """
    del then
    return Listing(config.data_dir).fingerprint()


def _load_for_transfer(config: config_lib.Config) -> source.Source:
    return load(
        config.data_dir, on_bad_image=config.on_bad_image, unlabeled=False
    )


@registry.sources.register(
    "folder",
    needs_data_dir=True,
    has_labels=True,
    skips_bad_images=True,
    check_images=check,
    fingerprint=fingerprint,
    load_for_transfer=_load_for_transfer,
)
def load_for_run(config: config_lib.Config) -> source.Source:
    """Loads the folder that the flags name; see `load`."""
    return load(
        config.data_dir,
        image_size=config.image_size,
        on_bad_image=config.on_bad_image,
        need_unlabeled=config.needs_unlabeled_folder(),
    )


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
        unlabeled: Whether to read unlabeled/.
        need_unlabeled: Whether unlabeled/ must have images, if it is read.

    Raises:
        InputError: The folder's layout is wrong, or images cannot be used.
    """
    from simmatch_tf.data import files  # imports TensorFlow

    listing = Listing(data_dir, unlabeled=unlabeled)
    need_unlabeled = need_unlabeled and unlabeled
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

    is_test = np.array([part == "test" for part in listing.parts])[kept]
    train = kept[~is_test]
    statistics = inspection.statistics(train)

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
        test=images(kept[is_test]) if listing.has_test else None,
        flip=True,
        image_size=image_size or IMAGE_SIZE,
        measure=lambda: statistics,
        origin=lambda: listing.fingerprint(known),
    )


def _warn_of_copies(
    listing: Listing, indices: Sequence[int], digests: Sequence[str]
) -> None:
    """Warns about images that exist twice, by their files' contents."""
    counts = collections.Counter(digests[index] for index in indices)
    # Content → the first file of it in each part and class.
    first: dict[str, dict[tuple[str, int], int]] = {}
    # What is wrong → image → the names of it and the other.
    copies = collections.defaultdict(dict)
    # The parts come in the order labeled, unlabeled, test.
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
