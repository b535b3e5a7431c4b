"""Measures time and memory of the linear protocol of `transfer`.

    python tools/benchmarks/benchmark_transfer.py warm MODEL DATASET
    python tools/benchmarks/benchmark_transfer.py size --images=50000

`warm` fits all 45 strengths on real features, by turns warm (each from a guess
by the two before) and cold (each from zero). It prints the strength that each
chooses and the accuracy of the last fit with it on the test images. `size` fits
random features that resemble a ResNet's (not negative, many zero, of unequal
spread). It prints the seconds of each strength and the peak memory.
"""

import argparse
import json
import pathlib
import resource
import statistics
import sys
import time

import numpy as np

from simmatch_tf import transfer
from simmatch_tf.probes import classifiers

_TEST = 2000
_APART = 5.0  # distance of class centers at which half of the images are right


def main() -> None:
    """Runs the chosen measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="measurement", required=True)
    warm = commands.add_parser("warm")
    warm.add_argument("model", help="as in transfer's --model")
    warm.add_argument("dataset", help="one of transfer's --datasets")
    warm.add_argument("--rounds", type=int, default=3)
    size = commands.add_parser("size")
    size.add_argument("--images", type=int, default=50_000)
    size.add_argument("--width", type=int, default=2048)
    size.add_argument("--classes", type=int, default=100)
    size.add_argument("--strengths", type=int, default=45)
    for each in (warm, size):
        each.add_argument("--max_iter", type=int, default=1000)
        each.add_argument("--tol", type=float, default=1e-4)
        each.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    report = {"warm": compare, "size": measure}[args.measurement](args)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


def compare(args: argparse.Namespace) -> dict:
    """Compares warm and cold sweeps, by turns."""
    train, validation, everything, test, metric = real(args)
    how = {"metric": metric, "max_iter": args.max_iter, "tol": args.tol}
    seconds, sweeps = {"warm": [], "cold": []}, {}
    for _ in range(args.rounds):
        for name, times in seconds.items():
            start = time.perf_counter()
            fits = list(
                classifiers.sweep(train, validation, warm=name == "warm", **how)
            )
            times.append(time.perf_counter() - start)
            sweeps[name] = fits
            print(f"{name}: {times[-1]:.1f} s", file=sys.stderr)
    report = {}
    for name, fits in sweeps.items():
        best = classifiers.choose(fits)
        model = classifiers.regression(
            best.strength, max_iter=args.max_iter, tol=args.tol
        )
        classifiers.fit(model, *everything)
        right = model.predict(test[0]) == test[1]
        report[name] = {
            "seconds": statistics.median(seconds[name]),
            "iterations": sum(fit.iterations for fit in fits),
            "not_converged": sum(not fit.converged for fit in fits),
            "strength": best.strength,
            "validation": best.score,
            "test": float(right.mean()),
        }
        print(name, report[name])
    ratios = [
        warm / cold
        for warm, cold in zip(seconds["warm"], seconds["cold"], strict=True)
    ]
    report["ratio"] = statistics.median(ratios)
    report["largest_difference"] = max(
        abs(one.score - other.score)
        for one, other in zip(sweeps["warm"], sweeps["cold"], strict=True)
    )
    print(
        f"warm / cold: {report['ratio']:.2f} (median of {len(ratios)}); "
        "validation scores differ by at most "
        f"{100 * report['largest_difference']:.2f} points"
    )
    return report


def real(args: argparse.Namespace) -> tuple:
    """Returns a dataset's features, split as the protocol does."""
    from simmatch_tf import preflight

    preflight.choose_kernels()
    from simmatch_tf.probes import encoders, features, tasks

    flags = transfer.TransferConfig(model=(args.model,), datasets=args.dataset)
    (encoder,) = encoders.load(flags)
    task = tasks.load(args.dataset, flags)

    def extract(subset: str) -> np.ndarray:
        return features.extract(
            encoder, task, subset, batch_size=flags.batch_size
        )

    x, y = extract("train"), task.train.labels
    test = extract("test"), task.test.labels
    if task.validation is not None:
        more = extract("validation")
        validation = more, task.validation.labels
        everything = (
            np.concatenate([x, more]),
            np.concatenate([y, validation[1]]),
        )
        return (x, y), validation, everything, test, task.metric
    held = task.held_out
    parts = (x[~held], y[~held]), (x[held], y[held])
    return *parts, (x, y), test, task.metric


def measure(args: argparse.Namespace) -> dict:
    """Measures a sweep and the last fit on random features."""
    rng = np.random.default_rng(0)
    held = args.images // 5
    centers = rng.normal(size=[args.classes, args.width]).astype(np.float32)
    spread = rng.gamma(0.5, size=args.width).astype(np.float32)

    def rows(count: int) -> classifiers.Rows:
        labels = rng.integers(0, args.classes, count)
        x = rng.standard_normal([count, args.width], np.float32)
        x += _APART / np.sqrt(args.width, dtype=np.float32) * centers[labels]
        np.maximum(x, 0, out=x)
        x *= spread
        return x, labels

    train, validation = rows(args.images - held), rows(held)
    test = rows(_TEST)
    before = _peak()
    print(f"{before:,} MB before the first fit")
    start = time.perf_counter()
    fits = []
    for fit in classifiers.sweep(
        train,
        validation,
        metric="top1",
        max_iter=args.max_iter,
        tol=args.tol,
        strengths=np.logspace(-6, 5, args.strengths),
    ):
        fits.append(fit)
        print(fit, flush=True)
    best = classifiers.choose(fits)
    everything = tuple(
        np.concatenate(parts) for parts in zip(train, validation, strict=True)
    )
    del train, validation
    model = classifiers.regression(
        best.strength, max_iter=args.max_iter, tol=args.tol
    )
    classifiers.fit(model, *everything)
    seconds = [fit.seconds for fit in fits]
    report = {
        "peak_mb": _peak(),
        "seconds": time.perf_counter() - start,
        "seconds_per_strength": statistics.mean(seconds),
        "median": statistics.median(seconds),
        "longest": max(seconds),
        "iterations": sum(fit.iterations for fit in fits),
        "not_converged": sum(not fit.converged for fit in fits),
        "strength": best.strength,
        "test": float((model.predict(test[0]) == test[1]).mean()),
    }
    print(report)
    return report


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
