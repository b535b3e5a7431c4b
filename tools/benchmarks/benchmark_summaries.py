"""Measures what TensorBoard summaries cost a run.

    python tools/benchmarks/benchmark_summaries.py \
        --flagfile=configs/digits_40.cfg

Trains two whole runs in one process, one with summaries and one without, in
turns of 50 steps. A turn includes all that training does: logs, pictures,
evaluation, checkpoints, start and end. Prints, for each round, the seconds of
both runs and their ratio, and the medians.
"""

import dataclasses
import json
import pathlib
import statistics
import sys
import tempfile
import threading
import time

import competitors
import tool_flags
from absl import flags

from simmatch_tf import config as config_lib
from simmatch_tf import preflight

# Steps of a turn.
CHUNK = 50
KINDS = {"with summaries": True, "without": False}
ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of pairs of runs.", 1)
OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")


class Turns:
    """Lets one of two threads run at a time, and measures their turns.

    Attributes:
        parts: Kind → seconds of "start" (to the end of the first step), of
            "steps", and of "end" (from the last step on).
    """

    def __init__(self, first: str) -> None:
        """Gives `first` the first turn."""
        self._turn, self._change = first, threading.Condition()
        self._done: set[str] = set()
        self._began = 0.0
        names = ("start", "steps", "end")
        self.parts = {kind: dict.fromkeys(names, 0.0) for kind in KINDS}

    def take(self, kind: str) -> None:
        """Waits for the turn of a thread."""
        with self._change:
            self._change.wait_for(lambda: self._turn == kind)
        self._began = time.perf_counter()

    def count(self, kind: str, part: str) -> None:
        """Adds the time since the last call to a part."""
        now = time.perf_counter()
        self.parts[kind][part] += now - self._began
        self._began = now

    def give(self, kind: str, *, done: bool = False) -> None:
        """Passes the turn to the other thread, unless that is done."""
        (other,) = KINDS.keys() - {kind}
        with self._change:
            if done:
                self._done.add(kind)
            if other not in self._done:
                self._turn = other
            self._change.notify_all()


def pair(config: config_lib.Config, first: str) -> dict[str, dict]:
    """Trains two runs by turns; returns `Turns.parts`."""
    import simmatch_tf
    from simmatch_tf.training import progress

    turns, failed = Turns(first), []
    advance = progress.Progress.advance

    def hook(self, step, values):
        kind = threading.current_thread().name
        turns.count(kind, "start" if step == 1 else "steps")
        advance(self, step, values)
        if step % CHUNK == 0 and step < config.steps:
            turns.count(kind, "steps")
            turns.give(kind)
            turns.take(kind)

    def train(kind, folder):
        turns.take(kind)
        try:
            own = dataclasses.replace(
                config, workdir=folder, summaries=KINDS[kind]
            )
            simmatch_tf.fit(own)
        except BaseException as error:
            failed.append(error)
        turns.count(kind, "end")
        turns.give(kind, done=True)

    progress.Progress.advance = hook
    try:
        with tempfile.TemporaryDirectory() as folder:
            threads = [
                threading.Thread(
                    target=train, args=(kind, f"{folder}/{kind}"), name=kind
                )
                for kind in KINDS
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        progress.Progress.advance = advance
    if failed:
        raise failed[0]
    return turns.parts


def main() -> None:
    """Runs all rounds, and prints the table."""
    rest = tool_flags.read(__doc__, [ROUNDS, OUTPUT])
    tool_flags.check_file("output", OUTPUT.value, ".json")
    names = ("workdir", "summaries", "log_every", "steps_per_loop")
    tool_flags.refuse(
        rest, names, "this tool measures the default; leave it out"
    )
    config = tool_flags.run(rest)
    if config.steps is None:
        sys.exit(f"error: --epochs={config.epochs}: must be given as --steps")
    preflight.choose_kernels()
    import simmatch_tf

    with (
        tempfile.TemporaryDirectory() as folder
    ):  # the start of the process itself
        short = dataclasses.replace(
            config, steps=2, warmup_steps=None, workdir=f"{folder}/run"
        )
        simmatch_tf.fit(short)
    rounds = []
    for number in range(ROUNDS.value):
        # Both come first equally often.
        first = list(KINDS)[number % 2]
        rounds.append(pair(config, first))
        print(f"round {number + 1} of {ROUNDS.value}", file=sys.stderr)
    from simmatch_tf import tables

    rows = [["round", *(f"{k}, s" for k in KINDS), "ratio", "of the steps"]]
    ratios = []
    for number, parts in enumerate(rounds, 1):
        whole = [sum(parts[kind].values()) for kind in KINDS]
        steps = [parts[kind]["steps"] for kind in KINDS]
        ratios.append((whole[0] / whole[1], steps[0] / steps[1]))
        shown = [f"{x:.1f}" for x in whole] + [f"{x:.3f}" for x in ratios[-1]]
        rows.append([str(number), *shown])
    medians = [statistics.median(x) for x in zip(*ratios, strict=True)]
    rows.append(["median", "", "", *(f"{x:.3f}" for x in medians)])
    print(tables.plain(rows))
    if OUTPUT.value:
        report = {
            "seconds": rounds,
            "rounds": ROUNDS.value,
            "flags": sys.argv[1:],
            **competitors.setting(None),
        }
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
