"""The README's tables of results: recipes for one dataset, three seeds each.

    python tools/results_table.py digits_40 --full

trains whatever is not yet in runs/table/ (digits: about 12 minutes on two
cores, Fashion-MNIST: about half an hour), then prints the table as Markdown and
writes tools/results/digits_40.json. Without --full it prints the table from
that file. Each run uses its seed for the label split, the weights, the order
and the views; the test split is scored once, at its end. Wall time is of the
whole command.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Table → title → the recipe, and the steps where they are not its own.
TABLES = {
    "digits_40": {
        "SimMatch, ensemble memory": ("digits_40", None),
        "Supervised, the labels alone": ("digits_40_supervised", None),
        "SimMatch, EMA teacher": ("digits_40_teacher", None),
        "Supervised, as many steps": ("digits_40_supervised", 2500),
    },
    "fashion_mnist_40": {
        "SimMatch, ensemble memory": ("fashion_mnist_40", None),
        "Supervised, the labels alone": ("fashion_mnist_40_supervised", None),
    },
}
SEEDS = (0, 1, 2)


def run(recipe: str, steps: int | None, seed: int) -> dict[str, float]:
    """Trains once, or reads what an earlier call trained."""
    name = f"{recipe}_{seed}" if steps is None else f"{recipe}_{steps}_{seed}"
    workdir = ROOT / "runs" / "table" / name
    wall = workdir / "wall_seconds"
    command = [
        sys.executable,
        "-m",
        "simmatch_tf.train",
        f"--flagfile=configs/{recipe}.cfg",
        f"--workdir={workdir}",
        f"--seed={seed}",
        f"--split_seed={seed}",
    ]
    if steps is not None:
        command.append(f"--steps={steps}")
    # A finished run is called again as it is: if the recipe has changed since,
    # that is refused.
    timed = wall.is_file()
    began = time.monotonic()
    subprocess.run(
        command + ([] if timed else ["--overwrite"]), check=True, cwd=ROOT
    )
    if not timed:
        wall.write_text(f"{time.monotonic() - began:.1f}\n")
    found = json.loads((workdir / "results.json").read_text())
    return {
        "seed": seed,
        "top1": found["top1"],
        "student_top1": found["student"]["last"]["top1"],
        "ema_top1": found["ema"]["last"]["top1"],
        "weights_of_record": found["weights_of_record"],
        "steps": found["steps"],
        "wall_seconds": float(wall.read_text()),
    }


def markdown(
    rows: dict[str, tuple[str, int | None]],
    cells: dict[str, list[dict[str, float]]],
) -> str:
    """The table: mean ± sample standard deviation over the seeds."""
    lines = [
        "| method | steps | top-1, % | worst | student / EMA | s a run |",
        "|---|---|---|---|---|---|",
    ]
    for title, (recipe, _) in rows.items():
        runs = cells[title]
        top1 = [100 * r["top1"] for r in runs]
        student = statistics.mean(100 * r["student_top1"] for r in runs)
        ema = statistics.mean(100 * r["ema_top1"] for r in runs)
        wall = statistics.mean(r["wall_seconds"] for r in runs)
        mean, deviation = statistics.mean(top1), statistics.stdev(top1)
        lines.append(
            f"| {title} (`configs/{recipe}.cfg`) | {runs[0]['steps']} "
            f"| **{mean:.1f} ± {deviation:.1f}** | {min(top1):.1f} "
            f"| {student:.1f} / {ema:.1f} | {wall:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Trains with --full; prints the table."""
    table, *more = [*sys.argv[1:], ""]
    if table not in TABLES or more[0] not in ("", "--full"):
        sys.exit(f"usage: results_table.py {'|'.join(TABLES)} [--full]")
    rows = TABLES[table]
    file = ROOT / "tools" / "results" / f"{table}.json"
    if more[0] == "--full":
        cells = {
            title: [run(*row, seed) for seed in SEEDS]
            for title, row in rows.items()
        }
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(cells, indent=1) + "\n")
    print(markdown(rows, json.loads(file.read_text())))


if __name__ == "__main__":
    main()
