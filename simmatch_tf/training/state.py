"""Builds the algorithm of a run from its flags, and loads trained networks."""

import contextlib
import dataclasses
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import registry, runtime, terminal
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import splits
from simmatch_tf.distributed import strategies
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import heads, network
from simmatch_tf.training import checkpoints, results
from simmatch_tf.training import workdir as workdir_lib

_BUILDING = threading.Lock()


def make_algorithm(
    config: config_lib.Config,
    strategy: tf.distribute.Strategy,
    *,
    image_shape: tuple[int, int, int],
    slot_labels: np.ndarray,
    num_classes: int,
    unlabeled_images: int = 0,
    class_prior: Sequence[float] | None = None,
    statistics: tuple[list[float], list[float]] | None = None,
) -> algorithm_lib.Algorithm:
    """Builds networks and state, initialized from the run's seed.

    Args:
        config: The run's flags, with durations in steps.
        strategy: The distribution strategy.
        image_shape: (height, width, channels).
        slot_labels: Class of each labeled image [K], in slot order.
        num_classes: Number of classes L.
        unlabeled_images: Size of the unlabeled set.
        class_prior: Class shares that the run aligns with; see
            `inputs.class_prior`.
        statistics: Mean and standard deviation of each channel, in units of 1
            (white); None where a checkpoint is restored, which holds them.

    Returns:
        The algorithm of --algorithm.
    """
    kind = registry.algorithms.find(config.algorithm)[0].value
    channels = image_shape[-1]
    mean, std = statistics or ([0.0] * channels, [1.0] * channels)

    def make_network(
        heads: Mapping[str, Callable], any_size: bool
    ) -> keras.Model:
        return network.build(
            config.backbone,
            image_shape=(None, None, channels) if any_size else image_shape,
            num_classes=num_classes,
            projection_dim=(
                config.projection_dim if kind.needs_embeddings else None
            ),
            mean=mean,
            std=std,
            batch_norm_momentum=config.batch_norm_momentum,
            synchronized=strategy.num_replicas_in_sync > 1
            and config.batch_norm == "synchronized",
            frozen=config.batch_norm == "frozen",
            options=dataclasses.asdict(config.network),
            heads=heads,
            feature_norm=kind.needs_feature_norm,
        )

    with building(config.seed, config.precision), strategy.scope():
        return kind(
            config,
            make_network,
            num_classes=num_classes,
            slot_labels=slot_labels,
            unlabeled_images=unlabeled_images,
            class_prior=class_prior,
        )


@contextlib.contextmanager
def building(seed: int, precision: str) -> Iterator[None]:
    """Seeds the initializers of Keras, and sets its dtype policy.

    Both belong to the process, so runs in several threads take turns. They are
    restored at the end.

    Args:
        seed: The seed.
        precision: Name of the dtype policy.
    """
    with _BUILDING, runtime.pinned(), runtime.seeded(seed):
        keras.config.set_dtype_policy(precision)
        yield


@runtime.pinned()
def restore(
    workdir: str | os.PathLike | None,
) -> tuple[algorithm_lib.Algorithm, tf.distribute.Strategy, int]:
    """Rebuilds the algorithm of a run from its last checkpoint.

    Args:
        workdir: The run's folder.

    Returns:
        The algorithm, its strategy and the checkpoint's step.

    Raises:
        InputError: There is no run or no checkpoint, or it does not fit.
    """
    folder = workdir_lib.Workdir(workdir)
    config = folder.read_config()
    content = splits.read_content(folder.split)
    slot_labels = np.asarray(content["labels"], np.int32)
    strategy = strategies.one()
    algorithm = make_algorithm(
        config.with_durations(content["unlabeled_images"]),
        strategy,
        image_shape=tuple(content["image_shape"]),
        slot_labels=slot_labels,
        num_classes=len(content["class_names"]),
        unlabeled_images=content["unlabeled_images"],
        class_prior=content.get("class_prior"),
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
) -> keras.Model:
    """Loads the trained network of a run.

    Args:
        workdir: The run's folder; None is runs/default, as for `fit`.
        weights: "student" or "ema"; default: the evaluated weights. "baseline"
            is the frozen baseline of a run with --init_from, which needs no
            checkpoint.

    Returns:
        A Keras model from images [N, H, W, C], from 0 to 255, to a dict with
        `features`, `logits` and (SimMatch) `embeddings`. A model that
        normalizes its images refuses images that are scaled already. Its
        `class_names` are the names of the columns of the logits.

    Raises:
        InputError: There is no run or no checkpoint, it does not fit, or
            `weights` is unknown.
    """
    check_weights(weights)
    folder = workdir_lib.Workdir(workdir)
    if weights == workdir_lib.BASELINE:
        model = baseline(folder)
    else:
        model = saved_model(folder, weights)
    if model is None:
        restored, _, _ = restore(workdir)
        model = restored.networks()[weights or restored.evaluated_weights]
        content = splits.read_content(folder.split)
        model.class_names = list(content["class_names"])
    for layer in model.layers:
        if isinstance(layer, heads.Normalize):
            layer.checks = True
    return model


def check_weights(weights: str | None) -> None:
    """Checks the name of weights that is given from Python.

    Raises:
        InputError: A run has no such weights.
    """
    if weights is not None and weights not in workdir_lib.WEIGHTS:
        *names, last = workdir_lib.WEIGHTS
        raise InputError(
            f"weights={weights!r}: must be {', '.join(names)} or {last}"
        )


@runtime.pinned()
def baseline(folder: workdir_lib.Workdir) -> keras.Model:
    """Reads baseline.keras, the classifier on the weights of --init_from.

    Args:
        folder: The run's folder; it needs no checkpoint.

    Returns:
        The network, with the attribute `class_names`.

    Raises:
        InputError: There is no run, or no such file in its folder, or it
            cannot be read.
    """
    folder.with_baseline()
    return network.load(folder.baseline)


@runtime.pinned()
def saved_model(
    folder: workdir_lib.Workdir, weights: str | None = None
) -> keras.Model | None:
    """Reads the network that a finished run has saved, model.keras.

    Args:
        folder: The run's folder.
        weights: "student" or "ema"; default: the evaluated weights.

    Returns:
        The network, with the attribute `class_names`. None if the run is not
        finished, was finished by an older version, or has saved other weights,
        or if the file cannot be read: then they are in its checkpoint.
    """
    if not (folder.finished() and folder.model.is_file()):
        return None
    if weights not in (None, results.read(folder.results).weights_of_record):
        return None
    try:
        return network.load(folder.model)
    except InputError as error:
        terminal.warn(f"{error}; the last checkpoint is read instead")
        return None
