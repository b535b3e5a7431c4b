"""Fingerprints of datasets, which tell whether a run has the same images.

A run keeps the fingerprint of its images in data.json, so that it is neither
resumed nor evaluated on others. Names and sizes of files are compared, and the
contents of those whose times differ. Importing this module does not import
TensorFlow.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, registry, terminal
from simmatch_tf.flags.errors import InputError

# What the name of a plugin begins with.
PLUGIN = "--plugin="
_SHOWN = 3  # names in a message
_short = functools.partial(hashlib.blake2b, digest_size=16)
# Name → see `Fingerprint.files`.
Files = Mapping[str, tuple[int, int, str | None]]


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The files of a dataset or, without files, its sets of images.

    Attributes:
        files: Name → size in bytes, modification time in nanoseconds, and
            digest of the content, or None where that is not known.
        paths: Name → where the file is now.
    """

    files: Files
    paths: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def join(self, other: Self) -> Self:
        """Returns the fingerprint of these files and others."""
        return Fingerprint(
            {**self.files, **other.files}, {**self.paths, **other.paths}
        )

    def images(self) -> Self:
        """Returns the fingerprint without the files that flags name."""
        files = {n: s for n, s in self.files.items() if n[:2] != "--"}
        return Fingerprint(files, self.paths)

    def plugins(self) -> dict[str, str | None]:
        """Returns the name of each plugin → the digest of its content."""
        return {n: s[2] for n, s in self.files.items() if n.startswith(PLUGIN)}

    def digest(self) -> str | None:
        """Returns a digest of names and sizes; None without files.

        For files that flags name, the content replaces the size.
        """
        states = [
            (name, state[2] if name.startswith("--") else state[0])
            for name, state in sorted(self.files.items())
        ]
        if not states:
            return None
        return hashlib.sha256(repr(states).encode()).hexdigest()[:16]

    def write(self, path: pathlib.Path) -> None:
        """Writes data.json: one line for each file.

        Raises:
            OSError: The file cannot be written.
        """
        lines = [
            f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(state)}"
            for name, state in self.files.items()
        ]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        with io.replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Changes:
    """The differences between two fingerprints, as names of files.

    Attributes:
        new: Files that the first one does not have.
        gone: Files that the second one does not have.
        changed: Files of another size or content.
        touched: Files of another time whose contents are not known.
    """

    new: Sequence[str]
    gone: Sequence[str]
    changed: Sequence[str]
    touched: Sequence[str]

    def text(self) -> str:
        """Returns a text such as "2 are new (a.png, b.png)"; "" for none."""
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
    """Compares two fingerprints; reads the files that differ only in time.

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
        terminal.say(
            f"comparing the contents of {len(doubtful)} files, whose "
            "modification times have changed since the run began"
        )
    contents = digests([now.paths[name] for name in doubtful])
    changed += [
        name
        for name, digest in zip(doubtful, contents, strict=True)
        if digest != then.files[name][2]
    ]
    return Changes(
        new=sorted(now.files.keys() - then.files.keys()),
        gone=sorted(then.files.keys() - now.files.keys()),
        changed=sorted(changed),
        touched=sorted(touched),
    )


def of_files(
    paths: Mapping[str, str],
    contents: Mapping[str, str] | None = None,
) -> Fingerprint:
    """Returns the fingerprint of files; missing files are left out.

    Args:
        paths: Name → path.
        contents: Name → digest of its content, where that is known.
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
    """Returns the fingerprint of the files that flags name beside the images.

    The name of each is its flag, such as "--labeled_list"; that of a plugin is
    "--plugin=mine.py".

    Args:
        config: The flags.
        then: Fingerprint at the run's start. A file that is gone keeps its
            entry, because the run does not need it again. Plugins that it does
            not list are left out: it is of an older version.

    Raises:
        InputError: A file cannot be read.
    """
    paths = {}
    for flag in ("labeled_list", "split_file"):
        value = getattr(config, flag)
        if value is not None and value not in config_lib.SUBSETS:
            paths[f"--{flag}"] = str(io.expand(value))
    if (prior := config.class_prior_file()) is not None:
        paths["--class_prior"] = str(io.expand(prior))
    weights = config.init_from and _weights(config.init_from)
    if weights:
        paths["--init_from"] = weights
    for name, path in plugins(config).items():
        if then is None or name in then.files:
            paths[name] = path
    paths = {n: path for n, path in paths.items() if os.path.isfile(path)}
    contents = digests(list(paths.values()))
    now = of_files(paths, dict(zip(paths, contents, strict=True)))
    if then is None:
        return now
    gone = {
        name: state
        for name, state in then.files.items()
        if name.startswith("--") and name not in paths
    }
    return now.join(Fingerprint(gone))


def plugins(config: config_lib.Config) -> dict[str, str]:
    """Returns the plugins of a run: name, "--plugin=mine.py" → its file."""
    return {
        f"{PLUGIN}{os.path.basename(path)}": registry.plugin_file(path)
        for path in config.absolute().plugin
    }


def changed_plugins(
    config: config_lib.Config, then: Fingerprint
) -> dict[str, str]:
    """Returns the plugins of a run that have changed since it began.

    Args:
        config: The run's flags.
        then: Fingerprint at its start. Plugins that it does not list are left
            out: it is of an older version.

    Returns:
        Name, "--plugin=mine.py" → its file.

    Raises:
        InputError: A file cannot be read.
    """
    contents = then.plugins()
    paths = {n: path for n, path in plugins(config).items() if n in contents}
    paths = {n: path for n, path in paths.items() if os.path.isfile(path)}
    now = zip(paths, digests(list(paths.values())), strict=True)
    return {n: paths[n] for n, content in now if content != contents[n]}


def _weights(path: str) -> str | None:
    """Returns a file that changes with the weights that --init_from names."""
    try:
        kind, place = preflight.kind_of_weights(path)
    except InputError:
        return None  # gone
    if kind == config_lib.PUBLISHED:
        return None
    if kind == "saved_model":
        return str(place / "variables" / "variables.index")
    if kind == "workdir":
        indices = sorted(place.glob("checkpoints/step_*.index"))
        return str(indices[-1]) if indices else None
    return str(place)


def of_config(
    config: config_lib.Config, then: Fingerprint
) -> Fingerprint | None:
    """Returns the fingerprint of the images that the flags name now.

    That of `of_flags` is left out. None where it is not known before the images
    are loaded: see the fact `fingerprint` in `sources.source`.

    Raises:
        InputError: There is no such folder.
    """
    entry, _ = registry.sources.find(config.dataset)
    look = entry.facts.get("fingerprint")
    return look and look(config, then)


def digests(
    paths: Sequence[str], algorithm: str | Callable[[], Any] = _short
) -> list[str]:
    """Returns digests of files' contents, which need not fit into memory.

    Args:
        paths: The files.
        algorithm: As for `hashlib.file_digest`; default: that of `digest`.

    Returns:
        Hexadecimal digits for each file.

    Raises:
        InputError: One cannot be read.
    """

    def digest_file(path: str) -> str:
        try:
            with open(path, "rb") as file:
                return hashlib.file_digest(file, algorithm).hexdigest()
        except OSError as error:
            raise InputError(
                f"{io.printable(path)}: cannot be read "
                f"({error.strerror or error})"
            ) from None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(digest_file, paths))


def digest(content: bytes) -> bytes:
    """Returns the digest of a file's content, 16 bytes."""
    return _short(content).digest()
