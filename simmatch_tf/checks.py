"""Checks that concern several flags.

Nothing here imports TensorFlow: a wrong flag is answered at once.
"""

from __future__ import annotations

import typing

from simmatch_tf import registry
from simmatch_tf.data.sources import dataset_names
from simmatch_tf.distributed import cluster
from simmatch_tf.flags.commandline import InputError

if typing.TYPE_CHECKING:
    from simmatch_tf import config as config_lib

# Name → (classes, training images): what can be checked without the data.
SIZES = {
    "digits": (10, 1_400),
    "cifar10": (10, 50_000),
    "cifar100": (100, 50_000),
    "fashion_mnist": (10, 60_000),
    "imagenet2012": (1_000, 1_281_167),
    "stl10": (10, 5_000),
    "svhn_cropped": (10, 73_257),
}
# TFDS's lists of labeled images → how many they name.
SUBSETS = {
    "imagenet2012_subset/1pct": 12_811,
    "imagenet2012_subset/10pct": 128_116,
}
PATHS = (
    "data_dir",
    "tfds_dir",
    "tfds_manual_dir",
    "labeled_list",
    "split_file",
    "init_from",
)
# Flag, its default, the methods that have it.
_OF_METHODS = (
    ("pseudo_labels", None, ("fixmatch",)),
    ("align", None, ("simmatch", "fixmatch")),
    ("scale_instances", True, ("simmatch",)),
    ("smooth_classes", True, ("simmatch",)),
    ("memory_placement", "replicated", ("simmatch",)),
)
_SPLITS = ("labels", "label_fraction", "labeled_list", "split_file")


def check_together(config: config_lib.Config) -> None:
    """Checks flags against each other.

    Raises:
        InputError: It names the values.
    """
    for name in ("workdir", "data_dir", "tfds_dir", "tfds_manual_dir"):
        value = getattr(config, name)
        if value is not None and not value.strip():
            raise InputError(
                f"--{name}={value!r}: names no folder; leave it out for the "
                "default"
            )
    _check_backbone(config)
    _check_data(config)
    _check_labels(config)
    _check_durations(config)
    _check_devices(config)
    _check_data_service(config)
    _check_method(config)
    if config.randaugment_low > config.randaugment_high:
        raise InputError(
            f"--randaugment_low={config.randaugment_low}: must not be above "
            f"--randaugment_high={config.randaugment_high}"
        )
    if config.strong == "keras_cv" and config.views_on == "device":
        raise InputError(
            "--views_on=device and --strong=keras_cv: that library's layer "
            "runs on the host only"
        )


def _check_method(config: config_lib.Config) -> None:
    """Checks that no flag of a method is given that the method lacks."""
    form = None if config.algorithm == "supervised" else config.memory
    if config.teacher_norm == "shuffle" and form != "teacher":
        raise InputError(
            "--teacher_norm=shuffle: is for --memory=teacher with unlabeled "
            "images; elsewhere the teacher runs on averaged statistics only"
        )
    if config.weak_forward == "separate" and form != "ensemble":
        raise InputError(
            "--weak_forward=separate: is for --memory=ensemble with unlabeled "
            "images; elsewhere weak views have their own already: joint"
        )
    for name, default, methods in _OF_METHODS:
        value = getattr(config, name)
        if value == default or config.algorithm in (*methods, "custom"):
            continue
        given = f"--{name}={value}"
        if isinstance(value, bool):
            given = f"--{name}" if value else f"--no{name}"
        raise InputError(
            f"{given}: is for --algorithm={' or '.join(methods)}, not "
            f"{config.algorithm}"
        )


def _check_data_service(config: config_lib.Config) -> None:
    if config.data_service is None:
        return
    split_address("data_service", config.data_service, scheme="grpc://")
    if config.strong == "keras_cv":
        raise InputError(
            f"--data_service={config.data_service} and --strong=keras_cv: that "
            "library's layer keeps a random state, which no service can hand "
            "on; leave out one of the two"
        )


def split_address(
    flag: str, value: str, address: str | None = None, *, scheme: str = ""
) -> tuple[str, int]:
    """Host and port of an address.

    Args:
        flag: Its name.
        value: As given.
        address: What is read, where it is more than the value.
        scheme: What it must begin with.

    Raises:
        InputError: It is none.
    """
    text = address or value
    found = cluster.address(text.removeprefix(scheme))
    if not found or not text.startswith(scheme):
        wanted = "HOST" if address else f"{scheme}HOST:PORT"
        raise InputError(f"--{flag}={value}: must be {wanted}")
    return found


def numbers(given: str, value: str) -> tuple[int, ...]:
    """Whole numbers from 0, between commas or spaces.

    Args:
        given: What to call them in a message.
        value: As given.

    Raises:
        InputError: There is none, one is something else, or there twice.
    """
    words = value.replace(",", " ").split()
    # Longer ones are no numbers to Python, nor a seed's to anything else.
    if not words or not all(w.isdecimal() and len(w) < 19 for w in words):
        raise InputError(
            f"{given}={value}: must be numbers from 0, such as 0,1,2"
        )
    found = tuple(map(int, words))
    if len(set(found)) < len(found):
        raise InputError(f"{given}={value}: one of them is twice")
    return found


def profiled_steps(value: str) -> tuple[int, int]:
    """START and COUNT of --profile=START:COUNT.

    Raises:
        InputError: It is none.
    """
    start, colon, count = value.partition(":")
    if not (colon and start.isdecimal() and count.isdecimal() and int(count)):
        raise InputError(
            f"--profile={value}: must be START:COUNT, such as 100:10 for ten "
            "steps behind the first hundred"
        )
    return int(start), int(count)


