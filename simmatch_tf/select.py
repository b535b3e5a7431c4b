r"""Chooses which images of a folder to label.

python -m simmatch_tf.select --images=photos --count=40 --html=selected.html
"""

import dataclasses
import shlex
from typing import TYPE_CHECKING

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, registry, signals
from simmatch_tf.data import picking
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import workdir

if TYPE_CHECKING:
    from simmatch_tf.labeling import pool as pool_lib

_LIBRARIES = ("keras_applications", "keras_cv", "keras_hub")


@dataclasses.dataclass(frozen=True)
class SelectConfig(config_lib.Plugins):
    """The flags of `python -m simmatch_tf.select`."""

    images: str | None = flag(
        None,
        "Folder of the images, read with its subfolders. Those in "
        "labeled/CLASS have labels; validation and test images are left out.",
        required="the folder of the images",
    )
    count: int = flag(40, "Number of images to choose.", low=1, high=100_000)
    model: str | None = flag(
        None,
        "Network whose features tell images apart: the folder of a run or an "
        "export, or keras_applications:NAME, keras_cv:NAME or keras_hub:NAME "
        "with its published weights. Default: none, only the pixels, which "
        "find diversity and know nothing of classes.",
    )
    weights: str | None = flag(
        None,
        "Weights of --model=LIBRARY:NAME: a file, random, or imagenet (the "
        "default), which the library downloads.",
    )
    method: str = flag(
        "typical",
        "How to choose: the most typical image of each cluster, the image "
        "nearest to each cluster's center, the greatest coverage, chance, or, "
        "for simulations, chance with the same number of each class.",
        choices=picking.METHODS,
    )
    labels_from: str | None = flag(
        None,
        "Labels there are: a labels.jsonl of label, or a CSV file with the "
        "columns file and class. Images of none of the classes are left out.",
    )
    classes_from: str | None = flag(
        None,
        "For --method=stratified: CSV file with the columns file and class, "
        "the true classes of all images.",
        rare=True,
    )
    output: str = flag(
        "selected.csv",
        "CSV file to write, with the images in the order in which to label "
        "them. A list that is there is replaced.",
    )
    html: str | None = flag(
        None, "HTML page to write, with the chosen images and their clusters."
    )
    seed: int = flag(
        0, "Random seed of clusters and draws.", low=0, high=2**31 - 1
    )
    image_size: int | None = flag(
        None,
        "Side of the images for --model, in pixels. Default: that of the "
        "model; 224 for an architecture of a library.",
        low=8,
        high=1024,
        rare=True,
    )
    batch_size: int = flag(
        64, "Batch size for --model, in images.", low=1, rare=True
    )

    def check(self) -> None:
        """Files must have the right endings; flags need each other."""
        commandline.check_output_file("output", self.output, (".csv",))
        if self.html is not None:
            commandline.check_output_file("html", self.html, (".html", ".htm"))
        stratified = self.method == "stratified"
        if stratified != (self.classes_from is not None):
            raise InputError(
                f"--method={self.method} and --classes_from="
                f"{self.classes_from}: stratified, for simulations, needs the "
                "true classes, and no other method reads them"
            )
        if self.weights is not None:
            if self.library is None:
                raise InputError(
                    f"--weights={self.weights}: is for --model=LIBRARY:NAME; "
                    "a run and an export bring their own"
                )
            if self.weights not in ("imagenet", "random"):
                preflight.kind_of_weights(self.weights, "weights")
        if self.model is None:
            if self.image_size is not None:
                raise InputError(
                    f"--image_size={self.image_size}: needs --model"
                )
        elif self.library is not None:
            registry.networks.find(self.model, flag="model")
            if self.image_size is not None:
                registry.networks.check_side(
                    self.model, self.image_size, flag="model"
                )
        else:
            kind, path = preflight.kind_of_model("model", self.model)
            if kind == "workdir":
                workdir.Workdir(path).trained()
            else:
                preflight.exported(path)

    @property
    def library(self) -> str | None:
        """The library of --model=LIBRARY:NAME, or None."""
        library, sign, _ = (self.model or "").partition(":")
        return library if sign and library in _LIBRARIES else None


def main(flags: SelectConfig) -> int:
    """Chooses images; writes the list and the page.

    Returns:
        0.
    """
    signals.sigterm_as_ctrl_c()
    # scikit-learn is not needed for --help and wrong flags.
    from simmatch_tf.labeling import choosing, selected

    output = io.expand(flags.output)
    selected.check_output(output, f"--output={flags.output}")
    if flags.html is not None:
        selected.check_page(io.expand(flags.html), f"--html={flags.html}")
    choice = choosing.choose(
        choosing.Request(
            flags.images,
            flags.count,
            labels_from=flags.labels_from,
            model=flags.model,
            library=flags.library,
            weights=flags.weights,
            method=flags.method,
            classes_from=flags.classes_from,
            seed=flags.seed,
            image_size=flags.image_size,
            batch_size=flags.batch_size,
        )
    )
    selected.write_table(output, choice.rows)
    if flags.html is not None:
        text = selected.page(
            choice.rows,
            choice.pool,
            _pictures(choice.pool, selected.shown(choice.rows)),
            facts=choice.facts,
            unreadable=choice.unreadable,
        )
        io.write_text(io.expand(flags.html), text)
    print("\n".join(choice.facts))
    print(
        f"{flags.output} lists {len(choice.rows):,} of {len(choice.pool):,} "
        "images, in the order in which to label them."
    )
    if flags.html is not None:
        print(f"They are shown in {flags.html}.")
    print(f"\nLabel them:\n  {_next_command(flags)}")
    return 0


def _pictures(pool: "pool_lib.Pool", indices: list[int]) -> dict[int, bytes]:
    """Returns the pictures of the page: index → JPEG."""
    preflight.load_tensorflow(fast=False)
    from simmatch_tf.serving import thumbnails

    return thumbnails.of_files({index: pool.paths[index] for index in indices})


def _next_command(flags: SelectConfig) -> str:
    words = [
        "python",
        "-m",
        "simmatch_tf.label",
        f"--images={flags.images}",
        f"--list={flags.output}",
    ]
    # Answers go on in the same file.
    if flags.labels_from is not None and flags.labels_from.endswith(".jsonl"):
        words.append(f"--labels={flags.labels_from}")
    return shlex.join(words)


if __name__ == "__main__":
    command.run(main, SelectConfig)
