import dataclasses
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, registry
from simmatch_tf.data import files, fingerprint, records
from simmatch_tf.data.sources import source
from simmatch_tf.flags import command
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import inputs, loop, workdir
from tests.docs import pages


def digests(*sets):
    return [source.digest(images) for images in sets]


def all_differ(*sets):
    hashes = digests(*sets)
    return len(set(hashes)) == len(hashes)


def test_images_in_memory():
    pixels = np.random.default_rng(0).integers(0, 256, [4, 6, 3, 1], np.uint8)
    images = source.Images(pixels, np.array([0, 1, 2, 3]))
    changed = pixels.copy()
    changed[2, 1, 1, 0] ^= 1
    turned = pixels.swapaxes(1, 2)
    same = source.Images(
        turned.copy().swapaxes(1, 2), [0, 0, 0, 0], list("abcd")
    )
    assert not same.images.flags.c_contiguous
    assert source.digest(images) == source.digest(same)
    assert len(source.digest(images)) == 64
    assert all_differ(
        images,
        *(
            source.Images(other, images.labels[: len(other)])
            for other in (
                pixels[::-1],
                changed,
                pixels[:3],
                pixels.reshape(4, 3, 6, 1),
                pixels.reshape(4, 6, 1, 3),
                pixels.reshape(2, 12, 3, 1),
            )
        ),
    )


def in_files(folder):
    folder.mkdir()
    for place in range(3):
        (folder / f"{place}.png").write_bytes(b"image %d" % place)
    return files.FileImages(
        paths=[str(folder / f"{place}.png") for place in range(3)],
        labels=np.array([0, 1, 2]),
        names=["a", "b", "c"],
        orientations=np.array([1, 1, 6], np.uint8),
    )


def test_images_in_files(tmp_path):
    images = in_files(tmp_path / "one")
    first = source.digest(images)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    copied = dataclasses.replace(
        images,
        paths=[path.replace("/one/", "/two/") for path in images.paths],
        labels=np.array([2, -1, 0]),
        names=["x", "y", "z"],
    )
    assert source.digest(copied) == first
    turned = dataclasses.replace(
        images, orientations=np.array([1, 6, 1], np.uint8)
    )
    assert all_differ(
        images,
        turned,
        images.take(np.array([1, 0, 2])),
        images.take(np.array([0, 1])),
        images.take(np.array([0, 1, 2, 2])),
    )
    (tmp_path / "two" / "1.png").write_bytes(b"image X")
    assert source.digest(copied) != first
    (tmp_path / "two" / "1.png").unlink()
    with pytest.raises(InputError, match="two/1.png: cannot be read .No such"):
        source.digest(copied)


def in_records(path, count):
    path.write_bytes(b"%d records" % count)
    return joined((path, count))


def joined(*files):
    """Images in files (path, number of records), one after the other."""
    counts = [count for _, count in files]
    return records.RecordImages(
        paths=[str(path) for path, _ in files],
        shard=np.repeat(np.arange(len(files), dtype=np.int32), counts),
        offset=np.concatenate([np.arange(count) * 90 for count in counts]),
        labels=np.concatenate([np.arange(count) for count in counts]),
        names=None,
    )


def test_images_in_record_files(tmp_path):
    ones, others = in_records(tmp_path / "a", 4), in_records(tmp_path / "b", 3)
    both, swapped = (
        joined(*files)
        for files in (
            [(tmp_path / "a", 4), (tmp_path / "b", 3)],
            [(tmp_path / "b", 3), (tmp_path / "a", 4)],
        )
    )
    first, second, whole = digests(ones, others, both)
    assert all_differ(
        ones,
        others,
        both,
        swapped,
        dataclasses.replace(ones, feature="name"),
        both.take(np.array([1, 0, 2, 3, 4, 5, 6])),
        both.take(np.array([0, 1, 2, 4, 5, 6])),
    )
    # The same images of the same files, however they were come by.
    assert digests(
        both.take(np.arange(4)),
        both.take(np.arange(4, 7)),
        swapped.take(np.array([3, 4, 5, 6])),
        swapped.take(np.array([0, 1, 2])),
    ) == [first, second, first, second]
    shutil.copy(tmp_path / "a", tmp_path / "copy")
    copied = dataclasses.replace(
        ones, paths=[str(tmp_path / "copy")], labels=np.array([0] * 4)
    )
    assert source.digest(copied) == first
    (tmp_path / "b").write_bytes(b"3 Records")
    assert source.digest(both) != whole
    assert source.digest(both.take(np.arange(4))) == first
    (tmp_path / "b").unlink()
    with pytest.raises(InputError, match="/b: cannot be read .No such"):
        source.digest(both)


