"""What must hold on this machine before TensorFlow is imported.

Flags name folders, files and addresses, which are looked for here: a wrong one
is answered at once. A run's numbers are decided by its flags alone: variables
of the environment that would change them are refused by name, or overruled.
What Keras and TensorFlow can be told later is in `runtime`.
"""

import importlib.util
import json
import os
import pathlib
import re
import socket
import sys

from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf import registry, terminal
from simmatch_tf.flags import commandline, flagfiles
from simmatch_tf.flags.errors import InputError

# A CPU's kernels: oneDNN's where it is 1. Ours, for tests and for processors on
# which oneDNN fails; TF_ENABLE_ONEDNN_OPTS of the user's shell is not read.
ONEDNN = "SIMMATCH_TF_ONEDNN"
_TENSORFLOWS_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
# Variable, what stands in it, why it is refused.
_REFUSED = (
    (
        "TF_USE_LEGACY_KERAS",
        r"(?i)\s*(1|true)\s*",
        "makes tf.keras another library than the Keras 3 that is needed here",
    ),
    (
        "TF_XLA_FLAGS",
        r".*(auto_jit=[12]|global_jit(?!=(false|0))).*",
        "has XLA compile all that TensorFlow runs, with other numbers; "
        "--jit_compile of train compiles the step",
    ),
    (
        "XLA_FLAGS",
        r".*(fast_math(?!=(false|0))|excess_precision).*",
        "has XLA compute in another precision",
    ),
    *(
        (
            f"{library}_FPMATH_MODE",
            r"(?i)(?!strict$).+",
            "has matrices multiplied in another precision; --precision says "
            "in which",
        )
        for library in ("ONEDNN_DEFAULT", "DNNL_DEFAULT", "TF_SET_ONEDNN")
    ),
    (
        "NVIDIA_TF32_OVERRIDE",
        r"\s*0\s*",
        "has a GPU multiply in another precision than runs elsewhere",
    ),
    (
        "TF_ONEDNN_ASSUME_FROZEN_WEIGHTS",
        r"(?i)\s*(1|true)\s*",
        "has layers keep the weights of their first call, and training fail",
    ),
    *(
        (
            name,
            r"\s*[^-\s].*",
            "names a file of flags, which is not looked into here; write them "
            "out instead",
        )
        for name in ("TF_XLA_FLAGS", "XLA_FLAGS")
    ),
    (
        "KERAS_NNX_ENABLED",
        r"(?i)\s*(1|true)\s*",
        "makes Keras' variables those of another library",
    ),
)
# Likewise; it changes the last bits only, so only what must be exact minds.
_REFUSED_OF_RUNS = tuple(
    (name, r".+", "has a processor take other kernels, with other last bits")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE")
)
_THREADS = "TF_NUM_INTRAOP_THREADS"
# What Keras takes in keras.json.
_FLOATX = ("float16", "float32", "float64")
_FORMATS = ("channels_last", "channels_first")
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
# Whether this module has imported TensorFlow: then its kernels are ours.
_imported = False
_onednn_has_spoken = False


def check_environment(*, exact: bool = True) -> None:
    """Checks the environment's variables.

    Args:
        exact: Whether what follows gives a run's numbers, to the last bit.

    Raises:
        InputError: One would give another result, or none.
    """
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise InputError(f"KERAS_BACKEND={backend}: must be tensorflow")
    for name, pattern, why in _REFUSED + _REFUSED_OF_RUNS * exact:
        value = os.environ.get(name, "")
        if re.fullmatch(pattern, value):
            raise InputError(f"{name}={value}: {why}; unset it")
    _check_keras_json()
    if exact:
        _check_threads(os.environ.get(_THREADS, "0").strip())


def _check_keras_json() -> None:
    """Names the file of settings that Keras could not be imported with.

    What else stands in it decides nothing; see `runtime`.
    """
    home = os.environ.get("KERAS_HOME", os.path.join("~", ".keras"))
    path = os.path.expanduser(os.path.join(home, "keras.json"))
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError):
        return  # Keras goes on without it, too
    wrong = None
    if not isinstance(content, dict):
        wrong = f"it holds {content!r}, where settings by name are wanted"
    elif content.get("nnx_enabled"):
        wrong = "nnx_enabled makes Keras' variables those of another library"
    elif content.get("floatx", "float32") not in _FLOATX:
        wrong = f"floatx is {content['floatx']!r}: must be one of {_FLOATX}"
    elif not isinstance(content.get("epsilon", 1e-7), float):
        wrong = f"epsilon is {content['epsilon']!r}: must be a fraction"
    elif content.get("image_data_format", _FORMATS[0]) not in _FORMATS:
        wrong = (
            f"image_data_format is {content['image_data_format']!r}: must be "
            f"one of {_FORMATS}"
        )
    if wrong:
        raise InputError(f"{path}: {wrong}; mend or remove the file")


