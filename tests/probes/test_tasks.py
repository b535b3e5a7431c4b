"""What a dataset is to transfer."""

import numpy as np
import pytest

from simmatch_tf import transfer
from simmatch_tf.data.sources import source
from simmatch_tf.flags.errors import InputError
from simmatch_tf.probes import tasks
from tests import small_datasets


def images(labels):
    pixels = np.arange(len(labels), dtype=np.uint8)
    pixels = np.broadcast_to(
        pixels[:, None, None, None], [len(labels), 8, 8, 1]
    )
    return source.Images(pixels, np.array(labels))


def task(train, test, validation=None, name="own", classes="abcdef"):
    return tasks.Task(
        name=name,
        class_names=tuple(classes),
        train=images(train),
        validation=None if validation is None else images(validation),
        test=images(test),
        flip=False,
    )


def flags(**values):
    return transfer.TransferConfig(
        **{"model": ("keras_cv:resnet18",), "datasets": "digits", **values}
    )


def test_a_fifth_of_each_class_is_held_out_and_always_the_same():
    labels = [0] * 50 + [1] * 10 + [2] * 3 + [3]
    held = task(labels, [0, 1]).held_out
    counts = np.bincount(np.array(labels)[held], minlength=4)
    assert counts.tolist() == [10, 2, 1, 0]
    np.testing.assert_array_equal(held, task(labels, [2]).held_out)
    # Drawn, not the first of each class.
    assert not held[:10].all()


def test_official_validation_images_are_taken():
    with_validation = task([0, 1, 0, 1], [0], validation=[1, 0])
    assert not with_validation.held_out.any()
    assert set(with_validation.digests) == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train": [0, 1], "test": [0, 2, 4]},
            "no training image is of 2 classes that test images have: c, e",
        ),
        (
            {"train": [0, 1], "test": [0], "validation": [5]},
            "1 classes that validation images have: f",
        ),
        ({"train": [3, 3], "test": [3]}, "are of one class, d"),
    ],
)
def test_what_cannot_be_learned_is_refused(values, message):
    parts = {name: images(labels) for name, labels in values.items()}
    own = source.Source("own", "abcdef", flip=False, **parts)
    with pytest.raises(InputError, match=f"--datasets=own: .*{message}"):
        tasks.of_source(own)


def test_a_class_that_is_nowhere_is_left_out():
    parts = images([1, 3, 1, 3]), images([3, 1])
    result = tasks.of_source(source.Source("own", "abcdef", *parts, False))
    assert result.class_names == ("b", "d")
    assert result.train.labels.tolist() == [0, 1, 0, 1]
    assert result.test.labels.tolist() == [1, 0]


def test_nothing_can_be_held_out_of_single_images():
    with pytest.raises(InputError, match="every class has only one training"):
        task([0, 1], [0]).held_out  # noqa: B018


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("oxford_iiit_pet", "mean_per_class"),
        ("oxford_flowers102:2.1.1", "mean_per_class"),
        ("caltech101", "mean_per_class"),
        ("cifar10", "top1"),
        ("dtd", "top1"),
    ],
)
def test_metrics(name, metric):
    assert task([0, 1], [0], name=name).metric == metric


def test_identity_is_that_of_images_classes_and_metric():
    base = task([0, 1], [0]).identity
    assert base == task([0, 1], [0], classes="uvwxyz").identity
    others = [
        task([1, 0], [0]),
        task([0, 1], [1]),
        task([0, 1, 1], [0]),
        task([0, 1], [0], validation=[0]),
        task([0, 1], [0], name="caltech101"),
    ]
    assert len({base, *(other.identity for other in others)}) == 6


def test_images_without_a_class_are_left_out():
    train = images([-1, 0, -1, 1, 1])
    result = tasks.of_source(
        source.Source("own", ["a", "b"], train, images([0]), False)
    )
    assert result.train.labels.tolist() == [0, 1, 1]
    assert result.train.images[:, 0, 0, 0].tolist() == [1, 3, 4]
    none = source.Source("own", ["a"], images([-1, -1]), images([0]), False)
    with pytest.raises(InputError, match="no training image has a class"):
        tasks.of_source(none)
    untested = source.Source("folder", ["a"], images([0, 0]), None, False)
    with pytest.raises(InputError, match="no test images .* in test/CLASS/"):
        tasks.of_source(untested)


def test_datasets_of_tfds(tmp_path, small_tfds):
    cifar100 = tasks.load(
        "cifar100", flags(datasets="cifar100", tfds_dir=small_tfds)
    )
    assert len(cifar100.train) == 200 and cifar100.validation is None
    assert cifar100.held_out.sum() == 100 and cifar100.flip
    small_datasets.prepare(
        tmp_path,
        "cifar10",
        splits=("train", "test", "validation"),
    )
    cifar10 = tasks.load(
        "cifar10", flags(datasets="cifar10", tfds_dir=str(tmp_path))
    )
    assert len(cifar10.validation) == len(cifar10.test) == 10
    assert cifar10.train.images.shape[1:] == (32, 32, 3)


def test_the_digits_are_the_originals():
    digits_task = tasks.load("digits", flags())
    assert digits_task.train.images.shape == (1400, 8, 8, 1)
    assert len(digits_task.test) == 397 and not digits_task.flip


def test_a_folder(tmp_path):
    import PIL.Image

    for place in ("labeled/a", "labeled/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(3):
            level = 40 * number + len(place)
            PIL.Image.new("RGB", (20, 30), (level, 9, 99)).save(
                tmp_path / place / f"{number}.png"
            )
    folder_task = tasks.load(
        "folder", flags(datasets="folder", data_dir=str(tmp_path))
    )
    assert folder_task.train.labels.tolist() == [0] * 3 + [1] * 3
    assert (
        folder_task.class_names == ("a", "b")
        and folder_task.held_out.sum() == 2
    )
    # The same images by a table, and as ImageFolder has them.
    identity = folder_task.identity
    (tmp_path / "labeled").rename(tmp_path / "more")
    rows = [f"more/{c}/{n}.png,{c}" for c in "ab" for n in range(3)]
    (tmp_path / "l.csv").write_text("\n".join(["file,class", *rows]))
    by_table = tasks.load(
        "folder",
        flags(
            datasets="folder",
            data_dir=str(tmp_path),
            labels_from=str(tmp_path / "l.csv"),
        ),
    )
    assert by_table.train.labels.tolist() == [0] * 3 + [1] * 3
    assert by_table.identity == identity
    (tmp_path / "more").rename(tmp_path / "train")
    image_folder = tasks.load(
        "folder", flags(datasets="folder", data_dir=str(tmp_path))
    )
    assert image_folder.identity == identity


def test_a_version_that_is_not_there(small_tfds):
    with pytest.raises(InputError, match="^--dataset=cifar10:9.9.9: TFDS can"):
        tasks.load(
            "cifar10:9.9.9", flags(datasets="cifar10", tfds_dir=small_tfds)
        )
