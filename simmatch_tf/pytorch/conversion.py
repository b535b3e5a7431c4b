"""SimMatch runs from and to PyTorch, and encoders from it as .keras files."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import network
from simmatch_tf.pytorch import checkpoint as checkpoint_lib
from simmatch_tf.pytorch import tensors as tensors_lib
from simmatch_tf.training import checkpoints, inputs, state, workdir

_IMAGENET = 1000  # classes
_FEW = 64_000  # labels up to which a run on ImageNet is taken for the 1 % one
# Side of the images of an encoder's model; its weights suit all sizes.
_SIDE = 224


def import_run(
    content: Any,
    make_config: Callable[..., config_lib.Config],
    *,
    file: pathlib.Path,
    finished_steps: int | None = None,
) -> list[str]:
    """Turns a SimMatch checkpoint into a workdir.

    Args:
        content: The content of the file, from `checkpoint.read`.
        make_config: Returns the run's flags; it is called with a function that
            returns the recipe of the published run with these sizes, and with
            the flags that the file decides, by name.
        file: The file.
        finished_steps: Steps that it was trained for; by default, those in
            the file.

    Returns:
        Lines for the user that describe the import.

    Raises:
        InputError: Tensors are missing, unknown or misshapen; the flags do not
            go with them; the workdir cannot be written or is in use.
    """
    checkpoint = checkpoint_lib.parse(content)
    sizes = _Sizes.of(checkpoint)
    config = make_config(
        functools.partial(_published_recipe, sizes),
        backbone=sizes.backbone,
        projection_dim=sizes.dim,
        da_window=sizes.window,
    )
    known = config_lib.known_size(config.dataset)
    if known is not None:
        _check_classes(config.dataset, known[0], sizes)
    _check_statistics(checkpoint.statistics, sizes.channels)
    if config.algorithm != "simmatch":
        raise InputError(f"--algorithm={config.algorithm}: must be simmatch")
    if config.optimizer != "sgd":
        raise InputError(
            f"--optimizer={config.optimizer}: must be sgd, whose momentum "
            "buffers a checkpoint has"
        )
    # Its split is that of the memory.
    preflight.check_available(config, resumed=True)
    outline, source = _data(config, checkpoint.statistics)
    _check_classes(config.dataset, len(outline.class_names), sizes)
    if outline.image_shape[-1] != sizes.channels:
        raise InputError(
            f"takes images of {sizes.channels} channels, but "
            f"--dataset={config.dataset} has {outline.image_shape[-1]}"
        )
    with workdir.claim(config) as folder:
        if folder.resumed():
            raise InputError(
                f"--workdir={folder.path}: holds a run already; use another, "
                "or --overwrite"
            )
        split = _split(config, outline, source, checkpoint, sizes)
        plan = config.with_durations(split["unlabeled_images"])
        step = _step(
            finished_steps, checkpoint, plan, split["unlabeled_images"]
        )
        strategy = strategies.one()
        algorithm = state.make_algorithm(
            plan,
            strategy,
            image_shape=outline.image_shape,
            slot_labels=np.asarray(split["labels"], np.int32),
            num_classes=sizes.classes,
            statistics=checkpoint.statistics or outline.statistics,
        )
        _check(algorithm, checkpoint, sizes)
        with strategy.scope():
            _fill(algorithm, checkpoint, step)
        folder.begin(config)
        splits.write_content(folder.split, split)
        io.write_json(folder.imported, _origin(file, checkpoint, step))
        checkpoints.Checkpoints(
            folder.checkpoints,
            algorithm,
            splits.identity(outline.class_names, splits.slots(split)),
        ).save(step)
    return _say(config, checkpoint, split, step, plan.steps)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """The sizes of a run, by the shapes in its checkpoint."""

    backbone: str
    classes: int
    slots: int
    dim: int
    window: int
    channels: int

    @classmethod
    def of(cls, checkpoint: checkpoint_lib.Checkpoint) -> "_Sizes":
        """Returns the sizes; a missing one is 1, and `_check` reports it."""
        main = checkpoint.networks["main"]

        def size(array: np.ndarray | None, axis: int) -> int:
            if array is None or array.ndim <= axis:
                return 1
            return max(1, array.shape[axis])

        return cls(
            backbone=tensors_lib.guess_backbone(
                {
                    name.removeprefix("backbone."): array
                    for name, array in main.items()
                    if name.startswith("backbone.")
                }
            ),
            classes=size(main.get("fc.weight"), 0),
            slots=size(checkpoint.buffers.get("labels"), 0),
            dim=size(main.get("head.2.weight"), 0),
            window=size(checkpoint.buffers.get("DA_queue"), 0),
            channels=max(
                size(main.get(f"backbone.{name}.weight"), 1)
                for name in ("conv", "conv1")
            ),
        )


def _check_classes(dataset: str, classes: int, sizes: _Sizes) -> None:
    if classes != sizes.classes:
        raise InputError(
            f"has {sizes.classes} classes, but --dataset={dataset} has "
            f"{classes}"
        )


def _check_statistics(statistics: Any, channels: int) -> None:
    """Checks the images' mean and standard deviation, if there are any."""
    if statistics is None:
        return
    values = np.asarray(statistics)
    if (
        values.shape != (2, channels)
        or values.dtype.kind not in "fi"
        or not (np.isfinite(values).all() and values[1].min() > 0)
    ):
        raise InputError(
            f"mean {statistics[0]} and std {statistics[1]}: must be finite "
            f"numbers, one for each of {channels} channels, std above 0"
        )


