"""Creates a folder of 2,000 small photos, to try --dataset=folder.

    python tools/make_photo_folder.py photos

They are pieces of the two photos that come with scikit-learn (a temple and a
flower), of mixed sizes and formats, some lying on their side with an EXIF
orientation: 20 labeled in two classes, 1,780 unlabeled, 200 for the test.
"""

import pathlib
import sys

import numpy as np
import PIL.Image
from sklearn import datasets

PARTS = {"labeled": 20, "unlabeled": 1780, "test": 200}
CLASSES = ("flower", "temple")
_SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png", ".bmp", ".gif")
_SHARES = (0.5, 0.1, 0.1, 0.15, 0.1, 0.05)
_ORIENTATION = 0x0112  # the EXIF tag
_ON_ITS_SIDE = 6  # viewers turn it by a quarter, clockwise


def piece(photo: PIL.Image.Image, rng: np.random.Generator) -> PIL.Image.Image:
    """Cuts out a piece of random size and brightness."""
    width, height = (int(side * rng.uniform(0.15, 0.4)) for side in photo.size)
    left = rng.integers(photo.width - width)
    top = rng.integers(photo.height - height)
    image = photo.crop((left, top, left + width, top + height))
    scale = rng.uniform(0.8, 2.0)
    size = int(width * scale), int(height * scale)
    image = image.resize(size, PIL.Image.Resampling.BICUBIC)
    gain = rng.uniform(0.6, 1.3)
    return image.point(lambda value: min(255, int(value * gain)))


def save(
    image: PIL.Image.Image, path: pathlib.Path, rng: np.random.Generator
) -> None:
    """Saves an image in a format drawn at random."""
    path = path.with_suffix(rng.choice(_SUFFIXES, p=_SHARES))
    options = {}
    if path.suffix.lower() in (".jpg", ".jpeg") and rng.random() < 0.2:
        image = image.transpose(PIL.Image.Transpose.ROTATE_90)
        exif = PIL.Image.Exif()
        exif[_ORIENTATION] = _ON_ITS_SIDE
        options["exif"] = exif
    image.save(path, **options)


def main() -> None:
    """Writes the folder."""
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/make_photo_folder.py FOLDER")
    root = pathlib.Path(sys.argv[1]).expanduser()
    if root.exists():
        sys.exit(f"{root}: exists already; give a new folder")
    temple, flower = datasets.load_sample_images().images
    photos = [PIL.Image.fromarray(image) for image in (flower, temple)]
    rng = np.random.default_rng(0)
    for part, count in PARTS.items():
        for number in range(count):
            label = number % len(CLASSES)
            folder = root / part
            if part != "unlabeled":
                folder /= CLASSES[label]
            folder.mkdir(parents=True, exist_ok=True)
            save(piece(photos[label], rng), folder / f"{number:04}", rng)
    print(f"{sum(PARTS.values())} images in {root}")


if __name__ == "__main__":
    main()
