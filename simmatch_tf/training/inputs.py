"""A run's input from its flags: source, split, pipeline."""

import dataclasses
import os
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import io, registry
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import lists, pipeline, service, splits, views
from simmatch_tf.data.sources import dataset_names, digits, folder
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.data.sources import tfds as tfds_source
from simmatch_tf.distributed import strategies
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.training import workdir as workdir_lib


def make_source(
    config: config_lib.Config, given: source_lib.Source | None = None
) -> source_lib.Source:
    """Loads the images that the flags name; `given`: the caller's own.

    Raises:
        InputError: They cannot be had, or do not go with the flags.
    """
    source = given or _load(config)
    height, width = source.image_shape[:2]
    resize = config.eval_resize
    if height != width and (config.weak == "resized_crop" or resize):
        raise InputError(
            f"{source.name} has images of {height}×{width}: "
            "--weak=resized_crop and --eval_resize want square ones; give "
            "--image_size"
        )
    if resize is not None and resize < height:
        raise InputError(
            f"--eval_resize={resize}: must be at least the side of the images, "
            f"which is {height}"
        )
    for side in {height, width}:
        registry.networks.check_side(config.backbone, side)
    return source


def _load(config: config_lib.Config) -> source_lib.Source:
    if config.dataset == "digits":
        return digits.load(config.image_size)
    if config.dataset == "folder":
        return folder.load(
            config.data_dir,
            image_size=config.image_size,
            on_bad_image=config.on_bad_image,
            need_unlabeled=config.needs_unlabeled_folder(),
        )
    return tfds_source.load(
        config.dataset, image_size=config.image_size, **_tfds_folders(config)
    )


def outline(config: config_lib.Config) -> source_lib.Outline:
    """What the flags' dataset is, without reading a large one's images.

    Raises:
        InputError: It cannot be had.
    """
    if config.dataset in dataset_names.OWN:
        source = _load(config)
        return source_lib.Outline(
            source.class_names,
            source.image_shape,
            len(source.train),
            source.statistics(),
        )
    found = tfds_source.outline(
        config.dataset,
        tfds_dir=_tfds_folders(config)["tfds_dir"],
        image_size=config.image_size,
    )
    if found.train_images is None:
        known = config_lib.known_size(config.dataset) or (0, None)
        found = dataclasses.replace(found, train_images=known[1])
    return found


def labeled_images(config: config_lib.Config, found: source_lib.Outline) -> int:
    """How many images would be labeled, K, without reading a large dataset.

    Args:
        config: The run's flags.
        found: Its dataset's `outline`.

    Returns:
        The number; where a share of each class is asked for and the dataset's
        images are not known, the same share of them all.

    Raises:
        InputError: It cannot be told.
    """
    if config.dataset in dataset_names.OWN:
        source = _load(config)
        return len(_drawn(config, source).labeled)
    if config.split_file is not None:
        path = pathlib.Path(config.split_file).expanduser()
        return len(splits.read_content(path)["labels"])
    name = config.labeled_list or config.published_list()
    if name is not None and name not in config_lib.SUBSETS:
        path = pathlib.Path(name).expanduser()
        text = io.read_text(path, f"--labeled_list={name}")
        count = sum(bool(line.strip()) for line in text.splitlines())
    elif name is not None:
        count = config_lib.SUBSETS[name]
    elif config.labels is not None:
        count = config.labels
    elif found.train_images is not None:
        count = round(config.label_fraction * found.train_images)
    else:
        raise InputError(
            f"--dataset={config.dataset}: is not prepared here, so what "
            f"--label_fraction={config.label_fraction} of it is is not known; "
            "give --labels"
        )
    return count - round(config.validation_fraction * count)


def _tfds_folders(config: config_lib.Config) -> dict[str, str | None]:
    """Where TFDS finds datasets and archives."""
    return {
        "tfds_dir": config.tfds_dir and os.path.expanduser(config.tfds_dir),
        "manual_dir": config.tfds_manual_dir
        and os.path.expanduser(config.tfds_manual_dir),
    }


def make_split(
    config: config_lib.Config,
    source: source_lib.Source,
    folder: workdir_lib.Workdir,
) -> splits.Split:
    """Reads the split of a run that has begun, or draws one."""
    if folder.resumed():
        if not folder.split.is_file():
            raise InputError(
                f"{folder.split} is missing: without it the memory's slots "
                "cannot be told apart; restore it, or --overwrite"
            )
        split = splits.read(folder.split, source)
        if (split.labeled < 0).any():
            raise InputError(f"{folder.split}: {splits.UNKNOWN_SLOTS}")
        return split
    return _drawn(config, source)