def _published_recipe(sizes: _Sizes) -> str:
    """Returns the recipe of the published run with these sizes."""
    if sizes.classes != _IMAGENET or not sizes.backbone.startswith("resnet"):
        raise InputError(
            f"a run of {sizes.classes} classes on {sizes.backbone} is none of "
            "ImageNet's: name its recipe, such as "
            "--flagfile=configs/cifar10_40.cfg, or its --dataset"
        )
    share = "1pct" if sizes.slots <= _FEW else "10pct"
    return f"configs/imagenet_{share}.cfg"


def _data(
    config: config_lib.Config, statistics: source_lib.Statistics | None
) -> tuple[source_lib.Outline, source_lib.Source | None]:
    """Returns the dataset, and its images if a list or statistics need them."""
    if config.labeled_list is None:
        outline = inputs.outline(config)
        if outline.train_images and (statistics or outline.statistics):
            return outline, None
    source = inputs.make_source(config)  # prepares it
    return source_lib.Outline(
        source.class_names,
        source.image_shape,
        len(source.train),
        source.statistics(),
    ), source


def _split(
    config: config_lib.Config,
    outline: source_lib.Outline,
    source: source_lib.Source | None,
    checkpoint: checkpoint_lib.Checkpoint,
    sizes: _Sizes,
) -> dict[str, Any]:
    """Returns the content of split.json: the memory's slots in their order."""
    labels = checkpoint.buffers.get("labels", np.zeros(1, np.int64)).ravel()
    if labels.min() < 0 or labels.max() >= sizes.classes:
        raise InputError(
            f"labels from {labels.min()} to {labels.max()}: must be in "
            f"[0, {sizes.classes})"
        )
    excluded = 0 if config.unlabeled_includes_labeled else len(labels)
    if config.labeled_list is None:
        return {
            "dataset": config.dataset,
            "class_names": list(outline.class_names),
            "image_shape": list(outline.image_shape),
            "train_images": outline.train_images,
            "unlabeled_images": outline.train_images - excluded,
            "labeled": None,
            "labels": labels.tolist(),
            "names": None,
            "validation": [],
            "unlabeled_excludes": [],
        }
    path = io.expand(config.labeled_list)
    listed = splits.read_list(path, source, in_order=True)
    if len(listed) != len(labels):
        raise InputError(
            f"--labeled_list={path}: names {len(listed)} images, but the "
            f"memory has {len(labels)} slots"
        )
    differ = np.flatnonzero(source.train.labels[listed] != labels)
    if len(differ):
        names = outline.class_names
        slot = differ[0]
        here = names[source.train.labels[listed[slot]]]
        raise InputError(
            f"--labeled_list={path}: is not in the memory's order: image "
            f"{slot + 1} is of class {here!r}, slot {slot} of the file of "
            f"{names[labels[slot]]!r} ({len(differ)} differ)"
        )
    return splits.describe(
        splits.of_slots(
            source,
            listed,
            unlabeled_includes_labeled=config.unlabeled_includes_labeled,
        ),
        source,
    )


