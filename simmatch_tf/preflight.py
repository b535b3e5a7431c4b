"""What must hold on this machine before TensorFlow is imported.

Folders, files and addresses that flags name must exist. A run's numbers depend
on its flags alone, so environment variables that would change them are refused
by name, or overruled. Settings that Keras and TensorFlow take after their
import are in `runtime`.
"""

import csv
import importlib.util
import json
import math
import os
import pathlib
import re
import socket
import sys
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf import io, registry, terminal
from simmatch_tf.flags import commandline, flagfiles
from simmatch_tf.flags.errors import InputError

# Whether TensorFlow uses oneDNN's CPU kernels: 1 by default, 0 for tests and
# for processors on which oneDNN fails. TF_ENABLE_ONEDNN_OPTS of the user's
# shell is not read.
ONEDNN = "SIMMATCH_TF_ONEDNN"
_TENSORFLOWS_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
# Pattern of the environment variables that are refused → pattern of the values,
# and the reason.
_REFUSED = {
    "KERAS_BACKEND": (r"(?!tensorflow$).+", "must be tensorflow"),
    "TF_USE_LEGACY_KERAS": (
        r"(?i)\s*(1|true)\s*",
        "makes tf.keras another library than Keras 3, which is needed",
    ),
    "TF_XLA_FLAGS": (
        r".*(auto_jit=[12]|global_jit(?!=(false|0))).*",
        "makes XLA compile everything, which changes the numbers; train "
        "--jit_compile compiles the step",
    ),
    "XLA_FLAGS": (
        r".*(fast_math(?!=(false|0))|excess_precision).*",
        "makes XLA compute in another precision",
    ),
    "(ONEDNN_DEFAULT|DNNL_DEFAULT|TF_SET_ONEDNN)_FPMATH_MODE": (
        r"(?i)(?!strict$).+",
        "makes matrix products use another precision; choose it by --precision",
    ),
    "NVIDIA_TF32_OVERRIDE": (
        r"\s*0\s*",
        "makes a GPU multiply in another precision than in other runs",
    ),
    "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": (
        r"(?i)\s*(1|true)\s*",
        "makes layers keep the weights of their first call, and training fail",
    ),
    "KERAS_NNX_ENABLED": (
        r"(?i)\s*(1|true)\s*",
        "makes Keras use variables of another library",
    ),
    "(TF_)?XLA_FLAGS": (
        r"\s*[^-\s].*",
        "names a file of flags, which cannot be checked here; write the flags "
        "out instead",
    ),
}
# Those that change only the last bits; refused if results must be exact.
_REFUSED_OF_RUNS = {
    "(ONEDNN|DNNL)_MAX_CPU_ISA|OPENBLAS_CORETYPE": (
        r".+",
        "selects other CPU kernels, which changes the last bits",
    ),
}
_THREADS = "TF_NUM_INTRAOP_THREADS"
# Format of an export → the modules that its extra installs.
_NEEDED = {
    "litert": ("ai_edge_litert",),
    "onnx": ("tf2onnx", "onnxruntime"),
}
# End of the message if the images of an exported run do not exist.
GIVE_IMAGES = (
    ". An export is compared with the training network on real images: give "
    "the dataset's new location by --data_dir or --tfds_dir, or any images by "
    "--images"
)
NO_MEMORY = (
    "the run has no memory of labeled images, as --algorithm=simmatch has: "
    "nothing can be explained by them"
)
# The head that a file of --class_prior may have, and how far from 1 its shares
# may sum to, as they are rounded.
_SHARES_HEAD = ["class", "share"]
_SHARES_MISS = 0.005
# Whether this module imported TensorFlow, and so chose its kernels.
_imported = False
_onednn_has_spoken = False


def check_environment(*, exact: bool = True) -> None:
    """Checks the environment variables.

    Args:
        exact: Whether results must be reproducible to the last bit.

    Raises:
        InputError: A variable would change the result, or prevent it.
    """
    refused = _REFUSED | (_REFUSED_OF_RUNS if exact else {})
    for name, value in os.environ.items():
        for names, (values, reason) in refused.items():
            if re.fullmatch(names, name) and re.fullmatch(values, value):
                raise InputError(f"{name}={value}: {reason}; unset it")
    if exact:
        _check_threads(os.environ.get(_THREADS, "0").strip())


