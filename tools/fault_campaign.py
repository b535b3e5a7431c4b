"""Kills training runs at random moments, and compares what they come to.

    python tools/fault_campaign.py --kills=100

Runs of one process and of two workers are hit by SIGKILL or SIGTERM about ten
times each, at any moment from their start on, and started again until they are
finished. Each must then be as the run that nobody disturbed: to the bit with
one process, to 1e-5 of every tensor's norm with two. Of two workers one is hit,
and the other must end by itself within --patience seconds. Ends with status 1
if a run is lost. --output=FILE writes JSON.
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

import compare_devices
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
        name: For the table.
        workers: Processes.
        bound: On each tensor's relative difference; 0: equal bits.
        words: Its flags.
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
    """What happened to one run.

    Attributes:
        kind: Name of its kind.
        kills: Signals that hit it.
        starts: How often it was started.
        slowest: Longest time in seconds from a signal to the end of all.
        difference: From the undisturbed run, the largest of any tensor.
        lost: What is wrong with it, if anything.
    """

    kind: str
    kills: list[str] = dataclasses.field(default_factory=list)
    starts: int = 0
    slowest: float = 0.0
    difference: float = 0.0
    lost: str = ""


def start(kind: Kind, workdir: pathlib.Path) -> list[subprocess.Popen]:
    """Starts a run's processes, with a log each beside the workdir."""

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
    """Waits for all; False, and they are killed, if that takes too long."""
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


def difference(workdir: pathlib.Path, whole: pathlib.Path) -> float:
    """The largest relative difference of a tensor; inf where it is no float."""
    a, b = compare_devices.state(workdir), compare_devices.state(whole)
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
    """Takes a run to its end, hitting it on the way.

    `until_steps`: seconds that it takes to the first steps; a signal comes at
    any time up to one and a half of them.
    """
    run = Run(kind.name)
    while not (workdir / "results.json").exists() or not run.starts:
        processes = start(kind, workdir)
        run.starts += 1
        if len(run.kills) >= kills:
            if not end(processes, 600):
                run.lost = "it does not come to its end"
                return run
            if any(process.returncode for process in processes):
                codes = [process.returncode for process in processes]
                run.lost = f"left alone it ends with {codes}"
                return run
            continue
        time.sleep(rng.uniform(0.05, 1.5) * until_steps)
        if any(process.poll() is not None for process in processes):
            end(processes, patience)  # finished before it was hit
            if run.starts > 20 * kills:
                run.lost = "it does not go on"
                return run
            continue
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        rng.choice(processes).send_signal(number)
        hit = time.monotonic()
        run.kills.append(number.name)
        if not end(processes, patience):
            run.lost = f"{number.name} and not all ended in {patience:.0f} s"
            return run
        run.slowest = max(run.slowest, time.monotonic() - hit)
    run.difference = difference(workdir, whole)
    same = (workdir / "results.json").read_text() == (
        whole / "results.json"
    ).read_text()
    if run.difference > kind.bound or (kind.bound == 0 and not same):
        run.lost = "it is not the undisturbed run"
    return run


def undisturbed(kind: Kind, workdir: pathlib.Path) -> float:
    """Takes a run to its end; seconds until it took its first steps."""
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
    """Disturbs runs until there were enough kills, or no time is left."""
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
    """Prints the table; 1 if a run is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--per_run", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, choices=(1, 2))
    parser.add_argument("--patience", type=float, default=60.0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="keep the runs here")
    parser.add_argument("--output", help="JSON file")
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
        these = [run for run in runs if run.kind == kind]
        print(
            f"{kind}: {len(these)} runs, "
            f"{sum(len(run.kills) for run in these)} kills, largest difference "
            f"{max(run.difference for run in these):.1e}, all ended at most "
            f"{max(run.slowest for run in these):.1f} s after a signal"
        )
    if given.output:
        report = [dataclasses.asdict(run) for run in runs]
        pathlib.Path(given.output).write_text(json.dumps(report, indent=2))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
