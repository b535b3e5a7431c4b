"""Compares the training step with the same step in PyTorch, on the CPU.

    python tools/benchmarks/benchmark_pytorch.py \
        --flagfile=configs/digits_40.cfg

Takes the flags of a run. It reads no dataset: images are random, with the
shape, classes and slots of the run's dataset, or those of --shape, --classes
and --slots. The memory bank is full, so matching starts at once. PyTorch's step
is `pytorch_simmatch.py`, which a test holds equal to ours.

Each competitor is a process of its own that takes a step when it is told to.
They take turns, so that all see the same machine. All of them are in memory at
the same time and, but for pytorch_as_it_comes, keep the memory that they free
(simmatch_tf/runtime.py). If that is too much, lower --batch_size or name fewer
--competitors. Prints median and least seconds of a step, the median over the
rounds of the ratio to PyTorch in float32 in the faster of its two layouts, and
the peak memory of each process. For Linux, and a quiet machine: PyTorch's
threads wait for each other, so other work on the machine slows its steps more
than ours.

| competitor | step |
|---|---|
| tensorflow | our compiled step as in training |
| tensorflow_bfloat16 | the same with --precision=mixed_bfloat16 |
| pytorch | PyTorch, float32, contiguous images and kernels |
| pytorch_channels_last | the same, channels last |
| pytorch_as_it_comes | the same, but freed memory returns to the system |
| pytorch_bfloat16 | as pytorch_channels_last, with autocast to bfloat16 |
| network | our step without alignment, matching, memory bank: L_s + L_u alone |
"""

import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import competitors
import numpy as np
import tool_flags
from absl import flags

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, registry

COMPETITORS = (
    "tensorflow",
    "tensorflow_bfloat16",
    "pytorch",
    "pytorch_channels_last",
    "pytorch_as_it_comes",
    "pytorch_bfloat16",
    "network",
)
USUAL = ("tensorflow", "pytorch", "pytorch_channels_last", "network")
# All are compared with the faster one of these.
REFERENCES = ("pytorch", "pytorch_channels_last")
WARM_UP_STEPS = 2
# Seconds between turns, until threads of the last turn have stopped spinning.
PAUSE = 0.05

ROUNDS = flags.DEFINE_integer("rounds", 7, "Number of steps of each.", 1)
PICKED = flags.DEFINE_list(
    "competitors", list(USUAL), "Competitors to measure."
)
THREADS = flags.DEFINE_integer(
    "threads", None, "Number of threads. Default: one a core.", 1
)
SHAPE = flags.DEFINE_list("shape", None, "HEIGHT,WIDTH,CHANNELS of the images.")
CLASSES = flags.DEFINE_integer("classes", None, "Number of classes, L.", 2)
SLOTS = flags.DEFINE_integer(
    "slots", None, "Number of slots, K, at least L.", 2
)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
SERVE = flags.DEFINE_enum(
    "serve", None, COMPETITORS, "Internal: be this competitor."
)

Step = Callable[[], float]


@dataclasses.dataclass(frozen=True)
class Data:
    """The size of the data.

    Attributes:
        shape: (height, width, channels) of an image.
        classes: Number of classes, L.
        slots: Number of labeled images, K.
    """

    shape: tuple[int, int, int]
    classes: int
    slots: int

    @property
    def slot_labels(self) -> np.ndarray:
        """Class of each slot, Q_l [K]; every class has one."""
        return np.arange(self.slots) % self.classes

    def batch(self, config: config_lib.Config) -> dict[str, np.ndarray]:
        """Returns a random batch."""
        rng = np.random.default_rng(0)
        count = config.batch_size
        slots = rng.choice(self.slots, count, replace=self.slots < count)
        rest = count * config.unlabeled_ratio
        sizes = {"labeled_weak": count}
        sizes |= {"unlabeled_weak": rest, "unlabeled_strong": rest}
        images = {
            name: rng.integers(0, 256, [n, *self.shape], np.uint8)
            for name, n in sizes.items()
        }
        return {**images, "labels": self.slot_labels[slots], "slots": slots}

    def memory(self, dim: int) -> np.ndarray:
        """Returns a full memory bank: random unit rows [K, D], float32."""
        rows = np.random.default_rng(1).normal(size=[self.slots, dim])
        return np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def parse() -> tuple[config_lib.Config, list[str]]:
    """Reads the flags; returns those of the run, as a Config and as words."""
    own = [ROUNDS, PICKED, THREADS, SHAPE, CLASSES, SLOTS, OUTPUT, SERVE]
    rest = tool_flags.read(__doc__, own)
    tool_flags.check_file("output", OUTPUT.value, ".json")
    tool_flags.refuse(
        rest,
        ("devices", "strategy", "tpu", "memory_placement", "batch_norm"),
        "one device is measured; leave it out",
    )
    config = tool_flags.run(rest)
    preflight.choose_kernels()
    wrong = [name for name in PICKED.value if name not in COMPETITORS]
    if wrong or not PICKED.value:
        sys.exit(
            f"error: --competitors={','.join(PICKED.value)}: must be of "
            f"{', '.join(COMPETITORS)}"
        )
    if not re.match(r"wrn_|resnet", config.backbone):
        sys.exit(
            f"error: --backbone={config.backbone}: must be wrn_… or resnet…, "
            "which PyTorch has"
        )
    if SHAPE.value is not None and (
        len(SHAPE.value) != 3 or not all(x.isdecimal() for x in SHAPE.value)
    ):
        sys.exit(
            f"error: --shape={','.join(SHAPE.value)}: must be HEIGHT,WIDTH,"
            "CHANNELS, such as 32,32,3"
        )
    if None not in (SLOTS.value, CLASSES.value) and SLOTS.value < CLASSES.value:
        sys.exit(
            f"error: --slots={SLOTS.value}: at least one for each of --classes="
            f"{CLASSES.value}"
        )
    if (config.algorithm, config.teacher_norm) != ("simmatch", "eman"):
        sys.exit("error: PyTorch's step is --algorithm=simmatch with EMAN")
    if (config.precision, config.jit_compile) != ("float32", False):
        sys.exit("error: --precision, --jit_compile: see --competitors")
    changes = {"steps": 10**6, "epochs": None, "warmup_steps": 0}
    changes |= {"warmup_epochs": None, "matching_start_steps": 0}
    return dataclasses.replace(config, **changes), rest


