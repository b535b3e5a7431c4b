"""The input of a run from its flags: source, split and batches."""

import hashlib
import importlib.metadata
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, registry, terminal
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import cache, pipeline, service, splits, views
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.data.sources import tfds
from simmatch_tf.distributed import strategies
from simmatch_tf.evaluation import baselines, pixels
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import workdir as workdir_lib

# Part of the name of what is kept of --draw=typical: another number, other
# images.
_TYPICAL_VERSION = 1
# Images of which it chooses, at most: of more, as many are drawn.
_MOST_CANDIDATES = 100_000


def make_source(
    config: config_lib.Config, given: source_lib.Source | None = None
) -> source_lib.Source:
    """Loads the images that the flags name.

    Args:
        config: The run's flags.
        given: The caller's own images, for dataset="custom".

    Raises:
        InputError: They cannot be loaded, or do not fit the flags.
    """
    source = given or _load(config)
    height, width = source.image_shape[:2]
    _check_square(config, source.name, source.image_shape)
    resize = config.eval_resize
    if resize is not None and resize < height:
        raise InputError(
            f"--eval_resize={resize}: must be at least the side of the images, "
            f"which is {height}"
        )
    for side in {height, width}:
        registry.networks.check_side(config.backbone, side)
    return source


def _check_square(
    config: config_lib.Config, name: str, image_shape: tuple[int, int, int]
) -> None:
    """Refuses images that must be square and are not.

    Raises:
        InputError: The flags do not fit the images.
    """
    height, width = image_shape[:2]
    if height == width:
        return
    method = registry.algorithms.find(config.algorithm)[0].value
    needs = ""
    if config.weak == "resized_crop" or config.eval_resize:
        needs = "--weak=resized_crop and --eval_resize need"
    if method.square_images:
        needs = f"--algorithm={config.algorithm}, which rotates them, needs"
    if needs:
        raise InputError(
            f"{name} has images of {height}×{width}: {needs} square ones; give "
            "--image_size"
        )


def _entry(config: config_lib.Config) -> registry.Entry:
    return registry.sources.find(config.dataset)[0]


def _load(config: config_lib.Config) -> source_lib.Source:
    """Loads the images of --dataset.

    Raises:
        InputError: They cannot be loaded; or a file outside of the package
            gives wrong ones.
    """
    load = _entry(config).value
    try:
        return load(config)
    except InputError:
        raise
    except ValueError as error:
        code = getattr(load, "__code__", None)
        if code is None or load.__module__.startswith("simmatch_tf.data."):
            raise
        line = errors.line_in(code.co_filename, error)
        raise InputError(f"{code.co_filename}, line {line}: {error}") from error


def outline(config: config_lib.Config) -> source_lib.Outline:
    """Describes the dataset of the flags, without reading a large one.

    Raises:
        InputError: It cannot be loaded.
    """
    entry = _entry(config)
    if "outline" in entry.facts:
        described = entry.facts["outline"](config)
        _check_square(config, config.dataset, described.image_shape)
        return described
    source = _load(config)
    _check_square(config, source.name, source.image_shape)
    return source_lib.Outline(
        source.class_names,
        source.image_shape,
        len(source.train),
        source.statistics(),
    )


def labeled_images(
    config: config_lib.Config, dataset: source_lib.Outline
) -> int:
    """Counts the images that would be labeled, without reading a large set.

    Args:
        config: The run's flags.
        dataset: Its `outline`.

    Returns:
        The number, K. Where the flags ask for a share of each class of a large
        dataset, it is that share of all its images.

    Raises:
        InputError: It is not known.
    """
    entry = _entry(config)
    # An outline does not say whether there are test images.
    depends = config.validation_fraction and config.validation_when == "no_test"
    if "outline" not in entry.facts or depends:
        return len(_drawn(config, _load(config)).labeled)
    if config.split_file is not None:
        content = splits.read_content(io.expand(config.split_file))
        return len(content["labels"])
    name = config.labeled_list or config.published_list()
    if name is not None and name not in config_lib.SUBSETS:
        text = io.read_text(io.expand(name), f"--labeled_list={name}")
        count = sum(bool(line.strip()) for line in text.splitlines())
    elif name is not None:
        count = config_lib.SUBSETS[name]
    elif config.labels is not None:
        count = config.labels
    elif dataset.train_images is not None:
        count = round(config.label_fraction * dataset.train_images)
    else:
        raise InputError(
            f"--dataset={config.dataset}: is not prepared here, so it is not "
            f"known how many images --label_fraction={config.label_fraction} "
            "means; give --labels"
        )
    return count - round(config.validation_fraction * count)


