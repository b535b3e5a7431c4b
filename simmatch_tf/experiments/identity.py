"""What a run is, so that it is known again: the flags that decide its result.

Nothing here imports TensorFlow.
"""

import dataclasses
import functools
import hashlib
import pathlib

from simmatch_tf import config as config_lib
from simmatch_tf import datasets
from simmatch_tf.data import fingerprint, listing


def flags(config: config_lib.Config) -> list[str]:
    """The flags that decide what is trained, as words; paths are absolute."""
    operational = {
        field.name
        for field in dataclasses.fields(config)
        if field.metadata["operational"]
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
    at_default = usual()
    given = [word for word in flags(config) if word not in at_default]
    digest = hashlib.sha256("\n".join(sorted(given)).encode()).hexdigest()[:8]
    dataset = datasets.base(config.dataset)
    return f"{dataset}_{config.algorithm}_seed{config.seed}_{digest}.json"


def data(
    config: config_lib.Config, kept: pathlib.Path | None = None
) -> str | None:
    """What tells the files that flags name from what these had before.

    Args:
        config: The flags.
        kept: The data.json of a run: its files instead of those there now.

    Returns:
        A digest of --data_dir's files, of a list and of first weights; None:
        no flag names any, or they are not known.
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
    return fingerprint.Fingerprint(files).digest()


@functools.cache
def _in_folder(path: str) -> fingerprint.Fingerprint:
    """Once for all cells of a plan."""
    return fingerprint.of_listing(listing.Listing(path))


def usual() -> set[str]:
    """All flags at their defaults, as words."""
    config = config_lib.Config(labels=10, steps=1)
    return set(flags(config)) - {"--labels=10", "--steps=1"}
