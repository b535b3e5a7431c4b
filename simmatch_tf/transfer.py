r"""Measures the quality of a backbone's features on other datasets.

python -m simmatch_tf.transfer runs/digits_40 --datasets=fashion_mnist
python -m simmatch_tf.transfer mine=runs/imagenet_10pct \
    keras_applications:ResNet50 --datasets=cifar10,cifar100,dtd
"""

import dataclasses
import itertools
import pathlib
import sys
from typing import ClassVar, NamedTuple

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, registry, signals, terminal
from simmatch_tf.data import layout
from simmatch_tf.data.sources import tfds
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import transfer_table
from simmatch_tf.training import workdir

_OF_RUNS = ("student", "ema")
_LIBRARIES = ("keras_applications", "keras_cv", "keras_hub")
# Flag → the protocols that read it, of flags that not all protocols read.
_OF_PROTOCOLS = {
    "max_iter": ("linear",),
    "tol": ("linear",),
    "neighbors": ("knn",),
    "temperature": ("knn",),
    "cache_dir": ("linear", "knn"),
    "steps": ("finetune",),
    "rates": ("finetune",),
    "decays": ("finetune",),
    "crop_area": ("finetune",),
}


class Named(NamedTuple):
    """A model of --model.

    Attributes:
        name: Name of its row in the table.
        model: A folder, or LIBRARY:NAME.
        library: "keras_applications", "keras_cv", "keras_hub" or None.
    """

    name: str
    model: str
    library: str | None


