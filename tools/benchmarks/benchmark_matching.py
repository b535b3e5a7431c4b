"""Compares matching with the same formulas in plain TensorFlow and in PyTorch.

    python tools/benchmarks/benchmark_matching.py --output=found.json \
        --plot=found.png

Measures p̂, the instance loss and its gradient to z_s for 320 images,
embeddings of 128 dimensions and 1,000 classes: by `ops.matching.match`; by the
formulas as they are usually written in TensorFlow; and by
`pytorch_simmatch.py`. Each runs in a process of its own, and they take turns.
Beside the seconds it prints the most memory that each used above its inputs,
and the rate of its matrix products (`match` has four, the others three) as a
share of the machine's rate, measured on a product of two 2,048 × 2,048
matrices. At K = 1,281,167 only `match` is measured: the others would take 7 and
10 GB. All but `pytorch_as_it_comes` keep freed memory in the process, as
training does (simmatch_tf/runtime.py).

--plot draws the time of `match` against K, N and L. For Linux, and a quiet
machine.
"""

import contextlib
import itertools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import competitors
import numpy as np
import tool_flags
from absl import flags

from simmatch_tf import preflight, tables

# K → the competitors.
EVERYBODY = ("match", "tensorflow", "pytorch", "pytorch_as_it_comes")
SLOTS = {13_000: EVERYBODY, 128_116: EVERYBODY, 1_281_167: ("match",)}
IMAGES, DIM, CLASSES = 320, 128, 1_000
TEMPERATURE, ALPHA = 0.1, 0.9
# Seconds between turns, until threads of the last turn have stopped spinning.
PAUSE = 0.25
# Values that the plot draws; other sizes are as above, with K = 128,116.
CURVES = {
    "slots": (8_000, 16_000, 32_000, 64_000, 128_116, 256_000, 1_281_167),
    "images": (40, 80, 160, 320, 640, 1_280),
    "classes": (10, 100, 1_000, 10_000),
}
LABELS = {
    "slots": "slots of the memory bank, K",
    "images": "images in the batch, N",
    "classes": "classes, L",
}

ROUNDS = flags.DEFINE_integer("rounds", 7, "Number of calls of each.", 1)
THREADS = flags.DEFINE_integer(
    "threads", None, "Number of threads. Default: one a core.", 1
)
LARGEST = flags.DEFINE_integer(
    "largest", max(SLOTS), "Largest K to measure.", min(SLOTS)
)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
PLOT = flags.DEFINE_string("plot", None, "PNG file to write.")
SERVE = flags.DEFINE_enum("serve", None, EVERYBODY, "Internal: be this one.")

Call = Callable[[], object]


