"""What identifies a run: the flags that decide its result, and its data.

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
    """Returns the flags that decide what is trained; paths are absolute."""
    operational = {
        name for name, each in config.fields().items() if each.operational
    }
    if config.data_dir is not None:
        operational.remove("data_dir")
    text = config.absolute().to_flagfile(without=operational)
    return text.split("\n")[:-1]


def default_flags(config: config_lib.Config) -> set[str]:
    """Returns all flags of a run's algorithm at their defaults.

    --algorithm is among them at its own default.
    """
    defaults = config_lib.Config(
        labels=10, steps=1, algorithm=config.algorithm, plugin=config.plugin
    )
    words = set(flags(defaults)) - {"--labels=10", "--steps=1"}
    algorithm = config_lib.Config.declared()["algorithm"].default
    words.discard(f"--algorithm={config.algorithm}")
    return words | {f"--algorithm={algorithm}"}


def name(config: config_lib.Config) -> str:
    """Returns a run's file name: readable, and different for each run.

    Flags at their default have no part in it, so that a new flag does not
    rename the runs that were trained without it. The content of plugins has.
    """
    defaults = default_flags(config)
    given = [word for word in flags(config) if word not in defaults]
    plugins = fingerprint.plugins(config)
    contents = fingerprint.digests([*plugins.values()])
    given += map(" ".join, zip(plugins, contents, strict=True))
    digest = hashlib.sha256("\n".join(sorted(given)).encode()).hexdigest()[:8]
    dataset = config_lib.base_name(config.dataset)
    return f"{dataset}_{config.algorithm}_seed{config.seed}_{digest}.json"


def data(
    config: config_lib.Config, data_json: pathlib.Path | None = None
) -> str | None:
    """Digests the user's own files, to tell them from other files.

    Args:
        config: The flags.
        data_json: The data.json of a run, to digest its files instead of
            those that exist now.

    Returns:
        A digest of the names and sizes in --data_dir, of a list, of first
        weights and of plugins; after a ":", where they are known, one of the
        contents in --data_dir. None if no flag names files, or they are not
        known.
    """
    try:
        if data_json is not None:
            files = fingerprint.read(data_json).files
        else:
            files = fingerprint.of_flags(config).files
            if config.data_dir is not None:
                folder = _in_folder(config.absolute().data_dir)
                files = {**folder.files, **files}
    except (OSError, ValueError):
        return None  # missing files: the runs that need them say so
    files = {
        name: state
        for name, state in files.items()
        if config.data_dir is not None or name.startswith("--")
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
    """Whether two digests of `data` agree, as far as both are known."""
    if None in (then, now):
        return True
    return all(
        a == b for a, b in zip(then.split(":"), now.split(":"), strict=False)
    )


def records(
    config: config_lib.Config, patterns: Iterable[str]
) -> dict[str, list[str | None]] | None:
    """Digests the record files that a TFDS dataset has now.

    Args:
        config: The flags, with the dataset's name and folder.
        patterns: Paths of the files below the folder of all datasets, with *
            for the number of a file.

    Returns:
        Pattern → a digest of the files' sizes, and one of their records if
        they are small TFRecord files, else None. None if the dataset is not
        prepared here.
    """
    root = tfds.data_dir(config.tfds_dir)
    paths = {pattern: os.path.join(root, pattern) for pattern in patterns}
    if not any(os.path.isdir(os.path.dirname(p)) for p in paths.values()):
        return None
    return {pattern: list(_state(path)) for pattern, path in paths.items()}


def records_of_run(
    config: config_lib.Config, data_json: pathlib.Path
) -> dict[str, list[str | None]] | None:
    """Digests the record files that a run was trained on; see `records`.

    Args:
        config: The run's flags.
        data_json: The run's data.json. It has the files' sizes but not their
            records, which are read now.

    Returns:
        As `records`; None if the dataset is none of TFDS.
    """
    entry, _ = registry.sources.find(config.dataset)
    if "is_prepared" not in entry.facts:
        return None
    try:
        files = fingerprint.read(data_json).files
    except (OSError, ValueError):
        return None
    sizes: dict[str, list[int]] = {}
    for name, (size, _, _) in sorted(files.items()):
        if not name.startswith("--"):
            sizes.setdefault(_NUMBER.sub(r"-*-of-\1", name), []).append(size)
    now = records(config, sizes) or {}
    digests = {
        pattern: [_digest(each), now.get(pattern, [None, None])[1]]
        for pattern, each in sizes.items()
    }
    return digests or None


@functools.cache
def _state(pattern: str) -> tuple[str, str | None]:
    """Digests files' sizes and records, once for all cells of a plan."""
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
    """Reads the files of a folder, once for all cells of a plan."""
    images = folder.Listing(path)
    files = images.fingerprint()
    if sum(size for size, _, _ in files.files.values()) > _READ:
        return files
    contents = fingerprint.digests([*files.paths.values()])
    return images.fingerprint(dict(zip(files.paths, contents, strict=True)))
