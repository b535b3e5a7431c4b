r"""Divides a folder of photographs into two tasks with different classes.

    python tools/make_neighbor_task.py cifar10_folder tasks --seed=0 --labels=25

Every second class of DIR/labeled/CLASS and DIR/test/CLASS goes to
tasks/source, with all of its labels: a network that is trained there has
weights of a neighboring domain, as published weights are for most photographs.
The other classes go to tasks/target: a few labels, 10,000 images without one,
and test images. `--grey` shrinks the target's images to 28×28 grey ones, far
from the source's. `--search` takes the test images from the training images, so
that settings can be compared without the real test images.

Train the source by all its labels, then any method from its weights:

    python -m simmatch_tf.train --flagfile=configs/folder.cfg \
        --data_dir=tasks/source --algorithm=supervised --backbone=wrn_16_2 \
        --stem_stride=2 --image_size=32 --batch_size=64 --steps=8000 \
        --schedule=half_cosine --learning_rate=0.1 --weight_decay=5e-4 \
        --batch_norm_momentum=0.95 --ema_momentum=0.998 --workdir=runs/source
    python -m simmatch_tf.train --flagfile=configs/folder_pretrained.cfg \
        --data_dir=tasks/target_25_0 --init_from=runs/source \
        --backbone=wrn_16_2 --stem_stride=2 --image_size=32
"""

import argparse
import pathlib
import random
import shutil
from collections.abc import Iterable

import PIL.Image

UNLABELED, TESTED = 10_000, 400


def _place(path: pathlib.Path, to: pathlib.Path, *, grey: bool) -> None:
    """Copies an image, or writes a small grey one."""
    to.parent.mkdir(parents=True, exist_ok=True)
    if not grey:
        shutil.copyfile(path, to)
        return
    with PIL.Image.open(path) as image:
        image.convert("L").convert("RGB").resize(
            (28, 28), PIL.Image.Resampling.BILINEAR
        ).save(to.with_suffix(".png"))


def _shuffled(folder: pathlib.Path, seed: str) -> list[pathlib.Path]:
    paths = sorted(folder.iterdir())
    random.Random(f"{folder.name} {seed}").shuffle(paths)
    return paths


def source(root: pathlib.Path, out: pathlib.Path, names: Iterable[str]) -> None:
    """Writes the task whose labels are all known."""
    for name in names:
        for part, to in (("labeled", "train"), ("test", "test")):
            for path in sorted((root / part / name).iterdir()):
                _place(path, out / to / name / path.name, grey=False)


def target(
    root: pathlib.Path,
    out: pathlib.Path,
    names: Iterable[str],
    *,
    labels: int,
    seed: int,
    grey: bool,
    search: bool,
) -> None:
    """Writes the task with few labels."""
    others = []
    for name in names:
        paths = _shuffled(root / "labeled" / name, f"{seed}")
        tested = _shuffled(root / "test" / name, "test")[:TESTED]
        if search:
            tested, paths = paths[-TESTED:], paths[:-TESTED]
        for path in paths[:labels]:
            _place(path, out / "labeled" / name / path.name, grey=grey)
        for path in tested:
            _place(path, out / "test" / name / path.name, grey=grey)
        others += [(name, path) for path in paths[labels:]]
    random.Random(seed).shuffle(others)
    for name, path in others[:UNLABELED]:
        _place(path, out / "unlabeled" / f"{name}_{path.name}", grey=grey)


def main() -> None:
    """Writes both folders."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("tasks", type=pathlib.Path)
    parser.add_argument("--labels", type=int, default=25, help="of a class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grey", action="store_true")
    parser.add_argument("--search", action="store_true")
    flags = parser.parse_args()
    names = sorted(p.name for p in (flags.photographs / "labeled").iterdir())
    if not (flags.tasks / "source").exists():
        source(flags.photographs, flags.tasks / "source", names[::2])
    out = flags.tasks / (
        f"target{'_grey' * flags.grey}{'_search' * flags.search}"
        f"_{flags.labels}_{flags.seed}"
    )
    target(
        flags.photographs,
        out,
        names[1::2],
        labels=flags.labels,
        seed=flags.seed,
        grey=flags.grey,
        search=flags.search,
    )
    print(f"{out} and {flags.tasks / 'source'}")


if __name__ == "__main__":
    main()
