"""Datasets of TFDS: small ones with the features of the real."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from simmatch_tf.data import records
from simmatch_tf.data.sources import tfds as tfds_source
from simmatch_tf.flags.errors import InputError
from tests import small_datasets


def python(code, *args):
    """What `code` prints in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def message(name):
    with pytest.raises(InputError) as caught:
        tfds_source.check_name(name)
    return str(caught.value)


def raw(folder, name, split):
    dataset = tfds.builder(name, data_dir=folder).as_dataset(split=split)
    return list(dataset.as_numpy_iterator())


@pytest.mark.slow
def test_small_images_are_in_memory_in_the_order_on_disk(small_tfds):
    source = tfds_source.load("cifar10", tfds_dir=small_tfds)
    wanted = raw(small_tfds, "cifar10", "train")
    assert len(source.train) == 40 and len(source.test) == 10
    np.testing.assert_array_equal(
        source.train.images, [example["image"] for example in wanted]
    )
    assert source.train.labels.tolist() == [e["label"] for e in wanted]
    assert source.train.names == [e["id"].decode() for e in wanted]
    assert source.image_shape == (32, 32, 3) and source.flip
    assert len(source.class_names) == 10
    assert not tfds_source.load("svhn_cropped", tfds_dir=small_tfds).flip


def test_stl10_brings_its_unlabeled_images(small_tfds):
    source = tfds_source.load("stl10", tfds_dir=small_tfds)
    assert source.train.labels.tolist()[40:] == [-1] * 40
    assert source.train.labels.min() == -1 and len(source.train) == 80
    assert len(source.test) == 10 and source.image_shape == (96, 96, 3)


def test_another_size(small_tfds):
    source = tfds_source.load(
        "fashion_mnist", tfds_dir=small_tfds, image_size=14
    )
    wanted = raw(small_tfds, "fashion_mnist", "train")[3]["image"]
    wanted = tf.image.resize(wanted, [14, 14], antialias=True).numpy()
    assert source.image_shape == (14, 14, 1) and source.flip
    np.testing.assert_array_equal(source.train.images[3], wanted.round())


def test_images_of_any_size_stay_encoded(small_tfds):
    source = tfds_source.load(
        "imagenet2012", tfds_dir=small_tfds, image_size=32
    )
    wanted = raw(small_tfds, "imagenet2012", "train")
    assert isinstance(source.train, records.RecordImages)
    assert len(source.train) == 2000 and source.image_shape == (32, 32, 3)
    assert source.train.names == [e["file_name"].decode() for e in wanted]
    # Its validation split is the one whose classes are known.
    assert len(source.test) == 1000 and source.test.labels.min() == 0
    for place in (0, 7, 1999):
        encoded, orientation = source.train.read(tf.constant(place, tf.int64))
        assert orientation == 1
        np.testing.assert_array_equal(
            tf.io.decode_jpeg(encoded), wanted[place]["image"]
        )
    # The published statistics, not measured ones.
    assert source.statistics()[0] == [0.485, 0.456, 0.406]


def test_large_images_are_224(small_tfds):
    source = tfds_source.load("imagenet2012", tfds_dir=small_tfds)
    assert source.image_shape == (224, 224, 3)


def test_beyond_the_limit_images_stay_encoded(small_tfds, monkeypatch):
    held = tfds_source.load("cifar10", tfds_dir=small_tfds)
    monkeypatch.setattr(tfds_source, "MEMORY_LIMIT", 1000)
    source = tfds_source.load("cifar10", tfds_dir=small_tfds)
    assert source.train.encoded and source.image_shape == (32, 32, 3)
    mean, std = source.statistics()
    # Measured at 64×64, so the deviation is a smoothed one.
    np.testing.assert_allclose(mean, held.statistics()[0], atol=0.002)
    assert 0.5 < std[0] / held.statistics()[1][0] < 1.01


def test_a_list_of_labeled_images(small_tfds):
    names = tfds_source.listed(
        "imagenet2012_subset/1pct", tfds_dir=small_tfds, manual_dir=None
    )
    assert len(names) == 1000 and names[5] == "n0005_5.JPEG"


def test_no_test_split(tmp_path):
    small_datasets.prepare(
        tmp_path, "mine", 2, kind="cifar10", splits=("train",)
    )
    source = tfds_source.load("mine", tfds_dir=str(tmp_path))
    assert source.test is None and len(source.train) == 20


