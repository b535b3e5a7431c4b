r"""Measures how long it takes to choose images, and the memory it takes.

taskset -c 0,1 python tools/benchmarks/benchmark_select.py --method=typical

Features and thumbnails are made up: those of an unlabeled set take the time of
a network over images, which is not measured here.
"""

import argparse
import resource
import time

import numpy as np

from simmatch_tf.data import duplicates, picking


def main() -> None:
    """Prints the seconds of each part, and the peak of memory."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument(
        "--method", choices=("typical", "kmeans", "maxherding"), required=True
    )
    words = parser.parse_args()
    random = np.random.default_rng(0)
    groups = random.integers(0, 200, words.images)
    centers = random.normal(size=(200, words.width)).astype(np.float32)
    features = centers[groups]
    features += 0.8 * random.standard_normal(features.shape, np.float32)
    side = duplicates.SIDE
    kinds = random.integers(0, 256, (200, side, side, 3))
    pixels = kinds.astype(np.uint8)[groups]
    pixels //= 2
    pixels += random.integers(0, 128, pixels.shape, np.uint8)
    started = time.perf_counter(), time.process_time()

    def report(part: str) -> None:
        nonlocal started
        now = time.perf_counter(), time.process_time()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{part}: {now[0] - started[0]:.0f} s, of them "
            f"{now[1] - started[1]:.0f} s of processor time; peak of memory "
            f"{memory:.2f} GiB",
            flush=True,
        )
        started = time.perf_counter(), time.process_time()

    has_label = np.zeros(words.images, bool)
    copy_of = duplicates.find(pixels, has_label)
    report("near-duplicates")
    picking.pick(features, words.count, method=words.method, copy_of=copy_of)
    report(f"{words.method}, {words.count} images")


if __name__ == "__main__":
    main()