def make_split(
    config: config_lib.Config,
    source: source_lib.Source,
    folder: workdir_lib.Workdir,
) -> splits.Split:
    """Reads the split of a run that has begun, or draws a new one.

    Raises:
        InputError: It cannot be read, does not fit the dataset, or the flags
            ask for images that the dataset does not have.
    """
    if folder.resumed():
        if not folder.split.is_file():
            raise InputError(
                f"{folder.split} is missing: without it, it is not known which "
                "images the memory holds; restore it, or give --overwrite"
            )
        split = splits.read(folder.split, source)
        if (split.labeled < 0).any():
            raise InputError(f"{folder.split}: {splits.UNKNOWN_SLOTS}")
        return split
    return _drawn(config, source)


def _drawn(
    config: config_lib.Config, source: source_lib.Source
) -> splits.Split:
    """Returns the split of a new run."""
    if config.split_file is not None:
        return splits.hand_over(
            io.expand(config.split_file),
            source,
            unlabeled_includes_labeled=config.unlabeled_includes_labeled,
        )
    fraction = config.validation_fraction
    if config.validation_when == "no_test" and source.test is not None:
        fraction = 0.0
    labels, listed = config.labels, _listed(config, source)
    if config.draw != "stratified":
        labels, listed = None, _chosen(config, source)
    return splits.draw(
        source,
        labels=labels,
        label_fraction=None if listed is not None else config.label_fraction,
        listed=listed,
        every_class=config.draw == "stratified",
        split_seed=config.split_seed,
        validation_fraction=fraction,
        unlabeled_includes_labeled=config.unlabeled_includes_labeled,
    )


def _chosen(config: config_lib.Config, source: source_lib.Source) -> np.ndarray:
    """Chooses the labeled images by --draw=random or typical.

    Their classes have no part in the choice, so that a class may be without a
    labeled image, as where a person labels them afterwards.

    Args:
        config: The run's flags.
        source: The dataset.

    Returns:
        Indices of the training images, [K], K as --labels says.

    Raises:
        InputError: There are not as many images of a known class.
    """
    candidates = splits.not_aside(source)
    if config.draw == "typical" and len(candidates) > _MOST_CANDIDATES:
        random = np.random.default_rng(config.split_seed)
        places = random.permutation(len(candidates))[:_MOST_CANDIDATES]
        candidates = candidates[np.sort(places)]
    if config.draw == "random":
        random = np.random.default_rng(config.split_seed)
        order = random.permutation(len(candidates))
    else:
        order = _typical(config, source, candidates)
    if config.labels > len(order):
        raise InputError(
            f"--labels={config.labels} and --draw={config.draw}: "
            f"{source.name} has {len(order)} different images of a known class"
        )
    return candidates[order[: config.labels]]


def _typical(
    config: config_lib.Config,
    source: source_lib.Source,
    candidates: np.ndarray,
) -> np.ndarray:
    """Returns places among the candidates, those to be labeled first.

    They are kept in the cache folder, as runs of other methods ask for the
    same ones.

    Args:
        config: The run's flags.
        source: The dataset.
        candidates: Indices of the training images, [n].
    """
    resize = config.eval_resize and config.eval_resize / source.image_shape[0]
    parts = (
        source.identity(),
        hashlib.sha256(candidates.astype("<i8").tobytes()).hexdigest(),
        resize,
        config.labels,
        config.split_seed,
        *map(importlib.metadata.version, ("scikit-image", "scikit-learn")),
    )
    path = cache.path(f"typical-{baselines.key(_TYPICAL_VERSION, parts)}.npz")
    kept = cache.read(path) if path is not None else {}
    if "order" in kept:
        return kept["order"]
    from simmatch_tf.data import picking  # scikit-learn takes a second

    terminal.say(f"comparing {len(candidates):,} images for --draw=typical")
    batches = pixels.read(
        source.train,
        candidates,
        resize=resize,
        parallel_calls=config.parallel_calls,
        when=f"for --draw={config.draw}",
    )
    features = np.concatenate([*map(baselines.handmade, batches)])
    copy_of = picking.equal_rows(features, np.zeros(len(features), bool))
    distinct = np.flatnonzero(copy_of == np.arange(len(features)))
    if config.labels > len(distinct):
        return distinct
    # As `select` does without --model.
    order = picking.pick(
        picking.principal(features),
        config.labels,
        seed=config.split_seed,
        copy_of=copy_of,
    ).order
    if path is not None:
        cache.write(path, {"order": order})
    return order


