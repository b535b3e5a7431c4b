"""What it costs to see a run: training with summaries and without.

    python tools/benchmark_summaries.py --flagfile=configs/digits_40.cfg

Two whole runs in one process, one with summaries and one without, take turns of
50 steps. All that training does is in the time of its turn: logs, pictures,
evaluation, checkpoints; and start-up and end are. Prints, of each round, the
seconds of both and their ratio, and the medians; --output=FILE writes JSON.
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
ROUNDS = flags.DEFINE_integer("rounds", 3, "Pairs of runs.", 1)
OUTPUT = flags.DEFINE_string("output", None, "JSON file.")


class Turns:
    """Lets one of two threads go on at a time, and times their turns.

    Attributes:
        parts: Kind → seconds of "start" (to the end of the first step), of
            "steps", and of "end" (from the last step on).
    """

    def __init__(self, first: str) -> None:
        """Starts with the turn of `first`."""
        self._turn, self._change = first, threading.Condition()
        self._done: set[str] = set()
        self._began = 0.0
        names = ("start", "steps", "end")
        self.parts = {kind: dict.fromkeys(names, 0.0) for kind in KINDS}

    def take(self, kind: str) -> None:
        """Waits for one's turn."""
        with self._change:
            self._change.wait_for(lambda: self._turn == kind)
        self._began = time.perf_counter()

    def count(self, kind: str, part: str) -> None:
        """Adds the time up to now to a part."""
        now = time.perf_counter()
        self.parts[kind][part] += now - self._began
        self._began = now

    def give(self, kind: str, *, done: bool = False) -> None:
        """Gives the turn to the other, as long as that is not done."""
        (other,) = KINDS.keys() - {kind}
        with self._change:
            if done:
                self._done.add(kind)
            if other not in self._done:
                self._turn = other
            self._change.notify_all()


def pair(config: config_lib.Config, first: str) -> dict[str, dict]:
    """Two runs, turn by turn; what stands in `Turns.parts`."""
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
    tool_flags.refuse(rest, names, "the tool measures what is so by default")
    config = tool_flags.run(rest)
    if config.steps is None:
        sys.exit(f"error: --epochs={config.epochs}: give --steps")
    preflight.choose_kernels()
    import simmatch_tf

    with tempfile.TemporaryDirectory() as folder:  # the process's own start
        short = dataclasses.replace(
            config, steps=2, warmup_steps=None, workdir=f"{folder}/run"
        )
        simmatch_tf.fit(short)
    found = []
    for number in range(ROUNDS.value):
        # Each is first as often as the other.
        first = list(KINDS)[number % 2]
        found.append(pair(config, first))
        print(f"round {number + 1} of {ROUNDS.value}", file=sys.stderr)
    from simmatch_tf import tables

    rows = [["round", *(f"{k}, s" for k in KINDS), "ratio", "of the steps"]]
    ratios = []
    for number, parts in enumerate(found, 1):
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
            "seconds": found,
            "rounds": ROUNDS.value,
            "flags": sys.argv[1:],
            **competitors.setting(None),
        }
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
