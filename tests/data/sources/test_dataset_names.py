import importlib.machinery
import json
import subprocess
import sys

import pytest

from simmatch_tf.data.sources import dataset_names
from simmatch_tf.flags import commandline


def python(code, *args):
    """What `code` prints in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def prepare(*parts):
    """Makes the folder `parts` one that holds a prepared dataset."""
    folder = parts[0].joinpath(*parts[1:])
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")


def message(name, tfds_dir):
    with pytest.raises(commandline.InputError) as caught:
        dataset_names.check(name, tfds_dir)
    return str(caught.value)


def test_names_are_those_that_tfds_lists():
    # In a process of its own: other tests may have defined datasets here.
    listed = python(
        "import json, tensorflow_datasets as tfds\n"
        "print(json.dumps(tfds.list_builders(with_community_datasets=False)))"
    )
    listed = set(json.loads(listed.splitlines()[-1]))
    assert len(listed) > 100
    assert dataset_names.tfds_names() == listed


def test_snake_case_is_tfds_rule():
    assert {
        name: dataset_names._snake_case(name)
        for name in ("MNIST", "FashionMNIST", "Cifar10", "INaturalist2017")
    } == {
        "MNIST": "mnist",
        "FashionMNIST": "fashion_mnist",
        "Cifar10": "cifar10",
        "INaturalist2017": "i_naturalist2017",
    }


def test_class_names(tmp_path):
    """Over several files; base classes and what is no builder are left out."""
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "a.py").write_text(
        "class Grand(b.MiddleOne):\n  pass\n"
        "class NotAData(object):\n  pass\n"
        "class Conf(tfds.core.BuilderConfig):\n  pass\n"
    )
    (tmp_path / "b.py").write_text(
        "class MiddleOne(common.Shared):\n  pass\n"
        "class Shared(\n"
        "    tfds.core.GeneratorBasedBuilder, skip_registration=True\n"
        "):\n  pass\n"
    )
    (tmp_path / "b_test.py").write_text("class Tested(b.Shared):\n  pass\n")
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "c.py").write_text("class Core(Shared):\n  pass\n")
    assert dataset_names._class_names(str(tmp_path)) == {"grand", "middle_one"}


def test_own_names_are_not_tfds_names():
    assert not dataset_names.tfds_names().intersection(dataset_names.OWN)


@pytest.mark.parametrize(
    "name",
    [
        *dataset_names.OWN,
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
def test_names_that_are_right(name, tmp_path):
    assert dataset_names.check(name, tmp_path) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cifar01", "cifar10 or cifar100"),
        ("cifar01:3.0.2", "cifar10 or cifar100"),
        ("fasion_mnist/x", "fashion_mnist"),
        ("digit", "digits"),
        ("CIFAR10", "cifar10"),
    ],
)
def test_nearest_name(name, meant, tmp_path):
    text = message(name, tmp_path)
    assert text.startswith(f"--dataset={name} is unknown")
    assert f"; did you mean {meant}" in text
    assert ("in lower case" in text) == (name == "CIFAR10")


def test_nothing_near(tmp_path):
    text = message("qqqqxxxx", tmp_path)
    assert f"none of TFDS's {len(dataset_names.tfds_names())} datasets" in text
    assert (
        'python -c "import tensorflow_datasets as tfds; '
        'print(tfds.list_builders())"'
    ) in text
    assert str(tmp_path) in text
    assert "mnist" not in text


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
def test_malformed_names(name, tmp_path):
    text = message(name, tmp_path)
    assert f"--dataset={name!r}" in text
    assert "NAME/CONFIG:VERSION" in text


def test_own_names_have_no_config(tmp_path):
    for name in ("digits/8x8", "folder:1.0.0", "custom/a:1.0.0"):
        assert "no configs and no versions" in message(name, tmp_path)


def test_unknown_namespace(tmp_path):
    text = message("cifar10:latest", tmp_path)
    assert "cifar10 is not a namespace of TFDS" in text
    assert "NAME:1.0.0" in text and "huggingface" in text
    assert "did you mean kubric?" in message("kubrik:x", tmp_path)


def test_prepared_in_a_folder(tmp_path):
    prepare(tmp_path, "plain_ones", "1.0.0")
    prepare(tmp_path, "with_config", "64x64", "2.10.3")
    prepare(tmp_path, "unfinished", "incomplete.ABC_1.0.0")
    prepare(tmp_path, "UpperCase", "1.0.0")  # TFDS would not find it
    prepare(tmp_path, "too", "deep", "er", "1.0.0")
    (tmp_path / "empty" / "1.0.0").mkdir(parents=True)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "file").write_text("")
    assert dataset_names.prepared_names(tmp_path) == {
        "plain_ones",
        "with_config",
    }
    assert dataset_names.prepared_names(str(tmp_path)) == {
        "plain_ones",
        "with_config",
    }
    dataset_names.check("plain_ones", tmp_path)
    dataset_names.check("with_config/64x64:2.10.3", tmp_path)
    assert "is unknown" in message("unfinished", tmp_path)
    assert "did you mean plain_ones" in message("plain_one", tmp_path)


def test_no_folder(tmp_path):
    assert dataset_names.prepared_names(tmp_path / "none") == frozenset()
    (tmp_path / "file").write_text("")
    assert dataset_names.prepared_names(tmp_path / "file") == frozenset()


def test_default_folder(tmp_path, monkeypatch):
    prepare(tmp_path, "data", "ours_alone", "1.0.0")
    prepare(tmp_path, "tensorflow_datasets", "at_home_here", "1.0.0")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    assert dataset_names.prepared_names(None) == {"ours_alone"}
    dataset_names.check("ours_alone")
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert dataset_names.prepared_names(None) == {"at_home_here"}
    assert dataset_names.prepared_names("~/data") == {"ours_alone"}
    dataset_names.check("at_home_here")
    assert "is unknown" in message("ours_alone", None)


def test_remote_folders_are_left_to_tfds():
    dataset_names.check("qqqqxxxx", "gs://bucket/data")
    assert "lower case" in message("QQQQxxxx", "gs://bucket/data")


def test_without_tfds(tmp_path, monkeypatch):
    # A folder of data that is called as the package is not the package.
    (tmp_path / "tensorflow_datasets").mkdir()
    finder = importlib.machinery.PathFinder()
    data = finder.find_spec("tensorflow_datasets", [str(tmp_path)])
    for spec in (None, data):
        monkeypatch.setattr(
            "importlib.util.find_spec", lambda name, spec=spec: spec
        )
        assert dataset_names.tfds_names() == frozenset()
        dataset_names.check("digits", tmp_path)
        text = message("cifar10", tmp_path)
        assert "--dataset=cifar10" in text and "not installed" in text
        assert "pip install tensorflow-datasets" in text
    monkeypatch.undo()
    assert data is not None and data.origin is None


@pytest.mark.parametrize("name", ["cifar10", "accentdb", "cifar01"])
def test_nothing_heavy_is_imported(name, tmp_path):
    loaded = python(
        "import sys\n"
        "from simmatch_tf.flags import commandline\n"
        "from simmatch_tf.data.sources import dataset_names as datasets\n"
        "try:\n"
        "    datasets.check(*sys.argv[1:])\n"
        "    print('right')\n"
        "except commandline.InputError:\n"
        "    print('wrong')\n"
        "print(*sys.modules)\n",
        name,
        str(tmp_path),
    )
    answer, *modules = loaded.split()
    assert answer == ("wrong" if name == "cifar01" else "right")
    tops = {module.partition(".")[0] for module in modules}
    assert tops.isdisjoint({"tensorflow", "tensorflow_datasets", "numpy"})
    assert "simmatch_tf" in tops