def unit(rows: int, seed: int) -> np.ndarray:
    """Returns random unit rows [rows, DIM], float32."""
    x = np.random.default_rng(seed).standard_normal([rows, DIM], np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x


def inputs(slots: int, images: int, classes: int) -> list[np.ndarray]:
    """Returns z_w, z_s, p_w, Q_f and Q_l, the slots in random class order."""
    rng = np.random.default_rng(0)
    p_w = np.exp(2 * rng.standard_normal([images, classes], np.float32))
    labels = rng.permutation(np.arange(slots) % classes)
    p_w /= p_w.sum(axis=1, keepdims=True)
    return [unit(images, 1), unit(images, 2), p_w, unit(slots, 3), labels]


# Competitors -----------------------------------------------------------------


def usual(z_w, z_s, p_w, memory, labels):
    """Computes the formulas as they are usually written."""
    import tensorflow as tf

    q_w = tf.nn.softmax(tf.matmul(z_w, memory, transpose_b=True) / TEMPERATURE)
    q_hat = q_w * tf.gather(p_w, labels, axis=1)
    q_hat /= tf.reduce_sum(q_hat, axis=1, keepdims=True)
    q_agg = tf.transpose(
        tf.math.unsorted_segment_sum(tf.transpose(q_w), labels, p_w.shape[1])
    )
    p_hat = ALPHA * p_w + (1 - ALPHA) * q_agg
    logits = tf.matmul(z_s, memory, transpose_b=True) / TEMPERATURE
    return p_hat, -tf.reduce_sum(q_hat * tf.nn.log_softmax(logits), axis=1)


def ours(z_w, z_s, p_w, memory, labels):
    """Calls `match` with the same arguments."""
    from simmatch_tf.ops import matching

    return matching.match(
        z_w,
        z_s,
        p_w,
        memory,
        labels,
        num_classes=p_w.shape[1],
        temperature=TEMPERATURE,
        alpha=ALPHA,
    )


def tensorflow_call(function: Callable, arrays: Sequence[np.ndarray]) -> Call:
    """Returns a compiled call of one of the two above, with its gradient."""
    import tensorflow as tf

    tensors = [tf.constant(x) for x in arrays]

    @tf.function(autograph=False)
    def call(z_w, z_s, *rest):
        with tf.GradientTape() as tape:
            tape.watch(z_s)
            p_hat, each = function(z_w, z_s, *rest)
            loss = tf.reduce_mean(each)
        return p_hat, loss, tape.gradient(loss, z_s)

    return lambda: [x.numpy() for x in call(*tensors)]


def pytorch_call(arrays: Sequence[np.ndarray]) -> Call:
    """Returns a call of `pytorch_simmatch.matching`."""
    import pytorch_simmatch
    import torch

    tensors = [torch.from_numpy(x) for x in arrays]
    return lambda: pytorch_simmatch.matching(*tensors, TEMPERATURE, ALPHA)


def make_call(name: str, arrays: Sequence[np.ndarray]) -> Call:
    """Returns a competitor's call on its inputs."""
    if name.startswith("pytorch"):
        return pytorch_call(arrays)
    return tensorflow_call({"match": ours, "tensorflow": usual}[name], arrays)


def limit_threads(name: str, threads: int) -> None:
    """Sets the number of threads of a competitor's library."""
    if name.startswith("pytorch"):
        import torch

        torch.set_num_threads(threads)
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def serve(name: str) -> None:
    """Answers [K, N, L] with a call's bytes, then each line with its time."""
    if name != "pytorch_as_it_comes":
        from simmatch_tf import runtime

        runtime.keep_memory()
    limit_threads(name, THREADS.value)
    make_call(name, inputs(2 * 64, 8, 64))()  # memory of the library itself
    calls: list[Call] = []

    def answer(task: Any) -> float:
        if task == "rate":
            return rate(name)
        if task:
            calls[:] = [make_call(name, inputs(*task))]
            before = competitors.resident("VmRSS")
            # Resets the peak.
            pathlib.Path("/proc/self/clear_refs").write_text("5")
            calls[0]()
            peak = competitors.resident("VmHWM") - before
            calls[0]()
            return peak
        began = time.perf_counter()
        calls[0]()
        return time.perf_counter() - began

    competitors.serve(answer)


def rate(name: str) -> float:
    """Returns floating-point operations per second of a large product."""
    x = np.ones([2_048, 2_048], np.float32)
    if name.startswith("pytorch"):
        import torch

        x = torch.from_numpy(x)
        product = lambda: x @ x  # noqa: E731
    else:
        import tensorflow as tf

        x = tf.constant(x)
        product = tf.function(lambda: tf.matmul(x, x), autograph=False)
    seconds = []
    for _ in range(15):
        began = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - began)
    return 2 * 2_048**3 / statistics.median(seconds)


# Parent ----------------------------------------------------------------------


@contextlib.contextmanager
def started(names: Sequence[str]):
    """Starts competitors, and ends them after the block."""
    threads = THREADS.value or len(os.sched_getaffinity(0))
    processes = [
        competitors.Competitor(name, [f"--threads={threads}"]) for name in names
    ]
    try:
        yield processes
    finally:
        for each in processes:
            each.process.kill()


