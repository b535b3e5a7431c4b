"""Image classification datasets of TensorFlow Datasets (TFDS).

Small ones whose images have one size are held in memory, decoded. The others
stay in their record files and are decoded when they are needed.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf import io, registry, terminal
from simmatch_tf.data import fingerprint as fingerprint_lib
from simmatch_tf.data import records
from simmatch_tf.data.sources import source
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.lazy import np, tf

# NAME → (classes, training images); with those of unlabeled splits left out.
_SIZES = {
    "cifar10": (10, 50_000),
    "cifar100": (100, 50_000),
    "fashion_mnist": (10, 60_000),
    "imagenet2012": (1_000, 1_281_167),
    "stl10": (10, 5_000),
    "svhn_cropped": (10, 73_257),
}
# Bytes of all decoded images up to which they are held in memory.
MEMORY_LIMIT = 4 * 2**30
_SIDE = 224  # of views of images of several sizes
# Images from which the statistics of a dataset in files are estimated.
_MEASURED = 10_000
_MEASURED_SIDE = 64
_BATCH = 1000
# Splits of images without a class, and all splits that are used.
_UNLABELED = ("unlabelled", "unlabeled")
_SPLITS = ("train", *_UNLABELED, "validation", "test")
# Datasets of characters: mirrored, these would be others.
_NO_FLIP = re.compile(
    "svhn|mnist|cmaterdb|omniglot|quickdraw|binary_alpha_digits|chars|letters"
)
_FLIP = re.compile(r"fashion_mnist")

_FORM = re.compile(
    r"((?P<namespace>[a-z][\w-]*):)?(?P<dataset>[a-z]\w*)"
    r"(?P<rest>(/[\w+.-]+)?(:(\d+|\*)(\.(\d+|\*)){2})?)",
    re.ASCII | re.IGNORECASE,
)


# ------------------------------------------- before TensorFlow is imported --


def data_dir(tfds_dir: str | os.PathLike | None) -> str:
    """Returns the folder of prepared datasets.

    Args:
        tfds_dir: The folder; None: TFDS's default, $TFDS_DATA_DIR or
            ~/tensorflow_datasets. May be remote (gs://…).
    """
    if tfds_dir is None:
        tfds_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    tfds_dir = os.fspath(tfds_dir)
    return str(io.expand(tfds_dir)) if tfds_dir.startswith("~") else tfds_dir


def check_name(name: str, *, flag: str = "dataset") -> None:
    """Checks the form of a dataset's name.

    Whether there is such a dataset is left to TFDS.

    Args:
        name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION, perhaps
            behind NAMESPACE:, one of TFDS's communities.
        flag: The flag that gave the name, for messages.

    Raises:
        InputError: There can be no such dataset.
    """
    match = _FORM.fullmatch(name)
    if match is None:
        raise InputError(
            f"--{flag}={name!r}: must have the form NAME, NAME/CONFIG, "
            "NAME:VERSION or NAME/CONFIG:VERSION, as emnist/letters:3.1.0"
        )
    others = {e.pattern for e in registry.sources if e.pattern != _PATTERN}
    dataset = match["dataset"]
    if match["namespace"]:
        return
    if dataset in others:
        raise InputError(
            f"--{flag}={name}: {dataset} has no configs and no versions; "
            f"write --{flag}={dataset}"
        )
    if dataset != dataset.lower():
        raise InputError(
            f"--{flag}={name} is unknown (names are in lower case)"
            + errors.nearest(dataset.lower(), registry.sources.names())
        )


def fingerprint(
    config: config_lib.Config, then: fingerprint_lib.Fingerprint
) -> fingerprint_lib.Fingerprint | None:
    """Returns the fingerprint of the record files that a run began with.

    Returns:
        That of the files now; None where the dataset is not prepared here.
    """
    root = data_dir(config.tfds_dir)
    paths = {
        name: os.path.join(root, name)
        for name in then.files
        if not name.startswith("--")
    }
    if not any(os.path.isdir(os.path.dirname(p)) for p in paths.values()):
        return None
    return fingerprint_lib.of_files(paths)


def _load_for_transfer(config: config_lib.Config) -> source.Source:
    return load(
        config.dataset,
        tfds_dir=config.tfds_dir,
        manual_dir=config.tfds_manual_dir,
        validation=True,
    )


_PATTERN = "(?s:.+)"  # any other name; `check_name` knows the form


@registry.sources.register(
    _PATTERN,
    examples=tuple(_SIZES),
    sizes=_SIZES,
    is_prepared=lambda config: _make(
        config.dataset, config.tfds_dir
    ).data_path.exists(),
    check_images=lambda config: check_name(config.dataset),
    fingerprint=fingerprint,
    outline=lambda config: _outline(config),
    load_for_transfer=_load_for_transfer,
)
def load_for_run(config: config_lib.Config) -> source.Source:
    """Loads the dataset that the flags name; see `load`."""
    return load(
        config.dataset,
        tfds_dir=config.tfds_dir,
        manual_dir=config.tfds_manual_dir,
        image_size=config.image_size,
    )


# ------------------------------------------------------------------ loading --


@dataclasses.dataclass(frozen=True)
class _Keys:
    """Keys of a record's features; `name` may be None."""

    image: str
    label: str
    name: str | None


def load(
    name: str,
    *,
    tfds_dir: str | None = None,
    manual_dir: str | None = None,
    image_size: int | None = None,
    validation: bool = False,
) -> source.Source:
    """Loads a dataset, and prepares it before if needed.

    Args:
        name: As TFDS has it; see `check_name`.
        tfds_dir: See `data_dir`.
        manual_dir: Folder of archives that TFDS cannot download itself.
        image_size: Side of the images; default: their own if all have the
            same, else 224.
        validation: Whether to load its validation images as well, unless these
            already serve as test images.

    Raises:
        InputError: There is no such dataset, or it cannot be prepared, or is
            no dataset for image classification.
    """
    builder = _prepare(name, tfds_dir, manual_dir)
    keys = _keys(builder)
    splits = builder.info.splits
    if "train" not in splits:
        raise InputError(
            f"--dataset={name}: has no training images; its splits are "
            + ", ".join(splits)
        )
    train = ["train", *(s for s in _UNLABELED if s in splits)]
    shape = builder.info.features[keys.image].shape
    total = np.prod([side or 2**20 for side in shape], dtype=float)
    total *= sum(splits[s].num_examples for s in train)
    held = None not in shape and total <= MEMORY_LIMIT
    if held:
        read = functools.partial(_held, builder, keys, image_size)
    else:
        read = functools.partial(_encoded, builder, keys)
    images = read(train)
    test_split, test = _test(builder, keys, read)
    validation &= test_split == "test" and "validation" in splits
    return source.Source(
        name=name,
        class_names=list(builder.info.features[keys.label].names),
        train=images,
        test=test,
        flip=flips(name),
        image_size=image_size or (None if held else shape[0] or _SIDE),
        validation=_known(builder, keys, read, "validation")
        if validation
        else None,
        measure=None if held else functools.partial(_measure, name, images),
        origin=functools.partial(_fingerprint, builder),
    )


def _outline(config: config_lib.Config) -> source.Outline:
    """Returns what is known of a dataset before its images are read."""
    name, image_size = config.dataset, config.image_size
    builder = _make(name, config.tfds_dir)
    keys = _keys(builder)
    height, width, channels = builder.info.features[keys.image].shape
    if image_size or None in (height, width):
        channels = channels if height else 3
        height = width = image_size or height or _SIDE
    _, train_images = _SIZES.get(config_lib.base_name(name), (0, None))
    if builder.data_path.exists():
        splits = builder.info.splits
        names = ["train", *(s for s in _UNLABELED if s in splits)]
        train_images = sum(splits[s].num_examples for s in names)
    return source.Outline(
        class_names=list(builder.info.features[keys.label].names),
        image_shape=(height, width, channels),
        train_images=train_images,
        statistics=source.IMAGENET if name.startswith("imagenet2012") else None,
    )


def flips(name: str) -> bool:
    """Returns whether a dataset's mirrored images belong to their class."""
    return bool(_FLIP.match(name) or not _NO_FLIP.search(name))


def listed(
    name: str, *, tfds_dir: str | None, manual_dir: str | None
) -> list[str]:
    """Returns the file names of the images in a dataset.

    Args:
        name: "imagenet2012_subset/1pct" or "imagenet2012_subset/10pct".
        tfds_dir: See `load`.
        manual_dir: See `load`.

    Raises:
        InputError: See `load`.
    """
    builder = _prepare(name, tfds_dir, manual_dir)
    return _encoded(builder, _keys(builder), ["train"]).names


def _make(name: str, tfds_dir: str | None) -> Any:
    """Returns a builder, whether or not its data are prepared."""
    import tensorflow_datasets as tfds  # slow to import, needed here only

    root = data_dir(tfds_dir)
    try:
        return tfds.builder(name, data_dir=tfds_dir and root)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        meant = errors.close(
            config_lib.base_name(name).lower(),
            sorted({*registry.sources.names(), *known}),
            count=3,
            cutoff=0.5,
        )
        raise InputError(
            f"--dataset={name} is unknown: TFDS has no such dataset, and it is "
            f"not prepared in {root}"
            + (f"; did you mean {' or '.join(meant)}?" if meant else "")
        ) from None
    except (
        AssertionError,  # an unknown version
        ValueError,  # an unknown configuration
    ) as error:
        text = str(error).strip().splitlines()[0].rpartition("}: ")[2]
        try:
            builder = tfds.builder_cls(config_lib.base_name(name))
        except (tfds.core.DatasetNotFoundError, ValueError):
            builder = None
        configs = getattr(builder, "BUILDER_CONFIGS", None) or []
        configs = ", ".join(config.name for config in configs[:20])
        raise InputError(
            f"--dataset={name}: TFDS cannot make it ({text})"
            + (f"; its configurations: {configs}" if configs else "")
        ) from None


def _prepare(name: str, tfds_dir: str | None, manual_dir: str | None) -> Any:
    """Returns a builder whose data are prepared."""
    import tensorflow_datasets as tfds

    builder = _make(name, tfds_dir)
    if builder.data_path.exists():
        return builder
    terminal.warn(
        f"{name} is not prepared in {builder.data_path}: TFDS downloads and "
        "prepares it, which may take long"
    )
    config = tfds.download.DownloadConfig(
        manual_dir=manual_dir and str(io.expand(manual_dir))
    )
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # TFDS lets through whatever goes wrong
        lines = str(error).strip().splitlines() or [type(error).__name__]
        text = (
            f"--dataset={name}: is not prepared in {builder.data_path}, and "
            f"TFDS cannot prepare it: {lines[0][:300]}"
        )
        manual = getattr(builder, "MANUAL_DOWNLOAD_INSTRUCTIONS", None)
        if manual:
            text += (
                "\nIt needs archives that you place in --tfds_manual_dir: "
                + " ".join(manual.split())
            )
        raise InputError(text) from error
    return builder


def _keys(builder: Any) -> _Keys:
    """Finds image, class and name among a dataset's features."""
    import tensorflow_datasets as tfds

    name = builder.info.full_name
    features = builder.info.features
    flat = dict(features.items()) if hasattr(features, "items") else {}

    def of_kind(kind: type) -> list[str]:
        keys = [k for k, v in flat.items() if type(v) is kind]
        supervised = [
            k for k in builder.info.supervised_keys or () if k in keys
        ]
        return supervised[:1] or keys

    images = of_kind(tfds.features.Image)
    labels = of_kind(tfds.features.ClassLabel)
    if len(images) != 1 or len(labels) != 1:
        kinds = ", ".join(f"{k}: {type(v).__name__}" for k, v in flat.items())
        raise InputError(
            f"--dataset={name}: is no image classification dataset: one Image "
            f"and one ClassLabel are needed, its features are "
            f"{kinds or type(features).__name__}"
        )
    image = flat[images[0]]
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise InputError(
            f"--dataset={name}: its images are {np.dtype(image.np_dtype).name} "
            f"with {image.shape[-1]} channels; 8 bits and 1 or 3 channels are "
            "needed"
        )
    names = [
        key
        for key in ("file_name", "filename", "image/filename", "id", "name")
        if key in flat and flat[key].np_dtype in (object, np.object_, str)
    ]
    return _Keys(images[0], labels[0], next(iter(names), None))


def _test(
    builder: Any, keys: _Keys, read: Any
) -> tuple[str, source.Images | source.Encoded] | tuple[None, None]:
    """Returns the first of test and validation whose classes are all known."""
    for split in ("test", "validation"):
        if split in builder.info.splits:
            images = _known(builder, keys, read, split)
            if images is not None:
                return split, images
    return None, None


def _known(
    builder: Any, keys: _Keys, read: Any, split: str
) -> source.Images | source.Encoded | None:
    """Returns a split, if the classes of its images are all known."""
    first = next(iter(_examples(builder, split, keys, 1)), None)
    if first is not None and first["label"].min() < 0:
        return None  # as all of ImageNet's test images
    images = read([split])
    if images.labels.min() >= 0:
        return images
    terminal.warn(
        f"{builder.info.full_name}: its {split} images are not used, as the "
        "class of some is unknown"
    )
    return None


def _examples(
    builder: Any, split: str, keys: _Keys, batch: int
) -> Iterable[dict[str, np.ndarray]]:
    """Yields batches of "image", "label" and "name" in the order on disk."""
    import tensorflow_datasets as tfds

    features = {"image": keys.image, "label": keys.label, "name": keys.name}
    features = {k: v for k, v in features.items() if v is not None}
    # One file after the other, which is the order on disk.
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(
            interleave_cycle_length=1, try_autocache=False
        ),
    ).map(
        tf.autograph.experimental.do_not_convert(
            lambda example: {k: example[v] for k, v in features.items()}
        )
    )
    try:
        yield from dataset.batch(batch).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise _unreadable(builder, split, error) from None