def find_data(config: config_lib.Config) -> Data:
    """Returns the size that the flags give, or else the run's dataset."""
    shape, classes, slots = SHAPE.value, CLASSES.value, SLOTS.value
    if None in (shape, classes, slots):
        from simmatch_tf.training import inputs

        outline = inputs.outline(config)
        shape = shape or outline.image_shape
        classes = classes or len(outline.class_names)
        slots = slots or inputs.labeled_images(config, outline)
    height, width, channels = (int(size) for size in shape)
    if slots < classes:
        sys.exit(f"error: --slots={slots}: at least one for {classes} classes")
    return Data((height, width, channels), classes, slots)


# Competitors -----------------------------------------------------------------


def without_matching() -> type:
    """Returns SimMatch without alignment, matching and memory bank."""
    import tensorflow as tf

    from simmatch_tf.algorithms import simmatch
    from simmatch_tf.ops import losses

    class Network(simmatch.SimMatch):
        """Computes L_s and L_u alone."""

        def train_step(self, batch):
            x_l, x_w = batch["labeled_weak"], batch["unlabeled_weak"]
            targets = self.label(x_l, x_w)
            with tf.GradientTape() as tape:
                logits_l, logits_s, z_s, targets = self.forward(
                    x_l, batch["unlabeled_strong"], x_w, targets
                )
                loss = losses.supervised_loss(logits_l, batch["labels"])
                loss += losses.unsupervised_loss(
                    logits_s, targets.p_w, self.config.threshold
                )[0]
                # Stands in for L_in, so that the projection head is trained.
                loss += tf.reduce_mean(z_s)
            self.minimize(tape, loss)
            # TensorFlow leaves out what has no use.
            unused = sum(tf.reduce_sum(z) for z in targets[1:])
            return {"loss/total": loss, "unused": unused}

    return Network


def tensorflow_step(
    config: config_lib.Config, data: Data, algorithm: type | None
) -> Step:
    """Returns the compiled step of SimMatch or of another algorithm."""
    import tensorflow as tf

    from simmatch_tf.distributed import strategies
    from simmatch_tf.training import state, step

    tf.config.threading.set_intra_op_parallelism_threads(THREADS.value)
    tf.config.threading.set_inter_op_parallelism_threads(THREADS.value)
    strategy = strategies.one()
    if algorithm is not None:
        registry.algorithms.register("benchmark")(algorithm)
        config = dataclasses.replace(config, algorithm="benchmark", align=False)
    method = state.make_algorithm(
        config,
        strategy,
        image_shape=data.shape,
        slot_labels=data.slot_labels,
        num_classes=data.classes,
        statistics=([0.5] * data.shape[-1], [0.25] * data.shape[-1]),
    )
    method.memory.features.assign(data.memory(config.projection_dim))
    method.memory.written.assign(np.zeros(data.slots, np.int64))
    batch = {k: tf.constant(v) for k, v in data.batch(config).items()}
    stepper = step.Stepper(
        strategy,
        method,
        itertools.repeat(batch),
        finish=None,
        jit_compile=config.jit_compile,
        workers=1,
    )
    return lambda: float(stepper(1, 1, False)["loss/total"])


