"""The user's own images, in folders.

  DIR/labeled/CLASS/*   one folder a class, with sub-folders if wanted
  DIR/unlabeled/**      images without a class, in any folders
  DIR/test/CLASS/*      images for the results, if there are any

JPEG, PNG, BMP and GIF by the ending of the name, in any sizes. What begins
with a dot is left out; symbolic links are followed. The order depends on the
names alone.
"""

import collections
import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from absl import logging

from simmatch_tf.commandline import InputError
from simmatch_tf.data import files, source

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
IMAGE_SIZE = 224
_LAYOUT = (
    "expected are labeled/CLASS/* with a folder for each class, unlabeled/** "
    "and, where there is one, test/CLASS/*"
)


@dataclasses.dataclass(frozen=True)
class Folder:
    """The images in a folder.

    Attributes:
        class_names: The names of the folders in labeled/, by code point.
        train: The labeled images, by class, then by name; then the unlabeled
            ones by name, with label -1.
        test: The images for the results, with labels as in `train`; or None.
    """

    class_names: list[str]
    train: files.FileImages
    test: files.FileImages | None


def load(
    data_dir: str,
    *,
    on_bad_image: str,
    image_size: int | None = None,
    unlabeled: bool = True,
) -> source.Source:
    """Loads a folder as a dataset.

    Args:
        data_dir: The folder.
        on_bad_image: "error" or "skip", see `files.usable`.
        image_size: Side of the views; default: 224.
        unlabeled: See `read`.

    Raises:
        InputError: As from `read`.
    """
    found = read(data_dir, on_bad_image=on_bad_image, unlabeled=unlabeled)
    train = found.train
    return source.Source(
        name="folder",
        class_names=found.class_names,
        train=train,
        test=found.test,
        flip=True,
        image_size=image_size or IMAGE_SIZE,
        measure=lambda: (list(train.channel_mean), list(train.channel_std)),
    )


def read(
    data_dir: str | None, *, on_bad_image: str, unlabeled: bool = True
) -> Folder:
    """Finds a folder's images and inspects them.

    Args:
        data_dir: The folder.
        on_bad_image: "error" or "skip", see `files.usable`.
        unlabeled: Whether those in unlabeled/ are wanted, too.

    Raises:
        InputError: The folder does not hold what is expected, or images that
            cannot be used.
    """
    root = _root(data_dir)
    scan = _Scan(root)
    names = scan.classes("labeled")
    shown = [files.printable(name) for name in names]
    if len(names) < 2:
        raise InputError(
            f"--data_dir={data_dir}: labeled/ has {len(names)} class folders "
            f"({', '.join(shown) or 'none'}), but at least 2 are needed; "
            + _LAYOUT
        )
    has_test = os.path.lexists(os.path.join(root, "test"))
    if has_test:
        _check_test_classes(data_dir, scan.classes("test"), names)
    for label, name in enumerate(names):
        scan.add("labeled", label, name)
    if unlabeled:
        scan.add("unlabeled", -1)
    if has_test:
        for label, name in enumerate(names):
            scan.add("test", label, name)
    scan.warn()
    everything = np.arange(len(scan.paths))
    scan.check(data_dir, shown, everything, unlabeled=unlabeled)
    paths = [f"{root}/{path}" for path in scan.paths]
    _warn_of_shared(scan, paths)
    inspection = files.inspect(paths, cache=files.cache_path(root))
    kept = files.usable(paths, inspection, on_bad_image)
    # Leaving out bad images may have emptied a class.
    scan.check(data_dir, shown, kept, unlabeled=unlabeled)

    is_test = np.array([part == "test" for part in scan.parts])[kept]
    train = kept[~is_test]
    mean, std = inspection.statistics(train)

    def images(indices: np.ndarray) -> files.FileImages:
        return files.FileImages(
            paths=[paths[i] for i in indices],
            labels=np.array(scan.labels, np.int32)[indices],
            names=[files.printable(scan.paths[i]) for i in indices],
            orientations=inspection.orientations[indices],
            channel_mean=mean,
            channel_std=std,
        )

    return Folder(
        class_names=shown,
        train=images(train),
        test=images(kept[is_test]) if has_test else None,
    )


def _warn_of_shared(scan: "_Scan", paths: Sequence[str]) -> None:
    """Says if test images are in training, too, by links or as hard links."""
    known, shared = {}, []
    for part, name, path in zip(scan.parts, scan.paths, paths, strict=True):
        try:
            status = os.stat(path)
        except OSError:
            continue  # a bad file: the inspection says so
        key = status.st_dev, status.st_ino
        if part != "test":
            known[key] = name
        elif key in known:
            shared.append(f"{name} is {known[key]}")
    if shared:
        logging.warning(
            "%d of the test images are trained on as well (%s): the result "
            "will be too good",
            len(shared),
            files.printable(shared[0]),
        )


