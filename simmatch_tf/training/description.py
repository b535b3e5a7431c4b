"""What a run costs, in numbers: layers, FLOPs of a step, memory of its state.

`reporting.description` writes it out.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import fixmatch, simmatch, supervised
from simmatch_tf.distributed import strategies
from simmatch_tf.networks import cost
from simmatch_tf.training import inputs, state


@dataclasses.dataclass(frozen=True)
class Memory:
    """Variables that belong together.

    Attributes:
        name: What they are.
        bytes: What they take, once, whatever the number of devices.
        shape: Where it is but one.
    """

    name: str
    bytes: int
    shape: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Description:
    """The numbers.

    Attributes:
        algorithm: As in --algorithm.
        form: As in --targets_from; None where the algorithm lacks that flag.
        dataset: As in --dataset.
        backbone: As in --backbone.
        image_shape: (height, width, channels).
        num_classes: L.
        slots: Labeled images in training, K.
        rows: What the network's layers cost.
        batch_size: Labeled images a step, all devices.
        unlabeled_batch: Unlabeled images a step, all devices; 0 if none.
        student_views: Views that the student is trained on in a step; None
            where the step is the user's own.
        forward_views: Views that nothing is trained on in a step, of which
            labels are made; likewise.
        memory: All that a run keeps between steps, and a checkpoint holds.
        keep: Checkpoints kept.
    """

    algorithm: str
    form: str | None
    dataset: str
    backbone: str
    image_shape: tuple[int, int, int]
    num_classes: int
    slots: int
    rows: tuple[cost.Row, ...]
    batch_size: int
    unlabeled_batch: int
    student_views: int | None
    forward_views: int | None
    memory: tuple[Memory, ...]
    keep: int


def describe(
    config: config_lib.Config,
    algorithm: algorithm_lib.Algorithm,
    *,
    dataset: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    slots: int,
) -> Description:
    """Describes a run that is put together, and trains nothing.

    Args:
        config: The run's.
        algorithm: Of `assembly.make_algorithm`.
        dataset: Its name.
        image_shape: (height, width, channels).
        num_classes: L.
        slots: Labeled images in training, K.
    """
    unlabeled = config.batch_size * config.unlabeled_ratio
    student_views, forward_views = _views(algorithm, config)
    return Description(
        algorithm=config.algorithm,
        form=getattr(config, "targets_from", None),
        dataset=dataset,
        backbone=config.backbone,
        image_shape=image_shape,
        num_classes=num_classes,
        slots=slots,
        rows=tuple(cost.rows(algorithm.student)),
        batch_size=config.batch_size,
        unlabeled_batch=unlabeled if algorithm.needs_unlabeled else 0,
        student_views=student_views,
        forward_views=forward_views,
        memory=tuple(_memory(algorithm)),
        keep=config.keep,
    )


def of_flags(config: config_lib.Config) -> Description:
    """Describes what flags ask for: puts it together, and trains nothing.

    A large dataset's images are not read, and need not be there.

    Raises:
        InputError: The flags do not go together with their dataset.
    """
    outline = inputs.outline(config)
    slots = inputs.labeled_images(config, outline)
    num_classes = len(outline.class_names)
    # Durations may hang on the number of images; none is needed here.
    config = dataclasses.replace(
        config, steps=1, epochs=None, warmup_steps=0, warmup_epochs=None
    )
    algorithm = state.make_algorithm(
        config,
        state.Custom(),
        strategies.one(),
        image_shape=outline.image_shape,
        slot_labels=np.arange(slots) % num_classes,
        num_classes=num_classes,
    )
    return describe(
        config,
        algorithm,
        dataset=config.dataset,
        image_shape=outline.image_shape,
        num_classes=num_classes,
        slots=slots,
    )


def _views(
    algorithm: algorithm_lib.Algorithm, config: config_lib.Config
) -> tuple[int | None, int | None]:
    """Views a step forwards and backwards, and forwards only."""
    labeled = config.batch_size
    unlabeled = labeled * config.unlabeled_ratio
    step = type(algorithm).train_step
    if step is supervised.Supervised.train_step:
        return labeled, 0
    if step not in (
        simmatch.SimMatch.train_step,
        fixmatch.FixMatch.train_step,
    ):
        return None, None
    if algorithm.from_teacher:
        # The student sees the strong views, the teacher the weak ones.
        return labeled + unlabeled, labeled + unlabeled
    if getattr(config, "weak_forward", "joint") == "separate":
        return labeled + unlabeled, unlabeled
    return labeled + 2 * unlabeled, 0


def _memory(algorithm: algorithm_lib.Algorithm) -> list[Memory]:
    """All variables under `algorithm`, each in one line."""
    owners = {
        "weights": algorithm.student,
        "EMA teacher": algorithm.teacher,
        "optimizer": algorithm.optimizer,  # refers to the weights, too
    }
    if hasattr(algorithm, "memory"):
        owners["Q_f"] = algorithm.memory.features
    if hasattr(algorithm, "align"):
        owners["alignment window"] = algorithm.align.window
    owners["rest"] = algorithm
    found, counted = [], set()
    for name, owner in owners.items():
        variables = [
            v for v in algorithm_lib.state(owner) if id(v) not in counted
        ]
        counted.update(map(id, variables))
        shape = tuple(owner.shape) if isinstance(owner, tf.Variable) else None
        found.append(Memory(name, cost.bytes_of(variables), shape))
    return found
