"""What a run is, so that it is known again: the flags that decide its result.

Nothing here imports TensorFlow.
"""

import dataclasses
import hashlib

from simmatch_tf import config as config_lib
from simmatch_tf import datasets


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


def usual() -> set[str]:
    """All flags at their defaults, as words."""
    config = config_lib.Config(labels=10, steps=1)
    return set(flags(config)) - {"--labels=10", "--steps=1"}