def _check_threads(value: str) -> None:
    """Sums of floats depend on the number of threads that compute them."""
    count = processors()
    if value in ("", "0", str(count)) or not value.isdecimal():
        return  # TensorFlow ignores what is not a number
    raise InputError(
        f"{_THREADS}={value}: the last bits of a result depend on the number "
        f"of threads, which must be that of the processors, {count}; unset it, "
        f"or start the command as taskset -c 0-{int(value) - 1} …, which gives "
        "it fewer processors"
    )


def processors() -> int:
    """Returns the number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_kernels(*, fast: bool = True) -> None:
    """Chooses the CPU kernels that TensorFlow will use once it is imported.

    Args:
        fast: Whether to use those of oneDNN, as in training. On any x86
            processor they save a third of a step or more, and TensorFlow uses
            them by default on some processors only. Otherwise the default,
            as for serving: with oneDNN the rounding of an image's result
            depends on its batch, and an empty batch has the wrong shape.
    """
    wanted = os.environ.get(ONEDNN, "1" if fast else None)
    if wanted is None:
        os.environ.pop(_TENSORFLOWS_ONEDNN, None)
    else:
        os.environ[_TENSORFLOWS_ONEDNN] = wanted


def load_tensorflow(*, fast: bool = True) -> None:
    """Imports TensorFlow without its messages, and looks for GPUs.

    Args:
        fast: See `choose_kernels`. If true, results must be exact, too; see
            `check_environment`.

    Raises:
        InputError: An environment variable would change the result.
    """
    global _imported
    check_environment(exact=fast)
    if "tensorflow" in sys.modules:
        return
    before = os.environ.get(_TENSORFLOWS_ONEDNN)
    choose_kernels(fast=fast)
    try:
        with terminal.without_noise():
            import tensorflow as tf

            tf.config.list_physical_devices()  # it prints messages of its own
        _imported = fast
    finally:
        # It has been read; other programs get its former value.
        os.environ.pop(_TENSORFLOWS_ONEDNN, None)
        if before is not None:
            os.environ[_TENSORFLOWS_ONEDNN] = before


def silence_onednn() -> None:
    """Provokes and suppresses oneDNN's one message about missing AVX-512.

    Once a process, at the first transposition of bytes, oneDNN prints as an
    error that TensorFlow's own kernels are used. To be called after devices
    and workers are set up, which the first operation fixes.
    """
    global _onednn_has_spoken
    if _onednn_has_spoken:
        return
    import tensorflow as tf

    with terminal.without_noise(), tf.device("CPU"):
        tf.transpose(tf.zeros([1, 2], tf.uint8))
    _onednn_has_spoken = True


def start(*, fast: bool = True, loud: bool = True) -> None:
    """Imports TensorFlow for a command, and sets it up for the whole process.

    Args:
        fast: See `choose_kernels`.
        loud: Whether to print that TensorFlow is loaded.
    """
    if loud and "tensorflow" not in sys.modules:
        terminal.say("loading TensorFlow")
    load_tensorflow(fast=fast)
    from simmatch_tf import runtime

    runtime.pin()


def warn_of_kernels() -> None:
    """Warns if the calling program imported TensorFlow with other kernels."""
    if _imported or os.environ.get(ONEDNN, "1") != "1":
        return
    try:
        from tensorflow.python.util import _pywrap_util_port as port

        enabled = port.IsMklEnabled()
    except (ImportError, AttributeError):
        return  # this TensorFlow does not tell
    if not enabled:
        terminal.warn(
            "TensorFlow was imported before simmatch_tf.fit, without oneDNN's "
            "kernels: results differ from those of the command in their last "
            "bits. Name simmatch_tf.fit first, or set "
            f"{_TENSORFLOWS_ONEDNN}=1"
        )


# ----------------------------------------------------- what flags name --


def check_available(
    config: config_lib.Config, *, resumed: bool = False
) -> None:
    """Checks what a run's flags name: datasets, folders, files, addresses.

    Args:
        config: The flags.
        resumed: The run was begun before, so that its split is in its folder
            and its data are prepared.

    Raises:
        InputError: Something does not exist.
    """
    check_environment()
    if config.data_service is not None:
        check_reachable("data_service", config.data_service, scheme="grpc://")
    check_images(config)
    if not resumed:
        check_folder("tfds_manual_dir", config.tfds_manual_dir)
        if missing := registry.networks.fact(config.backbone, "missing"):
            raise InputError(f"--backbone={config.backbone}{missing}")
    for name in () if resumed else ("labeled_list", "split_file"):
        value = getattr(config, name)
        if value is None or value in config_lib.SUBSETS:
            continue
        if not io.expand(value).is_file():
            raise InputError(f"--{name}={value}: no such file")
    if not resumed and (prior := config.class_prior_file()) is not None:
        class_shares(prior)
    if config.init_from is not None and not resumed:
        kind, path = kind_of_weights(config.init_from)
        if kind == "workdir":
            check_checkpoint(path / "checkpoints")


def class_shares(path: str) -> dict[str, float]:
    """Reads the class shares in a file that --class_prior names.

    It has a class and its share on each line, separated by a comma, a
    semicolon or a tab, and may begin with the head "class,share". Shares are
    fractions, or per cent with a % behind each; with another separator than a
    comma, they may have a decimal comma.

    Args:
        path: The file.

    Returns:
        Class → share, above 0. They sum to 1.

    Raises:
        InputError: The file cannot be read, a line is something else, a class
            is given twice, or the shares do not sum to 1.
    """
    given = f"--class_prior={path}"
    if not io.expand(path).is_file():
        raise InputError(f"{given}: must be uniform, labeled, or a CSV file")
    lines = io.read_text(io.expand(path), given).splitlines()
    first = next((line for line in lines if line.strip()), "")
    separator = next((sign for sign in "\t;" if sign in first), ",")
    shares: dict[str, float] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        (cells,) = csv.reader([line], delimiter=separator)
        cells = [cell.strip() for cell in cells]
        if not shares and [cell.lower() for cell in cells] == _SHARES_HEAD:
            continue
        text = cells[1] if len(cells) == 2 else ""
        if separator != ",":
            text = text.replace(",", ".")
        try:
            share = float(text.removesuffix("%"))
            share /= 100 if text.endswith("%") else 1
        except ValueError:
            share = math.nan
        if not (cells[0] and math.isfinite(share)):
            raise InputError(
                f"{given}, line {number}: {line!r}: must be a class and its "
                "share, such as cat,0.25"
            )
        if not 0 < share <= 1:
            raise InputError(
                f"{given}, line {number}: the share of {cells[0]} is {text}: "
                "must be above 0, so that the class can be a pseudo-label, and "
                "at most 1 (write 25% for per cent)"
            )
        name = io.nfc(cells[0])
        if name in shares:
            raise InputError(
                f"{given}, line {number}: class {cells[0]} is given twice"
            )
        shares[name] = share
    total = math.fsum(shares.values())
    if abs(total - 1) > _SHARES_MISS:
        raise InputError(
            f"{given}: the shares of {len(shares)} classes sum to {total:.4g}: "
            "must sum to 1"
        )
    return {name: share / total for name, share in shares.items()}


def check_images(config: config_lib.Config) -> None:
    """Checks that the images of a run exist.

    Raises:
        InputError: There is no such dataset or folder, or the folder has
            another layout.
    """
    check_folder("data_dir", config.data_dir)
    entry, _ = registry.sources.find(config.dataset)
    if "check_images" in entry.facts:
        entry.facts["check_images"](config)


def check_folder(flag: str, value: str | None) -> None:
    """Checks that the folder that a flag names, if any, exists.

    Raises:
        InputError: It does not.
    """
    if value is None or (path := io.expand(value)).is_dir():
        return
    reason = "is a file, not a folder" if path.exists() else "no such folder"
    raise InputError(f"--{flag}={value}: {reason}")


def check_checkpoint(folder: pathlib.Path, hint: str = "") -> None:
    """Checks that a folder holds a checkpoint.

    Args:
        folder: The folder.
        hint: What to say if it does not.

    Raises:
        InputError: It holds none.
    """
    if not any(folder.glob("*.index")):
        raise InputError(f"{folder}: no checkpoint yet{hint}")


def exported_flags(path: pathlib.Path) -> dict[str, Any]:
    """Reads the flags of the run that was exported, as they were recorded.

    Args:
        path: Folder of the version.

    Raises:
        InputError: The folder is not an export of `simmatch_tf.export`.
    """
    try:
        card = json.loads((path / "model_card.json").read_text("utf-8"))
        return dict(card["flags"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: is no export of simmatch_tf.export ({error})"
        ) from None


def exported(path: pathlib.Path) -> config_lib.Config:
    """Returns the flags of the run that was exported.

    Args:
        path: Folder of the version.

    Raises:
        InputError: The folder is not an export of `simmatch_tf.export`, or a
            flag is wrong, such as a plugin that does not exist.
    """
    flags = exported_flags(path)
    try:
        return config_lib.Config.from_recorded(flags)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_format(kind: str) -> None:
    """Refuses an export format whose packages are not installed.

    Raises:
        InputError: The message says how to install them.
    """
    for name in _NEEDED.get(kind, ()):
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"--format={kind}: {name} is not installed; pip install "
                f"'simmatch_tf[{kind}]'"
            )


def check_reachable(flag: str, value: str, *, scheme: str = "") -> None:
    """Checks that a server listens at an address.

    TensorFlow itself would try for ever.

    Raises:
        InputError: No server answers within ten seconds.
    """
    try:
        socket.create_connection(
            commandline.check_address(flag, value, scheme=scheme), timeout=10
        ).close()
    except OSError as error:
        raise InputError(
            f"--{flag}={value}: cannot be reached ({error.strerror or error}); "
            "does simmatch_tf.serve_data --role=dispatcher run there?"
        ) from None


def check_port(flag: str, port: int) -> None:
    """Checks that a port is free; gRPC would share it with another server.

    Raises:
        InputError: The port is in use, or not allowed for this user.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise InputError(
                f"--{flag}={port}: cannot be listened on ({error.strerror})"
            ) from None


