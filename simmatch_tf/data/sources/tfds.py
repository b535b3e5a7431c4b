"""Datasets of TensorFlow Datasets (TFDS).

Small ones of one image size are held in memory, decoded; the others stay in
their record files and are decoded as they are needed.
"""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from simmatch_tf.data import decoding, records
from simmatch_tf.data.sources import builders, shards, source
from simmatch_tf.flags.commandline import InputError

# Pixels of all images together (as bytes) up to which they are held decoded.
MEMORY_LIMIT = 4 * 2**30
# Images behind the statistics of a dataset that is not in memory.
_MEASURED = 10_000
_MEASURED_SIDE = 64
_CHUNK = 1000
# Mirrored, these would be other characters.
_NO_FLIP = re.compile(
    "svhn|mnist|cmaterdb|omniglot|quickdraw|binary_alpha_digits|chars|letters"
)
_FLIP = re.compile(r"fashion_mnist")


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
    """Loads a dataset; prepares it first, where it is not.

    Args:
        name: NAME, NAME/CONFIG or NAME:VERSION, as TFDS has it.
        tfds_dir: Where prepared datasets are; default: TFDS's own.
        manual_dir: Archives that TFDS cannot download itself.
        image_size: Side of the images; default: their own if they all have
            one, else 224.
        validation: Whether its validation images are wanted, too, where they
            are not the ones that results are measured on.

    Raises:
        InputError: It cannot be had, or is no image classification dataset.
    """
    builder = builders.prepare(name, tfds_dir, manual_dir)
    keys = _keys(builder)
    splits = builder.info.splits
    if "train" not in splits:
        raise InputError(
            f"--dataset={name}: has no training images; its splits are "
            + ", ".join(splits)
        )
    train = ["train", *(s for s in shards.UNLABELED if s in splits)]
    shape = builder.info.features[keys.image].shape
    total = np.prod([side or 2**20 for side in shape], dtype=float)
    total *= sum(splits[s].num_examples for s in train)
    held = None not in shape and total <= MEMORY_LIMIT
    if held:
        read = functools.partial(_held, builder, keys, image_size)
    else:
        read = functools.partial(_encoded, builder, keys)
    images = read(train)
    on, test = _test(builder, keys, read)
    wanted = validation and on == "test" and "validation" in splits
    side = image_size or (None if held else shape[0] or 224)
    return source.Source(
        name=name,
        class_names=list(builder.info.features[keys.label].names),
        train=images,
        test=test,
        flip=flips(name),
        image_size=side,
        validation=_known(builder, keys, read, "validation")
        if wanted
        else None,
        measure=None if held else functools.partial(_measure, name, images),
        origin=functools.partial(shards.fingerprint, builder),
    )


def outline(
    name: str, *, tfds_dir: str | None = None, image_size: int | None = None
) -> source.Outline:
    """What `load` would give, as far as it is known without the images.

    Args:
        name: See `load`.
        tfds_dir: See `load`.
        image_size: See `load`.

    Raises:
        InputError: See `load`.
    """
    builder = builders.make(name, tfds_dir)
    keys = _keys(builder)
    height, width, channels = builder.info.features[keys.image].shape
    if image_size or None in (height, width):
        height = width = image_size or height or 224
        channels = channels if builder.info.features[keys.image].shape[0] else 3
    size = None
    if builder.data_path.exists():
        splits = builder.info.splits
        names = ["train", *(s for s in shards.UNLABELED if s in splits)]
        size = sum(splits[s].num_examples for s in names)
    return source.Outline(
        class_names=list(builder.info.features[keys.label].names),
        image_shape=(height, width, channels),
        train_images=size,
        statistics=source.IMAGENET if name.startswith("imagenet2012") else None,
    )


def flips(name: str) -> bool:
    """Whether a mirrored image of a dataset is still of its class."""
    return bool(_FLIP.match(name) or not _NO_FLIP.search(name))


def listed(
    name: str, *, tfds_dir: str | None, manual_dir: str | None
) -> list[str]:
    """File names of the images in a dataset that is a list of labeled ones.

    Args:
        name: "imagenet2012_subset/1pct" or "imagenet2012_subset/10pct".
        tfds_dir: See `load`.
        manual_dir: See `load`.

    Raises:
        InputError: It cannot be had.
    """
    builder = builders.prepare(name, tfds_dir, manual_dir)
    return _encoded(builder, _keys(builder), ["train"]).names


