"""Measures `select` on a folder full of near-duplicates and strangers.

    python tools/benchmarks/duplicates.py --data_dir=DIR --strangers=OTHERS

Of 3,000 images, 30 % are near-duplicates of others (copies, or re-encoded,
cropped, brightened, or all of these) and 5 % are strangers, of another folder.
DIR has labeled/CLASS/*; OTHERS any images. Prints which near-duplicates are set
aside, by kind, and how many images are that have none; then, for each method
and three seeds, the strangers and classes among 40 chosen images, and how often
one image was chosen twice.
"""

import argparse
import collections
import io
import pathlib
import tempfile
from collections.abc import Iterator

import numpy as np
import PIL.Image
import PIL.ImageEnhance

from simmatch_tf.data import duplicates
from simmatch_tf.labeling import choosing, features, pool

IMAGES, COPIES, STRANGERS, CHOSEN = 1_950, 900, 150, 40
KINDS = ("copy", "jpeg", "crop4", "crop8", "bright", "all")
METHODS = ("typical", "kmeans", "maxherding", "random")


def crop(image: PIL.Image.Image, share: float) -> PIL.Image.Image:
    """Cuts a share of the side off each border, and enlarges the rest."""
    side, wide = (share * length for length in image.size)
    box = (side, wide, image.width - side, image.height - wide)
    return image.resize(image.size, PIL.Image.Resampling.BILINEAR, box)


def encode(image: PIL.Image.Image, quality: int) -> bytes:
    """Returns a JPEG file."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def changed(image: PIL.Image.Image, kind: str) -> bytes:
    """Returns a near-duplicate, as a JPEG file."""
    if kind in ("crop4", "all"):
        image = crop(image, 0.04)
    if kind == "crop8":
        image = crop(image, 0.08)
    if kind in ("bright", "all"):
        image = PIL.ImageEnhance.Brightness(image).enhance(1.3)
    return encode(image, 40 if kind in ("jpeg", "all") else 95)


def write(data: pathlib.Path, others: pathlib.Path, to: pathlib.Path) -> None:
    """Writes the folder: NUMBER_CLASS_KIND.jpg and strangers."""
    random = np.random.default_rng(7)
    paths = sorted((data / "labeled").glob("*/*"))
    chosen = random.choice(len(paths), IMAGES, replace=False)
    images = [PIL.Image.open(paths[i]).convert("RGB") for i in chosen]
    names = [f"{i:05}_{paths[i].parent.name}" for i in chosen]
    for image, name in zip(images, names, strict=True):
        (to / f"{name}_original.jpg").write_bytes(encode(image, 95))
    # Of one image at most one near-duplicate, so that each can be counted.
    for number, place in enumerate(random.permutation(IMAGES)[:COPIES]):
        kind = KINDS[number % len(KINDS)]
        data_of_it = changed(images[place], kind)
        (to / f"{names[place]}_{kind}.jpg").write_bytes(data_of_it)
    files = sorted(path for path in others.rglob("*") if path.is_file())
    for i in random.choice(len(files), STRANGERS, replace=False):
        image = PIL.Image.open(files[i]).convert("RGB")
        (to / f"stranger{i:05}.jpg").write_bytes(encode(image, 95))


def rows_of_kinds(folder: pathlib.Path) -> Iterator[str]:
    """Yields what becomes of near-duplicates, by kind."""
    images = pool.find(str(folder))
    pixels = features.thumbnails(images.paths).pixels
    copy_of = duplicates.find(pixels, np.zeros(len(images), bool))
    tally: dict[str, list[bool]] = collections.defaultdict(list)
    for number, name in enumerate(images.names):
        kind = name.rpartition("_")[2].removesuffix(".jpg")
        if kind in KINDS:
            original = images.names.index(name.replace(kind, "original"))
            tally[kind].append(copy_of[number] == copy_of[original])
    groups = collections.defaultdict(set)
    for number, first in enumerate(copy_of):
        groups[first].add(images.names[number].rsplit("_", 1)[0])
    wrong = [name for names in groups.values() for name in sorted(names)[1:]]
    strangers = sum(name.startswith("stranger") for name in wrong)
    for kind in KINDS:
        yield f"| {kind} | {np.mean(tally[kind]):.0%} |"
    yield (
        f"set aside though different: {len(wrong) - strangers} of {IMAGES}, "
        f"strangers {strangers} of {STRANGERS}"
    )


def row_of_method(folder: pathlib.Path, method: str) -> str:
    """Returns what one method chooses, with three seeds."""
    strangers, classes, twice = [], [], []
    for seed in range(3):
        choice = choosing.choose(
            choosing.Request(str(folder), CHOSEN, method=method, seed=seed)
        )
        names = [row.file.split("_") for row in choice.rows]
        known = [name for name in names if len(name) > 1]
        strangers.append(len(names) - len(known))
        classes.append(len({name[1] for name in known}))
        twice.append(len(known) - len({name[0] for name in known}))
    return f"| {method} | {strangers} | {classes} | {twice} |"


def main() -> None:
    """Reads the flags and measures."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data_dir", type=pathlib.Path, required=True)
    parser.add_argument("--strangers", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        write(flags.data_dir, flags.strangers, folder)
        print("\n".join(rows_of_kinds(folder)))
        print("method, strangers, classes, chosen twice")
        for method in METHODS:
            print(row_of_method(folder, method))


if __name__ == "__main__":
    main()