def _step(
    finished_steps: int | None,
    checkpoint: checkpoint_lib.Checkpoint,
    plan: config_lib.Config,
    unlabeled_images: int,
) -> int:
    """Returns the steps that were done, by default all steps of the run."""
    step = plan.steps
    if finished_steps is not None:
        step = finished_steps
    elif checkpoint.step is not None:
        step = checkpoint.step
    elif checkpoint.epoch is not None:
        batch = plan.batch_size * plan.unlabeled_ratio
        step = checkpoint.epoch * (unlabeled_images // batch)
    if not 0 <= step <= plan.steps:
        raise InputError(
            f"{step} steps are done, but the recipe has {plan.steps}: give "
            "the run's own --steps or --epochs, --batch_size and "
            "--unlabeled_ratio, or --finished_steps"
        )
    return step


def _check(
    algorithm: algorithm_lib.Algorithm,
    checkpoint: checkpoint_lib.Checkpoint,
    sizes: _Sizes,
) -> None:
    """Checks every name and shape."""
    tensors = tensors_lib.tensors(algorithm.student)
    wanted = {
        f"{name}.{key}": tensor.shape
        for name in checkpoint_lib.NETWORKS
        for key, tensor in tensors.items()
    }
    wanted["bank"] = sizes.dim, sizes.slots
    wanted["labels"] = (sizes.slots,)
    wanted["DA_queue"] = sizes.window, sizes.classes
    wanted["DA_ptr"] = (1,)
    given = {
        f"{name}.{key}": array.shape
        for name, arrays in checkpoint.networks.items()
        for key, array in arrays.items()
    }
    given |= {name: array.shape for name, array in checkpoint.buffers.items()}
    given |= dict.fromkeys(checkpoint.unknown, ())
    title = f"its tensors are not SimMatch's on {sizes.backbone}: "
    tensors_lib.check(wanted, given, title)


def _fill(
    algorithm: algorithm_lib.Algorithm,
    checkpoint: checkpoint_lib.Checkpoint,
    step: int,
) -> None:
    """Assigns the whole state."""
    tensors_lib.load(algorithm.student, checkpoint.networks["main"])
    tensors_lib.load(algorithm.teacher.model, checkpoint.networks["ema"])
    bank = checkpoint.buffers["bank"].T  # [K, D]
    algorithm.memory.features.assign(bank)
    written = np.where(np.any(bank != 0, axis=1), step, -1)  # by now
    algorithm.memory.written.assign(written)
    window = checkpoint.buffers["DA_queue"]
    pointer = int(checkpoint.buffers["DA_ptr"][0])
    algorithm.align.window.assign(window)
    whole = np.all(np.any(window != 0, axis=1))
    algorithm.align.written.assign(pointer + (len(window) if whole else 0))
    algorithm.step.assign(step)
    algorithm.optimizer.iterations.assign(step)
    if checkpoint.velocities is not None:
        tensors = tensors_lib.tensors(algorithm.student)
        for name, array in checkpoint.velocities.items():
            velocity = algorithm.optimizer.velocity(tensors[name].variable)
            velocity.assign(tensors[name].to_keras(array))


def _origin(
    path: pathlib.Path,
    checkpoint: checkpoint_lib.Checkpoint,
    step: int,
) -> dict[str, Any]:
    """Returns the properties of the file that `export_run` needs."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": path.name,
        "sha256": digest,
        "step": step,
        "epoch": checkpoint.epoch,
        "prefix": checkpoint.prefix,
        "counters": checkpoint.counters,
    }


def _say(
    config: config_lib.Config,
    checkpoint: checkpoint_lib.Checkpoint,
    split: dict[str, Any],
    step: int,
    steps: int,
) -> list[str]:
    classes = f"{len(split['class_names'])} classes in {config.dataset}'s order"
    lines = [
        f"{config.backbone}, {classes} (the file names none), "
        f"{len(split['labels'])} labeled images, after step {step} of {steps}"
    ]
    if split["labeled"] is None:
        lines.append(
            "Which images the memory holds is not known: evaluate works, train "
            "needs --labeled_list=FILE at the import, one image a line in the "
            "memory's order"
        )
    trained = checkpoint_lib.trained(checkpoint.networks["main"])
    if missing := len(trained) - len(checkpoint.velocities or ()):
        lines.append(f"{missing} momentum buffers are missing: they start at 0")
    return lines


def import_encoder(content: Any, output: pathlib.Path) -> list[str]:
    """Turns an encoder into a .keras file that --init_from takes.

    Args:
        content: The content of the file, from `checkpoint.read`.
        output: The .keras file to write.

    Returns:
        Lines for the user that describe the import.

    Raises:
        InputError: Tensors are missing, unknown or misshapen, or the file
            cannot be written.
    """
    arrays, kind = checkpoint_lib.encoder(content)
    name = tensors_lib.guess_backbone(
        {n.removeprefix("backbone."): a for n, a in arrays.items()}
    )
    if not name.startswith("resnet"):
        raise InputError(f"is a {name}; an encoder is a ResNet")
    channels = arrays["backbone.conv1.weight"].shape[1]
    mean, std = source_lib.IMAGENET
    if channels != len(mean):
        raise InputError(
            f"conv1.weight has {channels} input channels, but must have 3"
        )
    model = network.build(
        name,
        image_shape=(_SIDE, _SIDE, channels),
        num_classes=_rows(arrays, "fc.weight"),
        projection_dim=_rows(arrays, "head.2.weight"),
        mean=mean,
        std=std,
    )
    tensors_lib.load(model, arrays)
    try:
        network.save(model, output, ())  # the file names no classes
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error})"
        ) from None
    parts = dict.fromkeys(name.partition(".")[0] for name in arrays)
    return [
        f"{kind} encoder {name}: {', '.join(parts)}",
        "Images are normalized by ImageNet's mean and standard deviation",
    ]


def _rows(arrays: dict[str, np.ndarray], name: str) -> int | None:
    return len(arrays[name]) if name in arrays else None


def export_run(path: pathlib.Path) -> dict[str, Any]:
    """Turns the last checkpoint of a run into the content of a PyTorch file.

    Args:
        path: The run's folder.

    Returns:
        The content for `checkpoint.write`; `import_run` reads it back bit for
        bit.

    Raises:
        InputError: There is no run or no checkpoint; its backbone or its
            algorithm has no form in PyTorch.
    """
    folder = workdir.Workdir(path)
    config = folder.read_config()
    if config.algorithm != "simmatch":
        raise InputError(
            f"--workdir={path}: a run of --algorithm={config.algorithm}; "
            "SimMatch's checkpoints hold its memory and projection head, so "
            "give a run of --algorithm=simmatch"
        )
    algorithm, _, step = state.restore(folder.path)
    origin = _imported_from(folder, algorithm.student, step)
    networks = {"main": algorithm.student, "ema": algorithm.teacher.model}
    arrays = {name: tensors_lib.export(m) for name, m in networks.items()}
    passed = step - origin["step"]
    checkpoint = checkpoint_lib.Checkpoint(
        networks=arrays,
        counters={
            name: {
                counter: count + passed
                for counter, count in origin["counters"].get(name, {}).items()
            }
            for name in networks
        },
        buffers=_buffers(algorithm),
        velocities=_velocities(algorithm),
        epoch=origin["epoch"],
        step=step,
        statistics=_normalization(algorithm.student),
        prefix=origin["prefix"],
    )
    return checkpoint_lib.compose(
        checkpoint, hyperparameters=_hyperparameters(algorithm)
    )


def _imported_from(
    folder: workdir.Workdir, student: keras.Model, step: int
) -> dict[str, Any]:
    """Returns where an imported run comes from, or defaults for another run."""
    if not folder.imported.is_file():
        counters = {
            f"{name}.{checkpoint_lib.COUNTER}": 0
            for name in tensors_lib.batch_norms(student)
        }
        return {
            "step": 0,
            "epoch": None,
            "prefix": "module.",
            "counters": dict.fromkeys(checkpoint_lib.NETWORKS, counters),
        }
    try:
        origin = json.loads(folder.imported.read_text("utf-8"))
        if step != origin["step"]:
            origin["epoch"] = None  # of the imported state only
        origin["counters"], origin["prefix"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.imported}: cannot be read ({error!r}); import anew"
        ) from None
    return origin


def _buffers(algorithm: algorithm_lib.Algorithm) -> dict[str, np.ndarray]:
    """Returns the memory and the alignment window."""
    window = algorithm.align.window.numpy()
    pointer = int(algorithm.align.written.numpy()) % len(window)
    return {
        "bank": np.ascontiguousarray(algorithm.memory.features.numpy().T),
        "labels": algorithm.memory.labels.numpy().astype(np.int64),
        "DA_queue": window,
        "DA_ptr": np.array([pointer], np.int64),
    }


def _velocities(
    algorithm: algorithm_lib.Algorithm,
) -> dict[str, np.ndarray] | None:
    """Returns SGD's momentum buffers.

    None if all are 0, as before a step, or if the optimizer is another.
    """
    if algorithm.config.optimizer != "sgd":
        return None
    tensors = tensors_lib.tensors(algorithm.student)
    velocities = {}
    for name in checkpoint_lib.trained(tensors):
        velocity = algorithm.optimizer.velocity(tensors[name].variable)
        array = keras.ops.convert_to_numpy(velocity)
        velocities[name] = tensors[name].to_torch(array)
    if not any(array.any() for array in velocities.values()):
        return None
    return velocities


def _hyperparameters(
    algorithm: algorithm_lib.Algorithm,
) -> list[dict[str, Any]]:
    """Returns the groups of torch.optim.SGD, without their parameters."""
    config = algorithm.config
    rate = float(algorithm.learning_rate(algorithm.step))
    decays = [config.weight_decay]
    if config.weight_decay_on == "kernels":
        decays.append(0.0)
    return [
        {
            "lr": rate,
            "momentum": config.momentum,
            "dampening": 0.0,
            "weight_decay": decay,
            "nesterov": True,
            "maximize": False,
            "foreach": None,
            "differentiable": False,
            "fused": None,
        }
        for decay in decays
    ]


def _normalization(model: keras.Model) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation by which images are normalized."""
    layer = network.parts(model)["normalize"]
    return tuple(
        keras.ops.convert_to_numpy(v).tolist() for v in (layer.mean, layer.std)
    )
