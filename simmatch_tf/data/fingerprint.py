"""What tells a run's images from others: their files, wherever they lie.

A run keeps it in `data.json`, so that neither its result is shown for other
images, nor is it resumed with them. Compared are names and sizes, and where
only the time differs, contents. Nothing here imports TensorFlow.
"""

import concurrent.futures
import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Self

from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf import preflight
from simmatch_tf.data.sources import dataset_names, listing
from simmatch_tf.flags.errors import InputError

_SHOWN = 3
_DIGEST_BYTES = 16
# Name → see `Fingerprint.files`.
Files = Mapping[str, tuple[int, int, str | None]]


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The files of a dataset, or its sets of images.

    Attributes:
        files: Name → size in bytes, time of the last change in nanoseconds,
            and digest of the content or None, where it is not known.
        paths: Name → where it lies now.
    """

    files: Files
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def join(self, other: Self) -> Self:
        """These files and others."""
        return Fingerprint(
            {**self.files, **other.files}, {**self.paths, **other.paths}
        )

    def images(self) -> Self:
        """These files without those that flags name."""
        files = {n: s for n, s in self.files.items() if n[:2] != "--"}
        return Fingerprint(files, self.paths)

    def digest(self) -> str | None:
        """A digest of names and sizes; of flags' files, of their contents.

        None: there are no files.
        """
        states = [
            (name, state[2] if name.startswith("--") else state[0])
            for name, state in sorted(self.files.items())
        ]
        if not states:
            return None
        return hashlib.sha256(repr(states).encode()).hexdigest()[:16]

    def write(self, path: pathlib.Path) -> None:
        """Writes data.json, whole or not at all; a line for each file."""
        lines = [
            f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(state)}"
            for name, state in self.files.items()
        ]
        aside = path.with_suffix(".tmp")
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)


@dataclasses.dataclass(frozen=True)
class Changes:
    """How images differ from those that a run began with, by name.

    Attributes:
        new: Files that were not there.
        gone: Files that are not there now.
        changed: Files of another size or content.
        touched: Files of another time whose contents are not known.
    """

    new: Sequence[str]
    gone: Sequence[str]
    changed: Sequence[str]
    touched: Sequence[str]

    def text(self) -> str:
        """What differs, as "2 are new (a.png, b.png)"; "" for nothing."""
        kinds = (
            ("new", self.new),
            ("gone", self.gone),
            ("changed", self.changed),
        )
        return ", ".join(
            f"{len(names)} {'is' if len(names) == 1 else 'are'} {kind} "
            f"({', '.join(names[:_SHOWN])}{', …' * (len(names) > _SHOWN)})"
            for kind, names in kinds
            if names
        )


def read(path: pathlib.Path) -> Fingerprint:
    """Reads data.json.

    Raises:
        ValueError, OSError: It cannot be read, or is something else.
    """
    content = json.loads(path.read_text("utf-8"))
    try:
        files = {
            name: (int(size), int(time), digest)
            for name, (size, time, digest) in content.items()
        }
    except (AttributeError, TypeError) as error:
        raise ValueError(f"is no list of files ({error})") from None
    return Fingerprint(files)


def compare(then: Fingerprint, now: Fingerprint) -> Changes:
    """Says how a dataset has changed; reads what differs by time alone.

    Raises:
        InputError: A file cannot be read.
    """
    changed, doubtful, touched = [], [], []
    for name in then.files.keys() & now.files.keys():
        old, new = then.files[name], now.files[name]
        if old[0] != new[0]:
            changed.append(name)
        elif None not in (old[2], new[2]):
            changed += [name] * (old[2] != new[2])
        elif old[1] != new[1]:
            (touched if old[2] is None else doubtful).append(name)
    if doubtful:
        logging.info(
            "%d files have other times than when the run began: comparing "
            "their contents",
            len(doubtful),
        )
    found = digests([now.paths[name] for name in doubtful])
    changed += [
        name
        for name, digest in zip(doubtful, found, strict=True)
        if digest != then.files[name][2]
    ]
    return Changes(
        new=sorted(now.files.keys() - then.files.keys()),
        gone=sorted(then.files.keys() - now.files.keys()),
        changed=sorted(changed),
        touched=sorted(touched),
    )


def of_listing(
    found: listing.Listing, contents: Mapping[str, str] | None = None
) -> Fingerprint:
    """The files of the user's own folder.

    Args:
        found: They.
        contents: Name → digest of its content, where it is known.
    """
    paths = {
        name: os.path.join(found.root, path)
        for name, path in zip(found.names, found.paths, strict=True)
    }
    return of_files(paths, contents)


def of_digits() -> Fingerprint:
    """The file of scikit-learn that holds the digits."""
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        return Fingerprint({})
    folder = os.path.dirname(package.origin)
    name = "digits.csv.gz"
    path = os.path.join(folder, "datasets", "data", name)
    if not os.path.isfile(path):
        return Fingerprint({})
    return of_files({name: path}, {name: digests([path])[0]})


def of_files(
    paths: Mapping[str, str],
    contents: Mapping[str, str] | None = None,
) -> Fingerprint:
    """Files by name; those that are not there are left out.

    Args:
        paths: Name → where it lies.
        contents: Name → digest of its content, where it is known.
    """
    files, contents = {}, contents or {}
    for name, path in paths.items():
        try:
            status = os.stat(path)
        except OSError:
            continue
        size, time = status.st_size, status.st_mtime_ns
        files[name] = (size, time, contents.get(name))
    return Fingerprint(files, paths)


def of_flags(
    config: config_lib.Config, then: Fingerprint | None = None
) -> Fingerprint:
    """The files that flags name beside the images, as "--labeled_list".

    Args:
        config: The flags.
        then: Those that a run began with: of a file that is not there any
            more, which it does not need again, what is known.

    Raises:
        InputError: A file cannot be read.
    """
    paths = {}
    for flag in ("labeled_list", "split_file"):
        value = getattr(config, flag)
        if value is not None and value not in config_lib.SUBSETS:
            paths[f"--{flag}"] = os.path.expanduser(value)
    weights = config.init_from and _weights(config.init_from)
    if weights:
        paths["--init_from"] = weights
    paths = {n: path for n, path in paths.items() if os.path.isfile(path)}
    contents = digests(list(paths.values()))
    found = of_files(paths, dict(zip(paths, contents, strict=True)))
    if then is None:
        return found
    gone = {
        name: state
        for name, state in then.files.items()
        if name.startswith("--") and name not in paths
    }
    return found.join(Fingerprint(gone))


def _weights(path: str) -> str | None:
    """A file that changes with the weights that --init_from names."""
    try:
        kind, found = preflight.kind_of_weights(path)
    except InputError:
        return None  # gone
    if kind == "saved_model":
        return str(found / "variables" / "variables.index")
    if kind == "workdir":
        indices = sorted(found.glob("checkpoints/step_*.index"))
        return str(indices[-1]) if indices else None
    return str(found)


def of_config(
    config: config_lib.Config, then: Fingerprint
) -> Fingerprint | None:
    """The images that the flags name now, without `of_flags`.

    Args:
        config: The flags.
        then: Those that the run began with.

    Returns:
        They; None where that is not known before they are loaded: images
        given from Python, and a dataset that TFDS has not prepared here.

    Raises:
        InputError: There is no such folder.
    """
    if config.dataset == "custom":
        return None
    if config.dataset == "digits":
        return of_digits()
    if config.dataset == "folder":
        return of_listing(listing.Listing(config.data_dir))
    root = dataset_names.data_dir(config.tfds_dir)
    paths = {
        name: os.path.join(root, name)
        for name in then.files
        if not name.startswith("--")
    }
    if not any(os.path.isdir(os.path.dirname(p)) for p in paths.values()):
        return None
    return of_files(paths)


def digests(paths: Sequence[str]) -> list[str]:
    """Digests of files' contents.

    Raises:
        InputError: One cannot be read.
    """
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_digest_file, paths))


def digest(content: bytes) -> bytes:
    """The digest of a file's content, 16 bytes."""
    return hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()


def _digest_file(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return digest(file.read()).hex()
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error})"
        ) from None