def source_of(train, test=None, **changes):
    return source.Source("mine", list("abcd"), train, test, False, **changes)


def test_identity_of_images_in_memory():
    """Of their pixels; classes and names are another question."""
    pixels = np.random.default_rng(0).integers(0, 256, [4, 8, 8, 1], np.uint8)
    changed = pixels.copy()
    changed[3, 7, 7, 0] ^= 1
    one, other = (source.Images(x, [0, 1, 2, 3]) for x in (pixels, changed))
    named = source.Images(pixels, [3, 2, 1, 0], list("abcd"))
    first = source_of(one, one).identity()
    # However their files lie and are stored.
    stored = source_of(named, one, origin=lambda: pytest.fail("read"))
    assert stored.identity() == first
    identities = [
        source_of(*sets).identity()
        for sets in ((one,), (one, other), (other, one), (other, other))
    ]
    assert len({first, *identities}) == 5


def test_identity_of_images_in_record_files(tmp_path):
    """Of names, sizes and places; not of where the folder is."""

    def identity(name, count=3, content=None, offsets=None):
        images = in_records(tmp_path / "x", count)
        if offsets is not None:
            images = dataclasses.replace(images, offset=offsets)
        (tmp_path / name).write_bytes(content or b"records")
        paths = {"train": str(tmp_path / name)}
        return source_of(
            images, image_size=8, origin=lambda: fingerprint.of_files(paths)
        ).identity()

    first = identity("a")
    assert identity("b") == first
    assert first != identity("a", count=4)
    assert first != identity("a", content=b"longer records")
    # Images of other sizes in a file of the same size.
    assert first != identity("a", offsets=np.array([0, 80, 180]))


def test_identity_of_images_in_files(tmp_path):
    """Of names, sizes and, where they are known, contents."""
    images = in_files(tmp_path / "one")

    def identity(**digests):
        paths = {name: images.paths[0] for name in "ab"}
        return source_of(
            images,
            image_size=8,
            origin=lambda: fingerprint.of_files(paths, digests),
        ).identity()

    first = identity(a="1", b="2")
    later = tmp_path / "one/0.png"
    os.utime(later, (5, 5))
    assert identity(a="1", b="2") == first != identity(a="1", b="3")


def test_images_taken():
    rng = np.random.default_rng(0)
    images = source.Images(
        rng.integers(0, 256, [4, 4, 5, 3]).astype(np.uint8),
        np.arange(4) - 1,
        [f"image {number}" for number in range(4)],
    )
    places = np.array([3, 0, 3, 1])
    taken = images.take(places)
    np.testing.assert_array_equal(
        taken.fetch(tf.range(4)), images.images[places]
    )
    assert taken.labels.tolist() == [2, -1, 2, 0]
    assert taken.names == ["image 3", "image 0", "image 3", "image 1"]
    unnamed = source.Images(images.images, images.labels)
    assert unnamed.take(places).names is None


