r"""Measures two rounds of labeling against one, with SimMatch in the loop.

    python tools/make_dataset_folder.py clothes \
        --flagfile=configs/fashion_mnist_40.cfg --labels=60000
    python tools/benchmarks/rounds.py --data_dir=clothes --workdir=runs/rounds \
        -- --flagfile=configs/folder.cfg --steps=2000

DIR has labeled/CLASS/* and test/CLASS/*. Each seed draws 10,000 of the labeled
images, which then have no label but for those that are chosen: 40 at once, or
20, and with the model that they trained another 20. `select` chooses them, a
person who is never wrong labels them, and `train` has the flags behind `--`.
Each run is kept, and not repeated. Prints a table in Markdown.
"""

import argparse
import csv
import json
import pathlib
import random
import shutil
import statistics
import subprocess
import sys

UNLABELED, TESTED = 10_000, 2_000
# Arm → method of `select`, and how many images are chosen in each round.
ARMS = {
    "random, 40": ("random", (40,)),
    "stratified, 40": ("stratified", (40,)),
    "typical, 40": ("typical", (40,)),
    "typical, 20": ("typical", (20,)),
    "typical, 20 + 20": ("typical", (20, 20)),
}


def write_pool(data: pathlib.Path, to: pathlib.Path, seed: int) -> None:
    """Writes TO/images/NUMBER, TO/test/CLASS/* and TO.csv, the true classes."""
    if to.with_suffix(".csv").exists():
        return
    chance = random.Random(seed)
    paths = sorted((data / "labeled").glob("*/*"))
    chance.shuffle(paths)
    (to / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, path in enumerate(paths[:UNLABELED]):
        name = f"images/{number:05}{path.suffix}"
        shutil.copyfile(path, to / name)
        rows.append((name, path.parent.name))
    tested = sorted((data / "test").glob("*/*"))
    random.Random("test").shuffle(tested)
    for path in tested[:TESTED]:
        place = to / "test" / path.parent.name / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    write_classes(to.with_suffix(".csv"), rows)


def write_classes(path: pathlib.Path, rows: list[tuple[str, str]]) -> None:
    """Writes a table of images and their classes."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "class"), *rows])


def write_data(pool: pathlib.Path, to: pathlib.Path, classes: set[str]) -> None:
    """Links the pool's images, and the test images of classes with a label."""
    (to / "test").mkdir(parents=True, exist_ok=True)
    for name in ("images", *(f"test/{name}" for name in sorted(classes))):
        if not (to / name).is_symlink():
            (to / name).symlink_to(pool / name)


def read(path: pathlib.Path) -> list[dict[str, str]]:
    """Reads a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def command(name: str, *words: str) -> None:
    """Runs a command of the package."""
    subprocess.run(
        [sys.executable, "-m", f"simmatch_tf.{name}", *words], check=True
    )


def run(
    pool: pathlib.Path, arm: str, seed: int, flags: list[str]
) -> dict[str, float]:
    """Chooses, labels and trains, a round after the other.

    Returns:
        "top1", %, and the number of "classes" that have a label.
    """
    truth = {
        row["file"]: row["class"] for row in read(pool.with_suffix(".csv"))
    }
    method, counts = ARMS[arm]
    labeled, model = [], []
    for number in range(len(counts)):
        # Arms that begin in the same way share their first rounds.
        name = "_".join([method, *map(str, counts[: number + 1])])
        work = pool.parent / name
        labels, chosen = work / "labels.csv", work / "selected.csv"
        work.mkdir(exist_ok=True)
        if not labels.exists():
            words = [f"--images={pool}", f"--count={counts[number]}"]
            words += [f"--method={method}", f"--seed={seed}"]
            words += [f"--output={chosen}", *model]
            if method == "stratified":
                words.append(f"--classes_from={pool.with_suffix('.csv')}")
            command("select", *words)
            files = [row["file"] for row in read(chosen)]
            labeled += [(file, truth[file]) for file in files]
            write_classes(labels, labeled)
        labeled = [(row["file"], row["class"]) for row in read(labels)]
        classes = {name for _, name in labeled}
        write_data(pool, work / "data", classes)
        if not (work / "run" / "results.json").exists():
            command(
                "train",
                *flags,
                f"--data_dir={work / 'data'}",
                f"--labels_from={labels}",
                f"--seed={seed}",
                f"--workdir={work / 'run'}",
            )
        model = [f"--model={work / 'run'}", f"--labels_from={labels}"]
    result = json.loads((work / "run" / "results.json").read_text())
    # The images of a class that has no label are all wrong.
    tested = len(list((pool / "test").glob("*/*")))
    top1 = 100 * result["top1"] * result["test_images"] / tested
    return {"top1": top1, "classes": len(classes)}


def main() -> None:
    """Runs all arms of all seeds, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("train_flags", nargs="*", help="For train, behind --.")
    words = parser.parse_args()
    seeds = [int(seed) for seed in words.seeds.split(",")]
    results = {arm: [] for arm in ARMS}
    for seed in seeds:
        pool = words.workdir.absolute() / f"seed{seed}" / "pool"
        write_pool(words.data_dir, pool, seed)
        for arm, of_arm in results.items():
            of_arm.append(run(pool, arm, seed, words.train_flags))
    print("| labels | top-1, % | each seed | classes found |")
    print("|---|---|---|---|")
    for arm, of_arm in results.items():
        values = [result["top1"] for result in of_arm]
        mean = f"{statistics.mean(values):.1f}"
        if len(values) > 1:
            mean += f" ± {statistics.stdev(values):.1f}"
        each = ", ".join(f"{value:.1f}" for value in values)
        classes = ", ".join(str(result["classes"]) for result in of_arm)
        print(f"| {arm} | {mean} | {each} | {classes} |")


if __name__ == "__main__":
    main()
