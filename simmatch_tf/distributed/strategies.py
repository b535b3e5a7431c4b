"""The devices a run trains on, as a tf.distribute.Strategy, and its input."""

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, signals, terminal
from simmatch_tf.distributed import cluster as cluster_lib
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError

# Flags whose values may differ between workers.
_PER_WORKER = (*config_lib.PATHS, "workdir", "progress", "parallel_calls")
# TensorFlow connects workers that have met within this time.
_CONNECT_SECONDS = 60

# Precision → flags in /proc/cpuinfo of processors that compute in it.
_COMPUTE = {
    "mixed_bfloat16": ("avx512_bf16", "amx_bf16", "bf16"),
    "mixed_float16": ("avx512_fp16", "amx_fp16", "asimdhp"),
}

_mirrored: dict[tuple[str, ...], tf.distribute.Strategy] = {}


def one() -> tf.distribute.Strategy:
    """Returns the strategy of one device: the first GPU, or else the CPU."""
    _check_backend()
    gpus = tf.config.list_logical_devices("GPU")
    if gpus:
        tf.config.experimental.enable_op_determinism()
    preflight.silence_onednn()
    return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")


def make(config: config_lib.Config) -> tf.distribute.Strategy:
    """Returns the strategy that a run's flags ask for.

    Raises:
        InputError: There are fewer devices, or the batch does not divide by
            their number.
    """
    _check_backend()
    if config.strategy == "tpu" or config.tpu is not None:
        return _tpu(config)
    strategy = _choose(config)
    if not tf.config.list_physical_devices("GPU"):
        _warn_of_precision(config.precision)
    config.check_compiles(strategy.num_replicas_in_sync)
    preflight.silence_onednn()
    return strategy


def _choose(config: config_lib.Config) -> tf.distribute.Strategy:
    """Chooses GPUs or the CPU, of this process or of all workers."""
    cluster = cluster_lib.of(config)
    if cluster is not None:
        return _multi_worker(config, cluster)
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    count = config.devices
    if count is None:
        # A CPU is one device, unless told otherwise.
        uses_all = config.strategy == "mirrored" or kind == "GPU"
        if config.strategy == "one" or not uses_all:
            return one()
        count = len(tf.config.list_logical_devices(kind))
    if count == 1:
        return one()
    names = _devices(kind, count)
    config.check_divides(count)
    if kind == "GPU":
        tf.config.experimental.enable_op_determinism()
    terminal.say(f"training on {', '.join(names)}")
    return mirrored(tuple(names))


def _multi_worker(
    config: config_lib.Config, cluster: cluster_lib.Cluster
) -> tf.distribute.Strategy:
    """Uses all GPUs of each worker, or --devices of them; else their CPUs."""
    gpus = tf.config.list_physical_devices("GPU")
    wanted = config.devices or len(gpus) or 1
    if wanted > max(len(gpus), 1):
        raise InputError(
            f"--devices={wanted}: worker {cluster.index} has {len(gpus)} GPUs"
            + ("" if gpus else ", and its CPU is one device")
        )
    if gpus:
        tf.config.set_visible_devices(gpus[:wanted], "GPU")
        tf.config.experimental.enable_op_determinism()
    config.check_divides(wanted * len(cluster.workers))
    terminal.say(
        f"this is worker {cluster.index} of 0 to {len(cluster.workers) - 1}; "
        f"devices of each worker: {wanted}"
    )
    flags = config.to_flagfile(without=_PER_WORKER)
    cluster_lib.meet(cluster, config.worker_timeout, flags)
    try:
        with signals.held(_CONNECT_SECONDS):
            return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.OpError, RuntimeError) as error:
        raise InputError(
            f"TF_CONFIG: the workers {', '.join(cluster.workers)} cannot be "
            f"brought together ({errors.reason(error)})"
        ) from None


def _tpu(config: config_lib.Config) -> tf.distribute.Strategy:
    """Uses all cores of a TPU."""
    name = config.tpu or "local"
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
        if name != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        strategy = tf.distribute.TPUStrategy(resolver)
    # TensorFlow raises errors of many types.
    except Exception as error:
        raise InputError(
            f"--tpu={name}: cannot be reached ({errors.reason(error)[:200]}); "
            "TensorFlow must be built for TPUs"
        ) from None
    cores = strategy.num_replicas_in_sync
    if config.devices not in (None, cores):
        raise InputError(
            f"--devices={config.devices}: the TPU has {cores} cores, and all "
            "are used; leave it out"
        )
    config.check_divides(cores)
    return strategy


