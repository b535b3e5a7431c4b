"""How far a run on several devices is from the same run on one.

    python tools/compare_devices.py --flagfile=configs/digits_40.cfg --steps=10

Trains with one, two and four logical CPUs and with two workers, and prints
‖a - b‖ / ‖b‖ of weights, EMA, velocities, memory and alignment window after the
last step, the largest of any tensor, and whether masks and memory labels are
equal. --precision=float64 tells rounding from mistakes. --output=FILE writes
JSON.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import local_workers
import numpy as np

# Name → (logical devices, workers).
RUNS = {
    "one device": (1, 1),
    "two devices": (2, 1),
    "four devices": (4, 1),
    "two workers": (1, 2),
}
# Part of the state → how its tensors' names in a checkpoint begin.
PARTS = {
    "weights": "algorithm/student/",
    "EMA": "algorithm/teacher/",
    "velocities": "algorithm/optimizer/",
    "memory": "algorithm/memory/features",
    "alignment": "algorithm/align/window",
}


def train(workdir: pathlib.Path, words: list[str], number: int, workers: int):
    """Trains one of the runs."""
    every = ["--log_every=1", "--eval_every=1000000", f"--devices={number}"]
    processes = local_workers.start(
        workers,
        [*words, *every, f"--workdir={workdir}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    for process in processes:
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(errors.decode())


def state(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors of the last checkpoint."""
    import tensorflow as tf

    index = max((workdir / "checkpoints").glob("*.index"))
    reader = tf.train.load_checkpoint(str(index.with_suffix("")))
    return {
        name: np.asarray(reader.get_tensor(name))
        for name in reader.get_variable_to_shape_map()
        if name.startswith("algorithm/")
    }


def masks(workdir: pathlib.Path) -> list[float]:
    """The mask rate of every step."""
    import tensorflow as tf

    (path,) = (workdir / "tensorboard").iterdir()
    return [
        tf.make_ndarray(value.tensor).item()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "pseudo_label/mask_rate"
    ]


def compare(one: pathlib.Path, other: pathlib.Path) -> dict[str, Any]:
    """Part → largest relative difference; and what must be equal."""
    a, b = state(other), state(one)
    assert a.keys() == b.keys()
    found = {}
    for part, beginning in PARTS.items():
        gaps = [0.0]
        for name, value in b.items():
            if name.startswith(beginning) and value.dtype.kind == "f":
                gap = float(np.linalg.norm((a[name] - value).ravel()))
                size = float(np.linalg.norm(value.ravel()))
                gaps.append(gap / size if gap else 0.0)
        found[part] = float(max(gaps))
    found["masks"] = bool(np.allclose(masks(one), masks(other), atol=1e-6))
    found["labels"] = all(
        np.array_equal(a[name], b[name])
        for name in b
        if name.startswith(("algorithm/memory/labels", "algorithm/memory/fill"))
    )
    return found


def main() -> None:
    """Prints the table."""
    words = [w for w in sys.argv[1:] if not w.startswith("--output=")]
    output = [w for w in sys.argv[1:] if w.startswith("--output=")]
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
    from simmatch_tf.reporting import tables

    rows = [["", *PARTS, "masks equal", "labels equal"]]
    for name, found in report.items():
        figures = [f"{found[part]:.1e}" for part in PARTS]
        equal = [str(found["masks"]), str(found["labels"])]
        rows.append([name, *figures, *equal])
    print(tables.table(rows))
    if output:
        path = pathlib.Path(output[0].partition("=")[2])
        path.write_text(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
