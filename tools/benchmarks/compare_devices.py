"""Compares a run on several devices with the same run on one device.

    python tools/benchmarks/compare_devices.py \
        --flagfile=configs/digits_40.cfg --steps=10

Trains with one, two and four logical CPUs and with two workers. Prints ‖a - b‖
/ ‖b‖ of weights, EMA, velocities, memory bank and alignment window after the
last step, each part as one vector; the largest difference of any tensor; and
whether masks and the labels in the memory bank are equal. --precision=float64
tells rounding from mistakes.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import tool_flags
from absl import flags

OUTPUT = flags.DEFINE_string("output", None, "JSON file to write.")
# Name → (logical devices, workers).
RUNS = {
    "one device": (1, 1),
    "two devices": (2, 1),
    "four devices": (4, 1),
    "two workers": (1, 2),
}
# Part of the state → prefix of its tensors' names in a checkpoint.
PARTS = {
    "weights": "algorithm/student/",
    "EMA": "algorithm/teacher/",
    "velocities": "algorithm/optimizer/",
    "memory": "algorithm/memory/features",
    "alignment": "algorithm/align/window",
}


def train(
    workdir: pathlib.Path, words: list[str], number: int, workers: int
) -> None:
    """Trains one of the runs."""
    tool = pathlib.Path(__file__).parents[1] / "local_workers.py"
    command = [sys.executable, str(tool), f"--workers={workers}", "--", *words]
    command += ["--log_every=1", "--eval_every=1000000"]
    command += [f"--devices={number}", f"--workdir={workdir}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(ran.stderr)


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


def masks(workdir: pathlib.Path) -> list[float]:
    """Reads the mask rate of every step."""
    import tensorflow as tf

    (path,) = (workdir / "tensorboard").glob("events.out.tfevents.*")
    return [
        tf.make_ndarray(value.tensor).item()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "pseudo_label/mask_rate"
    ]


def relative(a: np.ndarray, b: np.ndarray) -> float:
    """Returns ‖a - b‖ / ‖b‖; 0 if both are 0."""
    gap, size = (float(np.linalg.norm(np.ravel(x))) for x in (a - b, b))
    return gap / size if gap else 0.0


def compare(one: pathlib.Path, other: pathlib.Path) -> dict[str, Any]:
    """Returns part → relative difference, and whether the rest is equal."""
    a, b = state(other), state(one)
    assert a.keys() == b.keys()
    names = [n for n in b if b[n].dtype.kind == "f"]
    differences = {
        part: relative(
            *(
                np.concatenate(
                    [x[n].ravel() for n in names if n.startswith(beginning)]
                )
                for x in (a, b)
            )
        )
        for part, beginning in PARTS.items()
    }
    differences["any tensor"] = max(
        relative(a[n], b[n])
        for n in names
        if n.startswith(tuple(PARTS.values()))
    )
    differences["masks"] = bool(
        np.allclose(masks(one), masks(other), atol=1e-6)
    )
    differences["labels"] = all(
        np.array_equal(a[name], b[name])
        for name in b
        if name.startswith(("algorithm/memory/labels", "algorithm/memory/fill"))
    )
    return differences


def main() -> None:
    """Prints the table."""
    words = tool_flags.read(__doc__, [OUTPUT])
    tool_flags.check_file("output", OUTPUT.value, ".json")
    names = ("devices", "strategy", "tpu", "workdir", "eval_every", "log_every")
    tool_flags.refuse(words, names, "is this tool's own; leave it out")
    config = tool_flags.run(words)
    most = max(number for number, _ in RUNS.values())
    if config.batch_size % most or config.algorithm != "simmatch":
        sys.exit(
            f"error: --batch_size={config.batch_size} and --algorithm="
            f"{config.algorithm}: must divide by {most}, and be simmatch"
        )
    with tempfile.TemporaryDirectory() as folder:
        workdirs = {
            name: pathlib.Path(folder) / name.replace(" ", "_") for name in RUNS
        }
        for name, (number, workers) in RUNS.items():
            train(workdirs[name], words, number, workers)
        one = workdirs["one device"]
        report = {
            name: compare(one, workdir)
            for name, workdir in workdirs.items()
            if workdir != one
        }
    from simmatch_tf import tables

    parts = [*PARTS, "any tensor"]
    rows = [["", *parts, "masks equal", "labels equal"]]
    for name, differences in report.items():
        figures = [f"{differences[part]:.1e}" for part in parts]
        equal = [str(differences["masks"]), str(differences["labels"])]
        rows.append([name, *figures, *equal])
    print(tables.plain(rows))
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
