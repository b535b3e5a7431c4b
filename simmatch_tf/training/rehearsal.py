"""What a run's step costs here, before there is a run: on random images."""

import dataclasses
import itertools
import math
import time

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.training import inputs, state
from simmatch_tf.training import step as step_lib

# The first traces, the second meets caches that are cold.
_WARM_UP = 2
# Flags that decide what a step costs.
_OF_A_STEP = (
    "algorithm",
    "targets_from",
    "weak_forward",
    "backbone",
    "network",
    "projection_dim",
    "precision",
    "batch_size",
    "unlabeled_ratio",
    "jit_compile",
)


@dataclasses.dataclass(frozen=True)
class Outline:
    """What decides the cost of a run.

    Attributes:
        config: Its flags, with durations in steps.
        image_shape: (height, width, channels).
        num_classes: L.
        slots: Labeled images, K.
    """

    config: config_lib.Config
    image_shape: tuple[int, int, int]
    num_classes: int
    slots: int

    @property
    def steps(self) -> int:
        """Length of the run."""
        return self.config.steps

    def work(self) -> tuple:
        """Equal for runs whose steps take as long."""
        config = self.config
        flags = tuple(getattr(config, name, None) for name in _OF_A_STEP)
        return (*flags, self.image_shape, self.num_classes)


def outline(config: config_lib.Config) -> Outline:
    """Finds out what flags ask for; no large dataset is read.

    Raises:
        InputError: How many images the dataset has is not known.
    """
    found = inputs.outline(config)
    slots = inputs.labeled_images(config, found)
    images = found.train_images
    if images is None and config.steps is None:
        raise InputError(
            f"--dataset={config.dataset}: is not prepared here, so how many "
            f"steps --epochs={config.epochs} are is not known; give --steps"
        )
    images = images or 0
    if not config.unlabeled_includes_labeled:
        images -= slots
    return Outline(
        config.with_durations(images),
        found.image_shape,
        len(found.class_names),
        slots,
    )


def seconds_per_step(
    config: config_lib.Config,
    found: Outline,
    *,
    pixels: int,
    rounds: int,
    patience: float = math.inf,
) -> float:
    """Takes some steps on one device, on random images.

    Args:
        config: The run's flags.
        found: Their `outline`.
        pixels: Of the images of a step, at most, without a GPU: fewer are
            taken then, at least one labeled, and the time is multiplied.
        rounds: Steps that are timed, at most, behind two that are not.
        patience: Seconds of timed steps that are enough.

    Returns:
        The least, in seconds: what else runs here only ever adds.
    """
    strategy = strategies.one()
    config = dataclasses.replace(found.config, strategy="auto", devices=None)
    height, width, _ = found.image_shape
    whole = config.batch_size
    if not tf.config.list_physical_devices("GPU"):
        views = 1 + 2 * config.unlabeled_ratio
        room = max(1, pixels // (views * height * width))
        config = dataclasses.replace(config, batch_size=min(whole, room))
    labels = np.arange(found.slots) % found.num_classes
    algorithm = state.make_algorithm(
        config,
        strategy,
        image_shape=found.image_shape,
        slot_labels=labels,
        num_classes=found.num_classes,
    )
    stepper = step_lib.Stepper(
        strategy,
        algorithm,
        itertools.repeat(_batch(config, found, labels)),
        finish=None,
        jit_compile=config.jit_compile,
        workers=1,
    )
    seconds = []
    for step in range(_WARM_UP + rounds):
        began = time.perf_counter()
        float(stepper(step + 1, 1, False)["loss/total"])
        seconds.append(time.perf_counter() - began)
        if sum(seconds[_WARM_UP:]) > patience:
            break
    return min(seconds[_WARM_UP:]) * whole / config.batch_size


def _batch(
    config: config_lib.Config, found: Outline, labels: np.ndarray
) -> dict[str, tf.Tensor]:
    """A batch of random images, with the keys of `data.pipeline`."""
    rng = np.random.default_rng(0)
    labeled = config.batch_size
    slots = rng.integers(0, found.slots, labeled)

    def images(count: int) -> tf.Tensor:
        shape = (count, *found.image_shape)
        return tf.constant(rng.integers(0, 256, shape, dtype=np.uint8))

    return {
        "labeled_weak": images(labeled),
        "labels": tf.constant(labels[slots], tf.int32),
        "slots": tf.constant(slots, tf.int64),
        "unlabeled_weak": images(labeled * config.unlabeled_ratio),
        "unlabeled_strong": images(labeled * config.unlabeled_ratio),
    }
