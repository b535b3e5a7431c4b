"""What it costs to see a run: training with summaries and without.

    python tools/benchmark_summaries.py --flagfile=configs/digits_40.cfg

Whole runs of the command, each in a process of its own, in alternating rounds.
Prints medians of the seconds of the command, and of its training without
start-up, and their ratios; --output=FILE writes JSON. --before=DIR, another
checkout of this project, is a third to compare with.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import competitors
import tool_flags
from absl import flags

ROUNDS = flags.DEFINE_integer("rounds", 5, "Runs of each kind.", 1)
BEFORE = flags.DEFINE_string("before", None, "Another checkout.")
OUTPUT = flags.DEFINE_string("output", None, "JSON file.")
HERE = pathlib.Path(__file__).resolve().parents[1]


def run(
    folder: pathlib.Path, words: list[str], workdir: str
) -> dict[str, float]:
    """Trains; seconds of the command, and of training alone."""
    command = [sys.executable, "-m", "simmatch_tf.train", *words]
    command += [f"--workdir={workdir}", "--verbosity=-2"]
    began = time.monotonic()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    seconds = time.monotonic() - began
    timing = json.loads((pathlib.Path(workdir) / "timing.json").read_text())
    return {"command": seconds, "training": timing[0]["seconds"]}


def main() -> None:
    """Runs all rounds, and prints the table."""
    rest = tool_flags.read(__doc__, [ROUNDS, BEFORE, OUTPUT])
    tool_flags.check_file("output", OUTPUT.value, ".json")
    tool_flags.refuse(rest, ("workdir", "summaries"), "the tool sets it")
    tool_flags.run(rest)  # the flags are right, or this ends here
    words = list(rest)
    kinds = {
        "without": (HERE, [*words, "--nosummaries"]),
        "with summaries": (HERE, words),
    }
    if BEFORE.value:
        kinds["before"] = (pathlib.Path(BEFORE.value).resolve(), words)
    found = {name: [] for name in kinds}
    names = list(kinds)
    for number in range(ROUNDS.value):
        # Each kind is first as often as it can be.
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with tempfile.TemporaryDirectory() as workdir:
                found[name].append(run(*kinds[name], workdir))
        print(f"round {number + 1} of {ROUNDS.value}", file=sys.stderr)
    from simmatch_tf.reporting import tables

    rows = [["", "command, s", "ratio", "training, s", "ratio"]]
    for name, runs in found.items():
        row = [name]
        for what in ("command", "training"):
            own = [each[what] for each in runs]
            base = [each[what] for each in found["without"]]
            ratios = [a / b for a, b in zip(own, base, strict=True)]
            row.append(f"{statistics.median(own):.2f}")
            row.append(f"{statistics.median(ratios):.3f}")
        rows.append(row)
    print(tables.table(rows))
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
