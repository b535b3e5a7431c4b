"""Puts a run together from its flags: strategy, networks, algorithm."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import registry, runtime
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.networks import heads, network
from simmatch_tf.training import checkpoints
from simmatch_tf.training import workdir as workdir_lib

_BUILDING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Custom:
    """Parts that the caller brings instead of naming them in a flag.

    Attributes:
        source: For --dataset=custom.
        backbone: For --backbone=custom, from an image shape to a Keras model.
        algorithm: For --algorithm=custom, a subclass of Algorithm.
    """

    source: source_lib.Source | None = None
    backbone: Callable[..., keras.Model] | None = None
    algorithm: type[algorithm_lib.Algorithm] | None = None

    def check(
        self, config: config_lib.Config, *, needs_source: bool = True
    ) -> None:
        """Checks that the parts and the flags agree.

        Args:
            config: The run's flags.
            needs_source: Whether the images are needed, too.

        Raises:
            InputError: A part is given whose flag is not "custom", or the
                other way round.
        """
        parts = {"backbone": self.backbone, "algorithm": self.algorithm}
        if needs_source:
            parts["dataset"] = self.source
        for flag, part in parts.items():
            value = getattr(config, flag)
            name = "source" if flag == "dataset" else flag
            if (value == "custom") != (part is not None):
                raise InputError(
                    f"--{flag}={value}, and {name} is "
                    f"{'not ' if part is None else ''}given: with "
                    f'{flag}="custom", and only then, pass {name}= from Python'
                )


def make_algorithm(
    config: config_lib.Config,
    custom: Custom,
    strategy: tf.distribute.Strategy,
    *,
    image_shape: tuple[int, int, int],
    slot_labels: np.ndarray,
    num_classes: int,
    unlabeled_images: int = 0,
    statistics: tuple[list[float], list[float]] | None = None,
) -> algorithm_lib.Algorithm:
    """Builds networks and state, initialised from the run's seed.

    Args:
        config: The run's, with its durations in steps.
        custom: The caller's own parts.
        strategy: Where the state lives.
        image_shape: (height, width, channels).
        slot_labels: Class of each labeled image [K], in slot order.
        num_classes: L.
        unlabeled_images: Size of the unlabeled set.
        statistics: The images' mean and standard deviation; None, where a
            checkpoint brings them.
    """
    kind = custom.algorithm
    if kind is None:
        kind = registry.algorithms.find(config.algorithm)[0].value
    channels = image_shape[-1]
    mean, std = statistics or ([0.0] * channels, [1.0] * channels)

    options = {}
    if not custom.backbone:
        entry, _ = registry.networks.find(config.backbone)
        names = entry.facts.get("options", ())
        options = {name: getattr(config, name) for name in names}

    def make_network(heads: Mapping[str, Callable]) -> keras.Model:
        return network.build(
            custom.backbone or config.backbone,
            image_shape=image_shape,
            num_classes=num_classes,
            projection_dim=(
                config.projection_dim if kind.needs_embeddings else None
            ),
            mean=mean,
            std=std,
            batch_norm_momentum=config.batch_norm_momentum,
            synchronized=strategy.num_replicas_in_sync > 1
            and config.batch_norm == "synchronized",
            options=options,
            heads=heads,
        )

    with building(config.seed, config.precision), strategy.scope():
        return kind(
            config,
            make_network,
            num_classes=num_classes,
            slot_labels=slot_labels,
            unlabeled_images=unlabeled_images,
        )


@contextlib.contextmanager
def building(seed: int, precision: str) -> Iterator[None]:
    """Seeds what Keras draws first weights from, and sets its dtype policy.

    Seeds are the process's, so runs in several threads must take turns. All is
    given back to the caller as it was.
    """
    with _BUILDING, runtime.pinned(), runtime.seeded(seed):
        keras.config.set_dtype_policy(precision)
        yield


@runtime.pinned()
def restore(
    workdir: str | os.PathLike | None, custom: Custom
) -> tuple[algorithm_lib.Algorithm, tf.distribute.Strategy, int]:
    """Rebuilds the algorithm of a run from its last checkpoint.

    Args:
        workdir: The run's folder.
        custom: Backbone and algorithm of a run that has its own; no source.

    Returns:
        The algorithm, its strategy and the checkpoint's step.

    Raises:
        InputError: There is no run or no checkpoint, or it does not fit.
    """
    folder = workdir_lib.Workdir(workdir)
    config = folder.read_config()
    custom.check(config, needs_source=False)
    content = splits.read_content(folder.split)
    slot_labels = np.asarray(content["labels"], np.int32)
    strategy = strategies.one()
    algorithm = make_algorithm(
        config.with_durations(content["unlabeled_images"]),
        custom,
        strategy,
        image_shape=tuple(content["image_shape"]),
        slot_labels=slot_labels,
        num_classes=len(content["class_names"]),
        unlabeled_images=content["unlabeled_images"],
    )
    with strategy.scope():
        saved = checkpoints.Checkpoints(
            folder.checkpoints,
            algorithm,
            splits.identity(content["class_names"], splits.slots(content)),
        )
        step = saved.restore()
    if step is None:
        raise InputError(f"{folder.checkpoints}: no checkpoint yet")
    return algorithm, strategy, step


def load(
    workdir: str | os.PathLike | None,
    *,
    weights: str | None = None,
    backbone: Callable[..., keras.Model] | None = None,
    algorithm: type[algorithm_lib.Algorithm] | None = None,
) -> keras.Model:
    """Loads the trained network of a run.

    Args:
        workdir: The run's folder; None is runs/default, as for `fit`.
        weights: "student" or "ema"; default: the weights of record.
        backbone: That of a run with --backbone=custom.
        algorithm: That of a run with --algorithm=custom.

    Returns:
        A Keras model from images [N, H, W, C], 0 to 255 (called with others
        it refuses them, where it has a normalisation), to a dict with
        `features`, `logits` and (SimMatch) `embeddings`. Its `class_names` are
        those of the logits' columns.

    Raises:
        InputError: There is no run or no checkpoint, it does not fit, or
            `weights` is unknown.
    """
    custom = Custom(backbone=backbone, algorithm=algorithm)
    restored, _, _ = restore(workdir, custom)
    networks = restored.networks()
    name = weights or restored.evaluated_weights
    if name not in networks:
        raise InputError(f"weights={weights!r}: must be student or ema")
    model = networks[name]
    for layer in model.layers:
        if isinstance(layer, heads.Normalize):
            layer.checks = True
    content = splits.read_content(workdir_lib.Workdir(workdir).split)
    model.class_names = list(content["class_names"])
    return model
