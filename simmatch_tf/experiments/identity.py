"""What a run is, so that it is known again: the flags that decide its result.

Nothing here imports TensorFlow.
"""

import functools
import glob
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.data import fingerprint
from simmatch_tf.data import records as records_lib
from simmatch_tf.data.sources import folder, tfds

_NUMBER = re.compile(r"-\d{5}-of-(\d{5})$")
# Bytes of a split's record files, or of a folder, up to which their contents
# are read.
_READ = 256 * 2**20


def flags(config: config_lib.Config) -> list[str]:
    """The flags that decide what is trained, as words; paths are absolute."""
    operational = {
        name for name, each in config.fields().items() if each.operational
    }
    if config.dataset == "folder":
        operational.remove("data_dir")
    text = config.absolute().to_flagfile(without=operational)
    return text.split("\n")[:-1]


def name(config: config_lib.Config) -> str:
    """File name of a run: readable, and another for each other run.

    Flags at their default have no part in it, so that one that is new does not
    rename what was run without it.
    """
    at_default = usual(config)
    given = [word for word in flags(config) if word not in at_default]
    digest = hashlib.sha256("\n".join(sorted(given)).encode()).hexdigest()[:8]
    dataset = config_lib.base_name(config.dataset)
    return f"{dataset}_{config.algorithm}_seed{config.seed}_{digest}.json"


def data(
    config: config_lib.Config, kept: pathlib.Path | None = None
) -> str | None:
    """What tells the files that flags name from what these had before.

    Args:
        config: The flags.
        kept: The data.json of a run: its files instead of those there now.

    Returns:
        A digest of --data_dir's files (names and sizes), of a list and of
        first weights; behind ":", where they are known, one of the contents
        in --data_dir. None: no flag names any, or they are not known.
    """
    try:
        if kept is not None:
            found = fingerprint.read(kept)
        elif config.dataset == "folder":
            found = _in_folder(config.absolute().data_dir)
            found = found.join(fingerprint.of_flags(config))
        else:
            found = fingerprint.of_flags(config)
    except (OSError, ValueError):
        return None  # it is not there: the runs that want it say so
    files = {
        name: state
        for name, state in found.files.items()
        if config.dataset == "folder" or name.startswith("--")
    }
    digest = fingerprint.Fingerprint(files).digest()
    contents = [
        state[2]
        for name, state in sorted(files.items())
        if not name.startswith("--")
    ]
    if contents and None not in contents:
        digest += f":{_digest(contents)}"
    return digest


def is_same(then: str | None, now: str | None) -> bool:
    """Whether two of `data` are alike, as far as both are known."""
    if None in (then, now):
        return True
    return all(
        a == b for a, b in zip(then.split(":"), now.split(":"), strict=False)
    )


def records(
    config: config_lib.Config, patterns: Iterable[str]
) -> dict[str, list[str | None]] | None:
    """The record files that a dataset of TFDS has now.

    Args:
        config: Its name and folder.
        patterns: Their names from the folder of the datasets on, with * for
            the number of a file.

    Returns:
        Pattern → a digest of the files' sizes; and one of their records where
        they are small TFRecord files, else None. None: it is not prepared
        here.
    """
    paths = {
        pattern: os.path.join(tfds.data_dir(config.tfds_dir), pattern)
        for pattern in patterns
    }
    if not any(os.path.isdir(os.path.dirname(p)) for p in paths.values()):
        return None
    return {pattern: list(_state(path)) for pattern, path in paths.items()}


def records_of_run(
    config: config_lib.Config, kept: pathlib.Path
) -> dict[str, list[str | None]] | None:
    """The record files that a run was trained on, as `records`.

    Args:
        config: Its flags.
        kept: Its data.json. Records do not stand there: they are those now.

    Returns:
        See `records`; None where it is of no dataset of TFDS.
    """
    entry, _ = registry.sources.find(config.dataset)
    if "is_prepared" not in entry.facts:
        return None
    try:
        files = fingerprint.read(kept).files
    except (OSError, ValueError):
        return None
    sizes = {}
    for name, (size, _, _) in sorted(files.items()):
        if not name.startswith("--"):
            sizes.setdefault(_NUMBER.sub(r"-*-of-\1", name), []).append(size)
    now = records(config, sizes) or {}
    found = {
        pattern: [_digest(those), now.get(pattern, [None, None])[1]]
        for pattern, those in sizes.items()
    }
    return found or None


@functools.cache
def _state(pattern: str) -> tuple[str, str | None]:
    """Once for all cells of a plan: digests of files' sizes and records."""
    folder, name = os.path.split(pattern)
    paths = sorted(glob.glob(os.path.join(glob.escape(folder), name)))
    sizes = [os.path.getsize(path) for path in paths]
    if ".tfrecord" not in name or sum(sizes) > _READ:
        return _digest(sizes), None
    return _digest(sizes), _digest([records_lib.digest(path) for path in paths])


def _digest(values: Sequence[int | str]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


@functools.cache
def _in_folder(path: str) -> fingerprint.Fingerprint:
    """Once for all cells of a plan."""
    images = folder.Listing(path)
    found = images.fingerprint()
    if sum(size for size, _, _ in found.files.values()) > _READ:
        return found
    contents = fingerprint.digests([*found.paths.values()])
    return images.fingerprint(dict(zip(found.paths, contents, strict=True)))


def usual(config: config_lib.Config) -> set[str]:
    """Returns all flags at their defaults for a run's algorithm, as words."""
    at_default = config_lib.Config(
        labels=10, steps=1, algorithm=config.algorithm, plugin=config.plugin
    )
    words = set(flags(at_default)) - {"--labels=10", "--steps=1"}
    default = config_lib.Config.declared()["algorithm"].default
    return words - {f"--algorithm={config.algorithm}"} | {
        f"--algorithm={default}"
    }