def _check_devices(config: config_lib.Config) -> None:
    if config.strategy == "one" and (config.devices or 1) > 1:
        raise InputError(
            f"--strategy=one and --devices={config.devices}: use --strategy="
            "mirrored for more than one device"
        )
    check_divides(config, config.devices or 1)
    if config.tpu is not None and config.strategy not in ("auto", "tpu"):
        raise InputError(
            f"--tpu={config.tpu} and --strategy={config.strategy}: leave out "
            "one of the two"
        )
    if config.tpu is None and config.strategy != "tpu":
        check_compiles(config, config.devices or 1)


def check_compiles(config: config_lib.Config, devices: int) -> None:
    """Checks --jit_compile, for devices that are no TPU's.

    Raises:
        InputError: There are several.
    """
    if config.jit_compile and devices > 1:
        raise InputError(
            f"--jit_compile with {devices} devices: XLA compiles the step of "
            "one device, or of a TPU; others exchange gradients in its midst. "
            "Leave it out, or give --strategy=one"
        )


def check_divides(config: config_lib.Config, replicas: int) -> None:
    """Checks that a batch can be shared among replicas.

    Raises:
        InputError: It does not divide by their number.
    """
    if config.batch_size % replicas:
        below = config.batch_size // replicas * replicas
        near = [str(n) for n in (below, below + replicas) if n]
        raise InputError(
            f"--batch_size={config.batch_size}: does not divide by "
            f"{replicas} devices; such as {' or '.join(near)}"
        )


def _check_durations(config: config_lib.Config) -> None:
    if (config.steps is None) == (config.epochs is None):
        raise InputError(
            f"--steps={config.steps} and --epochs={config.epochs}: give "
            "exactly one of the two"
        )
    if config.epochs == 0:
        raise InputError("--epochs=0.0: must be above 0")
    if None not in (config.warmup_steps, config.warmup_epochs):
        raise InputError(
            f"--warmup_steps={config.warmup_steps} and --warmup_epochs="
            f"{config.warmup_epochs}: give at most one of the two"
        )
    if config.picture_every is not None and not config.summaries:
        raise InputError(
            f"--picture_every={config.picture_every}: --nosummaries writes no "
            "pictures; leave one of them out"
        )
    if config.profile is not None:
        last = sum(profiled_steps(config.profile))
        if config.steps and last > config.steps:
            raise InputError(
                f"--profile={config.profile}: ends after --steps={config.steps}"
            )
    if config.steps and (config.warmup_steps or 0) >= config.steps:
        raise InputError(
            f"--warmup_steps={config.warmup_steps}: must be below "
            f"--steps={config.steps}"
        )


def _check_data(config: config_lib.Config) -> None:
    if (config.dataset == "folder") != (config.data_dir is not None):
        raise InputError(
            f"--dataset={config.dataset} and --data_dir={config.data_dir}: "
            "--dataset=folder, and only that, needs --data_dir"
        )
    if config.on_bad_image == "skip" and config.dataset != "folder":
        raise InputError(
            "--on_bad_image=skip: is for --dataset=folder; the records of "
            f"--dataset={config.dataset} have checksums"
        )
    if config.dataset == "custom" and config.image_size is not None:
        raise InputError(
            f"--image_size={config.image_size}: images given from Python "
            'keep their own size; leave it out with dataset="custom"'
        )
    if None not in (config.eval_resize, config.image_size) and (
        config.eval_resize < config.image_size
    ):
        raise InputError(
            f"--eval_resize={config.eval_resize}: must be at least "
            f"--image_size={config.image_size}, which is cropped from it"
        )


def _check_labels(config: config_lib.Config) -> None:
    given = [n for n in _SPLITS if getattr(config, n) is not None]
    # A folder's labeled/ says by itself what is labeled.
    if len(given) > 1 or (not given and config.dataset != "folder"):
        values = " and ".join(
            f"--{name}={getattr(config, name)}"
            for name in (given or _SPLITS[:2])
        )
        raise InputError(
            f"{values}: give exactly one of --" + ", --".join(_SPLITS)
        )
    if config.label_fraction == 0:
        raise InputError("--label_fraction=0.0: must be above 0")
    if config.split_file is not None and config.validation_fraction:
        raise InputError(
            f"--validation_fraction={config.validation_fraction}: "
            "--split_file brings its own validation images"
        )
    name = dataset_names.base(config.dataset)
    if config.labeled_list in SUBSETS and name != "imagenet2012":
        raise InputError(
            f"--labeled_list={config.labeled_list}: is for "
            f"--dataset=imagenet2012, not {config.dataset}"
        )
    if config.labels is None or name not in SIZES:
        return
    classes, images = SIZES[name]
    if config.labels % classes:
        raise InputError(
            f"--labels={config.labels}: not divisible by the {classes} "
            f"classes of {config.dataset}"
        )
    if config.labels > images:
        raise InputError(
            f"--labels={config.labels}: {config.dataset} has {images} training "
            "images"
        )


def needs_unlabeled_folder(config: config_lib.Config) -> bool:
    """Whether --data_dir must have images in unlabeled/.

    Not where nothing is learned from them, nor where flags label but a part
    of labeled/: its rest is unlabeled then.
    """
    all_labeled = all(getattr(config, name) is None for name in _SPLITS)
    return config.algorithm != "supervised" and all_labeled


def _check_backbone(config: config_lib.Config) -> None:
    if config.backbone == "custom":
        return
    entry, _ = registry.networks.find(config.backbone)
    takes_stride = "stem_stride" in entry.facts.get("options", ())
    if config.stem_stride != 1 and not takes_stride:
        raise InputError(
            f"--stem_stride={config.stem_stride}: is for wrn_DEPTH_WIDTH, not "
            f"--backbone={config.backbone}"
        )
    if config.image_size is not None:
        registry.networks.check_side(config.backbone, config.image_size)