@dataclasses.dataclass(frozen=True)
class TransferConfig(config_lib.Plugins):
    """The flags of `python -m simmatch_tf.transfer`."""

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: tuple[str, ...] = flag(
        (),
        "Folder of a run or an export, keras_applications:NAME, keras_cv:NAME "
        "or keras_hub:NAME; NAME=MODEL gives it a name in the table. "
        "Repeatable. May be given without --model=.",
        required="the folder of a run or an export, or an architecture such "
        "as keras_applications:ResNet50",
    )
    datasets: str | None = flag(
        None,
        "Datasets to measure on, separated by commas: digits, folder, or "
        "image classification datasets of TFDS.",
        required="some, such as cifar10,dtd",
    )
    protocol: str = flag(
        "linear",
        "How to measure: logistic regression on frozen features, training of "
        "all weights, or k nearest neighbors in the features.",
        choices=("linear", "finetune", "knn"),
    )
    weights: str | None = flag(
        None,
        "Weights of the models. For a run: student or ema; default: those "
        "that its result was measured with. For an architecture of a library: "
        "a file, random, or imagenet (the default), which the library "
        "downloads.",
    )
    random_backbone: bool = flag(
        False,
        "Also measure each architecture with random weights, for comparison.",
    )
    image_size: int | None = flag(
        None,
        "Side of the images in pixels. Default: that of the model; 224 for an "
        "architecture of a library.",
        low=8,
        high=1024,
    )
    output: str = flag(
        "runs/transfer",
        "Folder for the table (PROTOCOL.md, .csv and .json; also .png for "
        "linear; existing ones are replaced) and for finished measurements, "
        "which are not repeated.",
    )
    data_dir: str | None = flag(
        None,
        "For the dataset `folder`: a folder with labeled/CLASS/* or "
        "train/CLASS/*, and test/CLASS/* or val/CLASS/*; or images in any "
        "folders, with --labels_from or --labels_csv.",
    )
    labels_csv: str | None = flag(
        None,
        "For the dataset `folder`: CSV file with the columns file, class and "
        "part, as for train.",
        rare=True,
    )
    labels_from: str | None = flag(
        None,
        "For the dataset `folder`: the labels.jsonl of the labeling page, or a "
        "CSV file, as for train.",
        rare=True,
    )
    tfds_dir: str | None = flag(
        None,
        "Folder of prepared TFDS datasets. Default: $TFDS_DATA_DIR or "
        "~/tensorflow_datasets.",
    )
    tfds_manual_dir: str | None = flag(
        None,
        "Folder of archives that TFDS cannot download itself.",
        rare=True,
    )
    on_bad_image: str = flag(
        "error",
        "What to do with an unreadable image of a folder: stop, or leave it "
        "out (at most 1 % of the images).",
        choices=("error", "skip"),
        rare=True,
    )
    max_iter: int = flag(
        1000,
        "For linear: iterations of L-BFGS for each regularization strength.",
        low=1,
    )
    tol: float = flag(
        1e-4,
        "For linear: L-BFGS stops when no component of the gradient of the "
        "mean loss is larger than this.",
        low=1e-12,
        high=1,
        rare=True,
    )
    neighbors: int = flag(
        20, "For knn: number of images that vote.", low=1, high=100_000
    )
    temperature: float = flag(
        0.07,
        "For knn: temperature of the votes, exp(cosine / temperature).",
        low=0.005,
        high=10,
    )
    steps: int = flag(
        20_000, "For finetune: number of steps of each run.", low=1
    )
    rates: str = flag(
        "0.01,0.03,0.1", "For finetune: peak learning rates of the grid."
    )
    decays: str = flag(
        "0,0.00001",
        "For finetune: weight decays of the grid. Each is divided by the "
        "learning rate of its run, so that a step shrinks the weights by the "
        "same share at every rate.",
    )
    crop_area: float = flag(
        0.08,
        "For finetune: smallest share of the image in a random crop.",
        low=0.01,
        high=1,
        rare=True,
    )
    batch_size: int = flag(
        256, "Batch size, in images; for finetune, that of a step.", low=1
    )
    seed: int = flag(
        0,
        "Random seed for new weights, and for data order and augmentation in "
        "finetune.",
        low=0,
        high=2**31 - 1,
    )
    cache_dir: str | None = flag(
        None,
        "Folder that keeps extracted features. Default: features/ in "
        "$XDG_CACHE_HOME/simmatch_tf or ~/.cache/simmatch_tf.",
        rare=True,
    )
    parallel_calls: int = flag(
        2, "Number of batches of images prepared at once.", low=1, rare=True
    )
    progress: bool = flag(True, "Show a progress bar on a terminal.", rare=True)

    def check(self) -> None:
        """Flags must be those of the protocol, and names distinct."""
        for name in ("output", "cache_dir"):
            commandline.check_output_folder(name, getattr(self, name))
        self._check_protocol()
        rates, decays = self._numbers("rates"), self._numbers("decays")
        if max(decays) > min(rates):
            raise InputError(
                f"--decays={self.decays} and --rates={self.rates}: a decay is "
                f"divided by the rate, so {max(decays):g} must not be above "
                f"{min(rates):g}"
            )
        names = [named.name for named in self.named_models()]
        for named in self.named_models():
            if names.count(named.name) > 1:
                raise InputError(
                    f"--model: two are called {named.name}; call one by "
                    "NAME=MODEL"
                )
            self._check_model(named)
        self._check_datasets()

    def _check_protocol(self) -> None:
        for name, each in self.fields().items():
            value = getattr(self, name)
            protocols = _OF_PROTOCOLS.get(name, (self.protocol,))
            if value != each.default and self.protocol not in protocols:
                raise InputError(
                    f"--{name}={value}: is for --protocol="
                    f"{' or '.join(protocols)}, not {self.protocol}"
                )
        if self.random_backbone and self.weights == "random":
            raise InputError(
                "--random_backbone and --weights=random: all weights are new "
                "already"
            )
        random = self.random_backbone or self.weights == "random"
        if self.seed and not random and self.protocol != "finetune":
            raise InputError(
                f"--seed={self.seed}: nothing is drawn, without new weights, "
                f"by --protocol={self.protocol}"
            )

    def _numbers(self, name: str) -> list[float]:
        """Returns the sorted numbers of --rates or --decays."""
        value = getattr(self, name)
        try:
            numbers = sorted(float(word) for word in value.split(","))
        except ValueError:
            numbers = []
        # They name the runs' folders, which must differ.
        distinct = len({f"{number:g}" for number in numbers}) == len(numbers)
        if not (
            numbers
            and distinct
            and 0 <= numbers[0]
            and numbers[-1] <= 100
            and (numbers[0] > 0 or name == "decays")
        ):
            least = "above 0" if name == "rates" else "at least 0"
            raise InputError(
                f"--{name}={value}: must be numbers {least} and at most 100, "
                "each once, with commas between"
            )
        return numbers

    def _check_model(self, named: Named) -> None:
        if named.library is not None:
            registry.networks.find(named.model, flag="model")
            if self.weights in _OF_RUNS:
                raise InputError(
                    f"--weights={self.weights}: is for runs; for {named.model} "
                    "give imagenet, random or a file"
                )
            if self.weights not in (None, "imagenet", "random"):
                preflight.kind_of_weights(self.weights, "weights")
            if self.image_size is not None:
                registry.networks.check_side(
                    named.model, self.image_size, flag="model"
                )
            return
        kind, path = preflight.kind_of_model("model", named.model)
        if kind == "workdir":
            workdir.Workdir(path).trained()
        else:
            preflight.exported(path)
        if kind == "saved_model" and self.weights is not None:
            raise InputError(
                f"--weights={self.weights}: {named.model} is an export, which "
                "has the weights of one network only"
            )
        if self.weights not in (None, *_OF_RUNS):
            raise InputError(
                f"--weights={self.weights}: of {named.model} it must be "
                "student or ema; other weights are for a library's architecture"
            )

    def _check_datasets(self) -> None:
        config_lib.check_tables(self)
        names, known = self.dataset_names(), set()
        if not names:
            raise InputError(
                f"--datasets={self.datasets}: name some, such as "
                "cifar10,oxford_iiit_pet"
            )
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"--datasets={self.datasets}: {name} twice")
            facts = registry.sources.find(name, flag="datasets")[0].facts
            if facts.get("from_python"):
                raise InputError(
                    f"--datasets={name}: is not the name of a dataset"
                )
            known.update(fact for fact in facts if facts[fact])
            if "is_prepared" in facts:
                tfds.check_name(name, flag="datasets")
        if "needs_data_dir" in known and self.data_dir is None:
            raise InputError(
                "--data_dir is missing: name the folder of the images, which "
                f"--datasets={self.datasets} reads"
            )
        if self.data_dir is not None and "needs_data_dir" not in known:
            raise InputError(
                f"--data_dir={self.data_dir}: is for --datasets=folder, not "
                f"{self.datasets}"
            )
        for name, read in (
            ("labels_csv", "reads_labels_csv" in known),
            ("labels_from", "reads_labels_csv" in known),
            ("on_bad_image", "skips_bad_images" in known),
            ("tfds_dir", "is_prepared" in known),
            ("tfds_manual_dir", "is_prepared" in known),
        ):
            value = getattr(self, name)
            if value not in (None, "error") and not read:
                raise InputError(
                    f"--{name}={value}: is not read by --datasets="
                    f"{self.datasets}"
                )
        if "folder" in names:
            images = layout.of_flags(self, unlabeled=False)
            images.check(need_unlabeled=False)
        preflight.check_folder("tfds_manual_dir", self.tfds_manual_dir)

    def named_models(self) -> list[Named]:
        """Returns the models of --model and their names.

        Raises:
            InputError: A word is empty in part.
        """
        models = []
        for word in self.model:
            name, sign, model = word.partition("=")
            if not sign or io.expand(word).exists():
                name, sign, model = "", "", word
            library = model.partition(":")[0]
            library = library if library in _LIBRARIES else None
            if not model.strip() or (sign and not name.strip()):
                raise InputError(f"--model={word}: must be MODEL or NAME=MODEL")
            if not name:
                name = model if library else pathlib.Path(model).resolve().name
            # Names of files need not be valid UTF-8.
            name = name.encode("utf-8", "backslashreplace").decode()
            models.append(Named(name, model, library))
        return models

    def dataset_names(self) -> list[str]:
        """Returns the datasets of --datasets."""
        words = (self.datasets or "").split(",")
        return [word.strip() for word in words if word.strip()]

    def grid(self) -> itertools.product:
        """Returns each of --rates with each of --decays."""
        return itertools.product(
            self._numbers("rates"), self._numbers("decays")
        )