# ------------------------------------------------------- a source of one's own


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The source of docs/extending.md and a table of 200 digits, as flags."""
    (code,) = [
        block.text
        for block in pages.blocks(pages.ROOT / "docs" / "extending.md")
        if "registry.sources.register" in block.text
        and block.language == "python"
    ]
    assert len(code.splitlines()) < 40
    (tmp_path / "table.py").write_text(code)
    digits = datasets.load_digits()
    rows = np.insert(digits.data[:200] * 15, 3, digits.target[:200], axis=1)
    np.savetxt(tmp_path / "digits.csv", rows, "%d", delimiter=",")
    # What the file registers is forgotten after the test.
    list(registry.sources)
    entries = dict(registry.sources._entries)
    monkeypatch.setattr(registry.sources, "_entries", entries)
    before = set(sys.modules)
    yield {
        "plugin": (str(tmp_path / "table.py"),),
        "dataset": "table",
        "table.file": str(tmp_path / "digits.csv"),
        "table.label_column": 3,
        "labels": 20,
    }
    for name in set(sys.modules) - before:
        if name.startswith("simmatch_tf_plugin"):
            del sys.modules[name]


def test_a_source_in_a_file_of_its_own(table):
    config = config_lib.Config(steps=1, **table)
    preflight.check_images(config)
    loaded = inputs.make_source(config)
    digits = datasets.load_digits()
    assert loaded.class_names == [str(digit) for digit in range(10)]
    assert (len(loaded.train), len(loaded.test)) == (100, 100)
    np.testing.assert_array_equal(
        loaded.test.images[..., 0], digits.images[100:200] * 15
    )
    assert loaded.test.labels.tolist() == digits.target[100:200].tolist()
    assert inputs.outline(config).train_images == 100
    assert fingerprint.of_config(config, fingerprint.Fingerprint({})) is None
    text = command.help_text(config_lib.Config, ["--dataset=table"])
    assert "For --dataset=table:" in text


def test_flags_of_a_source_in_a_file_of_its_own(table, tmp_path):
    def refused(message, **changes):
        with pytest.raises(InputError, match=message):
            preflight.check_images(
                config_lib.Config(steps=1, **{**table, **changes})
            )

    refused("--table.file=gone: no such file", **{"table.file": "gone"})
    refused("--table.test_rows=0: must be at least 1", **{"table.test_rows": 0})
    refused(
        "--table.file=.*: is for --dataset=table, not digits", dataset="digits"
    )
    refused("is for --dataset=folder", data_dir=str(tmp_path))


def test_a_finished_run_compares_the_pixels_of_its_source(table, tmp_path):
    config = config_lib.Config(steps=1, workdir=str(tmp_path / "run"), **table)
    with workdir.claim(config) as folder:
        folder.begin(config, inputs.make_source(config).fingerprint)
        folder.results.write_text("{}")
    with workdir.claim(config) as folder:
        assert folder.unread
        with pytest.raises(InputError, match="results.json"):  # it is read
            loop.fit_in(folder, config)
    path = tmp_path / "digits.csv"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[1], rows[0], *rows[2:]]))
    with workdir.claim(config) as folder:
        with pytest.raises(InputError, match="other data than --dataset=table"):
            loop.fit_in(folder, config)


@pytest.mark.slow
def test_wrong_images_of_a_source_in_a_file_of_its_own(table, tmp_path):
    path = tmp_path / "wrong.py"
    path.write_text(
        "import numpy as np\n"
        "from simmatch_tf import registry\n"
        "from simmatch_tf.data.sources import source\n"
        "@registry.sources.register('wrong_test')\n"
        "def load(config):\n"
        "    source.Images(np.zeros([3, 8, 8, 1]), np.arange(3))\n"
    )
    config = config_lib.Config(
        plugin=(str(path),), dataset="wrong_test", labels=3, steps=1
    )
    place = f"{path}, line 6: images are float64 .* must be uint8"
    with pytest.raises(InputError, match=place):
        inputs.make_source(config)
    with pytest.raises(InputError, match=place):
        inputs.outline(config)


@pytest.mark.slow
def test_a_run_with_a_source_of_its_own(table, tmp_path):
    """It is trained, evaluated, and refused with another column of labels."""

    def python(*words):
        return subprocess.run(
            [sys.executable, "-m", *words],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(pages.ROOT)},
        )

    words = [f"--plugin={table['plugin'][0]}", "--dataset=table"]
    words += [f"--table.file={table['table.file']}", "--table.label_column=3"]
    words += [
        "--labels=20",
        "--steps=2",
        "--backbone=wrn_10_1",
        "--workdir=run",
    ]
    train = ["simmatch_tf.train", *words, "--batch_size=8"]
    trained = python(*train)
    assert trained.returncode == 0, trained.stderr
    flags = (tmp_path / "run" / "flags.cfg").read_text().splitlines()
    assert set(words[:4]) <= set(flags)
    evaluated = python("simmatch_tf.evaluate", "--workdir=run")
    assert evaluated.returncode == 0, evaluated.stderr
    other = python(*train, "--table.label_column=4")
    assert other.returncode == 1 and "--table.label_column" in other.stderr