def _unreadable(builder: Any, split: str, error: Exception) -> InputError:
    """Returns the error for a split that TensorFlow cannot read."""
    if builder.info.file_format.value == "tfrecord":
        files = _record_files(builder, [split])
        records.check(list(files), list(files.values()))
        for path in files:
            try:
                for _ in tf.data.TFRecordDataset(path):
                    pass
            except tf.errors.DataLossError:
                return records.damaged(path)
    return InputError(
        f"--dataset={builder.info.full_name}: {split} cannot be read "
        f"({error.message.splitlines()[0]}); remove {builder.data_path}, "
        "and it is prepared again"
    )


def _record_files(builder: Any, splits: Sequence[str]) -> dict[str, int]:
    """Returns record files in order → number of examples in each."""
    files = {}
    for split in splits:
        info = builder.info.splits[split]
        counts = {
            os.fspath(file.filename): file.examples_in_shard
            for file in info.file_instructions
        }
        # An empty file is in no instruction.
        files |= {str(p): counts.get(str(p), 0) for p in info.filepaths}
    return files


def _fingerprint(builder: Any) -> fingerprint_lib.Fingerprint:
    """Returns the fingerprint of record files, named from --tfds_dir on."""
    root = builder.data_path
    for _ in builder.info.full_name.split("/"):
        root = root.parent
    splits = [s for s in builder.info.splits if s in _SPLITS]
    return fingerprint_lib.of_files(
        {
            os.path.relpath(path, root): path
            for path in _record_files(builder, splits)
        }
    )