def _drawn(
    config: config_lib.Config, source: source_lib.Source
) -> splits.Split:
    """The split of a new run."""
    if config.split_file is not None:
        return splits.hand_over(
            pathlib.Path(config.split_file).expanduser(),
            source,
            unlabeled_includes_labeled=config.unlabeled_includes_labeled,
        )
    listed = _listed(config, source)
    return splits.draw(
        source,
        labels=config.labels,
        label_fraction=None if listed is not None else config.label_fraction,
        listed=listed,
        split_seed=config.split_seed,
        validation_fraction=config.validation_fraction,
        unlabeled_includes_labeled=config.unlabeled_includes_labeled,
    )


def _listed(
    config: config_lib.Config, source: source_lib.Source
) -> np.ndarray | None:
    """The labeled images, where a list names them."""
    name = config.labeled_list or config.published_list()
    if name is None:
        return None
    if name in config_lib.SUBSETS:
        names = tfds_source.listed(name, **_tfds_folders(config))
        return lists.find(names, source, name)
    return lists.read(pathlib.Path(name).expanduser(), source)


def scored_images(
    source: source_lib.Source, validation: np.ndarray
) -> tuple[str, source_lib.Images | source_lib.Encoded, np.ndarray]:
    """What results are measured on: its name, the set, and the places in it.

    Raises:
        InputError: There are neither test nor validation images.
    """
    if source.test is not None:
        return "test", source.test, np.arange(len(source.test))
    if not len(validation):
        raise InputError(
            f"{source.name} has no test images: give --validation_fraction, "
            "such as 0.2, to score by labeled images set aside"
        )
    return "validation", source.train, validation


def make_pipeline(
    config: config_lib.Config,
    source: source_lib.Source,
    split: splits.Split,
    algorithm: algorithm_lib.Algorithm | type[algorithm_lib.Algorithm],
) -> pipeline.Pipeline:
    """Puts the training input together.

    Args:
        config: The run's flags.
        source: The dataset.
        split: Its labeled and unlabeled images.
        algorithm: Declares the views; an instance, or a class whose
            declarations do not depend on flags.
    """
    side = min(source.image_shape[:2])

    def recipe(view: algorithm_lib.View) -> views.Recipe:
        strong = {"weak": "none", "strong": config.strong}
        own_side = view.side or side
        return views.Recipe(
            side=own_side,
            crop=view.crop or config.weak,
            strong=strong.get(view.augmentation, view.augmentation),
            flip=source.flip if config.flip is None else config.flip,
            pad=own_side // 8,
            crop_area=view.crop_area or (config.crop_area, 1.0),
            cutout=round(config.cutout * own_side),
            operations=config.randaugment_operations,
            probability=config.randaugment_probability,
            low=config.randaugment_low,
            high=config.randaugment_high,
            levels=config.randaugment_levels,
        )

    def recipes(declared: tuple) -> dict[str, views.Recipe]:
        parsed = map(algorithm_lib.View.parse, declared)
        return {view.name: recipe(view) for view in parsed}

    return pipeline.Pipeline(
        source=source,
        split=split,
        labeled_views=recipes(algorithm.labeled_views),
        unlabeled_views=recipes(algorithm.unlabeled_views),
        batch_size=config.batch_size,
        unlabeled_batch_size=config.batch_size * config.unlabeled_ratio,
        seed=config.seed,
        parallel_calls=config.parallel_calls,
        finished=config.views_on == "host",
        needs_index=algorithm.needs_index,
    )


def make_batches(
    strategy: tf.distribute.Strategy,
    batches: pipeline.Pipeline,
    start: int,
    config: config_lib.Config,
) -> Iterator[pipeline.Batch]:
    """The batches from a step to the last, as `strategy.run` takes them.

    Args:
        strategy: Where it trains.
        batches: What they are.
        start: First step.
        config: Its `steps`, and which `data_service` makes them, if any.

    Raises:
        InputError: That service cannot be reached, or does not take them.
    """

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        if config.data_service is None:
            return batches.dataset(start, config.steps, context)
        return service.ordered(
            batches.dataset(start, config.steps, context, numbered=True),
            config.data_service,
            patience=service.PATIENCE,
        )

    return strategies.iterate(strategy, dataset)
