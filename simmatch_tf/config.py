"""The flags of a training run, and the rules between them.

A value is checked where it is declared, by `flag`; two values against each
other here; what they name on this machine in `preflight`. Nothing here imports
TensorFlow.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

from simmatch_tf import io, registry
from simmatch_tf.flags import commandline, flagfiles
from simmatch_tf.flags.commandline import (
    flag,
    operational,
    rare,
    rare_operational,
)
from simmatch_tf.flags.errors import InputError

# Lists of labeled images in TFDS → their lengths.
SUBSETS = {
    "imagenet2012_subset/1pct": 12_811,
    "imagenet2012_subset/10pct": 128_116,
}
# Flags that name files and folders.
PATHS = (
    "data_dir",
    "labels_csv",
    "labels_from",
    "tfds_dir",
    "tfds_manual_dir",
    "labeled_list",
    "split_file",
    "class_prior",
    "init_from",
    "plugin",
)
# Those of them that name a table of the classes of images.
TABLES = ("labels_csv", "labels_from")
# Value of --init_from that is no path: weights that a library has published.
PUBLISHED = "imagenet"
# Values of --class_prior that are no files.
CLASS_PRIORS = ("uniform", "labeled")
# Flags that give the length of a run.
_LENGTHS = ("steps", "epochs", "minutes")
# Flags to leave out of a run whose --steps are known.
_NO_OTHER_LENGTH = dict.fromkeys(
    (
        "epochs",
        "minutes",
        "measured_steps",
        "extended_steps",
        "extend_minutes",
        "extend_steps",
        "warmup_epochs",
    )
)
# Flags of strong views.
_STRONG = (
    "strong",
    "cutout",
    "randaugment_operations",
    "randaugment_probability",
    "randaugment_low",
    "randaugment_high",
    "randaugment_levels",
)
# Largest learning rate that Adam can be meant to have.
_MOST_OF_ADAM = 0.02
# Steps between evaluations, and between checkpoints, unless flags say more.
_EVERY = 500
_SPLITS = ("labels", "label_fraction", "labeled_list", "split_file")
# Field of a Config → the registry whose chosen entry declares its flags, and
# the flag that chooses.
_CHOSEN = types.MappingProxyType(
    {
        "hyper": (registry.algorithms, "algorithm"),
        "source": (registry.sources, "dataset"),
        "network": (registry.networks, "backbone"),
    }
)


@dataclasses.dataclass(frozen=True)
class Plugins(commandline.Flags):
    """Flags of a command that reads finished runs, and their plugins."""

    plugin: tuple[str, ...] = rare(
        (),
        "Current location of a --plugin file of the run, if it was moved; "
        "repeatable. Default: as recorded in the run.",
    )

    @classmethod
    def prepare(cls, words: list[str]) -> list[str]:
        """Loads the plugins, which replace those of a run by their names."""
        for path in flagfiles.value_of("plugin", words):
            registry.load_plugin(path, moved=True)
        return words


@dataclasses.dataclass(frozen=True)
class ImageFolders(Plugins):
    """Flags of a command that reads the images of a finished run."""

    data_dir: str | None = flag(
        None,
        "Current location of the run's --data_dir, if it was moved. Default: "
        "as recorded in the run.",
    )
    tfds_dir: str | None = rare(
        None,
        "Current location of the run's --tfds_dir, if it was moved. Default: "
        "as recorded in the run.",
    )


@dataclasses.dataclass(frozen=True, init=False)
class Config(commandline.Flags):
    """A training run: every value that decides what is trained, and how.

    Beside its own fields a Config has the flags of the chosen algorithm and
    backbone, which these declare; `config.threshold` is `config.hyper.
    threshold`. `values` and `fields` list all of them.

    Attributes:
        hyper: Hyper-parameters of the algorithm.
        source: Flags of the dataset's own.
        network: Flags of the backbone's own.
    """

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("labels", "label_fraction", "labeled_list", "split_file"),
        ("steps", "epochs", "minutes", "measured_steps", "extended_steps"),
        ("warmup_steps", "warmup_epochs"),
        ("split_file", "validation_fraction"),
    )
    topics: ClassVar[Mapping[str, str]] = types.MappingProxyType(
        {
            "dataset": "Data",
            "weak": "Augmentation",
            "backbone": "Network",
            "algorithm": "Method",
            "batch_size": "Batches, length and optimizer",
            "workdir": "The run's folder",
            "strategy": "Devices",
            "eval_every": "Evaluation, checkpoints and logs",
            "parallel_calls": "Speed",
            "on_nonfinite": "Other",
        }
    )

    hyper: commandline.HyperParameters = dataclasses.field(default=None)
    source: commandline.HyperParameters = dataclasses.field(default=None)
    network: commandline.HyperParameters = dataclasses.field(default=None)

    # Data.
    dataset: str = flag(
        "digits",
        "Dataset: digits (comes with scikit-learn), folder (your own images "
        "in --data_dir), or any image classification dataset of TFDS, as "
        "NAME, NAME/CONFIG or NAME:VERSION.",
    )
    data_dir: str | None = operational(
        None,
        "Folder of your own images, for --dataset=folder: labeled/CLASS/* and "
        "unlabeled/**, train/CLASS/*, or any folders with --labels_from.",
    )
    labels_csv: str | None = operational(
        None,
        "CSV file with columns file and class, for images in --data_dir. "
        "Those that it does not name are unlabeled.",
        rare=True,
    )
    labels_from: str | None = operational(
        None,
        "The labels.jsonl of the page of simmatch_tf.label, or a CSV file with "
        "the columns file and class, for images in --data_dir.",
    )
    tfds_dir: str | None = rare_operational(
        None,
        "Folder of prepared TFDS datasets. Default: $TFDS_DATA_DIR or "
        "~/tensorflow_datasets.",
    )
    tfds_manual_dir: str | None = rare_operational(
        None, "Folder of archives that TFDS cannot download itself."
    )
    on_bad_image: str = rare(
        "error",
        "What to do with an unreadable image of a folder: stop before "
        "training, or leave it out (at most 1 % of the images).",
        choices=("error", "skip"),
    )
    labels: int | None = flag(
        None,
        "Total number of labeled images, the same number of each class unless "
        "--draw says otherwise.",
        low=1,
    )
    label_fraction: float | None = flag(
        None,
        "Labeled share of the images of each class, instead of --labels.",
        low=1e-6,
        high=1,
    )
    labeled_list: str | None = flag(
        None,
        "The labeled images, instead of --labels: a text file with one file "
        "name or image index per line. For ImageNet also "
        "imagenet2012_subset/1pct or imagenet2012_subset/10pct, the published "
        "lists.",
    )
    split_file: str | None = rare(
        None,
        "split.json of another run, whose labeled and validation images are "
        "used; instead of --labels.",
    )
    draw: str = flag(
        "stratified",
        "How the images of --labels are chosen: stratified (by chance, the "
        "same number of each class), random (by chance, whatever their "
        "class), or typical (one of each cluster of similar images, classes "
        "unseen, as select does with pixels).",
        choices=("stratified", "random", "typical"),
        rare=True,
    )
    split_seed: int = flag(
        0, "Random seed for the choice of the labeled images.", low=0
    )
    validation_fraction: float = flag(
        0.0,
        "Share of the labeled images of each class (at least one) set aside "
        "to choose the best step, and to measure the accuracy of a dataset "
        "without test images. With val/ beside test/, val/ is used.",
        low=0,
        high=0.9,
    )
    validation_when: str = rare(
        "always",
        "Whether --validation_fraction applies to all datasets, or only to "
        "those without test images.",
        choices=("always", "no_test"),
    )
    unlabeled_includes_labeled: bool = rare(
        True, "Whether the unlabeled set has the labeled images, too."
    )
    image_size: int | None = flag(
        None,
        "Side of the images in pixels. Default: that of the dataset, or 224; "
        "of a folder, what suits network and images.",
        low=8,
        high=1024,
    )
    flip: bool | None = rare(
        None, "Whether images may be mirrored. Default: depends on the dataset."
    )
    eval_resize: int | None = rare(
        None,
        "Length in pixels to which the shorter side is resized for "
        "evaluation, before the center is cropped.",
        low=8,
        high=2048,
    )

    # Augmentation.
    weak: str = flag(
        "flip_crop",
        "Weak augmentation: flip and a shifted crop, or a resized random crop.",
        choices=("flip_crop", "resized_crop"),
    )
    strong: str = flag(
        "randaugment",
        "Strong augmentation, on top of the weak one. jitter is moco without "
        "the blur. keras_cv is KerasCV's RandAugment, not reproducible from a "
        "seed.",
        choices=("randaugment", "moco", "jitter", "keras_cv", "none"),
    )
    crop_area: float = rare(
        0.2,
        "Smallest share of the image in a resized random crop.",
        low=0.01,
        high=1,
    )
    randaugment_operations: int = rare(
        2,
        "Number of operations that RandAugment samples for each image.",
        low=0,
        high=14,
    )
    randaugment_probability: float = rare(
        0.5, "Probability of applying each sampled operation.", low=0, high=1
    )
    randaugment_low: float = rare(
        0.1, "Smallest strength of an operation, 0 to 1.", low=0, high=1
    )
    randaugment_high: float = rare(
        0.9, "Largest strength of an operation, 0 to 1.", low=0, high=1
    )
    randaugment_levels: int = rare(
        9, "Number of evenly spaced strengths; 0 samples any strength.", low=0
    )
    cutout: float = rare(
        0.5,
        "Side of the square that strong augmentation cuts out, as a share of "
        "the image's side.",
        low=0,
        high=1,
    )

    # Network.
    backbone: str = flag(
        "wrn_28_2",
        "Backbone: scatter_FILTERS, wrn_DEPTH_WIDTH, resnetDEPTH (resnet50x2 "
        "is twice as wide), or NAME of a library.",
    )
    init_from: str | None = flag(
        None,
        "Initial weights: imagenet (those that the backbone's library "
        "publishes), the folder of a run, a SavedModel, or a .keras or "
        ".weights.h5 file.",
    )
    classifier_init: str = rare(
        "random",
        "First weights of a classifier that --init_from does not bring: "
        "random, or frozen_features: those of a logistic regression on what "
        "the backbone makes of the labeled images.",
        choices=("random", "frozen_features"),
    )
    projection_dim: int = rare(128, "Width D of the embeddings.", low=1)
    batch_norm_momentum: float | None = rare(
        None,
        "Momentum of BatchNorm's running averages. Default: as published for "
        "the backbone.",
        low=0,
        high=0.99999,
    )
    batch_norm: str = rare(
        "synchronized",
        "Batch statistics of BatchNorm in training: over the whole batch, or "
        "over the share of each device; frozen uses the averages of "
        "--init_from, and keeps them with scale and offset.",
        choices=("synchronized", "local", "frozen"),
    )
    precision: str = rare(
        "float32",
        "Precision of the network. Losses and matching always use float32 or "
        "better; mixed_float16 scales the loss.",
        choices=("float32", "mixed_bfloat16", "mixed_float16", "float64"),
    )

    # Method.
    algorithm: str = flag(
        "simmatch", "Training method; with --help, its flags are listed."
    )
    ema_momentum: float = rare(
        0.999, "Momentum of the EMA teacher's weights.", low=0, high=1
    )
    ema_warmup: bool = rare(
        False,
        "Limit the EMA momentum to (1 + step) / (10 + step) at the start.",
    )
    ema_start_momentum: float | None = rare(
        None,
        "Momentum of the EMA teacher's weights in the first --ema_start_steps, "
        "instead of --ema_momentum and --ema_warmup.",
        low=0,
        high=1,
    )
    ema_start_steps: int | None = rare(
        None,
        "Number of first steps with --ema_start_momentum.",
        low=1,
    )

    # Batches, length and optimizer.
    batch_size: int = flag(
        64, "Number B of labeled images in a step, over all devices.", low=1
    )
    unlabeled_ratio: int = flag(
        7, "Number mu of unlabeled images for each labeled one.", low=1
    )
    steps: int | None = flag(None, "Number of training steps.", low=1)
    epochs: float | None = flag(
        None,
        "Length of training in passes over the unlabeled images, instead of "
        "--steps.",
        low=1e-6,
    )
    minutes: float | None = flag(
        None,
        "Length of the run in minutes on this machine, from start to end, "
        "instead of --steps.",
        low=0.1,
        high=1e6,
    )
    measured_steps: int | None = rare(
        None,
        "Number of steps that --minutes was measured to be. A run writes it to "
        "its flags.cfg, which therefore starts the same run again.",
        low=1,
    )
    extended_steps: int | None = rare(
        None,
        "Number of steps that a run was extended to, in all. A run writes it "
        "to its flags.cfg, which therefore starts the same run again.",
        low=1,
    )
    warmup_steps: int | None = rare(
        None,
        "Number of steps of linear learning rate warm-up. Default: none.",
        low=0,
    )
    warmup_epochs: float | None = rare(
        None,
        "Length of the warm-up in passes over the unlabeled images, instead "
        "of --warmup_steps.",
        low=0,
    )
    optimizer: str = rare(
        "sgd",
        "Optimizer: SGD with Nesterov momentum, or Adam with decoupled weight "
        "decay.",
        choices=("sgd", "adam"),
    )
    learning_rate: float = flag(0.03, "Peak learning rate.", low=0, high=100)
    backbone_rate_factor: float = rare(
        1.0,
        "Learning rate of the backbone, as a multiple of --learning_rate; for "
        "--init_from. 0 keeps the backbone as it is.",
        low=0,
        high=100,
    )
    schedule: str = rare(
        "cosine_7_16",
        "Learning rate schedule after the warm-up: cos(7 pi s / 16 S) at step "
        "s of S, half a cosine, constant, or cooldown: constant, then linear "
        "to zero over the last steps, so that the run can be extended.",
        choices=("cosine_7_16", "half_cosine", "constant", "cooldown"),
    )
    cooldown: float = rare(
        0.2,
        "Share of the steps in which --schedule=cooldown lowers the learning "
        "rate.",
        low=0.001,
        high=0.9,
    )
    momentum: float = rare(
        0.9, "Nesterov momentum of SGD.", low=0, high=0.99999
    )
    weight_decay: float = rare(
        5e-4,
        "L2 regularization strength, added to the gradient. With "
        "--optimizer=adam weights shrink by --learning_rate times this at each "
        "step; as published, 0.02.",
        low=0,
        high=1,
    )
    weight_decay_on: str = rare(
        "kernels",
        "Regularized weights: kernels only, or biases and BatchNorm as well.",
        choices=("kernels", "all"),
    )
    seed: int = flag(
        0,
        "Random seed for initialization, data order and augmentation.",
        low=0,
        high=2**31 - 1,
    )

    # The run's folder.
    workdir: str | None = operational(
        None,
        "Folder of the run. Default: runs/RECIPE, or runs/RECIPE-DATA_DIR for "
        "your own images.",
    )
    overwrite: bool = operational(
        False, "Start over if the folder holds a run."
    )
    extend_minutes: float | None = operational(
        None,
        "Train a finished run of --schedule=cooldown for so many more minutes.",
        low=0.1,
        high=1e6,
    )
    extend_steps: int | None = rare_operational(
        None,
        "Train a finished run of --schedule=cooldown for so many more steps.",
        low=1,
    )
    describe: bool = operational(
        False,
        "Print the layers, parameters, FLOPs and memory of the run, then exit.",
    )
    plugin: tuple[str, ...] = operational(
        (),
        "Python file that registers algorithms, datasets or backbones of your "
        "own; repeatable. See docs/extending.md.",
    )

    # Devices.
    strategy: str = operational(
        "auto",
        "Where to train. auto: the TPU of --tpu, the workers of TF_CONFIG, or "
        "all GPUs of this machine, whichever there is.",
        choices=("auto", "one", "mirrored", "multi_worker", "tpu"),
    )
    tpu: str | None = operational(
        None, "Name or address of the TPU; local for this machine's."
    )
    devices: int | None = operational(
        None,
        "Number of GPUs to use on each machine. Without GPUs, the number of "
        "parts that the CPU is divided into, to try several devices out.",
        low=1,
        high=1024,
    )
    worker_timeout: int = rare_operational(
        600, "Seconds that workers wait for each other at the start.", low=1
    )

    # Evaluation, checkpoints and logs.
    eval_every: int | None = operational(
        None,
        "Steps between evaluations. Default: 500, or by --minutes.",
        low=1,
    )
    checkpoint_every: int | None = operational(
        None,
        "Steps between checkpoints. Default: 500, or by --minutes.",
        low=1,
    )
    keep: int = rare_operational(3, "Number of checkpoints to keep.", low=1)
    eval_batch_size: int = rare_operational(
        256, "Batch size for evaluation, in images.", low=1
    )
    log_every: int = rare_operational(20, "Steps between logged values.", low=1)
    summaries: bool = rare_operational(
        True,
        "Write TensorBoard files. Without them only the losses and the mask "
        "rate are measured.",
    )
    picture_every: int | None = rare_operational(
        None,
        "Steps between pictures and histograms in TensorBoard. Default: a "
        "twentieth of the run, at least 500; 500 with --schedule=cooldown.",
        low=1,
    )
    baselines: bool = rare_operational(
        True,
        "Measure what scikit-learn's classifiers reach on the same labels, "
        "beside training and at low priority, and show it with the result. "
        "With --init_from they are measured before the first step, and the "
        "one on the first weights is kept as a model.",
    )
    labels_alone: float = rare_operational(
        0.0,
        "Share of the run's length for which the labels alone are trained "
        "first, by --algorithm=supervised, to show beside the result what the "
        "other images add. --minutes include it.",
        low=0,
        high=0.9,
    )
    profile: str | None = rare_operational(
        None,
        "START:COUNT profiles COUNT steps after step START with TensorFlow's "
        "profiler.",
    )
    progress: bool = rare_operational(
        True, "Show a progress bar on a terminal."
    )

    # Speed.
    parallel_calls: int = rare_operational(
        2, "Number of batches prepared at once.", low=1
    )
    views_on: str = rare_operational(
        "host",
        "Where views are augmented, after the CPU has decoded and cropped the "
        "images: host = on the CPU, while the device computes the step before; "
        "device = on the training device, at the start of each step.",
        choices=("host", "device"),
    )
    data_service: str | None = rare_operational(
        None,
        "Address of the processes that prepare the batches, "
        "grpc://HOST:PORT; see simmatch_tf.serve_data. Default: this process "
        "prepares them.",
    )
    steps_per_loop: int = rare_operational(
        1, "Number of steps that the device runs in one call.", low=1
    )
    jit_compile: bool = rare_operational(
        False, "Compile the step with XLA. On a TPU it always is."
    )

    # Other.
    on_nonfinite: str = rare_operational(
        "stop",
        "What to do after a step with NaN or infinite numbers: stop the run, "
        "or undo and count the step (at most ten in a row).",
        choices=("stop", "skip"),
    )

    def __init__(self, **values: Any) -> None:
        """Takes the values of flags by name.

        Args:
            **values: The flags of a run; those of the algorithm among them, by
                their names on the command line, as in
                `Config(algorithm="comatch", **{"comatch.queue_size": 5})`.

        Raises:
            InputError: There is no such flag, the chosen algorithm, dataset or
                backbone does not have it, or a value is wrong.
        """
        plugins = values.get("plugin")
        for path in plugins if isinstance(plugins, tuple) else ():
            registry.load_plugin(path)
        known = {field.name: field for field in dataclasses.fields(self)}
        own = {name: values.pop(name) for name in known if name in values}
        chosen, defaults = {}, {}
        for part, (_, chooser) in _CHOSEN.items():
            name = own.get(chooser, known[chooser].default)
            chosen[part] = _choose(part, name)
            defaults |= chosen[part].defaults
        for name, field in known.items():
            value = own.get(name, defaults.get(name, field.default))
            if name in chosen:
                value = _build(chosen[name], value, values)
            object.__setattr__(self, name, value)
        for name, value in values.items():
            self._refuse(name, value)
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        """Returns a flag of the algorithm, the backbone or the dataset."""
        for part in _CHOSEN if not name.startswith("_") else ():
            values = self.__dict__.get(part)
            declared = {} if values is None else values.declared()
            for each in declared.values():
                if name in (each.name, each.field):
                    return getattr(values, each.field)
        raise AttributeError(
            f"{type(self).__name__} has no flag {name!r} with --algorithm="
            f"{self.__dict__.get('algorithm')}"
        )

    def _refuse(self, name: str, value: Any) -> None:
        """Refuses a flag that the run lacks, unless it has its default.

        Raises:
            InputError: The message names the algorithms that have it.
        """
        part, owners = _owners_of(name)
        if not owners:
            raise self.unknown(name)
        chooser = _CHOSEN[part][1]
        declared = [entry.flags.declared()[name] for entry in owners]
        if any(value != each.default for each in declared):
            own = self._own_flags(f".{name}")
            raise InputError(
                f"{declared[0].word(value)}: is for --{chooser}="
                f"{_names(owners)}, not {getattr(self, chooser)}"
                + (f", which has {' and '.join(own)}" if own else "")
            )

    def _own_flags(self, ending: str) -> list[str]:
        """Returns the run's own flags whose names end so."""
        return [f"--{each}" for each in self.fields() if each.endswith(ending)]

    @classmethod
    def unknown(cls, name: str) -> InputError:
        """Returns the error of a flag that does not exist."""
        if name == "memory":
            return InputError(
                "--memory: is now --targets_from, with teacher for teacher and "
                "student for ensemble"
            )
        error = super().unknown(name)
        if "." not in name:
            return error
        return InputError(
            f"{error} (a method of your own needs --plugin=FILE.py)"
        )

    @classmethod
    def declared(cls) -> Mapping[str, commandline.Flag]:
        """Returns all flags, of every algorithm and backbone, by name.

        Raises:
            ValueError: Two of them declare a flag of one name.
        """
        own, others = dict(super().declared()), {}
        for known, chooser in _CHOSEN.values():
            defaults: dict[str, dict[Any, list[str]]] = {}
            for entry in known:
                for name, each in entry.flags.declared().items():
                    of_value = defaults.setdefault(name, {})
                    of_value.setdefault(each.default, []).extend(entry.names)
                    other = own.get(name, others.setdefault(name, each))
                    if other.owner is not each.owner:
                        raise ValueError(
                            f"--{name} is declared twice: by {other.owner} "
                            f"and by {each.owner}"
                        )
            own[chooser] = dataclasses.replace(
                own[chooser],
                help=f"{own[chooser].help} Known: {', '.join(known.names())}.",
            )
            for name, of_value in defaults.items():
                if len(of_value) > 1:
                    others[name] = others[name].with_defaults(of_value)
        replaced: dict[tuple[str, Any], list[str]] = {}
        for entry in registry.algorithms:
            for name, default in entry.flags.defaults.items():
                replaced.setdefault((name, default), []).extend(entry.names)
        for (name, default), methods in replaced.items():
            text = f"{own[name].help} By default {default} for "
            text += f"{', '.join(methods)}."
            own[name] = dataclasses.replace(own[name], help=text)
        names = [*own]
        # In --help, the flags of single methods follow those of all methods.
        place = names.index("batch_size")
        order = [*names[:place], *others, *names[place:]]
        return {name: (own | others)[name] for name in order}

    def fields(self) -> Mapping[str, commandline.Flag]:
        """Returns the flags that this run has, by name."""
        fields = dict(super().declared())
        for part in _CHOSEN:
            fields |= getattr(self, part).declared()
        return fields

    def values(self) -> dict[str, Any]:
        """Returns the value of each flag that this run has, by its name."""
        own = super().declared()
        values = {name: getattr(self, name) for name in own}
        for part in _CHOSEN:
            values |= getattr(self, part).values()
        return values

    @classmethod
    def topic(cls, each: commandline.Flag, title: str) -> str:
        """Returns the title of the group that lists a flag in --help."""
        part, owners = _owners_of(each.name)
        if not owners:
            return title
        known, chooser = _CHOSEN[part]
        names = [name for entry in owners for name in entry.names]
        others = [name for name in known.names() if name not in names]
        if len(others) < min(3, len(names)):
            but = f" but {' and '.join(others)}" if others else ""
            return f"For every --{chooser}{but}"
        *most, last = names
        return f"For --{chooser}={', '.join(most) + ' or ' * bool(most)}{last}"

    @classmethod
    def shortly(
        cls, each: commandline.Flag, title: str, words: Sequence[str]
    ) -> tuple[commandline.Flag, str] | None:
        """Leaves out the flags of other algorithms, datasets and backbones."""
        part, owners = _owners_of(each.name)
        if not owners:
            return each, title
        chooser = _CHOSEN[part][1]
        given = flagfiles.value_of(chooser, list(words))
        name = given[-1] if given else cls.__dataclass_fields__[chooser].default
        own = _choose(part, name).declared().get(each.name)
        if own is None:
            return None
        if given:  # who names it wants to see all of them
            own = dataclasses.replace(own, rare=False)
        return own, f"For --{chooser}={name}"

    @classmethod
    def prepare(cls, words: list[str]) -> list[str]:
        """Loads plugins, and drops flags of other algorithms from flagfiles.

        After a recipe, another --algorithm may be given, which need not have
        all flags of the recipe. Flags on the command line itself must fit.
        """
        words = _without_moved(words)
        given = [w for w in words if not isinstance(w, flagfiles.FileWord)]
        given = flagfiles.value_of("plugin", given)
        for path in flagfiles.value_of("plugin", words):
            registry.load_plugin(path, recorded=path not in given)
        for part, (known, chooser) in _CHOSEN.items():
            names = flagfiles.value_of(chooser, words)
            default = cls.__dataclass_fields__[chooser].default
            chosen = _choose(part, names[-1] if names else default)
            others = {
                name for entry in known for name in entry.flags.declared()
            }
            others -= set(chosen.declared())
            others |= {f"no{name}" for name in others}
            words = [
                word
                for word in words
                if not isinstance(word, flagfiles.FileWord)
                or flagfiles.name_of(word) not in others
            ]
            words = chosen.prepare(words)
        return words

    @classmethod
    def from_recorded(cls, values: Mapping[str, Any]) -> Self:
        """Returns the flags that an export recorded.

        Args:
            values: Flag → value, as `values` gives them.

        Raises:
            InputError: One of them is wrong.
        """
        values = {n: v for n, v in values.items() if v is not None}
        for path in values.get("plugin", ()):
            registry.load_plugin(path, recorded=True)
        for part, (known, chooser) in _CHOSEN.items():
            chosen = _choose(part, values.get(chooser)).declared()
            for entry in known:
                for name in entry.flags.declared():
                    if name not in chosen:
                        values.pop(name, None)
        return cls(
            **{n: tuple(v) if type(v) is list else v for n, v in values.items()}
        )

    def replaced_defaults(self) -> list[str]:
        """Returns lines on the algorithm's defaults that a flagfile replaces.

        A recipe for other algorithms may do so without intent.
        """
        words = flagfiles.expand(self.argv, self.alternatives)
        lines, defaults = [], dict(self.hyper.defaults)
        for name, each in self.hyper.declared().items():
            shared = each.owner.declared()[name].default
            if each.default != shared:
                defaults[name] = each.default
        for name, default in defaults.items():
            names = (name, f"no{name}")
            given = [w for w in words if flagfiles.name_of(w) in names]
            value = getattr(self, name)
            from_file = given and isinstance(given[-1], flagfiles.FileWord)
            if from_file and value != default:
                word = self.fields()[name].word(value)
                lines.append(
                    f"{word} comes from the recipe; the default of "
                    f"{self.algorithm} is {commandline.shown(default)}"
                )
        return lines

    def without_effect(self) -> list[str]:
        """Returns lines on flags of strong views where the method has none."""
        views = registry.algorithms.find(self.algorithm)[
            0
        ].value.unlabeled_views
        # A property may depend on flags, and none of those is without.
        if not isinstance(views, tuple) or any(
            getattr(view, "augmentation", view).startswith(("strong", "rand"))
            for view in views
        ):
            return []
        return [
            f"{word}: has no effect, for --algorithm={self.algorithm} has no "
            "strong views"
            for word in self.argv[1:]
            if flagfiles.name_of(word) in _STRONG
        ]

    # ------------------------------------------- rules between two values --

    def check(self) -> None:
        """Checks flags against each other.

        Raises:
            InputError: The message names the values.
        """
        for name in ("workdir", "data_dir", "tfds_dir", "tfds_manual_dir"):
            value = getattr(self, name)
            if value is not None and not value.strip():
                raise InputError(
                    f"--{name}={value!r}: names no folder; leave it out for "
                    "the default"
                )
        check_tables(self)
        self._check_backbone()
        self._check_data()
        self._check_labels()
        self._check_durations()
        self._check_extension()
        self._check_optimizer()
        self._check_devices()
        self._check_augmentation()
        for part in _CHOSEN:
            getattr(self, part).check_run(self)

    def _check_backbone(self) -> None:
        registry.networks.find(self.backbone)
        if self.init_from == PUBLISHED:
            registry.networks.check_published(self.backbone)
        for name, needs in (
            ("batch_norm", self.batch_norm == "frozen"),
            ("backbone_rate_factor", self.backbone_rate_factor == 0),
            ("classifier_init", self.classifier_init == "frozen_features"),
        ):
            if needs and self.init_from is None:
                raise InputError(
                    f"--{name}={getattr(self, name)}: uses what the first "
                    "weights bring: give them by --init_from"
                )
        if self.image_size is not None:
            registry.networks.check_side(self.backbone, self.image_size)

    def _check_data(self) -> None:
        facts = registry.sources.find(self.dataset)[0].facts
        if facts.get("needs_data_dir") and self.data_dir is None:
            raise InputError(
                "--data_dir is missing: name the folder of the images, which "
                f"--dataset={self.dataset} reads"
            )
        if self.data_dir is not None and not facts.get("needs_data_dir"):
            raise InputError(
                f"--data_dir={self.data_dir}: is for "
                f"{_with_fact('needs_data_dir')}, not {self.dataset}"
            )
        for name in TABLES:
            value = getattr(self, name)
            if value is not None and not facts.get("reads_labels_csv"):
                raise InputError(
                    f"--{name}={value}: is for "
                    f"{_with_fact('reads_labels_csv')}, not {self.dataset}"
                )
        if self.on_bad_image == "skip" and not facts.get("skips_bad_images"):
            raise InputError(
                "--on_bad_image=skip: is for "
                f"{_with_fact('skips_bad_images')}, not {self.dataset}"
            )
        if facts.get("from_python") and self.image_size is not None:
            raise InputError(
                f"--image_size={self.image_size}: images given from Python "
                'keep their own size; leave it out with dataset="custom"'
            )
        if None not in (self.eval_resize, self.image_size) and (
            self.eval_resize < self.image_size
        ):
            raise InputError(
                f"--eval_resize={self.eval_resize}: must be at least "
                f"--image_size={self.image_size}, which is cropped from it"
            )

    def _check_labels(self) -> None:
        facts = registry.sources.find(self.dataset)[0].facts
        given = [n for n in _SPLITS if getattr(self, n) is not None]
        # A folder's labeled/ says by itself what is labeled.
        if len(given) > 1 or (not given and not facts.get("has_labels")):
            values = " and ".join(f"--{n}={getattr(self, n)}" for n in given)
            values = values or "--labels is missing"
            raise InputError(
                f"{values}: give exactly one of --" + ", --".join(_SPLITS)
            )
        if self.draw != "stratified" and self.labels is None:
            values = given and f", not --{given[0]}={getattr(self, given[0])}"
            raise InputError(
                f"--draw={self.draw}: chooses the images of --labels=N"
                f"{values or ', which is missing'}"
            )
        if self.split_file is not None and self.validation_fraction:
            raise InputError(
                f"--validation_fraction={self.validation_fraction}: "
                "--split_file brings its own validation images"
            )
        name = base_name(self.dataset)
        if self.labeled_list in SUBSETS and name != "imagenet2012":
            raise InputError(
                f"--labeled_list={self.labeled_list}: is for "
                f"--dataset=imagenet2012, not {self.dataset}"
            )
        size = known_size(self.dataset)
        if self.labels is None or size is None:
            return
        classes, images = size
        if self.draw == "stratified" and self.labels % classes:
            raise InputError(
                f"--labels={self.labels}: not divisible by the {classes} "
                f"classes of {self.dataset}"
            )
        if self.labels > images:
            raise InputError(
                f"--labels={self.labels}: {self.dataset} has {images} "
                "training images"
            )

    def _check_durations(self) -> None:
        given = [n for n in _LENGTHS if getattr(self, n) is not None]
        if not given:
            raise InputError(
                "--steps is missing: give --steps, --epochs or --minutes"
            )
        if len(given) > 1:
            values = " and ".join(f"--{n}={getattr(self, n)}" for n in given)
            raise InputError(
                f"{values}: give exactly one of --" + ", --".join(_LENGTHS)
            )
        if None not in (self.warmup_steps, self.warmup_epochs):
            raise InputError(
                f"--warmup_steps={self.warmup_steps} and --warmup_epochs="
                f"{self.warmup_epochs}: give at most one of the two"
            )
        if self.picture_every is not None and not self.summaries:
            raise InputError(
                f"--picture_every={self.picture_every}: --nosummaries writes "
                "no pictures; leave one of them out"
            )
        if self.profile is not None:
            profiled_steps(self.profile)
        if self.minutes is None:
            # With --minutes they follow from its steps, see `with_durations`.
            for name in ("eval_every", "checkpoint_every"):
                if getattr(self, name) is None:
                    object.__setattr__(self, name, _EVERY)
        if steps := self.length():
            self.check_length(steps)

    def _check_extension(self) -> None:
        if self.extend_minutes is not None and self.extend_steps is not None:
            raise InputError(
                f"--extend_minutes={self.extend_minutes} and --extend_steps="
                f"{self.extend_steps}: give one of the two"
            )
        for name in ("extend_minutes", "extend_steps"):
            value = getattr(self, name)
            if value is not None and self.schedule != "cooldown":
                raise InputError(
                    f"--{name}={value}: only a run of --schedule=cooldown can "
                    f"be extended, and this one has --schedule={self.schedule}"
                    ", which was planned for its whole length; start a longer "
                    "run in another --workdir"
                )
            if value is not None and (self.overwrite or self.describe):
                other = "overwrite" if self.overwrite else "describe"
                raise InputError(f"--{name}={value} and --{other}: one of them")
        own = type(self).declared()["cooldown"].default
        if self.schedule != "cooldown" and self.cooldown != own:
            raise InputError(
                f"--cooldown={self.cooldown}: is for --schedule=cooldown, not "
                f"{self.schedule}; leave it out, or give --cooldown={own}"
            )
        if self.measured_steps is not None and self.minutes is None:
            raise InputError(
                f"--measured_steps={self.measured_steps}: is the length of a "
                "run of --minutes, which is missing"
            )
        if self.extended_steps is not None and self.schedule != "cooldown":
            raise InputError(
                f"--extended_steps={self.extended_steps}: is for "
                f"--schedule=cooldown, not {self.schedule}"
            )

    def _check_optimizer(self) -> None:
        for one, other in (
            ("ema_start_momentum", "ema_start_steps"),
            ("ema_start_steps", "ema_start_momentum"),
        ):
            if getattr(self, one) is not None and getattr(self, other) is None:
                raise InputError(
                    f"--{one}={getattr(self, one)}: needs --{other}"
                )
        if self.optimizer == "adam" and self.learning_rate > _MOST_OF_ADAM:
            raise InputError(
                f"--learning_rate={self.learning_rate}: is a rate for SGD; "
                "with --optimizer=adam give one of at most "
                f"{_MOST_OF_ADAM}, such as --learning_rate=0.002"
            )
        if self.optimizer == "adam" and self.momentum != 0.9:
            raise InputError(
                f"--momentum={self.momentum}: is for --optimizer=sgd; leave it "
                "out"
            )

    def length(self) -> int | None:
        """Returns the number of steps; None if these flags do not tell."""
        return self.extended_steps or self.measured_steps or self.steps

    def check_length(self, steps: int) -> None:
        """Checks flags that count steps against the length of the run.

        Args:
            steps: The length; `warmup_epochs` is not looked at.

        Raises:
            InputError: A part of the run would end after it.
        """
        whole = f"--steps={steps}"
        if steps == self.extended_steps:
            whole = f"--extended_steps={steps}"
        elif self.minutes is not None:
            whole = f"the {steps} steps of --minutes={self.minutes:g}"
        if self.profile is not None:
            if sum(profiled_steps(self.profile)) > steps:
                raise InputError(
                    f"--profile={self.profile}: ends after {whole}"
                )
        if (self.warmup_steps or 0) >= steps:
            raise InputError(
                f"--warmup_steps={self.warmup_steps}: must be below {whole}"
            )
        cooldown = self.cooldown_steps(steps)
        if cooldown and (self.warmup_steps or 0) > steps - cooldown:
            raise InputError(
                f"--warmup_steps={self.warmup_steps} and --cooldown="
                f"{self.cooldown}: of {whole} the last {cooldown} are the "
                "cool-down; the warm-up must end before it begins"
            )

    def cooldown_steps(self, steps: int | None = None) -> int:
        """Returns the number of steps of the cool-down, 0 without one.

        Args:
            steps: Length of the run; default: --steps.
        """
        if self.schedule != "cooldown":
            return 0
        return max(1, round(self.cooldown * (steps or self.steps)))

    def _check_devices(self) -> None:
        if self.strategy == "one" and (self.devices or 1) > 1:
            raise InputError(
                f"--strategy=one and --devices={self.devices}: use --strategy="
                "mirrored for more than one device"
            )
        self.check_divides(self.devices or 1)
        if self.tpu is not None and self.strategy not in ("auto", "tpu"):
            raise InputError(
                f"--tpu={self.tpu} and --strategy={self.strategy}: leave out "
                "one of the two"
            )
        if self.tpu is None and self.strategy != "tpu":
            self.check_compiles(self.devices or 1)

    def check_compiles(self, devices: int) -> None:
        """Checks --jit_compile for devices other than TPUs.

        Raises:
            InputError: There are several devices.
        """
        if self.jit_compile and devices > 1:
            raise InputError(
                f"--jit_compile with {devices} devices: XLA compiles the step "
                "of one device, or of a TPU; others exchange gradients in its "
                "midst. Leave it out, or give --strategy=one"
            )

    def check_divides(self, replicas: int) -> None:
        """Checks that a batch can be divided equally among replicas.

        Raises:
            InputError: The batch size is no multiple of their number.
        """
        if self.batch_size % replicas:
            raise InputError(
                f"--batch_size={self.batch_size}: is not divisible by "
                f"{replicas} devices"
            )

    def _check_augmentation(self) -> None:
        if self.randaugment_low > self.randaugment_high:
            raise InputError(
                f"--randaugment_low={self.randaugment_low}: must not be above "
                f"--randaugment_high={self.randaugment_high}"
            )
        if self.data_service is not None:
            commandline.check_address(
                "data_service", self.data_service, scheme="grpc://"
            )
        if self.strong == "keras_cv" and self.data_service is not None:
            raise InputError(
                f"--data_service={self.data_service} and --strong=keras_cv: "
                "no service can hand on the random state of that library's "
                "layer; leave out one of the two"
            )
        if self.strong == "keras_cv" and self.views_on == "device":
            raise InputError(
                "--views_on=device and --strong=keras_cv: that library's "
                "layer runs on the host only"
            )

    # ----------------------------------------------------- derived from them --

    def class_prior_file(self) -> str | None:
        """Returns the file that --class_prior names, if it names one."""
        value = getattr(self, "class_prior", CLASS_PRIORS[0])
        return None if value in CLASS_PRIORS else value

    def labeled_by(self) -> str | None:
        """Returns the flag that chooses the labeled images, with its value.

        None where all images of a known class are labeled.
        """
        given = ((name, getattr(self, name)) for name in _SPLITS)
        words = [f"--{name}={value}" for name, value in given if value]
        return words[0] if words else None

    def needs_unlabeled_folder(self) -> bool:
        """Returns whether --data_dir must have images without a class.

        It need not if nothing is learned from them, nor if flags label only a
        part of those with a class, as the rest is unlabeled then.
        """
        entry, _ = registry.algorithms.find(self.algorithm)
        return bool(entry.value.unlabeled_views) and self.labeled_by() is None

    def absolute(self) -> Self:
        """Returns the same flags with absolute paths, valid in any folder.

        The file of a method, a dataset or a backbone that the program imported
        becomes a --plugin.
        """

        def absolute(path: str) -> str:
            if path in (*SUBSETS, PUBLISHED) or "://" in path:
                return path
            return os.path.abspath(io.expand(path))

        paths = {
            name: absolute(value)
            for name in PATHS
            if name not in ("plugin", "class_prior")
            and (value := getattr(self, name)) is not None
        }
        if (prior := self.class_prior_file()) is not None:
            paths["class_prior"] = absolute(prior)
        plugins = [*map(absolute, self.plugin)]
        for known, chooser in _CHOSEN.values():
            entry, _ = known.find(getattr(self, chooser))
            file = registry.file_of(entry.value)
            names = map(os.path.basename, plugins)
            if file and os.path.basename(file) not in names:
                plugins.append(file)
        return dataclasses.replace(self, **paths, plugin=tuple(plugins))

    def moved(self, data_dir: str | None, tfds_dir: str | None) -> Self:
        """Returns the run's flags with the folders of its images replaced.

        A table of labels in the old --data_dir is looked for in the new one.

        Args:
            data_dir: The new --data_dir; None keeps it.
            tfds_dir: The new --tfds_dir; None keeps it.
        """
        tables = {}
        for name in TABLES if data_dir and self.data_dir else ():
            if (value := getattr(self, name)) is None:
                continue
            old = os.path.abspath(io.expand(self.data_dir))
            path = os.path.abspath(io.expand(value))
            if path.startswith(os.path.join(old, "")):
                place = os.path.relpath(path, old)
                tables[name] = os.path.join(io.expand(data_dir), place)
        return dataclasses.replace(
            self,
            **tables,
            data_dir=data_dir or self.data_dir,
            tfds_dir=tfds_dir or self.tfds_dir,
        )

    def named_after(self, flagfile: pathlib.Path | None) -> Self:
        """Returns the flags with a workdir, if none is given.

        It is runs/NAME_OF_THE_RECIPE, for the user's own images
        runs/NAME_OF_THE_RECIPE-NAME_OF_THEIR_FOLDER; a run's own flagfile
        means its folder, wherever that was moved.
        """
        workdir = self.workdir
        if workdir is None and flagfile and flagfile.name == flagfiles.OF_RUN:
            workdir = str(flagfile.parent)
        elif workdir is None:
            name = flagfile.stem if flagfile else "default"
            if self.data_dir is not None:
                data_dir = os.path.abspath(io.expand(self.data_dir))
                name = f"{name}-{os.path.basename(data_dir)}".rstrip("-")
            workdir = os.path.join("runs", name)
        return dataclasses.replace(self, workdir=workdir)

    def published_list(self) -> str | None:
        """Returns the list that a share of ImageNet's labels stands for."""
        shares = {0.01: "1pct", 0.1: "10pct"}
        if base_name(self.dataset) != "imagenet2012":
            return None
        if self.label_fraction not in shares:
            return None
        return f"imagenet2012_subset/{shares[self.label_fraction]}"

    def with_steps(self, steps: int) -> Self:
        """Returns the flags with another length, without warm-up and profile.

        Args:
            steps: Number of steps.
        """
        return dataclasses.replace(
            self,
            **_NO_OTHER_LENGTH,
            steps=steps,
            warmup_steps=None,
            profile=None,
        )

    def with_durations(self, unlabeled_images: int) -> Self:
        """Returns the flags with epochs turned into steps.

        Args:
            unlabeled_images: Size of the unlabeled set; an epoch is that
                // (batch_size * unlabeled_ratio) steps.

        Returns:
            A Config whose `steps`, `warmup_steps`, `eval_every`,
            `checkpoint_every` and, with summaries, `picture_every` are set.

        Raises:
            InputError: One unlabeled batch is larger than the unlabeled set
                and epochs are asked for, the warm-up is no shorter than the
                run, or --minutes has not been measured.
        """
        unlabeled_batch = self.batch_size * self.unlabeled_ratio
        epoch_steps = unlabeled_images // unlabeled_batch
        if epoch_steps == 0 and (self.epochs or self.warmup_epochs):
            raise InputError(
                f"an epoch has no step: {unlabeled_images} unlabeled images, "
                f"--batch_size={self.batch_size} times --unlabeled_ratio="
                f"{self.unlabeled_ratio} in one; use --steps"
            )
        steps = self.length()
        if steps is None and self.minutes is not None:
            raise InputError(
                f"--minutes={self.minutes:g}: only a run that trains measures "
                "how many steps that is; give --steps"
            )
        steps = steps or max(1, round(self.epochs * epoch_steps))
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = round((self.warmup_epochs or 0) * epoch_steps)
            if warmup_steps >= steps:
                raise InputError(
                    f"--warmup_epochs={self.warmup_epochs}: is {warmup_steps} "
                    f"steps, but the run has {steps}"
                )
        picture_every = self.picture_every or max(500, steps // 20)
        if self.schedule == "cooldown":
            # Nothing before the cool-down depends on the length of the run.
            picture_every = self.picture_every or 500
        return dataclasses.replace(
            self,
            **_NO_OTHER_LENGTH,
            steps=steps,
            eval_every=self.eval_every or -(-steps // 8),
            checkpoint_every=self.checkpoint_every or -(-steps // 8),
            warmup_steps=warmup_steps,
            picture_every=picture_every if self.summaries else None,
        )


def profiled_steps(value: str) -> tuple[int, int]:
    """Reads START and COUNT of --profile=START:COUNT.

    Raises:
        InputError: The value has another form.
    """
    start, colon, count = value.partition(":")
    if not (colon and start.isdecimal() and count.isdecimal() and int(count)):
        raise InputError(
            f"--profile={value}: must be START:COUNT, such as 100:10 for ten "
            "steps behind the first hundred"
        )
    return int(start), int(count)


def check_tables(flags: Any) -> None:
    """Checks the flags that name a table of labels.

    Args:
        flags: Of a command that has them.

    Raises:
        InputError: One is blank, or both are given.
    """
    given = {
        name: value
        for name in TABLES
        if (value := getattr(flags, name)) is not None
    }
    for name, value in given.items():
        if not value.strip():
            raise InputError(
                f"--{name}={value!r}: names no file; leave it out if folders "
                "name the classes"
            )
    if len(given) > 1:
        raise InputError(
            " and ".join(f"--{n}={v}" for n, v in given.items())
            + ": both name the classes of images; give one of the two"
        )


def base_name(dataset: str) -> str:
    """Returns NAME of a dataset called NAME/CONFIG:VERSION."""
    return re.split("[/:]", dataset)[0]


def _without_moved(words: list[str]) -> list[str]:
    """Drops plugins of flagfiles that the command line gives another place."""

    def names(words: list[str]) -> set[str]:
        return {*map(os.path.basename, flagfiles.value_of("plugin", words))}

    given = names([w for w in words if not isinstance(w, flagfiles.FileWord)])
    return [
        word
        for word in words
        if not (isinstance(word, flagfiles.FileWord) and names([word]) & given)
    ]


def _with_fact(fact: str) -> str:
    """Returns the datasets that have a fact, for a message."""
    entries = [e for e in registry.sources if e.facts.get(fact)]
    return f"--dataset={_names(entries)}"


def _names(entries: Iterable[registry.Entry]) -> str:
    return " or ".join(name for entry in entries for name in entry.names)


def _owners_of(name: str) -> tuple[str, list[registry.Entry]]:
    """Returns the key in `_CHOSEN` and the entries that declare a flag."""
    for part, (known, _) in _CHOSEN.items():
        owners = [e for e in known if name in e.flags.declared()]
        if owners:
            return part, owners
    return "", []


def known_size(dataset: str) -> tuple[int, int] | None:
    """Returns the number of classes and training images of a dataset.

    None, if they are not known before the dataset is loaded.
    """
    facts = registry.sources.find(dataset)[0].facts
    return facts.get("sizes", {}).get(base_name(dataset))


def _choose(part: str, name: str) -> type[commandline.HyperParameters]:
    """Returns the class that declares the flags of a registered name."""
    if not isinstance(name, str):  # its own check says so
        return commandline.HyperParameters
    return _CHOSEN[part][0].find(name)[0].flags


def _build(
    kind: type[commandline.HyperParameters],
    before: commandline.HyperParameters | None,
    values: dict[str, Any],
) -> commandline.HyperParameters:
    """Makes the flags of an algorithm, a backbone or a dataset.

    Args:
        kind: Their class.
        before: Those of a Config that is replaced, maybe of another class.
        values: Flag → value; what is taken is removed.
    """
    given = {}
    if before is not None:
        usual = {n: f.default for n, f in before.declared().items()}
        given = {n: v for n, v in before.values().items() if v != usual[n]}
    declared = kind.declared()
    given |= {name: values.pop(name) for name in declared if name in values}
    return kind(
        **{
            declared[name].field: value
            for name, value in given.items()
            if name in declared
        }
    )