def _held(
    builder: Any, keys: _Keys, image_size: int | None, splits: Sequence[str]
) -> source.Images:
    """Returns splits one after the other, decoded, in memory."""
    if builder.info.file_format.value == "tfrecord":
        files = _record_files(builder, splits)
        records.check(list(files), list(files.values()))
    size = sum(builder.info.splits[s].num_examples for s in splits)
    shape = builder.info.features[keys.image].shape
    if image_size is not None:
        shape = (image_size, image_size, shape[-1])
    images = np.empty([size, *shape], np.uint8)
    labels = np.empty([size], np.int32)
    names, place = [], 0
    for split in splits:
        for batch in _examples(builder, split, keys, _BATCH):
            end = place + len(batch["label"])
            pixels = batch["image"]
            if pixels.shape[1:] != tuple(shape):
                pixels = _square(pixels, image_size)
            images[place:end] = pixels
            labels[place:end] = batch["label"]
            names += [n.decode(errors="replace") for n in batch.get("name", ())]
            place = end
    if place != size:
        raise InputError(
            f"--dataset={builder.info.full_name}: its files hold {place} of "
            f"the {size} examples that dataset_info.json promises; "
            + records.advice(str(builder.data_path / "*"))
        )
    return source.Images(images, labels, names or None)


def _square(images: np.ndarray, side: int) -> np.ndarray:
    """Resizes the centres of images [n, H, W, C] to [n, side, side, C]."""
    height, width = images.shape[1:3]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    images = images[:, top : top + least, left : left + least]
    resized = tf.image.resize(images, [side, side], antialias=True)
    return resized.numpy().round().clip(0, 255).astype(np.uint8)


