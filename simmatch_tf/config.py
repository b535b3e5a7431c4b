"""Every flag, and the frozen `Config` that holds their values."""

import dataclasses
import os
import pathlib
from typing import ClassVar, Self

from simmatch_tf import availability, checks, operation_flags
from simmatch_tf.data.sources import dataset_names
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError, flag

# A run's flags, in its workdir.
RUN_FLAGFILE = "flags.cfg"


@dataclasses.dataclass(frozen=True)
class ImageFolders(commandline.Flags):
    """Flags of a command that reads the images of a finished run."""

    data_dir: str | None = flag(
        None,
        "Current location of the run's --data_dir, if it was moved. Default: "
        "as recorded in the run.",
    )
    tfds_dir: str | None = flag(
        None,
        "Current location of the run's --tfds_dir, if it was moved. Default: "
        "as recorded in the run.",
        rare=True,
    )


@dataclasses.dataclass(frozen=True)
class Config(operation_flags.OperationFlags):
    """A training run: every value that decides what is trained, and how."""

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("labels", "label_fraction", "labeled_list", "split_file"),
        ("steps", "epochs"),
        ("warmup_steps", "warmup_epochs"),
        ("split_file", "validation_fraction"),
    )

    # Data.
    dataset: str = flag(
        "digits",
        "digits, folder, or any image classification dataset of TFDS: NAME, "
        "NAME/CONFIG, NAME:VERSION.",
    )
    data_dir: str | None = flag(
        None,
        "for --dataset=folder: holds labeled/CLASS/*, unlabeled/** and, where "
        "there is one, test/CLASS/*.",
        operational=True,
    )
    tfds_dir: str | None = flag(
        None,
        "prepared datasets; default: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
        rare=True,
        operational=True,
    )
    tfds_manual_dir: str | None = flag(
        None,
        "archives that TFDS cannot download itself.",
        rare=True,
        operational=True,
    )
    on_bad_image: str = flag(
        "error",
        "an image that cannot be read stops the run before it trains, or is "
        "left out (at most 1 % of them).",
        choices=("error", "skip"),
        rare=True,
    )
    labels: int | None = flag(
        None, "labeled images in all, the same number of each class.", low=1
    )
    label_fraction: float | None = flag(
        None,
        "labeled share of each class; instead of --labels.",
        low=0,
        high=1,
    )
    labeled_list: str | None = flag(
        None,
        "the labeled images: a file with one file name or index a line, or "
        "imagenet2012_subset/1pct|10pct.",
    )
    split_file: str | None = flag(
        None,
        "the labeled and validation images of another run: its split.json.",
        rare=True,
    )
    split_seed: int = flag(0, "which images are labeled.", low=0)
    validation_fraction: float = flag(
        0.0,
        "share of the labeled images of each class (at least one) that is set "
        "aside to choose the best step, and to score by where there is no "
        "test set.",
        low=0,
        high=0.9,
    )
    unlabeled_includes_labeled: bool = flag(
        True, "labeled images are in the unlabeled set, too.", rare=True
    )
    image_size: int | None = flag(
        None,
        "side in pixels; default: the dataset's own, or 224.",
        low=8,
        high=1024,
        rare=True,
    )
    flip: bool | None = flag(
        None, "views may be mirrored; default: the dataset's own.", rare=True
    )
    weak: str = flag(
        "flip_crop",
        "the weak view: flip and a shifted crop, or a random crop resized.",
        choices=("flip_crop", "resized_crop"),
    )
    strong: str = flag(
        "randaugment",
        "what the strong view adds to it; keras_cv is that library's "
        "RandAugment, whose random state makes no two runs alike.",
        choices=("randaugment", "moco", "keras_cv", "none"),
    )
    crop_area: float = flag(
        0.2,
        "least share of the image in a resized_crop.",
        low=0.01,
        high=1,
        rare=True,
    )
    randaugment_operations: int = flag(
        2, "operations drawn for each image (n).", low=0, high=14, rare=True
    )
    randaugment_probability: float = flag(
        0.5, "that a drawn operation is applied.", low=0, high=1, rare=True
    )
    randaugment_low: float = flag(
        0.1, "least strength of an operation.", low=0, high=1, rare=True
    )
    randaugment_high: float = flag(
        0.9, "greatest strength of an operation.", low=0, high=1, rare=True
    )
    randaugment_levels: int = flag(
        9, "evenly spaced strengths; 0: any in between.", low=0, rare=True
    )
    cutout: float = flag(
        0.5,
        "side of the strong view's cutout, as a share.",
        low=0,
        high=1,
        rare=True,
    )
    eval_resize: int | None = flag(
        None,
        "evaluation resizes the shorter side to this, then crops.",
        low=8,
        high=2048,
        rare=True,
    )

    # Network.
    backbone: str = flag(
        "wrn_28_2",
        "wrn_DEPTH_WIDTH, resnet18|34|50|101 (resnet50x2: twice as wide), "
        "keras_cv:NAME, keras_applications:NAME.",
    )
    init_from: str | None = flag(
        None,
        "start from the weights of a run's folder, a SavedModel, a .keras or "
        ".weights.h5 file; heads where their shapes agree.",
    )
    stem_stride: int = flag(
        1,
        "of a WRN's first convolution; 2 for large images.",
        low=1,
        high=4,
        rare=True,
    )
    projection_dim: int = flag(
        128, "width D of the embeddings.", low=1, rare=True
    )
    batch_norm_momentum: float | None = flag(
        None,
        "weight of BatchNorm's old statistics; default: the published one.",
        low=0,
        high=0.99999,
        rare=True,
    )

    batch_norm: str = flag(
        "synchronized",
        "BatchNorm's statistics in training: of the whole batch, or of each "
        "device's share.",
        choices=("synchronized", "local"),
        rare=True,
    )
    precision: str = flag(
        "float32",
        "what the network computes in (losses and matching: float32 at "
        "least); mixed_float16 scales the loss.",
        choices=("float32", "mixed_bfloat16", "mixed_float16", "float64"),
    )

    # Method.
    algorithm: str = flag(
        "simmatch",
        "what is trained.",
        choices=("simmatch", "fixmatch", "supervised", "custom"),
    )
    memory: str = flag(
        "ensemble",
        "EMA teacher with a plain memory (large label sets), or temporal "
        "ensemble (small ones).",
        choices=("teacher", "ensemble"),
    )
    teacher_norm: str = flag(
        "eman",
        "the teacher's BatchNorm with --memory=teacher: averaged statistics, "
        "or those of each batch, shuffled over the devices.",
        choices=("eman", "shuffle"),
        rare=True,
    )
    weak_forward: str = flag(
        "joint",
        "weak views with --memory=ensemble: in the student's one forward, or "
        "in one of their own that keeps nothing for a backward.",
        choices=("joint", "separate"),
        rare=True,
    )
    pseudo_labels: str | None = flag(
        None,
        "of fixmatch: the likeliest class, its default, or all of p^w.",
        choices=("hard", "soft"),
        rare=True,
    )
    align: bool | None = flag(
        None,
        "distribution alignment; default: as published, with simmatch and not "
        "with fixmatch.",
        rare=True,
    )
    scale_instances: bool = flag(
        True,
        "instance pseudo-labels have a factor of their class's p^w; without, "
        "they are the weak view's similarities (Table 5: w/o q^).",
        rare=True,
    )
    smooth_classes: bool = flag(
        True,
        "class pseudo-labels are smoothed by the instances'; without, they "
        "are p^w (Table 5: w/o p^).",
        rare=True,
    )
    alpha: float = flag(
        0.9, "weight of p^w in the smoothed pseudo-label.", low=0, high=1
    )
    temperature: float = flag(
        0.1, "t of the instance similarities.", low=0.005, high=10
    )
    threshold: float = flag(
        0.95, "tau: least confidence of a pseudo-label.", low=0, high=1
    )
    lambda_u: float = flag(
        1.0, "weight of the pseudo-label loss.", low=0, high=1e6
    )
    lambda_in: float = flag(
        1.0, "weight of the instance loss.", low=0, high=1e6
    )
    memory_momentum: float = flag(
        0.7,
        "weight of the old embedding, ensemble form.",
        low=0,
        high=0.99999,
        rare=True,
    )
    ema_momentum: float = flag(
        0.999, "weight of the EMA teacher's old value.", low=0, high=1
    )
    ema_warmup: bool = flag(
        False, "EMA momentum is at most (1 + step) / (10 + step).", rare=True
    )
    da_window: int = flag(
        32, "batches that distribution alignment averages.", low=1, rare=True
    )
    matching_start_steps: int = flag(
        0,
        "instance loss and smoothing wait for this step, and in any case until "
        "the memory is full.",
        low=0,
        rare=True,
    )

    # Optimizer and schedule.
    batch_size: int = flag(64, "labeled images a step, all devices.", low=1)
    unlabeled_ratio: int = flag(
        7, "mu: unlabeled images for each labeled one.", low=1
    )
    steps: int | None = flag(None, "length of the run.", low=1)
    epochs: float | None = flag(
        None, "the same in passes over the unlabeled images.", low=0
    )
    warmup_steps: int | None = flag(
        None, "linear warm-up of the rate; default: none.", low=0, rare=True
    )
    warmup_epochs: float | None = flag(
        None, "the same in passes over the unlabeled images.", low=0, rare=True
    )
    learning_rate: float = flag(0.03, "peak rate of SGD.", low=0, high=100)
    schedule: str = flag(
        "cosine_7_16",
        "the rate after warm-up: cos(7 pi s / 16 S), half a cosine, or flat.",
        choices=("cosine_7_16", "half_cosine", "constant"),
        rare=True,
    )
    momentum: float = flag(
        0.9, "of Nesterov SGD.", low=0, high=0.99999, rare=True
    )
    weight_decay: float = flag(
        5e-4, "L2 penalty, added to the gradient.", low=0, high=1, rare=True
    )
    weight_decay_on: str = flag(
        "kernels",
        "kernels alone, or biases and BatchNorm as well.",
        choices=("kernels", "all"),
        rare=True,
    )
    seed: int = flag(0, "of weights, order and views.", low=0, high=2**31 - 1)

    def check(self) -> None:
        """Checks what concerns several flags at once."""
        checks.check_together(self)

    def check_available(self, *, resumed: bool = False) -> None:
        """Checks what the flags name on this machine; see `availability`."""
        availability.check(self, resumed=resumed)

    def absolute(self) -> Self:
        """The same from any folder: paths are made absolute."""
        paths = {
            name: os.path.abspath(os.path.expanduser(value))
            for name in checks.PATHS
            if (value := getattr(self, name)) is not None
            and value not in checks.SUBSETS
            and "://" not in value
        }
        return dataclasses.replace(self, **paths)

    def moved(self, data_dir: str | None, tfds_dir: str | None) -> Self:
        """Returns the run's flags with the folders of its images replaced.

        Args:
            data_dir: The new --data_dir; None keeps it.
            tfds_dir: The new --tfds_dir; None keeps it.
        """
        return dataclasses.replace(
            self,
            data_dir=self.data_dir if data_dir is None else data_dir,
            tfds_dir=self.tfds_dir if tfds_dir is None else tfds_dir,
        )

    def named_after(self, flagfile: pathlib.Path | None) -> Self:
        """Names the workdir, where none is given.

        It is runs/<name of the recipe>, of the user's own images
        runs/<name of the recipe>-<name of their folder>; a run's own flagfile
        means its folder, wherever that was moved.
        """
        workdir = self.workdir
        if workdir is None and flagfile and flagfile.name == RUN_FLAGFILE:
            workdir = str(flagfile.parent)
        elif workdir is None:
            name = flagfile.stem if flagfile else "default"
            if self.data_dir is not None:
                data_dir = os.path.abspath(os.path.expanduser(self.data_dir))
                name = f"{name}-{os.path.basename(data_dir)}".rstrip("-")
            workdir = os.path.join("runs", name)
        return dataclasses.replace(self, workdir=workdir)

    def published_list(self) -> str | None:
        """The list that a share of ImageNet's labels means by default."""
        shares = {0.01: "1pct", 0.1: "10pct"}
        if dataset_names.base(self.dataset) != "imagenet2012":
            return None
        if self.label_fraction not in shares:
            return None
        return f"imagenet2012_subset/{shares[self.label_fraction]}"

    def with_durations(self, unlabeled_images: int) -> Self:
        """Turns epochs into steps.

        Args:
            unlabeled_images: Size of the unlabeled set; an epoch is that
                // (batch_size * unlabeled_ratio) steps.

        Returns:
            A Config whose `steps`, `warmup_steps` and, with summaries,
            `picture_every` are set.

        Raises:
            InputError: One unlabeled batch is larger than the unlabeled set
                and epochs are asked for, or the warm-up is no shorter than
                the run.
        """
        unlabeled_batch = self.batch_size * self.unlabeled_ratio
        epoch_steps = unlabeled_images // unlabeled_batch
        if epoch_steps == 0 and (self.epochs or self.warmup_epochs):
            raise InputError(
                f"an epoch has no step: {unlabeled_images} unlabeled images, "
                f"--batch_size={self.batch_size} times --unlabeled_ratio="
                f"{self.unlabeled_ratio} in one; use --steps"
            )
        steps = self.steps or max(1, round(self.epochs * epoch_steps))
        warmup_steps = self.warmup_steps
        if warmup_steps is None:
            warmup_steps = round((self.warmup_epochs or 0) * epoch_steps)
            if warmup_steps >= steps:
                raise InputError(
                    f"--warmup_epochs={self.warmup_epochs}: is {warmup_steps} "
                    f"steps, but the run has {steps}"
                )
        picture_every = self.picture_every or max(500, steps // 20)
        return dataclasses.replace(
            self,
            steps=steps,
            epochs=None,
            warmup_steps=warmup_steps,
            warmup_epochs=None,
            picture_every=picture_every if self.summaries else None,
        )
