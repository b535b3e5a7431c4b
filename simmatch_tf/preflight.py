"""What must hold before TensorFlow is imported, and that import.

A run's numbers are decided by its flags. Variables of the environment that
would change them are set here, or refused by name; what Keras and TensorFlow
can be told later is in `runtime`.
"""

import json
import os
import re
import sys

from simmatch_tf import terminal
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
# Whether this module has imported TensorFlow: then its kernels are ours.
_imported = False
_onednn_has_spoken = False


def check(*, exact: bool = True) -> None:
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
            see `check`.

    Raises:
        InputError: A variable of the environment would change the result.
    """
    global _imported
    check(exact=fast)
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


def other_kernels() -> str | None:
    """What to warn of where a program has imported TensorFlow before a run."""
    if _imported or os.environ.get(ONEDNN, "1") != "1":
        return None
    try:
        from tensorflow.python.util import _pywrap_util_port as port

        enabled = port.IsMklEnabled()
    except (ImportError, AttributeError):
        return None  # TensorFlow says it to nobody
    if enabled:
        return None
    return (
        "TensorFlow was imported before simmatch_tf.fit, without oneDNN's "
        "kernels: the last bits are not those of the command. Name "
        f"simmatch_tf.fit first, or set {_TENSORFLOWS_ONEDNN}=1"
    )
