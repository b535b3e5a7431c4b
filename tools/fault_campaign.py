"""Kills training runs at random moments, and compares their results.

    python tools/fault_campaign.py --kills=100

Runs of one process and of two workers are hit by SIGKILL or SIGTERM about ten
times each, at any moment after their start, and started again until they are
finished. Each must then equal the undisturbed run: bit by bit with one process,
to 1e-5 of every tensor's norm with two. Of two workers one is hit, and the
other must end by itself within --patience seconds. Ends with status 1 if a run
is lost.
"""

import argparse
import dataclasses
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import local_workers
import numpy as np

COMMON = (
    "--dataset=digits --image_size=8 --strong=none --labels=20 "
    "--backbone=wrn_10_1 --projection_dim=16 --batch_norm_momentum=0.9 "
    "--ema_momentum=0.9 --ema_warmup --batch_size=8 --unlabeled_ratio=2 "
    "--threshold=0.2 --da_window=4 --log_every=10 --worker_timeout=30"
).split()


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of run.

    Attributes:
        name: Name for the table.
        workers: Number of processes.
        bound: Largest relative difference of a tensor; 0 means equal bits.
        words: Flags of the run.
    """

    name: str
    workers: int
    bound: float
    words: tuple[str, ...]


KINDS = [
    Kind(
        "one process, ensemble", 1, 0.0,
        ("--steps=400", "--checkpoint_every=20", "--eval_every=100"),
    ),
    Kind(
        "two workers, ensemble", 2, 1e-5,
        ("--steps=120", "--checkpoint_every=5", "--eval_every=40"),
    ),
    Kind(
        "one process, teacher", 1, 0.0,
        ("--steps=400", "--checkpoint_every=15", "--eval_every=50",
         "--targets_from=teacher", "--steps_per_loop=5", "--on_nonfinite=skip"),
    ),
]  # fmt: skip


@dataclasses.dataclass
class Run:
    """The course of one run.

    Attributes:
        kind: Name of its kind.
        kills: Signals that it was sent.
        starts: Number of its starts.
        slowest: Longest time in seconds from a signal to the end of all.
        difference: Largest difference of a tensor from the undisturbed run.
        lost: Why it is lost; "" if it is not.
    """

    kind: str
    kills: list[str] = dataclasses.field(default_factory=list)
    starts: int = 0
    slowest: float = 0.0
    difference: float = 0.0
    lost: str = ""


def start(kind: Kind, workdir: pathlib.Path) -> list[subprocess.Popen]:
    """Starts a run's processes, each with a log beside the workdir."""

    def log(index: int):
        name = f"{workdir.name}.{index}.log"
        return open(workdir.parent / name, "a", encoding="utf-8")

    return local_workers.start(
        kind.workers,
        [*COMMON, *kind.words, f"--workdir={workdir}"],
        stdout=subprocess.DEVNULL,
        stderr=log,
    )


def end(processes: list[subprocess.Popen], seconds: float) -> bool:
    """Waits for all; kills them and returns False if that takes too long."""
    until = time.monotonic() + seconds
    try:
        for process in processes:
            process.wait(max(0.0, until - time.monotonic()))
        return True
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
            process.wait()
        return False