def main(flags: TransferConfig) -> int | None:
    """Measures, prints the table; 42 if it was interrupted."""
    signals.sigterm_as_ctrl_c()
    try:
        outcomes = _measure(flags)
    except KeyboardInterrupt as stop:
        again = "interrupted: started again with the same flags, it goes on"
        print(str(stop) or again, file=sys.stderr)
        return signals.RESUME_ME
    folder = io.expand(flags.output)
    table = transfer_table.Table(outcomes)
    written = transfer_table.write(table, folder, flags.protocol)
    if flags.protocol == "linear":
        # Seconds to import, and wanted here only.
        from simmatch_tf.reporting import figures

        written.append("linear.png")
        figures.save_strengths(outcomes, folder / written[-1])
    print(f"\n{table.text()}\n\nIn {folder}: {', '.join(written)}.")
    return None


def _measure(flags: TransferConfig) -> tuple:
    """Measures every model on every dataset."""
    # TensorFlow is imported only now that all that is cheap is checked.
    preflight.start()  # by the kernels of training
    from simmatch_tf.probes import encoders, measuring, tasks

    terminal.say(f"loading {', '.join(flags.model)}")
    models = encoders.load(flags)
    outcomes = []
    for name in flags.dataset_names():
        terminal.say(f"reading the images of {name}")
        task = tasks.load(name, flags)
        for model in models:
            outcomes.append(measuring.measure(flags, model, task))
            print(transfer_table.line(outcomes[-1]), flush=True)
    return tuple(outcomes)


if __name__ == "__main__":
    command.run(main, TransferConfig)
