"""Process-wide settings of Keras and TensorFlow that a run needs.

~/.keras/keras.json, `keras.config.set_*` and `tf.config` decide for the whole
process how layers are made and graphs are compiled. A run's numbers depend on
its flags alone, so this module sets these settings for a run and restores them
afterwards. No other module sets them.
"""

import collections
import contextlib
import ctypes
import ctypes.util
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context as tf_context
from tensorflow.python.framework import config as tf_config

from simmatch_tf.flags.errors import InputError


class _Setting(NamedTuple):
    """A setting of the process, and the value that a run needs."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    wanted: Any


def _set_determinism(enabled: bool) -> None:
    if enabled:
        tf_config.enable_op_determinism()
    else:
        tf_config.disable_op_determinism()  # there is no public function


_SETTINGS = (
    _Setting(
        keras.config.image_data_format,
        keras.config.set_image_data_format,
        "channels_last",
    ),
    _Setting(keras.config.floatx, keras.config.set_floatx, "float32"),
    _Setting(keras.config.epsilon, keras.config.set_epsilon, 1e-7),
    _Setting(
        tf.config.functions_run_eagerly, tf.config.run_functions_eagerly, False
    ),
    _Setting(
        lambda: bool(tf.config.optimizer.get_jit()),
        lambda on: tf.config.optimizer.set_jit(
            "autoclustering" if on else False
        ),
        False,
    ),
    _Setting(
        tf.config.experimental.tensor_float_32_execution_enabled,
        tf.config.experimental.enable_tensor_float_32_execution,
        True,
    ),
    # On a CPU results are reproducible without it, and with it they differ.
    _Setting(
        tf_config.is_op_determinism_enabled,
        _set_determinism,
        bool(tf.config.list_physical_devices("GPU")),
    ),
)
# glibc's mallopt parameters (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_MANY_CORES = 8
# Number of `pinned` blocks in all threads; the first pins, the last restores.
_lock = threading.Lock()
_at_work = 0
_before: list[Any] = []


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Sets what a run needs, for a block that builds or uses networks.

    Blocks may be nested, and run in several threads at once; the last one to
    end restores the settings.
    """
    global _at_work
    # Keras keeps it for each thread. None stands for floatx, until it is read.
    policy = global_state.get_global_attribute("dtype_policy")
    with _lock:
        if not _at_work:
            _before[:] = [setting.read() for setting in _SETTINGS]
        _at_work += 1
        pin()
    try:
        yield
    finally:
        global_state.set_global_attribute("dtype_policy", policy)
        with _lock:
            _at_work -= 1
            for setting, value in zip(_SETTINGS, _before, strict=True):
                setting.write(setting.wanted if _at_work else value)


def pin() -> None:
    """Sets what a run needs for the rest of the process, as for a command."""
    for setting in _SETTINGS:
        setting.write(setting.wanted)
    keras.config.set_dtype_policy("float32")


def check_exact() -> None:
    """Checks a setting that changes a run's last bits and cannot be restored.

    Raises:
        InputError: The program has set the number of threads.
    """
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    if threads:
        raise InputError(
            "tf.config.threading.set_intra_op_parallelism_threads was given "
            f"{threads}: the last bits of a run depend on the number of "
            "threads, which is that of the processors; start another process"
        )


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds initial weights, and restores all random states afterwards.

    Args:
        seed: Random seed of the run.
    """
    python, numpy = random.getstate(), np.random.get_state()
    # Neither library has a function that returns its seed.
    tensorflow = tf_context.context()
    names = ("_seed", "_rng")
    tensorflows = {name: getattr(tensorflow, name, None) for name in names}
    names = ("global_random_seed", "global_seed_generator")
    kerases = {name: global_state.get_global_attribute(name) for name in names}
    keras.utils.set_random_seed(seed)
    try:
        yield
    finally:
        for name, value in kerases.items():
            global_state.set_global_attribute(name, value)
        for name, value in tensorflows.items():
            setattr(tensorflow, name, value)
        np.random.set_state(numpy)
        random.setstate(python)


@contextlib.contextmanager
def names_apart() -> Iterator[None]:
    """Lets a body build networks, and leaves no trace in names of others.

    Keras numbers layers that have no name, in files and checkpoints too: those
    of the first network that is built after the body are called as without it.
    """
    name = "object_name_uids"
    before = dict(global_state.get_global_attribute(name) or {})
    try:
        yield
    finally:
        global_state.set_global_attribute(
            name, collections.defaultdict(int, before)
        )


def keep_memory() -> bool:
    """Tells the C library to keep freed memory in the process.

    A training step on the CPU allocates and frees the same large buffers again
    and again. By default each is mapped and unmapped, and the kernel clears its
    pages every time, which takes up to a quarter of the step, depending on the
    machine (measured by tools/benchmarks/benchmark_step.py --noallocator). The
    process keeps the most memory that it ever had.

    Returns:
        Whether the setting was made: False if the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(ctypes.util.find_library("c")).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    done = mallopt(_MMAP_MAX, 0)
    done &= mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    done &= mallopt(_TOP_PAD, 2**28)
    # One arena is one lock: too few where many threads allocate at once.
    if (os.cpu_count() or 1) < _MANY_CORES:
        done &= mallopt(_ARENA_MAX, 1)
    return bool(done)