def state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of the last checkpoint."""
    import tensorflow as tf

    index = max((workdir / "checkpoints").glob("*.index"))
    reader = tf.train.load_checkpoint(str(index.with_suffix("")))
    return {
        name: np.asarray(reader.get_tensor(name))
        for name in reader.get_variable_to_shape_map()
        if name.startswith("algorithm/")
    }


def difference(workdir: pathlib.Path, whole: pathlib.Path) -> float:
    """Returns the largest relative difference of a tensor; inf of integers."""
    a, b = state(workdir), state(whole)
    if a.keys() != b.keys():
        return float("inf")
    worst = 0.0
    for name, value in b.items():
        if np.array_equal(a[name], value):
            continue
        if value.dtype.kind != "f":
            return float("inf")
        gap = float(np.linalg.norm(np.ravel(a[name] - value)))
        size = float(np.linalg.norm(np.ravel(value)))
        worst = max(worst, gap / size if size else float("inf"))
    return worst


def disturb(
    kind: Kind,
    workdir: pathlib.Path,
    whole: pathlib.Path,
    *,
    until_steps: float,
    kills: int,
    patience: float,
    rng: random.Random,
) -> Run:
    """Trains a run to its end, and sends signals on the way.

    A signal comes after up to 1.5 times `until_steps`, the seconds from a start
    to the first steps.
    """
    run = Run(kind.name)
    while not (workdir / "results.json").exists() or not run.starts:
        processes = start(kind, workdir)
        run.starts += 1
        if len(run.kills) >= kills:
            if not end(processes, 600):
                run.lost = "it does not finish"
                return run
            if any(process.returncode for process in processes):
                codes = [process.returncode for process in processes]
                run.lost = f"left alone it ends with {codes}"
                return run
            continue
        time.sleep(rng.uniform(0.05, 1.5) * until_steps)
        if any(process.poll() is not None for process in processes):
            end(processes, patience)  # it finished before the signal
            if run.starts > 20 * kills:
                run.lost = "it does not resume"
                return run
            continue
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        rng.choice(processes).send_signal(number)
        hit = time.monotonic()
        run.kills.append(number.name)
        if not end(processes, patience):
            run.lost = (
                f"{number.name} but not all processes ended in {patience:.0f} s"
            )
            return run
        run.slowest = max(run.slowest, time.monotonic() - hit)
    run.difference = difference(workdir, whole)
    same = (workdir / "results.json").read_text() == (
        whole / "results.json"
    ).read_text()
    if run.difference > kind.bound or (kind.bound == 0 and not same):
        run.lost = "it differs from the undisturbed run"
    return run


def undisturbed(kind: Kind, workdir: pathlib.Path) -> float:
    """Trains an undisturbed run; returns the seconds until its first steps."""
    began, first = time.monotonic(), 0.0
    processes = start(kind, workdir)
    log = workdir.parent / f"{workdir.name}.0.log"
    while not first and processes[0].poll() is None:
        time.sleep(0.1)
        if "\nstep 10/" in log.read_text():
            first = time.monotonic() - began
    if not end(processes, 600) or processes[0].returncode or not first:
        sys.exit(f"{kind.name}: fails undisturbed; see {log}")
    return first


def campaign(given: argparse.Namespace, folder: pathlib.Path) -> list[Run]:
    """Disturbs runs until there were enough kills, or time is up."""
    rng, began, runs = random.Random(given.seed), time.monotonic(), []
    until_steps, whole = {}, {}
    kinds = [k for k in KINDS if k.workers <= given.workers]
    while sum(len(run.kills) for run in runs) < given.kills:
        kind = kinds[len(runs) % len(kinds)]
        if kind.name not in whole:
            whole[kind.name] = folder / f"whole{len(whole)}"
            until_steps[kind.name] = undisturbed(kind, whole[kind.name])
        left = given.kills - sum(len(run.kills) for run in runs)
        runs.append(
            disturb(
                kind,
                folder / f"run{len(runs)}",
                whole[kind.name],
                until_steps=until_steps[kind.name],
                kills=min(given.per_run, left),
                patience=given.patience,
                rng=rng,
            )
        )
        print(runs[-1], flush=True)
        if time.monotonic() - began > 60 * given.minutes:
            break
    return runs


def main() -> int:
    """Prints the table; returns 1 if a run is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per_run", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2))
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep the runs in this folder")
    parser.add_argument("--output", help="JSON file to write")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(given.folder or temporary)
        folder.mkdir(exist_ok=True)
        runs = campaign(given, folder)
    minutes = (time.monotonic() - began) / 60
    kills = [name for run in runs for name in run.kills]
    lost = [run for run in runs if run.lost]
    print(
        f"{len(runs)} runs, {len(kills)} kills ({kills.count('SIGKILL')} "
        f"SIGKILL, {kills.count('SIGTERM')} SIGTERM) in {minutes:.1f} minutes; "
        f"{len(lost)} lost"
    )
    for kind in dict.fromkeys(run.kind for run in runs):
        members = [run for run in runs if run.kind == kind]
        print(
            f"{kind}: {len(members)} runs, "
            f"{sum(len(run.kills) for run in members)} kills, largest "
            f"difference {max(run.difference for run in members):.1e}, all "
            "ended at most "
            f"{max(run.slowest for run in members):.1f} s after a signal"
        )
    if given.output:
        report = [dataclasses.asdict(run) for run in runs]
        pathlib.Path(given.output).write_text(json.dumps(report, indent=2))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
