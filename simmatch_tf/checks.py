"""Checks that concern several flags, or what stands on this machine.

Nothing here imports TensorFlow: a wrong flag is answered at once.
"""

from __future__ import annotations

import os
import pathlib
import socket
import typing

from simmatch_tf import backbones, cluster, datasets
from simmatch_tf.commandline import InputError

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
    form = None if config.algorithm == "supervised" else config.memory
    if config.teacher_norm == "shuffle" and form != "teacher":
        raise InputError(
            "--teacher_norm=shuffle: is for --algorithm=simmatch "
            "--memory=teacher; elsewhere the teacher runs on averaged "
            "statistics only"
        )
    if config.weak_forward == "separate" and form != "ensemble":
        raise InputError(
            "--weak_forward=separate: is for --algorithm=simmatch "
            "--memory=ensemble; elsewhere weak views have their own already"
        )
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


def check_reachable(flag: str, value: str, *, scheme: str = "") -> None:
    """Checks that something listens at an address.

    TensorFlow itself would try for ever.

    Raises:
        InputError: Nothing answers, for at most ten seconds.
    """
    try:
        socket.create_connection(
            split_address(flag, value, scheme=scheme), timeout=10
        ).close()
    except OSError as error:
        raise InputError(
            f"--{flag}={value}: cannot be reached ({error.strerror or error}); "
            "does simmatch_tf.serve_data --role=dispatcher run there?"
        ) from None


def check_port(flag: str, port: int) -> None:
    """Checks that a port is free: gRPC would share it with who listens there.

    Raises:
        InputError: It is in use, or not for this user.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise InputError(
                f"--{flag}={port}: cannot be listened at ({error.strerror})"
            ) from None


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
    name = datasets.base(config.dataset)
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


def _check_backbone(config: config_lib.Config) -> None:
    backbones.check(config.backbone)
    if config.stem_stride != 1 and not config.backbone.startswith("wrn_"):
        raise InputError(
            f"--stem_stride={config.stem_stride}: is for wrn_DEPTH_WIDTH, not "
            f"--backbone={config.backbone}"
        )
    if config.image_size is not None:
        backbones.check_side(config.backbone, config.image_size)


def check_available(
    config: config_lib.Config, *, resumed: bool = False
) -> None:
    """Checks what the flags name: datasets, folders, files, networks.

    Args:
        config: The flags.
        resumed: The run has begun: it has its split, and its data prepared.

    Raises:
        InputError: It is not there, or this version cannot run it yet.
    """
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise InputError(f"KERAS_BACKEND={backend}: must be tensorflow")
    workers = cluster.of(config)
    if config.strategy == "multi_worker" and workers is None:
        raise InputError(
            "--strategy=multi_worker: TF_CONFIG must name two workers or "
            "more, and which of them this one is"
        )
    if config.data_service is not None:
        check_reachable("data_service", config.data_service, scheme="grpc://")
    datasets.check(config.dataset, config.tfds_dir)
    for name in ("data_dir",) if resumed else ("data_dir", "tfds_manual_dir"):
        value = getattr(config, name)
        if value is not None and not pathlib.Path(value).expanduser().is_dir():
            raise InputError(f"--{name}={value}: no such folder")
    for name in () if resumed else ("labeled_list", "split_file"):
        value = getattr(config, name)
        if value is None or value in SUBSETS:
            continue
        if not pathlib.Path(value).expanduser().is_file():
            raise InputError(f"--{name}={value}: no such file")
    if config.init_from is not None and not resumed:
        kind_of_weights(config.init_from)


def kind_of_weights(path: str) -> tuple[str, pathlib.Path]:
    """What --init_from names.

    Args:
        path: As given.

    Returns:
        "workdir", "saved_model", "keras" or "h5"; and the folder or file. Of a
        folder of exported versions it is the newest.

    Raises:
        InputError: There is nothing, or nothing of these kinds.
    """
    found = pathlib.Path(path).expanduser()
    if found.is_file() and found.suffix in (".keras", ".h5"):
        return found.suffix[1:], found
    return _kind_of_folder(
        f"--init_from={path}",
        found,
        "a run's folder (with flags.cfg), a SavedModel's (with "
        "saved_model.pb), or a .keras, .weights.h5 or .h5 file",
    )


def kind_of_model(flag: str, path: str) -> tuple[str, pathlib.Path]:
    """What a flag names that takes a run or an export.

    Args:
        flag: Its name.
        path: As given.

    Returns:
        "workdir" or "saved_model"; and the folder. Of a folder of exported
        versions it is the newest.

    Raises:
        InputError: There is nothing, or nothing of these kinds.
    """
    return _kind_of_folder(
        f"--{flag}={path}",
        pathlib.Path(path).expanduser(),
        "a run's folder (with flags.cfg) or an export's (with saved_model.pb)",
    )


def _kind_of_folder(
    given: str, found: pathlib.Path, wanted: str
) -> tuple[str, pathlib.Path]:
    if (found / "flags.cfg").is_file():
        return "workdir", found
    versions = [p for p in found.glob("*/saved_model.pb")]
    versions = [p.parent for p in versions if p.parent.name.isdecimal()]
    for folder in (found, *sorted(versions, key=lambda p: -int(p.name))):
        if (folder / "saved_model.pb").is_file():
            return "saved_model", folder
    if not found.exists():
        raise InputError(f"{given}: no such file or folder")
    for folder in (found, *found.glob("[0-9]*")):
        for name in ("model.tflite", "model.onnx"):
            if (folder / name).is_file():
                raise InputError(
                    f"{given}: holds {name}, which is for other programs; "
                    f"here must be {wanted}"
                )
    raise InputError(f"{given}: must be {wanted}")