def class_prior(
    config: config_lib.Config,
    source: source_lib.Source,
    split: splits.Split,
    folder: workdir_lib.Workdir,
) -> list[float] | None:
    """Returns the class shares that the run aligns pseudo-labels with.

    They are a constant of the run: those of a run that has begun are in its
    split.json.

    Args:
        config: The run's flags.
        source: The dataset.
        split: Its labeled images.
        folder: The run's folder.

    Returns:
        L shares, above 0; None with --class_prior=uniform, with --noalign, or
        without such flags.

    Raises:
        InputError: The file cannot be read, or has other classes.
    """
    value = getattr(config, "class_prior", "uniform")
    if value == "uniform" or not getattr(config, "align", True):
        return None
    if folder.resumed():
        content = splits.read_content(folder.split)
        if "class_prior" in content:
            return content["class_prior"]
    if value == "labeled":
        counts = np.bincount(
            source.train.labels[split.labeled], minlength=source.num_classes
        )
        _check_every_class(config, source, counts)
        return (counts / counts.sum()).tolist()
    shares = preflight.class_shares(value)
    names = [io.nfc(str(name)) for name in source.class_names]
    for name in shares:
        if name not in names:
            raise InputError(
                f"--class_prior={value}: {source.name} has no class {name!r}"
                + errors.nearest(name, names)
            )
    if missing := [name for name in names if name not in shares]:
        raise InputError(
            f"--class_prior={value}: gives no share of the class "
            f"{missing[0]!r}; {len(shares)} of the {len(names)} classes of "
            f"{source.name} are in it, and all must be"
        )
    return [shares[name] for name in names]


def _check_every_class(
    config: config_lib.Config, source: source_lib.Source, counts: np.ndarray
) -> None:
    """Refuses shares of labeled images if one is 0, as --draw may make it.

    A class of such a share could never be a pseudo-label.
    """
    missing = [
        str(source.class_names[label]) for label in np.flatnonzero(counts == 0)
    ]
    if not missing:
        return
    others = ""
    if config.labels is not None:
        balanced = -(-config.labels // len(counts)) * len(counts)
        others = f", or --draw=stratified with --labels={balanced}"
    raise InputError(
        "--class_prior=labeled: no labeled image is of the class "
        f"{missing[0]!r}"
        + f", and {len(missing)} classes have none"
        * (len(missing) > 1)
        + "; a share of 0 would keep it from ever being a pseudo-label: give "
        f"--class_prior=uniform{others}"
    )


def _listed(
    config: config_lib.Config, source: source_lib.Source
) -> np.ndarray | None:
    """Returns the indices of the labeled images, if a list names them."""
    name = config.labeled_list or config.published_list()
    if name is None:
        return None
    if name in config_lib.SUBSETS:
        names = tfds.listed(
            name,
            tfds_dir=config.tfds_dir,
            manual_dir=config.tfds_manual_dir,
        )
        return splits.find_listed(names, source, name)
    return splits.read_list(io.expand(name), source)


def scored_images(
    source: source_lib.Source, validation: np.ndarray
) -> tuple[str | None, source_lib.Images | source_lib.Encoded, np.ndarray]:
    """Returns the images that results are measured on.

    Args:
        source: The dataset.
        validation: Indices of the training images that were set aside.

    Returns:
        "test" or "validation", the set, and the indices in it; None and no
        index if there are neither test nor validation images.
    """
    if source.test is not None:
        return "test", source.test, np.arange(len(source.test))
    return "validation" if len(validation) else None, source.train, validation


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
        own_side = view.side_of(side)
        if view.scale is not None:
            registry.networks.check_side(config.backbone, own_side)
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
    """Returns the batches from a step to the last, for `strategy.run`.

    Args:
        strategy: The devices that train.
        batches: The training input.
        start: First step.
        config: Says how many `steps` there are, and which `data_service` makes
            the batches, if any.

    Raises:
        InputError: The service cannot be reached, or refuses the dataset.
    """
    train = batches.source.train

    def dataset(context: tf.distribute.InputContext) -> tf.data.Dataset:
        if config.data_service is None:
            return batches.dataset(start, config.steps, context)
        return service.ordered(
            batches.dataset(start, config.steps, context, numbered=True),
            config.data_service,
            held_bytes=0 if train.encoded else train.images.nbytes,
            patience=service.PATIENCE,
        )

    return strategies.iterate(strategy, dataset)
