r"""Writes a dataset as a folder of images, to try the recipes of folders on it.

    python tools/make_dataset_folder.py FOLDER \
        --flagfile=configs/fashion_mnist_40.cfg

The labeled images of the flags' split go to labeled/CLASS, all other training
images to unlabeled, and the test images to test/CLASS, as PNG files. For
datasets that are held in memory, such as the digits and Fashion-MNIST.
"""

import pathlib
import sys

import numpy as np
import PIL.Image

import simmatch_tf
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.training import inputs
from simmatch_tf.training import workdir as workdir_lib


def write(
    images: source_lib.Images, names: list[str | None], folder: pathlib.Path
) -> None:
    """Writes images to FOLDER/NAME/NUMBER.png; a name of None: FOLDER."""
    for number, (pixels, name) in enumerate(
        zip(images.images, names, strict=True)
    ):
        path = folder / (name or "../unlabeled") / f"{number:05}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = pixels.shape[-1] == 1
        PIL.Image.fromarray(pixels[..., 0] if grey else pixels).save(path)


def main() -> None:
    """Reads the flags and writes the folder."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    config = simmatch_tf.Config.from_argv(["x", *sys.argv[2:]])
    source = inputs.make_source(config)
    split = inputs.make_split(
        config, source, workdir_lib.Workdir(folder / "none")
    )
    classes = [str(name).replace("/", "_") for name in source.class_names]
    labeled = np.isin(np.arange(len(source.train.labels)), split.labeled)
    write(
        source.train,
        [
            classes[label] if known else None
            for label, known in zip(source.train.labels, labeled, strict=True)
        ],
        folder / "labeled",
    )
    write(
        source.test,
        [classes[label] for label in source.test.labels],
        folder / "test",
    )
    print(f"{folder}: {labeled.sum()} labeled images, {(~labeled).sum()} not")


if __name__ == "__main__":
    main()
