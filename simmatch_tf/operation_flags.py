"""Flags that do not decide what is trained: they may differ on resuming."""

import dataclasses

from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import flag


@dataclasses.dataclass(frozen=True)
class OperationFlags(commandline.Flags):
    """Where a run stands, on what it trains, how often it saves and reports."""

    workdir: str | None = flag(
        None,
        "folder of the run; default: runs/RECIPE or runs/RECIPE-DATA_DIR.",
        operational=True,
    )
    overwrite: bool = flag(
        False, "start anew where the workdir holds a run.", operational=True
    )
    describe: bool = flag(
        False,
        "print the network's layers, parameters, FLOPs and memory; do not "
        "train.",
        operational=True,
    )
    strategy: str = flag(
        "auto",
        "where it trains; auto: on the TPU of --tpu, with TF_CONFIG's "
        "workers, or on all GPUs, whichever there is.",
        choices=("auto", "one", "mirrored", "multi_worker", "tpu"),
        operational=True,
    )
    tpu: str | None = flag(
        None,
        "the TPU's name or address; local: that of this machine.",
        operational=True,
    )
    devices: int | None = flag(
        None,
        "GPUs to use of each machine; without any, parts that the CPU is "
        "divided into, to try several out.",
        low=1,
        high=1024,
        operational=True,
    )
    memory_placement: str = flag(
        "replicated",
        "the labeled memory: all of it on each device, or divided over them.",
        choices=("replicated", "sharded"),
        operational=True,
        rare=True,
    )
    worker_timeout: int = flag(
        600,
        "seconds that workers wait for each other at the start.",
        low=1,
        operational=True,
        rare=True,
    )
    eval_every: int = flag(500, "steps.", low=1, operational=True)
    checkpoint_every: int = flag(500, "steps.", low=1, operational=True)
    log_every: int = flag(20, "steps.", low=1, operational=True, rare=True)
    summaries: bool = flag(
        True,
        "write TensorBoard's files; without, nothing is watched but the losses "
        "and the mask rate.",
        operational=True,
        rare=True,
    )
    picture_every: int | None = flag(
        None,
        "steps between pictures and histograms; default: a twentieth of the "
        "run, at least 500.",
        low=1,
        operational=True,
        rare=True,
    )
    profile: str | None = flag(
        None,
        "START:COUNT: TensorFlow's profiler looks at COUNT steps behind step "
        "START.",
        operational=True,
        rare=True,
    )
    keep: int = flag(3, "checkpoints kept.", low=1, operational=True, rare=True)
    eval_batch_size: int = flag(
        256, "images.", low=1, operational=True, rare=True
    )
    parallel_calls: int = flag(
        2, "batches prepared at once.", low=1, operational=True, rare=True
    )
    views_on: str = flag(
        "host",
        "where views are finished once images are read and cropped: beside "
        "the step, or in front of it on its device.",
        choices=("host", "device"),
        operational=True,
        rare=True,
    )
    data_service: str | None = flag(
        None,
        "the processes that prepare the batches, grpc://HOST:PORT; see "
        "simmatch_tf.serve_data. Default: this one does.",
        operational=True,
        rare=True,
    )
    steps_per_loop: int = flag(
        1,
        "steps that the device runs before the host looks again.",
        low=1,
        operational=True,
        rare=True,
    )
    jit_compile: bool = flag(
        False,
        "compile the step with XLA; on a TPU it always is.",
        operational=True,
        rare=True,
    )
    on_nonfinite: str = flag(
        "stop",
        "a step with NaN or infinity in it stops the run, or changes nothing "
        "but the count (at most ten in a row).",
        choices=("stop", "skip"),
        operational=True,
        rare=True,
    )
    progress: bool = flag(
        True, "a progress bar, on a terminal.", operational=True, rare=True
    )
