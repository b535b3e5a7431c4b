"""Measures SimMatchV2's propagation beside its network, at ImageNet's sizes.

    python tools/benchmarks/benchmark_propagation.py

Measures p̂ of 320 images from their 128 nearest labeled ones: finding these
(`ops.propagation.nearest`), and propagating from them (`propagate`); the same
with `tf.linalg.solve` in place of the iteration; the losses of similarities to
a queue of 81,920 images with their gradient; and a ResNet-50's forward and
backward pass and its teacher's forward pass, of a few images, as on a CPU not
all 384 of a step fit into memory. Its last row is that of 384, as many times as
long. Prints processor seconds, which hardly depend on what else runs, seconds,
and the most memory above the inputs, each part in a process of its own.
"""

import argparse
import multiprocessing
import pathlib
import statistics
import time
from collections.abc import Callable

import competitors
import numpy as np

from simmatch_tf import preflight

# A step of the published run: U, n, D, L, N, and B + U.
IMAGES, NEIGHBORS, DIM, CLASSES = 320, 128, 128, 1_000
QUEUE, STEP = 81_920, 384
SLOTS = {"1 %": 12_811, "10 %": 128_116}
TEMPERATURE, ALPHA = 0.1, 0.1
PARTS = (
    *(f"nearest slots, {share}" for share in SLOTS),
    "propagate",
    "propagate, tf.linalg.solve",
    "losses of similarities",
)


def unit(rows: int, seed: int) -> np.ndarray:
    """Returns random unit rows [rows, DIM], float32."""
    x = np.random.default_rng(seed).standard_normal([rows, DIM], np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def make(part: str) -> Callable[[], object]:
    """Returns a part of PARTS, or the networks' work on so many images."""
    if part.isdigit():
        return networks(int(part))
    import tensorflow as tf

    from simmatch_tf.modules import queue
    from simmatch_tf.ops import losses, propagation

    p = np.random.default_rng(0).dirichlet(np.ones(CLASSES), IMAGES)
    p, z = tf.constant(p, tf.float32), tf.constant(unit(IMAGES, 1))
    slots = tf.constant(unit(IMAGES * NEIGHBORS, 2), tf.float32)
    slots = tf.reshape(slots, [IMAGES, NEIGHBORS, DIM])
    labels = tf.reshape(tf.range(IMAGES * NEIGHBORS) % CLASSES, [IMAGES, -1])

    def propagate():
        return propagation.propagate(
            p, z, slots, labels, CLASSES, TEMPERATURE, ALPHA
        )

    def solved(a, alpha):
        first = tf.one_hot(0, NEIGHBORS + 1)[:, None]
        matrix = tf.eye(NEIGHBORS + 1) - alpha * a
        right = tf.broadcast_to(first, [IMAGES, NEIGHBORS + 1, 1])
        return (1 - alpha) * tf.linalg.solve(matrix, right, adjoint=True)[
            ..., 0
        ]

    def by_solver():
        walk, propagation.walk = propagation.walk, solved
        try:
            return propagate()
        finally:
            propagation.walk = walk

    def nearest(count):
        bank = tf.constant(unit(count, 3))
        return lambda: propagation.nearest(z, bank, NEIGHBORS)

    if part == "losses of similarities":
        bank = queue.Queue(QUEUE, DIM, CLASSES)
        # In place, or what it frees would be used again.
        bank.embeddings.assign_add(unit(QUEUE, 4))
        z_s = tf.constant(unit(IMAGES, 6))

    def similar():
        weak = bank.similar(z, TEMPERATURE)
        with tf.GradientTape() as tape:
            tape.watch(z_s)
            near = bank.similar(z_s, TEMPERATURE)
            match = tf.reduce_sum(z_s * weak.embeddings, axis=1) / TEMPERATURE
            loss = tf.reduce_mean(near.log_total - match)
            loss += losses.mixture_loss(near.probabilities, p)
        return loss, tape.gradient(loss, z_s)

    if part.startswith("nearest"):
        return nearest(SLOTS[part.partition(", ")[2]])
    return {
        "propagate": propagate,
        "propagate, tf.linalg.solve": by_solver,
        "losses of similarities": similar,
    }[part]


def networks(count: int) -> Callable[[], object]:
    """Returns the passes of a ResNet-50 and its teacher over some images."""
    import tensorflow as tf

    from simmatch_tf.networks import network

    student, teacher = (
        network.build(
            "resnet50",
            image_shape=(224, 224, 3),
            num_classes=CLASSES,
            projection_dim=DIM,
            mean=[0.5] * 3,
            std=[0.2] * 3,
            feature_norm=True,
        )
        for _ in range(2)
    )
    shape = [count, 224, 224, 3]
    images = np.random.default_rng(5).integers(0, 256, shape, np.uint8)
    images = tf.constant(images)
    weights = [w.value for w in student.trainable_variables]

    def step():
        targets = teacher(images, training=True)["logits"]
        with tf.GradientTape() as tape:
            out = student(images, training=True)
            loss = tf.reduce_mean(tf.square(out["logits"] - targets))
            loss += tf.reduce_mean(out["embeddings"][:, 0])
        return tape.gradient(loss, weights)

    return step


def measure(part: str, rounds: int) -> tuple[float, float, int]:
    """Returns median processor seconds and seconds, and bytes above inputs."""
    preflight.choose_kernels()
    import tensorflow as tf

    call = tf.function(make(part), autograph=False).get_concrete_function()
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = competitors.resident("VmRSS")
    call()
    peak = competitors.resident("VmHWM") - before
    processor, wall = [], []
    for _ in range(rounds):
        began = time.process_time(), time.perf_counter()
        call()
        processor.append(time.process_time() - began[0])
        wall.append(time.perf_counter() - began[1])
    return statistics.median(processor), statistics.median(wall), peak


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--network_images", type=int, default=4, help="images of the networks"
    )
    words = parser.parse_args()
    line = "{:28} {:>12} {:>8} {:>16}"
    print(line.format("part", "processor s", "s", "MB above inputs"))

    def show(name: str, *seconds_and_bytes: float, digits: int = 3) -> None:
        *seconds, peak = seconds_and_bytes
        shown = [f"{x:.{digits}f}" for x in seconds]
        print(line.format(name, *shown, f"{peak / 1e6:.0f}"), flush=True)

    # Each in a process of its own: what one has freed the next would use.
    spawn = multiprocessing.get_context("spawn")
    for part in (*PARTS, str(words.network_images)):
        with spawn.Pool(1) as pool:
            figures = pool.apply(measure, (part, words.rounds))
        name = f"networks, {part} images" if part.isdigit() else part
        show(name, *figures)
    times = STEP / words.network_images
    show(f"networks, {STEP} images", *(times * x for x in figures), digits=0)


if __name__ == "__main__":
    main()