def pytorch_step(config: config_lib.Config, data: Data, **options) -> Step:
    """Returns PyTorch's step."""
    import pytorch_simmatch
    import torch

    torch.set_num_threads(THREADS.value)
    torch.manual_seed(config.seed)
    method = pytorch_simmatch.SimMatch(
        config,
        torch.from_numpy(data.slot_labels),
        classes=data.classes,
        mean=[0.5] * data.shape[-1],
        std=[0.25] * data.shape[-1],
        **options,
    )
    method.memory.copy_(torch.from_numpy(data.memory(config.projection_dim)))
    method.filled.fill_(True)
    batch = {k: torch.from_numpy(v) for k, v in data.batch(config).items()}
    return lambda: float(method.step(batch)["loss/total"])


def make_step(name: str, config: config_lib.Config, data: Data) -> Step:
    """Returns the step of a competitor, a call that returns the loss."""
    if name == "tensorflow_bfloat16":
        config = dataclasses.replace(config, precision="mixed_bfloat16")
    if name.startswith("tensorflow"):
        return tensorflow_step(config, data, None)
    if name == "network":
        return tensorflow_step(config, data, without_matching())
    return pytorch_step(
        config,
        data,
        channels_last=name != "pytorch",
        bfloat16=name == "pytorch_bfloat16",
    )


def serve(name: str, config: config_lib.Config) -> None:
    """Builds the step at the first task, and takes one at each later task."""
    if name != "pytorch_as_it_comes":
        from simmatch_tf import runtime

        runtime.keep_memory()
    steps: list[Step] = []

    def answer(_: Any) -> list[float]:
        if not steps:
            steps.append(make_step(name, config, find_data(config)))
            for _ in range(WARM_UP_STEPS):
                steps[0]()
            return []
        began = time.perf_counter()
        loss = steps[0]()
        return [time.perf_counter() - began, loss]

    competitors.serve(answer)


# Parent ----------------------------------------------------------------------


def compete(words: list[str]) -> dict[str, dict[str, Any]]:
    """Lets all take steps in turn; returns competitor → its figures."""
    with contextlib.ExitStack() as stack:
        started = []
        for name in PICKED.value:
            started.append(competitors.Competitor(name, words))
            stack.callback(started[-1].process.kill)
            started[-1].ask()  # waits until it is ready
        results = {each.name: {"seconds": []} for each in started}
        for _, each in itertools.product(range(ROUNDS.value), started):
            time.sleep(PAUSE)
            seconds, loss = each.ask()
            if not np.isfinite(loss):
                sys.exit(f"error: {each.name}: the loss is {loss}")
            results[each.name]["seconds"].append(seconds)
        for each in started:
            peak = competitors.resident("VmHWM", each.process.pid)
            results[each.name]["peak_bytes"] = peak
        return results


def summarize(results: dict[str, dict[str, Any]]) -> None:
    """Adds medians, least values, and ratios to the reference."""
    for figures in results.values():
        figures["median_seconds"] = statistics.median(figures["seconds"])
        figures["least_seconds"] = min(figures["seconds"])
    references = [results[name] for name in REFERENCES if name in results]
    if not references:
        return
    reference = min(references, key=lambda each: each["median_seconds"])
    for figures in results.values():
        pairs = zip(figures["seconds"], reference["seconds"], strict=True)
        figures["ratio"] = statistics.median([a / b for a, b in pairs])


def main() -> None:
    """Prints the table, or with --serve is one of its competitors."""
    config, words = parse()
    if SERVE.value:
        return serve(SERVE.value, config)
    from simmatch_tf import tables

    data = find_data(config)
    threads = THREADS.value or len(os.sched_getaffinity(0))
    shape = ",".join(map(str, data.shape))
    words = [*words, f"--threads={threads}", f"--shape={shape}"]
    words += [f"--classes={data.classes}", f"--slots={data.slots}"]
    results = compete(words)
    summarize(results)
    rows = [["", "median s", "least s", "of PyTorch's", "peak MiB"]]
    for name, figures in results.items():
        ratio = figures.get("ratio")
        seconds = figures["median_seconds"], figures["least_seconds"]
        rows.append(
            [
                name,
                *(f"{value:.4f}" for value in seconds),
                f"{ratio:.3f}" if ratio else "-",
                f"{figures['peak_bytes'] / 2**20:.0f}",
            ]
        )
    print(tables.plain(rows))
    if OUTPUT.value:
        content = {
            "flags": words,
            **competitors.setting(THREADS.value),
            "competitors": results,
        }
        pathlib.Path(OUTPUT.value).write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
