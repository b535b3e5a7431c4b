"""What `python -m simmatch_tf.transfer` takes. Imports no TensorFlow."""

import dataclasses
import os
import pathlib
from typing import ClassVar

from simmatch_tf import availability, registry
from simmatch_tf.data.sources import folder, tfds
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError, flag
from simmatch_tf.networks import backbone_names
from simmatch_tf.training import workdir

# How weights of a library's architecture are called that are no file.
PUBLISHED, NEW = "imagenet", "random"
_OF_RUNS = ("student", "ema")
_LIBRARIES = ("keras_applications", "keras_cv")
# Flags that not all protocols read, and those that do.
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


@dataclasses.dataclass(frozen=True)
class Named:
    """A model of the command line.

    Attributes:
        name: Of its row in the table.
        what: A folder, or LIBRARY:NAME.
        library: "keras_applications", "keras_cv" or None.
    """

    name: str
    what: str
    library: str | None


@dataclasses.dataclass(frozen=True)
class TransferConfig(commandline.Flags):
    """What `python -m simmatch_tf.transfer` takes."""

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: tuple[str, ...] = flag(
        (),
        "folder of a run or an export, keras_cv:NAME or "
        "keras_applications:NAME; NAME=MODEL calls it so. Many of them; may "
        "stand without its name.",
    )
    datasets: str | None = flag(
        None,
        "digits, folder, or image classification datasets of TFDS, with "
        "commas between.",
    )
    protocol: str = flag(
        "linear",
        "logistic regression on frozen features, all weights trained, or "
        "neighbours in the features.",
        choices=("linear", "finetune", "knn"),
    )
    weights: str | None = flag(
        None,
        "of a run: student or ema, default: those of record. Of a library's "
        "architecture: a file, random, or imagenet, the default: those that "
        "the library fetches.",
    )
    random_backbone: bool = flag(
        False, "also each architecture with new weights, to compare with."
    )
    image_size: int | None = flag(
        None,
        "side of the images in pixels; default: the model's own, 224 for a "
        "library's.",
        low=8,
        high=1024,
    )
    output: str = flag(
        "runs/transfer",
        "folder for the table (PROTOCOL.md, .csv, .json, of linear .png; they "
        "replace those there) and for finished measurements, which are not "
        "measured again.",
    )
    data_dir: str | None = flag(
        None,
        "for folder: holds labeled/CLASS/* and test/CLASS/*.",
    )
    tfds_dir: str | None = flag(
        None,
        "prepared datasets; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
    )
    tfds_manual_dir: str | None = flag(
        None, "archives that TFDS cannot download itself.", rare=True
    )
    on_bad_image: str = flag(
        "error",
        "an image of a folder that cannot be read stops the command, or is "
        "left out (at most 1 % of them).",
        choices=("error", "skip"),
        rare=True,
    )
    max_iter: int = flag(
        1000, "of linear: iterations of L-BFGS for each strength.", low=1
    )
    tol: float = flag(
        1e-4,
        "of linear: L-BFGS ends where no slope of the mean loss is above "
        "this; scikit-learn's own.",
        low=1e-12,
        high=1,
        rare=True,
    )
    neighbors: int = flag(20, "of knn: images that vote.", low=1, high=100_000)
    temperature: float = flag(
        0.07,
        "of knn: a vote weighs exp(cosine / temperature).",
        low=0.005,
        high=10,
    )
    steps: int = flag(
        20_000, "of finetune: steps of each run of the grid.", low=1
    )
    rates: str = flag("0.01,0.03,0.1", "of finetune: peak rates of the grid.")
    decays: str = flag(
        "0,0.00001",
        "of finetune: weight decays of the grid; each is divided by the rate.",
    )
    crop_area: float = flag(
        0.08,
        "of finetune: least share of the image in a random crop.",
        low=0.01,
        high=1,
        rare=True,
    )
    batch_size: int = flag(
        256, "images at once; of finetune, those of a step.", low=1
    )
    seed: int = flag(
        0,
        "of new weights, and of finetune's order and views.",
        low=0,
        high=2**31 - 1,
    )
    cache_dir: str | None = flag(
        None,
        "folder that keeps features; default: features/ in "
        "$XDG_CACHE_HOME/simmatch_tf or ~/.cache/simmatch_tf.",
        rare=True,
    )
    parallel_calls: int = flag(
        2, "batches of images prepared at once.", low=1, rare=True
    )
    progress: bool = flag(True, "a progress bar, on a terminal.", rare=True)

    def check(self) -> None:
        """Models and datasets are needed, and flags of this protocol."""
        if not self.model:
            raise InputError(
                "--model=None: name the folder of a run or an export, or an "
                "architecture such as keras_applications:ResNet50"
            )
        self._check_folders()
        self._check_protocol()
        rate, decay = min(self.numbers("rates")), max(self.numbers("decays"))
        if decay > rate:
            raise InputError(
                f"--decays={self.decays} and --rates={self.rates}: a decay is "
                f"divided by the rate, so {decay:g} must not be above {rate:g}"
            )
        names = [named.name for named in self.named_models()]
        for name in names:
            if names.count(name) > 1:
                raise InputError(
                    f"--model: two are called {name}; call one by NAME=MODEL"
                )
        for named in self.named_models():
            self._check_model(named)
        self._check_datasets()

    def _check_folders(self) -> None:
        for name in ("output", "cache_dir"):
            value = getattr(self, name)
            if value is not None and (
                not value.strip() or os.path.isfile(os.path.expanduser(value))
            ):
                raise InputError(f"--{name}={value}: must be a folder")

    def _check_protocol(self) -> None:
        for field in dataclasses.fields(self):
            value, name = getattr(self, field.name), field.name
            protocols = _OF_PROTOCOLS.get(name, (self.protocol,))
            if value != field.default and self.protocol not in protocols:
                raise InputError(
                    f"--{name}={value}: is for --protocol="
                    f"{' or '.join(protocols)}, not {self.protocol}"
                )
        if self.random_backbone and self.weights == NEW:
            raise InputError(
                "--random_backbone and --weights=random: all weights are new "
                "already"
            )
        random = self.random_backbone or self.weights == NEW
        if self.seed and not random and self.protocol != "finetune":
            raise InputError(
                f"--seed={self.seed}: nothing is drawn, without new weights, "
                f"by --protocol={self.protocol}"
            )

    def _check_model(self, named: Named) -> None:
        if named.library is not None:
            backbone_names.check(named.what, "model")
            if self.weights in _OF_RUNS:
                raise InputError(
                    f"--weights={self.weights}: is of runs; for {named.what} "
                    f"give {PUBLISHED}, {NEW} or a file"
                )
            if self.weights not in (None, PUBLISHED, NEW):
                availability.kind_of_weights(self.weights, "weights")
            if self.image_size is not None:
                backbone_names.check_side(named.what, self.image_size, "model")
            return
        kind, path = availability.kind_of_model("model", named.what)
        if kind == "workdir":
            availability.trained(workdir.Workdir(path))
        else:
            availability.exported(path)
        if kind == "saved_model" and self.weights is not None:
            raise InputError(
                f"--weights={self.weights}: {named.what} is an export, which "
                "has but one network's"
            )
        if self.weights not in (None, *_OF_RUNS):
            raise InputError(
                f"--weights={self.weights}: of {named.what} it must be student "
                "or ema; other weights are for a library's architecture"
            )

    def _check_datasets(self) -> None:
        names, of_tfds = self.dataset_names(), False
        if not names:
            raise InputError(
                f"--datasets={self.datasets}: name some, such as "
                "cifar10,oxford_iiit_pet"
            )
        for name in names:
            if names.count(name) > 1:
                raise InputError(f"--datasets={self.datasets}: {name} twice")
            facts = registry.sources.find(name)[0].facts
            if facts.get("from_python"):
                raise InputError(f"--datasets={name}: is no dataset's name")
            if "is_prepared" not in facts:
                continue
            try:
                tfds.check_name(name, self.tfds_dir)
            except InputError as error:
                # The message speaks of train's flag.
                text = str(error).replace("--dataset=", "--datasets=")
                raise InputError(text) from None
            of_tfds = True
        if ("folder" in names) != (self.data_dir is not None):
            raise InputError(
                f"--datasets={self.datasets} and --data_dir={self.data_dir}: "
                "folder, and only that, needs --data_dir=DIR"
            )
        for name, read in (
            ("on_bad_image", "folder" in names),
            ("tfds_dir", of_tfds),
            ("tfds_manual_dir", of_tfds),
        ):
            value = getattr(self, name)
            if value not in (None, "error") and not read:
                raise InputError(
                    f"--{name}={value}: is not read by --datasets="
                    f"{self.datasets}"
                )
        if self.data_dir is not None:
            found = folder.Listing(self.data_dir, unlabeled=False)
            found.check(need_unlabeled=False)
        manual = self.tfds_manual_dir
        if manual and not os.path.isdir(os.path.expanduser(manual)):
            raise InputError(f"--tfds_manual_dir={manual}: no such folder")

    def named_models(self) -> list[Named]:
        """The models, and what to call them."""
        found = []
        for word in self.model:
            name, sign, what = word.partition("=")
            if not sign or os.path.exists(os.path.expanduser(word)):
                name, sign, what = "", "", word
            library = what.partition(":")[0]
            library = library if library in _LIBRARIES else None
            if not what.strip() or (sign and not name.strip()):
                raise InputError(f"--model={word}: must be MODEL or NAME=MODEL")
            if not name:
                name = what if library else pathlib.Path(what).resolve().name
            # Names of files need not be valid UTF-8.
            name = name.encode("utf-8", "backslashreplace").decode()
            found.append(Named(name, what, library))
        return found

    def dataset_names(self) -> list[str]:
        """Those of --datasets."""
        words = (self.datasets or "").split(",")
        return [word.strip() for word in words if word.strip()]

    def numbers(self, name: str) -> tuple[float, ...]:
        """Those of --rates or --decays.

        Raises:
            InputError: They are no such numbers.
        """
        value = getattr(self, name)
        least = "above 0" if name == "rates" else "at least 0"
        try:
            found = tuple(float(word) for word in value.split(","))
            right = all(
                0 <= x <= 100 and (x > 0 or name == "decays") for x in found
            )
            # As their runs' folders are named.
            right &= len({f"{x:g}" for x in found}) == len(found)
        except ValueError:
            right = False
        if not right:
            raise InputError(
                f"--{name}={value}: must be numbers {least} and at most 100, "
                "each once, with commas between"
            )
        return tuple(sorted(found))
