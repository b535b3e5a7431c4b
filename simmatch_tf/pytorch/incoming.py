"""From PyTorch: a SimMatch checkpoint becomes a run."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.pytorch import layout, network_layout
from simmatch_tf.training import checkpoints, inputs, state, workdir

_IMAGENET = 1000  # classes
_FEW = 64_000  # labels up to which ImageNet's are its 1 %


def run(
    content: Any,
    make_config: Callable[..., config_lib.Config],
    *,
    file: pathlib.Path,
    finished_steps: int | None = None,
) -> list[str]:
    """Turns a SimMatch checkpoint into a workdir.

    Args:
        content: What `files.read` returned.
        make_config: Gives the run's flags; takes a function that names the
            recipe of the published run, and the flags that the file decides.
        file: Where the content is from.
        finished_steps: Steps that it was trained for; None: what it says.

    Returns:
        Lines that say what was taken.

    Raises:
        InputError: Tensors are missing, unknown or misshapen; the flags do not
            go with them; the workdir cannot be written or is in use.
    """
    found = layout.parse(content)
    sizes = _Sizes.of(found)
    config = make_config(
        functools.partial(_published_recipe, sizes),
        backbone=sizes.backbone,
        projection_dim=sizes.dim,
        da_window=sizes.window,
    )
    known = config_lib.known_size(config.dataset)
    if known is not None:
        _check_classes(config.dataset, known[0], sizes)
    _check_statistics(found, sizes)
    if config.algorithm != "simmatch":
        raise InputError(f"--algorithm={config.algorithm}: must be simmatch")
    preflight.check_available(config, resumed=True)  # its split is the memory's
    outline, source = _data(config, found.statistics)
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
        split = _split(config, outline, source, found, sizes)
        plan = config.with_durations(split["unlabeled_images"])
        step = _step(finished_steps, found, plan, split["unlabeled_images"])
        strategy = strategies.one()
        algorithm = state.make_algorithm(
            plan,
            strategy,
            image_shape=outline.image_shape,
            slot_labels=np.asarray(split["labels"], np.int32),
            num_classes=sizes.classes,
            statistics=found.statistics or outline.statistics,
        )
        _check(algorithm, found, sizes)
        with strategy.scope():
            _fill(algorithm, found, step)
        folder.begin(config)
        splits.write_content(folder.split, split)
        io.write_json(folder.imported, _origin(file, found, step))
        checkpoints.Checkpoints(
            folder.checkpoints,
            algorithm,
            splits.identity(outline.class_names, splits.slots(split)),
        ).save(step)
    return _say(config, found, split, step, plan.steps)


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """What the shapes in a checkpoint say."""

    backbone: str
    classes: int
    slots: int
    dim: int
    window: int
    channels: int

    @classmethod
    def of(cls, found: layout.Checkpoint) -> "_Sizes":
        """Reads them off; what is missing is 1, and is listed by `_check`."""
        main = found.networks["main"]

        def size(array: np.ndarray | None, axis: int) -> int:
            if array is None or array.ndim <= axis:
                return 1
            return max(1, array.shape[axis])

        return cls(
            backbone=network_layout.guess_backbone(
                {
                    name.removeprefix("backbone."): array
                    for name, array in main.items()
                    if name.startswith("backbone.")
                }
            ),
            classes=size(main.get("fc.weight"), 0),
            slots=size(found.buffers.get("labels"), 0),
            dim=size(main.get("head.2.weight"), 0),
            window=size(found.buffers.get("DA_queue"), 0),
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


def _check_statistics(found: layout.Checkpoint, sizes: _Sizes) -> None:
    if found.statistics and len(found.statistics[0]) != sizes.channels:
        raise InputError(
            f"mean and std are of {len(found.statistics[0])} channels, but the "
            f"network takes {sizes.channels}"
        )


def _published_recipe(sizes: _Sizes) -> str:
    """The published run with these sizes."""
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
    """The dataset; its images only for a list, or statistics none gives."""
    source = None
    if config.labeled_list is not None:
        source = inputs.make_source(config)
        outline = source_lib.Outline(
            source.class_names,
            source.image_shape,
            len(source.train),
            source.statistics(),
        )
    else:
        outline = inputs.outline(config)
    if outline.train_images is None or not (statistics or outline.statistics):
        source = inputs.make_source(config)  # prepares it
        outline = dataclasses.replace(
            outline,
            train_images=len(source.train),
            statistics=source.statistics(),
        )
    return outline, source


def _split(
    config: config_lib.Config,
    outline: source_lib.Outline,
    source: source_lib.Source | None,
    found: layout.Checkpoint,
    sizes: _Sizes,
) -> dict[str, Any]:
    """The content of split.json: the memory's slots in their own order."""
    labels = found.buffers.get("labels", np.zeros(1, np.int64)).ravel()
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
    path = pathlib.Path(config.labeled_list).expanduser()
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
    found: layout.Checkpoint,
    plan: config_lib.Config,
    unlabeled_images: int,
) -> int:
    """Steps that were done; as many as the run has, where nothing says so."""
    step = plan.steps
    if finished_steps is not None:
        step = finished_steps
    elif found.step is not None:
        step = found.step
    elif found.epoch is not None:
        batch = plan.batch_size * plan.unlabeled_ratio
        step = found.epoch * (unlabeled_images // batch)
    if not 0 <= step <= plan.steps:
        raise InputError(
            f"{step} steps are done, but the recipe has {plan.steps}: give "
            "the run's own --steps or --epochs, --batch_size and "
            "--unlabeled_ratio, or --finished_steps"
        )
    return step


def _check(
    algorithm: algorithm_lib.Algorithm, found: layout.Checkpoint, sizes: _Sizes
) -> None:
    """Checks every name and shape, and that the memory's rows are unit."""
    tensors = network_layout.tensors(algorithm.student)
    wanted = {
        f"{name}.{key}": tensor.shape
        for name in layout.NETWORKS
        for key, tensor in tensors.items()
    }
    wanted["bank"] = sizes.dim, sizes.slots
    wanted["labels"] = (sizes.slots,)
    wanted["DA_queue"] = sizes.window, sizes.classes
    wanted["DA_ptr"] = (1,)
    given = {
        f"{name}.{key}": array.shape
        for name, arrays in found.networks.items()
        for key, array in arrays.items()
    }
    given |= {name: array.shape for name, array in found.buffers.items()}
    given |= dict.fromkeys(found.unknown, ())
    network_layout.check(wanted, given, "its tensors are not SimMatch's on "
                       f"{sizes.backbone}: ")  # fmt: skip
    if found.velocities is not None:
        shapes = {name: tensors[name].shape for name in found.velocities}
        network_layout.check(
            shapes,
            {name: array.shape for name, array in found.velocities.items()},
            "the optimizer's momentum buffers: ",
        )
    lengths = np.linalg.norm(found.buffers["bank"], axis=0)
    wrong = np.flatnonzero((np.abs(lengths - 1) > 0.01) & (lengths != 0))
    if len(wrong):
        raise InputError(
            f"bank: column {wrong[0]} has length {lengths[wrong[0]]:.3g}, but "
            f"embeddings have length 1 ({len(wrong)} columns)"
        )
    if not 0 <= int(found.buffers["DA_ptr"][0]) < sizes.window:
        raise InputError(
            f"DA_ptr is {int(found.buffers['DA_ptr'][0])}: must be in "
            f"[0, {sizes.window})"
        )


def _fill(
    algorithm: algorithm_lib.Algorithm, found: layout.Checkpoint, step: int
) -> None:
    """Writes the whole state."""
    network_layout.load(algorithm.student, found.networks["main"])
    network_layout.load(algorithm.teacher.model, found.networks["ema"])
    bank = found.buffers["bank"].T  # [K, D]
    algorithm.memory.features.assign(bank)
    written = np.where(np.any(bank != 0, axis=1), step, -1)  # by now
    algorithm.memory.written.assign(written)
    window = found.buffers["DA_queue"]
    pointer = int(found.buffers["DA_ptr"][0])
    algorithm.align.window.assign(window)
    whole = np.all(np.any(window != 0, axis=1))
    algorithm.align.written.assign(pointer + (len(window) if whole else 0))
    algorithm.step.assign(step)
    algorithm.optimizer.iterations.assign(step)
    if found.velocities is not None:
        tensors = network_layout.tensors(algorithm.student)
        for name, array in found.velocities.items():
            velocity = algorithm.optimizer.velocity(tensors[name].variable)
            velocity.assign(tensors[name].to_keras(array))


def _origin(
    path: pathlib.Path,
    found: layout.Checkpoint,
    step: int,
) -> dict[str, Any]:
    """What is kept of the file beside the state, for the way back."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "file": path.name,
        "sha256": digest,
        "step": step,
        "epoch": found.epoch,
        "prefix": found.prefix,
        "counters": found.counters,
    }


def _say(
    config: config_lib.Config,
    found: layout.Checkpoint,
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
    trained = layout.trained(found.networks["main"])
    if missing := len(trained) - len(found.velocities or ()):
        lines.append(f"{missing} momentum buffers are missing: they start at 0")
    return lines