def compare(slots: int, names: Sequence[str]) -> dict[str, dict]:
    """Lets competitors take turns at one K; returns name → its figures."""
    results = {}
    with started(names) as processes:
        for each in processes:
            peak = each.ask([slots, IMAGES, CLASSES])
            results[each.name] = {"seconds": [], "bytes_above_inputs": peak}
        for _, each in itertools.product(range(ROUNDS.value), processes):
            time.sleep(PAUSE)
            results[each.name]["seconds"].append(each.ask())
        product = 2 * slots * IMAGES * DIM
        for each in processes:
            figures = results[each.name]
            figures["median_seconds"] = statistics.median(figures["seconds"])
            # Two for the logits, and one for the gradient or two for contexts.
            products = 4 if each.name == "match" else 3
            rate = products * product / figures["median_seconds"]
            figures["machine_s_rate"] = each.ask("rate")
            figures["of_the_machine_s_rate"] = rate / figures["machine_s_rate"]
    for figures in results.values():
        pairs = zip(
            figures["seconds"], results["match"]["seconds"], strict=True
        )
        figures["times_ours"] = statistics.median(a / b for a, b in pairs)
    return results


def curves() -> dict[str, dict[int, float]]:
    """Measures `match` along each axis of the plot."""
    usual_size = {"slots": 128_116, "images": IMAGES, "classes": CLASSES}
    medians = {}
    for axis, sizes in CURVES.items():
        medians[axis] = {}
        for size in sizes:
            if axis == "slots" and size > LARGEST.value:
                continue
            with started(["match"]) as (only,):
                only.ask(list({**usual_size, axis: size}.values()))
                seconds = [only.ask() for _ in range(ROUNDS.value)]
            medians[axis][size] = statistics.median(seconds)
    return medians


def draw(medians: dict[str, dict[int, float]], path: str) -> None:
    """Draws the curves, with a line of slope 1 where time is linear."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, 3, figsize=(9, 3), dpi=150, constrained_layout=True, sharey=True
    )
    for plot, (axis, points) in zip(axes, medians.items(), strict=True):
        sizes, seconds = list(points), list(points.values())
        if axis != "classes":
            slope = [seconds[-1] * size / sizes[-1] for size in sizes]
            plot.plot(sizes, slope, ":", color="grey", label="linear")
            plot.legend(frameon=False)
        plot.plot(sizes, seconds, "o-", color="#1f6fb4")
        plot.set(xscale="log", yscale="log", xlabel=LABELS[axis])
        plot.grid(alpha=0.3)
    axes[0].set_ylabel("seconds a call")
    figure.savefig(path)


def main() -> None:
    """Prints the table, or with --serve is one of its competitors."""
    rest = tool_flags.read(
        __doc__, [ROUNDS, THREADS, LARGEST, OUTPUT, PLOT, SERVE]
    )
    tool_flags.nothing_else(rest)
    tool_flags.check_file("output", OUTPUT.value, ".json")
    tool_flags.check_file("plot", PLOT.value, ".png")
    preflight.choose_kernels()
    if SERVE.value:
        return serve(SERVE.value)
    rows = [["K", "", "median s", "times ours", "MB above inputs", "of rate"]]
    report: dict[str, object] = {
        "images": IMAGES,
        "dim": DIM,
        "classes": CLASSES,
        "temperature": TEMPERATURE,
        **competitors.setting(THREADS.value),
        "slots": {},
    }
    for slots, names in SLOTS.items():
        if slots > LARGEST.value:
            continue
        report["slots"][slots] = results = compare(slots, names)
        for name, figures in results.items():
            rows.append(
                [
                    f"{slots:,}",
                    name,
                    f"{figures['median_seconds']:.3f}",
                    f"{figures['times_ours']:.2f}",
                    f"{figures['bytes_above_inputs'] / 1e6:.0f}",
                    f"{figures['of_the_machine_s_rate']:.0%}",
                ]
            )
    print(tables.plain(rows))
    if PLOT.value:
        report["curves"] = curves()
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2))
    if PLOT.value:
        draw(report["curves"], PLOT.value)


if __name__ == "__main__":
    main()