def _encoded(
    builder: Any, keys: _Keys, splits: Sequence[str]
) -> records.RecordImages:
    """Returns splits one after the other, in their record files."""
    info = builder.info
    if info.file_format.value != "tfrecord":
        raise InputError(
            f"--dataset={info.full_name}: is prepared as "
            f"{info.file_format.value}; large datasets are read from tfrecord "
            "files only"
        )
    files = _record_files(builder, splits)
    return records.scan(
        list(files),
        feature=keys.image,
        label=keys.label,
        name=keys.name,
        cache_name=f"{info.full_name}-{'-'.join(splits)}",
        promised=list(files.values()),
    )


def _measure(name: str, images: records.RecordImages) -> source.Statistics:
    """Returns statistics of up to 10,000 images, spread evenly over all."""
    from simmatch_tf.data import decoding  # imports TensorFlow

    if name.startswith("imagenet2012"):
        return source.IMAGENET
    terminal.say(
        f"{name}: computing the mean and standard deviation of its images"
    )
    places = np.linspace(0, len(images) - 1, min(len(images), _MEASURED))

    def small(index: tf.Tensor) -> tf.Tensor:
        pixels = decoding.decode(*images.read(index))
        return decoding.resize(pixels, (_MEASURED_SIDE, _MEASURED_SIDE))

    dataset = tf.data.Dataset.from_tensor_slices(places.astype(np.int64))
    dataset = dataset.map(
        tf.autograph.experimental.do_not_convert(small), num_parallel_calls=2
    )
    counts = np.zeros([3, 256], np.int64)
    try:
        for pixels in dataset.as_numpy_iterator():
            source.add_counts(counts, pixels)
    except tf.errors.OpError as error:
        raise InputError(
            f"--dataset={name}: an image cannot be decoded "
            f"({error.message.splitlines()[0]})"
        ) from None
    return source.statistics(counts)