def _root(data_dir: str | None) -> str:
    """The folder's absolute path.

    Raises:
        InputError: There is no such folder, or no labeled/ in it.
    """
    if data_dir is None:
        raise InputError(
            "--dataset=folder needs --data_dir=DIR, the folder of the images; "
            + _LAYOUT
        )
    root = os.path.abspath(os.path.expanduser(data_dir))
    if not os.path.exists(root):
        raise InputError(f"--data_dir={data_dir}: there is no such folder")
    if not os.path.isdir(root):
        raise InputError(f"--data_dir={data_dir}: is a file, not a folder")
    if not os.path.isdir(os.path.join(root, "labeled")):
        raise InputError(
            f"--data_dir={data_dir}: there is no folder labeled/ in it; "
            + _LAYOUT
        )
    return root


def _check_test_classes(
    data_dir: str, found: Sequence[str], names: Sequence[str]
) -> None:
    for name in sorted(set(found) - set(names)):
        raise InputError(
            f"--data_dir={data_dir}: test/{files.printable(name)} is a class "
            "that labeled/ does not have; the classes are "
            + ", ".join(files.printable(n) for n in names[:20])
            + (", …" if len(names) > 20 else "")
        )


class _Scan:
    """What is found below a folder.

    Attributes:
        paths: Of the images, relative to the folder.
        labels: Of each, its class or -1.
        parts: Of each, the part it is from: labeled, unlabeled or test.
    """

    def __init__(self, root: str) -> None:
        self.paths: list[str] = []
        self.labels: list[int] = []
        self.parts: list[str] = []
        self._root = root
        self._left_out: list[str] = []

    def classes(self, part: str) -> list[str]:
        """Names of the folders in a part, by code point.

        Raises:
            InputError: There are images beside them.
        """
        folders, images = self._list(part)
        if images:
            raise InputError(
                f"{files.printable(self._root)}/{files.printable(images[0])}: "
                f"lies directly in {part}/, one of {len(images)} images that "
                f"do; the class is a folder's name: move it to {part}/CLASS/"
            )
        return sorted(os.path.basename(path) for path, _ in folders)

    def add(self, part: str, label: int, name: str = "") -> None:
        """Adds the images of a part, or of one class in it, by name."""
        found = self._walk(f"{part}/{name}" if name else part)
        self.paths += found
        self.labels += [label] * len(found)
        self.parts += [part] * len(found)

    def warn(self) -> None:
        """Says what was left out, in one line."""
        names = [files.printable(name) for name in sorted(self._left_out)]
        if names:
            logging.warning(
                "%s: %d files are left out, as their names do not end in %s: "
                "%s%s",
                files.printable(self._root),
                len(names),
                " ".join(ENDINGS),
                ", ".join(names[:3]),
                ", …" if len(names) > 3 else "",
            )

    def check(
        self,
        data_dir: str,
        class_names: Sequence[str],
        kept: np.ndarray,
        *,
        unlabeled: bool,
    ) -> None:
        """Checks that there are images of everything.

        Args:
            data_dir: For the messages.
            class_names: The classes.
            kept: Indices of the images that can be used.
            unlabeled: Whether unlabeled ones are wanted.

        Raises:
            InputError: A class has none, or none are unlabeled.
        """
        labels, parts = np.array(self.labels), np.array(self.parts)
        kind = "images"
        if len(kept) < len(labels):
            kind = "images that can be used"
        for part in ("labeled", "test"):
            if not os.path.isdir(os.path.join(self._root, part)):
                continue  # no test/
            of = labels[kept[parts[kept] == part]]
            counts = np.bincount(of, minlength=len(class_names))
            for label in np.flatnonzero(counts == 0):
                raise InputError(
                    f"--data_dir={data_dir}: there are no {kind} in {part}/"
                    f"{class_names[label]}; every class of labeled/ needs at "
                    "least one there"
                )
        if unlabeled and not (parts[kept] == "unlabeled").any():
            raise InputError(
                f"--data_dir={data_dir}: there are no {kind} in unlabeled/; "
                + _LAYOUT
            )

    def _walk(self, top: str) -> list[str]:
        """Images in a folder and below it, each real folder once."""
        images, seen = [], set()
        # Links wait until all real folders are done: a folder that can be
        # reached both ways has the names that do not go through a link.
        folders, links = collections.deque([top]), collections.deque()
        while folders or links:
            path = folders.popleft() if folders else links.popleft()
            try:
                status = os.stat(os.path.join(self._root, path))
            except FileNotFoundError:  # no unlabeled/, no test/CLASS
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
        return sorted(images)

    def _list(self, path: str) -> tuple[list[tuple[str, bool]], list[str]]:
        """Folders in a folder, with whether they are links; and images."""
        folders, images = [], []
        try:
            with os.scandir(os.path.join(self._root, path)) as entries:
                for entry in entries:
                    name = f"{path}/{entry.name}"
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        folders.append((name, entry.is_symlink()))
                    elif entry.name.lower().endswith(ENDINGS):
                        images.append(name)
                    else:
                        self._left_out.append(name)
        except OSError as error:
            raise self._unreadable(path, error) from None
        return folders, sorted(images)

    def _unreadable(self, path: str, error: OSError) -> InputError:
        return InputError(
            f"{files.printable(self._root)}/{files.printable(path)}: cannot "
            f"be read ({error.strerror or error})"
        )


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