def _keys(builder) -> _Keys:
    """Finds image, class and name among a dataset's features."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    flat = dict(features.items()) if hasattr(features, "items") else {}

    def of_kind(kind: type) -> list[str]:
        found = [k for k, v in flat.items() if type(v) is kind]
        named = [k for k in builder.info.supervised_keys or () if k in found]
        return named[:1] or found

    images = of_kind(tfds.features.Image)
    labels = of_kind(tfds.features.ClassLabel)
    if len(images) != 1 or len(labels) != 1:
        kinds = ", ".join(f"{k}: {type(v).__name__}" for k, v in flat.items())
        raise InputError(
            f"--dataset={builder.info.full_name}: is no image classification "
            f"dataset: one Image and one ClassLabel are wanted, its features "
            f"are {kinds or type(features).__name__}"
        )
    image = flat[images[0]]
    if image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise InputError(
            f"--dataset={builder.info.full_name}: its images are "
            f"{np.dtype(image.np_dtype).name} with {image.shape[-1]} channels; "
            "8 bits and 1 or 3 channels are wanted"
        )
    names = [
        key
        for key in ("file_name", "filename", "image/filename", "id", "name")
        if key in flat and flat[key].np_dtype in (object, np.object_, str)
    ]
    return _Keys(images[0], labels[0], next(iter(names), None))


def _test(
    builder, keys: _Keys, read
) -> tuple[str, source.Images | source.Encoded] | tuple[None, None]:
    """The first of test and validation whose classes are all known."""
    for split in ("test", "validation"):
        if split in builder.info.splits:
            images = _known(builder, keys, read, split)
            if images is not None:
                return split, images
    return None, None


def _known(
    builder, keys: _Keys, read, split: str
) -> source.Images | source.Encoded | None:
    """A split, if the classes of its images are all known."""
    first = next(iter(_examples(builder, split, keys, 1)), None)
    if first is not None and first["label"].min() < 0:
        return None  # as all of ImageNet's test images
    images = read([split])
    if images.labels.min() >= 0:
        return images
    logging.warning(
        "%s: its %s images are not used, as the class of some is unknown",
        builder.info.full_name,
        split,
    )
    return None


def _examples(builder, split: str, keys: _Keys, batch: int) -> Iterable[dict]:
    """Batches of "image", "label" and "name" in the order on disk."""
    import tensorflow_datasets as tfds

    wanted = {"image": keys.image, "label": keys.label, "name": keys.name}
    wanted = {k: v for k, v in wanted.items() if v is not None}
    # One file after the other: places are those on disk.
    dataset = builder.as_dataset(
        split=split,
        shuffle_files=False,
        read_config=tfds.ReadConfig(
            interleave_cycle_length=1, try_autocache=False
        ),
    ).map(
        tf.autograph.experimental.do_not_convert(
            lambda example: {k: example[v] for k, v in wanted.items()}
        )
    )
    try:
        yield from dataset.batch(batch).as_numpy_iterator()
    except tf.errors.OpError as error:
        raise _unreadable(builder, split, error) from None


def _unreadable(builder, split: str, error: tf.errors.OpError) -> InputError:
    """What is wrong with a split that TensorFlow cannot read to its end."""
    if builder.info.file_format.value == "tfrecord":
        files = shards.of_builder(builder, [split])
        shards.check(list(files), list(files.values()))
        for path in files:
            try:
                for _ in tf.data.TFRecordDataset(path):
                    pass
            except tf.errors.DataLossError:
                return shards.damaged(path)
    return InputError(
        f"--dataset={builder.info.full_name}: {split} cannot be read "
        f"({error.message.splitlines()[0]}); remove {builder.data_path}, "
        "and it is prepared anew"
    )


def _held(
    builder, keys: _Keys, image_size: int | None, splits: Sequence[str]
) -> source.Images:
    """Splits one after the other, decoded, in memory."""
    if builder.info.file_format.value == "tfrecord":
        files = shards.of_builder(builder, splits)
        shards.check(list(files), list(files.values()))
    size = sum(builder.info.splits[s].num_examples for s in splits)
    shape = builder.info.features[keys.image].shape
    if image_size is not None:
        shape = (image_size, image_size, shape[-1])
    images = np.empty([size, *shape], np.uint8)
    labels = np.empty([size], np.int32)
    names, place = [], 0
    for split in splits:
        for batch in _examples(builder, split, keys, _CHUNK):
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
            + shards.advice(str(builder.data_path / "*"))
        )
    return source.Images(images, labels, names or None)


def _square(images: np.ndarray, side: int) -> np.ndarray:
    """The centres of images [n, H, W, C], resized to [n, side, side, C]."""
    height, width = images.shape[1:3]
    least = min(height, width)
    top, left = (height - least) // 2, (width - least) // 2
    images = images[:, top : top + least, left : left + least]
    resized = tf.image.resize(images, [side, side], antialias=True)
    return resized.numpy().round().clip(0, 255).astype(np.uint8)


def _encoded(
    builder, keys: _Keys, splits: Sequence[str]
) -> records.RecordImages:
    """Splits one after the other, in their record files."""
    info = builder.info
    if info.file_format.value != "tfrecord":
        raise InputError(
            f"--dataset={info.full_name}: is prepared as "
            f"{info.file_format.value}; large datasets are read from tfrecord "
            "files only"
        )
    files = shards.of_builder(builder, splits)
    index = records.scan(
        list(files),
        label=keys.label,
        name=keys.name,
        cache_name=f"{info.full_name}-{'-'.join(splits)}",
        promised=list(files.values()),
    )
    return records.RecordImages(index, keys.image)


def _measure(name: str, images: records.RecordImages) -> source.Statistics:
    """Statistics of up to 10,000 images, spread evenly over all."""
    if name.startswith("imagenet2012"):
        return source.IMAGENET
    logging.info("%s: measuring mean and deviation of its images", name)
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
