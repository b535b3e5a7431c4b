"""Checks of what flags name on this machine: folders, files, addresses.

Nothing here imports TensorFlow: a wrong flag is answered at once.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import socket
import typing

from simmatch_tf import checks, preflight, registry
from simmatch_tf.distributed import cluster
from simmatch_tf.flags.commandline import InputError

if typing.TYPE_CHECKING:
    from simmatch_tf import config as config_lib
    from simmatch_tf.training import workdir as workdir_lib

# Of an export: format → the modules that its extra installs.
_NEEDED = {
    "litert": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnxruntime"),
}
# Of an export whose run's images are not there.
GIVE_IMAGES = (
    ". An export is compared with the training network on real images: give "
    "the dataset's new place by --data_dir or --tfds_dir, or any images by "
    "--images"
)


def check(config: config_lib.Config, *, resumed: bool = False) -> None:
    """Checks what the flags name: datasets, folders, files, networks.

    Args:
        config: The flags.
        resumed: The run has begun: it has its split, and its data prepared.

    Raises:
        InputError: It is not there, or this version cannot run it yet.
    """
    preflight.check()
    workers = cluster.of(config)
    if config.strategy == "multi_worker" and workers is None:
        raise InputError(
            "--strategy=multi_worker: TF_CONFIG must name two workers or "
            "more, and which of them this one is"
        )
    if config.data_service is not None:
        check_reachable("data_service", config.data_service, scheme="grpc://")
    check_images(config)
    if not resumed:
        _check_folder("tfds_manual_dir", config.tfds_manual_dir)
    for name in () if resumed else ("labeled_list", "split_file"):
        value = getattr(config, name)
        if value is None or value in checks.SUBSETS:
            continue
        if not pathlib.Path(value).expanduser().is_file():
            raise InputError(f"--{name}={value}: no such file")
    if config.init_from is not None and not resumed:
        kind, path = kind_of_weights(config.init_from)
        if kind == "workdir":
            _check_checkpoint(path / "checkpoints")


def check_images(config: config_lib.Config) -> None:
    """Checks that there is what a run's images are read from.

    Raises:
        InputError: There is no such dataset or folder, or none of the layout.
    """
    check_data_dir(config)
    entry, _ = registry.sources.find(config.dataset)
    if "check_images" in entry.facts:
        entry.facts["check_images"](config)


def check_data_dir(config: config_lib.Config) -> None:
    """Checks that the user's own folder is there.

    Raises:
        InputError: It is not.
    """
    _check_folder("data_dir", config.data_dir)


def _check_folder(flag: str, value: str | None) -> None:
    if value is None:
        return
    path = pathlib.Path(value).expanduser()
    if not path.is_dir():
        why = "is a file, not a folder" if path.exists() else "no such folder"
        raise InputError(f"--{flag}={value}: {why}")


def trained(folder: workdir_lib.Workdir) -> config_lib.Config:
    """The flags of a run that can be loaded, or so it seems.

    Args:
        folder: Of the run.

    Raises:
        InputError: There is no run or no checkpoint.
    """
    config = folder.read_config()
    _check_checkpoint(folder.checkpoints)
    return config


def _check_checkpoint(folder: pathlib.Path) -> None:
    if not any(folder.glob("*.index")):
        raise InputError(f"{folder}: no checkpoint yet")


def exported(path: pathlib.Path) -> config_lib.Config:
    """The flags of the run that an export is of.

    Args:
        path: The version's folder.

    Raises:
        InputError: It is no export of `simmatch_tf.export`.
    """
    # The layers above know this module.
    from simmatch_tf import config as config_lib

    try:
        text = (path / "model_card.json").read_text("utf-8")
        return config_lib.Config(**json.loads(text)["flags"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: is no export of simmatch_tf.export ({error})"
        ) from None


def check_format(kind: str) -> None:
    """Refuses an export's format whose packages are not there.

    Raises:
        InputError: It says how to install them.
    """
    for name in _NEEDED.get(kind, ()):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"--format={kind}: {name} is not installed; pip install "
                f"'simmatch_tf[{kind}]'"
            )


def check_reachable(flag: str, value: str, *, scheme: str = "") -> None:
    """Checks that something listens at an address.

    TensorFlow itself would try for ever.

    Raises:
        InputError: Nothing answers, for at most ten seconds.
    """
    try:
        socket.create_connection(
            checks.split_address(flag, value, scheme=scheme), timeout=10
        ).close()
    except OSError as error:
        raise InputError(
            f"--{flag}={value}: cannot be reached ({error.strerror or error}); "
            "does simmatch_tf.serve_data --role=dispatcher run there?"
        ) from None


def check_port(flag: str, port: int) -> None:
    """Checks that a port is free: gRPC would share it with who listens there.

    Raises:
        InputError: It is in use, or not for this user.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise InputError(
                f"--{flag}={port}: cannot be listened at ({error.strerror})"
            ) from None


def kind_of_weights(
    path: str, flag: str = "init_from"
) -> tuple[str, pathlib.Path]:
    """What a flag names that takes weights.

    Args:
        path: As given.
        flag: Its name.

    Returns:
        "workdir", "saved_model", "keras" or "h5"; and the folder or file. Of a
        folder of exported versions it is the newest.

    Raises:
        InputError: There is nothing, or nothing of these kinds.
    """
    found = pathlib.Path(os.path.expanduser(path))
    if found.is_file() and found.suffix in (".keras", ".h5"):
        return found.suffix[1:], found
    return _kind_of_folder(
        f"--{flag}={path}",
        found,
        "a run's folder (with flags.cfg), a SavedModel's (with "
        "saved_model.pb), or a .keras, .weights.h5 or .h5 file",
    )


def kind_of_model(flag: str, path: str) -> tuple[str, pathlib.Path]:
    """What a flag names that takes a run or an export.

    Args:
        flag: Its name.
        path: As given.

    Returns:
        "workdir" or "saved_model"; and the folder. Of a folder of exported
        versions it is the newest.

    Raises:
        InputError: There is nothing, or nothing of these kinds.
    """
    return _kind_of_folder(
        f"--{flag}={path}",
        pathlib.Path(os.path.expanduser(path)),
        "a run's folder (with flags.cfg) or an export's (with saved_model.pb)",
    )


def _kind_of_folder(
    given: str, found: pathlib.Path, wanted: str
) -> tuple[str, pathlib.Path]:
    if (found / "flags.cfg").is_file():
        return "workdir", found
    versions = [p for p in found.glob("*/saved_model.pb")]
    versions = [p.parent for p in versions if p.parent.name.isdecimal()]
    for folder in (found, *sorted(versions, key=lambda p: -int(p.name))):
        if (folder / "saved_model.pb").is_file():
            return "saved_model", folder
    if not found.exists():
        raise InputError(f"{given}: no such file or folder")
    for folder in (found, *found.glob("[0-9]*")):
        for name in ("model.tflite", "model.onnx"):
            if (folder / name).is_file():
                raise InputError(
                    f"{given}: holds {name}, which is for other programs; "
                    f"here must be {wanted}"
                )
    raise InputError(f"{given}: must be {wanted}")