def _check_threads(value: str) -> None:
    """Sums of floats depend on how many threads they are divided over."""
    count = processors()
    if value in ("", "0", str(count)) or not value.isdecimal():
        return  # what is no number TensorFlow ignores
    raise InputError(
        f"{_THREADS}={value}: the last bits of a result depend on the number "
        f"of threads, which is that of the processors, {count}; unset it, "
        f"or start the command as taskset -c 0-{int(value) - 1} …, which gives "
        "it fewer of them"
    )


def processors() -> int:
    """Processors that this process may use: TensorFlow's default."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_kernels(*, fast: bool = True) -> None:
    """Says which of a CPU's kernels TensorFlow takes once it is imported.

    Args:
        fast: oneDNN's, as in training. They are faster than TensorFlow's own
            on any x86 processor, a third of a step and more, and TensorFlow
            takes them by itself on some only. Not for what serves, which has
            what TensorFlow takes by itself: there the rounding of an image's
            figures would depend on its batch, and an empty batch would come
            out in the wrong shape.
    """
    wanted = os.environ.get(ONEDNN, "1" if fast else None)
    if wanted is None:
        os.environ.pop(_TENSORFLOWS_ONEDNN, None)
    else:
        os.environ[_TENSORFLOWS_ONEDNN] = wanted


def load_tensorflow(*, fast: bool = True) -> None:
    """Imports TensorFlow, without its noise, and looks for GPUs.

    Args:
        fast: See `choose_kernels`. Then a run's numbers must be exact, too;
            see `check_environment`.

    Raises:
        InputError: A variable of the environment would change the result.
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

            tf.config.list_physical_devices()  # it has noise of its own
        _imported = fast
    finally:
        # It was read; to other programs it says what it said.
        os.environ.pop(_TENSORFLOWS_ONEDNN, None)
        if before is not None:
            os.environ[_TENSORFLOWS_ONEDNN] = before


def silence_onednn() -> None:
    """Has oneDNN say what it lacks where nobody needs to read it.

    Without AVX-512 it says once a process, as an error, that TensorFlow's own
    kernels take bytes: at the first transposition of some. Only after devices
    and workers are set up: an operation fixes them.
    """
    global _onednn_has_spoken
    if _onednn_has_spoken:
        return
    import tensorflow as tf

    with terminal.without_noise(), tf.device("CPU"):
        tf.transpose(tf.zeros([1, 2], tf.uint8))
    _onednn_has_spoken = True


def start(*, fast: bool = True, loud: bool = True) -> None:
    """Imports TensorFlow for a command, whose process is ours.

    Args:
        fast: See `choose_kernels`.
        loud: Say so.
    """
    if loud and "tensorflow" not in sys.modules:
        terminal.say("loading TensorFlow")
    load_tensorflow(fast=fast)
    from simmatch_tf import runtime

    runtime.pin()


def warn_of_kernels() -> None:
    """Warns if the program imported TensorFlow itself, with other kernels."""
    if _imported or os.environ.get(ONEDNN, "1") != "1":
        return
    try:
        from tensorflow.python.util import _pywrap_util_port as port

        enabled = port.IsMklEnabled()
    except (ImportError, AttributeError):
        return  # TensorFlow says it to nobody
    if not enabled:
        logging.warning(
            "TensorFlow was imported before simmatch_tf.fit, without oneDNN's "
            "kernels: the last bits are not those of the command. Name "
            "simmatch_tf.fit first, or set %s=1",
            _TENSORFLOWS_ONEDNN,
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
        InputError: Something is not there.
    """
    check_environment()
    if config.data_service is not None:
        check_reachable("data_service", config.data_service, scheme="grpc://")
    check_images(config)
    if not resumed:
        _check_folder("tfds_manual_dir", config.tfds_manual_dir)
    for name in () if resumed else ("labeled_list", "split_file"):
        value = getattr(config, name)
        if value is None or value in config_lib.SUBSETS:
            continue
        if not pathlib.Path(value).expanduser().is_file():
            raise InputError(f"--{name}={value}: no such file")
    if config.init_from is not None and not resumed:
        kind, path = kind_of_weights(config.init_from)
        if kind == "workdir":
            check_checkpoint(path / "checkpoints")


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


def check_checkpoint(folder: pathlib.Path) -> None:
    """Checks that a folder holds a checkpoint.

    Raises:
        InputError: It holds none.
    """
    if not any(folder.glob("*.index")):
        raise InputError(f"{folder}: no checkpoint yet")


def exported(path: pathlib.Path) -> config_lib.Config:
    """The flags of the run that an export is of.

    Args:
        path: The version's folder.

    Raises:
        InputError: It is no export of `simmatch_tf.export`.
    """
    try:
        text = (path / "model_card.json").read_text("utf-8")
        return config_lib.Config.from_recorded(json.loads(text)["flags"])
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
            commandline.check_address(flag, value, scheme=scheme), timeout=10
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
    if (found / flagfiles.OF_RUN).is_file():
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
