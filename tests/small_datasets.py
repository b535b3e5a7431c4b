"""Small prepared TFDS datasets with the features of the real ones."""

import numpy as np

# Name → (version, image shape, encoding, class names or number, key of the
# file name, split → images).
KINDS = {
    "cifar10": ("3.0.2", (32, 32, 3), "png", 10, "id", ("train", "test")),
    "cifar100": ("3.0.2", (32, 32, 3), "png", 100, "id", ("train", "test")),
    "svhn_cropped": ("3.1.0", (32, 32, 3), "png", 10, "id", ("train", "test")),
    "fashion_mnist": ("3.0.1", (28, 28, 1), "png", 10, None, ("train", "test")),
    "stl10": (
        "1.0.0",
        (96, 96, 3),
        "png",
        10,
        None,
        ("train", "test", "unlabelled"),
    ),
    "imagenet2012": (
        "5.1.0",
        (None, None, 3),
        "jpeg",
        1000,
        "file_name",
        ("train", "validation"),
    ),
    "imagenet2012_subset/1pct": (
        "5.0.0",
        (None, None, 3),
        "jpeg",
        1000,
        "file_name",
        ("train", "validation"),
    ),
}
KINDS["imagenet2012_subset/10pct"] = KINDS["imagenet2012_subset/1pct"]


def prepare(
    data_dir, name, per_class=4, *, kind=None, labels=None, splits=None
):
    """Prepares `name` in `data_dir`; a class is a grey level.

    `labels`: of the training images, instead of `per_class` of each class.
    """
    import tensorflow_datasets as tfds

    version, shape, encoding, classes, name_key, own = KINDS[kind or name]
    splits = splits or own
    features = {
        "image": tfds.features.Image(shape=shape, encoding_format=encoding),
        "label": tfds.features.ClassLabel(num_classes=classes),
    }
    if name_key:
        features[name_key] = tfds.features.Text()
    if name == "cifar100":
        features["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
    rng = np.random.default_rng(0)

    def examples(split):
        if labels is not None and split == "train":
            chosen = list(labels)
        elif split == "unlabelled":
            chosen = [-1] * (per_class * classes)
        else:
            chosen = list(range(classes)) * (
                per_class if split == "train" else 1
            )
        for number, label in enumerate(chosen):
            side = [s or int(rng.integers(40, 90)) for s in shape[:2]]
            level = 20 + 20 * (label % 10)
            image = rng.integers(level, level + 40, [*side, shape[2]])
            example = {"image": image.astype(np.uint8), "label": label}
            if name_key:
                example[name_key] = f"n{label:04}_{number}.JPEG"
            if name == "cifar100":
                example["coarse_label"] = label // 5
            yield number, example

    base, _, config = name.partition("/")
    tfds.dataset_builders.store_as_tfds_dataset(
        name=base,
        version=version,
        data_dir=data_dir,
        config=config or None,
        features=tfds.features.FeaturesDict(features),
        split_datasets={s: list(examples(s)) for s in splits},
        disable_shuffling=True,
    )