def kind_of_weights(
    path: str, flag: str = "init_from"
) -> tuple[str, pathlib.Path]:
    """Finds out what a flag that takes weights names.

    Args:
        path: Value of the flag.
        flag: Name of the flag.

    Returns:
        "workdir", "saved_model", "keras" or "h5"; and the folder or file. For a
        folder of exported versions it is that of the newest. "imagenet" and a
        path of no meaning for published weights.

    Raises:
        InputError: The path does not exist, or is of no such kind.
    """
    place = io.expand(path)
    if path == config_lib.PUBLISHED:
        return path, place
    if place.is_file() and place.suffix in (".keras", ".h5"):
        return place.suffix[1:], place
    return _kind_of_folder(
        f"--{flag}={path}",
        place,
        "imagenet, a run's folder (with flags.cfg), a SavedModel's (with "
        "saved_model.pb), or a .keras, .weights.h5 or .h5 file",
    )


def may_have_memory(config: config_lib.Config) -> bool:
    """Returns whether a run has the flags by which its memory explains."""
    return {"alpha", "temperature"} <= config.fields().keys()


def kind_of_model(flag: str, path: str) -> tuple[str, pathlib.Path]:
    """Finds out what a flag that takes a run or an export names.

    Args:
        flag: Name of the flag.
        path: Value of the flag.

    Returns:
        "workdir" or "saved_model"; and the folder. For a folder of exported
        versions it is that of the newest.

    Raises:
        InputError: The path does not exist, or is of no such kind.
    """
    return _kind_of_folder(
        f"--{flag}={path}",
        io.expand(path),
        "a run's folder (with flags.cfg) or an export's (with saved_model.pb)",
    )


def _kind_of_folder(
    given: str, place: pathlib.Path, wanted: str
) -> tuple[str, pathlib.Path]:
    if (place / flagfiles.OF_RUN).is_file():
        return "workdir", place
    versions = [p for p in place.glob("*/saved_model.pb")]
    versions = [p.parent for p in versions if p.parent.name.isdecimal()]
    for folder in (place, *sorted(versions, key=lambda p: -int(p.name))):
        if (folder / "saved_model.pb").is_file():
            return "saved_model", folder
    if not place.exists():
        raise InputError(f"{given}: no such file or folder")
    for folder in (place, *place.glob("[0-9]*")):
        for name in ("model.tflite", "model.onnx"):
            if (folder / name).is_file():
                raise InputError(
                    f"{given}: holds {name}, which is for other programs; "
                    f"here must be {wanted}"
                )
    raise InputError(f"{given}: must be {wanted}")