@pytest.mark.parametrize("held", [True, False])
def test_validation_images(tmp_path, monkeypatch, held):
    if not held:
        monkeypatch.setattr(tfds_source, "MEMORY_LIMIT", 1000)
    folder = str(tmp_path)
    for name, splits in (
        ("all", ("train", "validation", "test")),
        ("two", ("train", "validation")),
    ):
        small_datasets.prepare(folder, name, 2, kind="cifar10", splits=splits)

    def check(images, name, split):
        wanted = raw(folder, name, split)
        assert images.labels.tolist() == [e["label"] for e in wanted]
        for place in (0, 9):
            if held:
                pixels = images.images[place]
            else:
                pixels = tf.io.decode_png(images.read(tf.constant(place))[0])
            np.testing.assert_array_equal(pixels, wanted[place]["image"])

    for validation in (True, False):
        source = tfds_source.load("all", tfds_dir=folder, validation=validation)
        check(source.test, "all", "test")
        if validation:
            check(source.validation, "all", "validation")
        else:
            assert source.validation is None
        source = tfds_source.load("two", tfds_dir=folder, validation=validation)
        check(source.test, "two", "validation")
        assert source.validation is None


def test_a_test_split_with_an_unknown_class(tmp_path):
    example = {"image": np.zeros([96, 96, 3], np.uint8)}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="other",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(96, 96, 3)),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
        ),
        split_datasets={
            split: [(i, {**example, "label": v}) for i, v in enumerate(labels)]
            for split, labels in (("train", [0, 1]), ("test", [0, -1]))
        },
        disable_shuffling=True,
    )
    assert tfds_source.load("other", tfds_dir=str(tmp_path)).test is None


@pytest.mark.parametrize(
    ("name", "flips"),
    [
        ("cifar10", True),
        ("fashion_mnist", True),
        ("mnist_corrupted/identity", False),
        ("visual_domain_decathlon/svhn", False),
        ("binary_alpha_digits", False),
    ],
)
def test_characters_are_not_mirrored(name, flips):
    assert tfds_source.flips(name) == flips


def test_a_damaged_dataset(small_tfds, tmp_path):
    shutil.copytree(f"{small_tfds}/cifar10", tmp_path / "cifar10")
    (path,) = tmp_path.glob("cifar10/*/*train*")
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged: .* prepares it again$"):
        tfds_source.load("cifar10", tfds_dir=str(tmp_path))


def cut(path, left):
    """Leaves so many records, and a part of the next if `left` is no int."""
    dataset = tf.data.TFRecordDataset(str(path)).take(int(left))
    size = sum(len(r) + 16 for r in dataset.as_numpy_iterator())
    with open(path, "r+b") as file:
        file.truncate(size + 20 * (left % 1 > 0))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("left", [0, 7, 7.5])
@pytest.mark.parametrize("held", [True, False])
def test_a_file_that_was_not_copied_whole(
    small_tfds, tmp_path, monkeypatch, split, left, held
):
    if not held:
        monkeypatch.setattr(tfds_source, "MEMORY_LIMIT", 1000)
    shutil.copytree(f"{small_tfds}/cifar10", tmp_path / "cifar10")
    (path,) = tmp_path.glob(f"cifar10/*/*{split}*")
    cut(path, left)
    promised = 40 if split == "train" else 10
    with pytest.raises(InputError) as error:
        tfds_source.load("cifar10", tfds_dir=str(tmp_path))
    assert str(error.value) == (
        f"{path} holds {int(left)} examples, but dataset_info.json beside it "
        f"promises {promised}: it was not copied or written to its end; copy "
        f"it again, or remove {path.parent}, and TFDS prepares it again"
    )
    path.unlink()
    with pytest.raises(InputError, match="No such file.*; copy it again, or"):
        tfds_source.load("cifar10", tfds_dir=str(tmp_path))


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("counts", [(30, 10), (25, 15), (30, 0), (0, 10)])
def test_each_file_has_what_is_promised(
    small_tfds, tmp_path, monkeypatch, held, counts
):
    """Of two files with 30 and 10 examples; 25 and 15 are as many in all."""
    if not held:
        monkeypatch.setattr(tfds_source, "MEMORY_LIMIT", 1000)
    shutil.copytree(f"{small_tfds}/cifar10", tmp_path / "cifar10")
    (path,) = tmp_path.glob("cifar10/*/*train*")
    examples = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    path.unlink()
    for number, (promised, count) in enumerate(
        zip((30, 10), counts, strict=True)
    ):
        name = path.name.replace("00000-of-00001", f"{number:05}-of-00002")
        with tf.io.TFRecordWriter(str(path.with_name(name))) as writer:
            start = 30 * number if count <= promised else 25
            for example in examples[start : start + count]:
                writer.write(example)
    info = path.with_name("dataset_info.json")
    content = json.loads(info.read_text())
    for split in content["splits"]:
        if split["name"] == "train":
            split["shardLengths"] = ["30", "10"]
    info.write_text(json.dumps(content))
    if counts == (30, 10):
        source = tfds_source.load("cifar10", tfds_dir=str(tmp_path))
        assert len(source.train) == 40
        return
    number = int(counts[0] == 30)
    with pytest.raises(
        InputError,
        match=f"0000{number}-of-00002 holds {counts[number]} examples, but .* "
        f"promises {(30, 10)[number]}",
    ):
        tfds_source.load("cifar10", tfds_dir=str(tmp_path))


