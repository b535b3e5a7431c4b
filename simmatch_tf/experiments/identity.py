"""What a run is, so that it is known again: the flags that decide its result.

Nothing here imports TensorFlow.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib

from simmatch_tf import config as config_lib
from simmatch_tf import datasets
from simmatch_tf.data import fingerprint, listing
from simmatch_tf.errors import InputError


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
    data = datasets.base(config.dataset)
    return f"{data}_{config.algorithm}_seed{config.seed}_{digest}.json"


def images(
    config: config_lib.Config, kept: pathlib.Path | None = None
) -> str | None:
    """What tells the images in --data_dir from what it had before.

    Args:
        config: The flags.
        kept: The data.json of a run: its images instead of those there now.

    Returns:
        A digest; None: they are of another dataset, or not known.
    """
    if config.dataset != "folder":
        return None
    if kept is None:
        return _in_folder(os.path.abspath(os.path.expanduser(config.data_dir)))
    try:
        return fingerprint.read(kept).digest()
    except (OSError, ValueError):
        return None


@functools.cache
def _in_folder(path: str) -> str | None:
    """Once for all cells of a plan."""
    try:
        return fingerprint.of_listing(listing.Listing(path)).digest()
    except InputError:
        return None  # it is not there: the runs that want it say so


def usual() -> set[str]:
    """All flags at their defaults, as words."""
    config = config_lib.Config(labels=10, steps=1)
    return set(flags(config)) - {"--labels=10", "--steps=1"}