def iterate(
    strategy: tf.distribute.Strategy,
    dataset: Callable[[tf.distribute.InputContext], tf.data.Dataset],
) -> Iterator[Any]:
    """Iterates over batches for all replicas of this process.

    Args:
        strategy: The strategy of these replicas.
        dataset: Makes the dataset of one input pipeline. The context gives the
            number of pipelines and the index of this one. The dataset has one
            element for each of its replicas in turn.

    Returns:
        An iterator over what `strategy.run` takes: each replica's own share.
    """
    devices = strategy.extended.worker_devices
    if _are_copied_to(devices):
        return iter(strategy.distribute_datasets_from_function(dataset))
    # An iterator that copies to devices starts an autotuning thread that sleeps
    # for up to a minute, and the end of a run waits for it. Where nothing is
    # copied, each replica reads a dataset of its own instead.
    if len(devices) == 1:
        return iter(dataset(_only_context(strategy)))
    options = tf.distribute.InputOptions(
        experimental_fetch_to_device=False,
        experimental_replication_mode=(
            tf.distribute.InputReplicationMode.PER_REPLICA
        ),
    )
    return iter(strategy.distribute_datasets_from_function(dataset, options))


def _are_copied_to(devices: tuple[str, ...]) -> bool:
    """Whether batches are copied to these devices."""
    return any("CPU" not in device for device in devices)


def _only_context(
    strategy: tf.distribute.Strategy,
) -> tf.distribute.InputContext:
    """The input context of a process that has one replica."""
    number = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(context.replica_id_in_sync_group)
    )
    (number,) = strategy.experimental_local_results(number)
    replicas = strategy.num_replicas_in_sync
    return tf.distribute.InputContext(replicas, int(number), replicas)


def mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    """Returns a strategy with a replica on each device.

    A process has one such strategy: collective operations of a second one would
    have the same numbers, and TensorFlow would mix them up.

    Raises:
        InputError: This process has used other devices.
    """
    if devices not in _mirrored:
        for others in _mirrored:
            raise InputError(
                f"--devices={len(devices)}: this process has trained on "
                f"{len(others)}, and TensorFlow cannot change that; start "
                "another process"
            )
        _mirrored[devices] = tf.distribute.MirroredStrategy(devices)
    return _mirrored[devices]


def _warn_of_precision(
    precision: str, cpuinfo: pathlib.Path = pathlib.Path("/proc/cpuinfo")
) -> None:
    """Warns of a precision that the CPU must emulate."""
    try:
        words = set(cpuinfo.read_text("utf-8", "replace").split())
    except OSError:
        return  # not Linux
    wanted = _COMPUTE.get(precision)
    if wanted and not words.intersection(wanted):
        terminal.warn(
            f"--precision={precision}: this processor has no instructions for "
            "it; a step takes many times as long as in float32"
        )


def _check_backend() -> None:
    if keras.backend.backend() != "tensorflow":
        raise InputError(
            f"KERAS_BACKEND={keras.backend.backend()}: must be tensorflow"
        )


def _devices(kind: str, count: int) -> list[str]:
    """Names `count` devices; the CPU is divided into as many logical ones.

    Raises:
        InputError: There are fewer.
    """
    devices = tf.config.list_physical_devices(kind)
    if kind == "CPU":
        try:
            if not tf.config.get_logical_device_configuration(devices[0]):
                tf.config.set_logical_device_configuration(
                    devices[0],
                    [tf.config.LogicalDeviceConfiguration()] * count,
                )
        except RuntimeError:
            pass  # TensorFlow has started with one: reported below
        devices = tf.config.list_logical_devices(kind)
    if count > len(devices):
        hint = (
            "TensorFlow has started already; in Python call fit before "
            "anything else, or configure logical CPUs yourself"
            if kind == "CPU"
            else "leave --devices out for all of them"
        )
        raise InputError(
            f"--devices={count}: there are {len(devices)} {kind}s here ({hint})"
        )
    return [f"{kind}:{number}" for number in range(count)]
