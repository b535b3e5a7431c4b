"""What identifies a run: the flags that decide its result, and its data.

Nothing here imports TensorFlow.
"""

import functools
import hashlib
import pathlib

from simmatch_tf import config as config_lib
from simmatch_tf.data import fingerprint, layout


def flags(config: config_lib.Config) -> list[str]:
    """Returns the flags that decide what is trained; paths are absolute."""
    operational = {
        name for name, each in config.fields().items() if each.operational
    }
    # Only these say which images are trained on.
    operational -= {"data_dir", *config_lib.TABLES}
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
        A digest of the names and sizes in --data_dir, of the classes in a
        table of labels, and of the contents of a list, of first weights and of
        plugins. None if no flag names files, or they are not known.
    """
    try:
        if data_json is not None:
            files = fingerprint.read(data_json).files
        else:
            files = fingerprint.of_flags(config).files
            if config.data_dir is not None:
                place = config.absolute()
                images = _in_folder(
                    place.data_dir, place.labels_csv, place.labels_from
                )
                files = {**images, **files}
    except (OSError, ValueError):
        return None  # missing files: the runs that need them say so
    if config.data_dir is None:
        files = {n: state for n, state in files.items() if n[:2] == "--"}
    return fingerprint.Fingerprint(files).digest()


@functools.cache
def _in_folder(path: str, *tables: str | None) -> fingerprint.Files:
    """Lists the files of a folder, once for all cells of a plan."""
    return layout.Listing(path, *tables).fingerprint().files