def test_no_training_split(tmp_path):
    small_datasets.prepare(
        tmp_path, "mine", 2, kind="cifar10", splits=("test",)
    )
    with pytest.raises(InputError, match="has no training images; its splits"):
        tfds_source.load("mine", tfds_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"text": tfds.features.Text()}, "its features are text: Text"),
        (
            {
                "image": tfds.features.Image(shape=(4, 4, 1), dtype=np.uint16),
                "label": tfds.features.ClassLabel(num_classes=2),
            },
            "its images are uint16 with 1 channels",
        ),
    ],
)
def test_no_image_classification(tmp_path, features, message):
    example = {
        "text": "x",
        "image": np.zeros([4, 4, 1], np.uint16),
        "label": 0,
    }
    example = {key: example[key] for key in features}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="mine",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": [(0, example)]},
    )
    with pytest.raises(InputError, match=message):
        tfds_source.load("mine", tfds_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10_1/v7", "its configurations: v4, v6"),
        ("cifar10:9.9.9", "TFDS cannot make it"),
        ("imagenet2012", "archives that you place in --tfds_manual_dir"),
    ],
)
def test_what_tfds_cannot_make(tmp_path, name, message):
    with pytest.raises(InputError, match=f"--dataset={name}: .*") as caught:
        tfds_source.load(name, tfds_dir=str(tmp_path))
    assert message in str(caught.value)


# ---------------------------------------------------------------- names --


@pytest.mark.parametrize(
    "name",
    [
        "mnist",  # by its class
        "cifar10",
        "accentdb",  # by its folder
        "emnist/letters",
        "cifar10:3.0.2",
        "cifar10:3.*.*",
        "emnist/letters:3.1.0",
        "imagenet2012_corrupted/gaussian_noise_1",
        "huggingface:mnist",
        "kubric:movi_a/128x128:1.0.0",
    ],
)
def test_names_that_are_right(name):
    assert tfds_source.check_name(name) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cifar01", "cifar10 or cifar100"),
        ("cifar01:3.0.2", "cifar10 or cifar100"),
        ("fasion_mnist/x", "fashion_mnist"),
        ("digit", "digits"),
        ("CIFAR10", "cifar10"),
        ("nowhere:cifar10", ""),
        ("qqqqxxxx", ""),
    ],
)
def test_what_tfds_does_not_have(name, meant, tmp_path):
    with pytest.raises(InputError) as caught:
        tfds_source.load(name, tfds_dir=str(tmp_path))
    text = str(caught.value)
    assert text.startswith(f"--dataset={name} is unknown: TFDS has no such")
    assert f"not prepared in {tmp_path}" in text
    assert ("did you mean" in text) == bool(meant)
    assert f"; did you mean {meant}" in text or not meant


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "cifar10 ",
        "cifar 10",
        "cifar10\n",
        "/cifar10",
        "cifar10/",
        "a/b/c",
        "cifar10:",
        "cifar10:3",
        "cifar10:3.0.2/plain",
        "cifar10/a:b",
        "10cifar",
        "../cifar10",
        "cifar-10",
        "cifär",
    ],
)
def test_malformed_names(name):
    text = message(name)
    assert f"--dataset={name!r}" in text
    assert "NAME/CONFIG:VERSION" in text


def test_own_names_have_no_config():
    for name in ("digits/8x8", "folder:1.0.0", "custom/a:1.0.0"):
        assert "no configs and no versions" in message(name)


@pytest.mark.parametrize("name", ["cifar10", "accentdb", "cifar-10", "digits"])
def test_nothing_heavy_is_imported(name, tmp_path):
    printed = python(
        "import sys\n"
        "from simmatch_tf import config, registry\n"
        "from simmatch_tf.flags import errors\n"
        "try:\n"
        "    config = config.Config(dataset=sys.argv[1],\n"
        "        tfds_dir=sys.argv[2], labels=100, steps=1)\n"
        "    entry, _ = registry.sources.find(config.dataset)\n"
        "    entry.facts.get('check_images', id)(config)\n"
        "    print('right')\n"
        "except errors.InputError:\n"
        "    print('wrong')\n"
        "print(*sys.modules)\n",
        name,
        str(tmp_path),
    )
    answer, *modules = printed.split()
    assert answer == ("wrong" if name == "cifar-10" else "right")
    tops = {module.partition(".")[0] for module in modules}
    assert tops.isdisjoint(
        {"tensorflow", "keras", "tensorflow_datasets", "numpy", "PIL"}
    )
    assert "simmatch_tf" in tops


@pytest.mark.slow
def test_a_run_of_an_unknown_dataset_leaves_nothing(tmp_path):
    words = ["--dataset=cifar01", "--labels=40", "--steps=2", "--workdir=run"]
    done = subprocess.run(
        [sys.executable, "-m", "simmatch_tf.train", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert "error: --dataset=cifar01 is unknown: TFDS has no" in done.stderr
    assert list(tmp_path.iterdir()) == []
