import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import io
from simmatch_tf.data import records
from simmatch_tf.flags.errors import InputError


def example(number):
    def of(values, kind):
        return tf.train.Feature(**{f"{kind}_list": values})

    return tf.train.Example(
        features=tf.train.Features(
            feature={
                "image": of(
                    tf.train.BytesList(value=[b"x" * (number + 1)]), "bytes"
                ),
                "label": of(tf.train.Int64List(value=[number % 3]), "int64"),
                "name": of(
                    tf.train.BytesList(value=[f"n{number}".encode()]), "bytes"
                ),
            }
        )
    ).SerializeToString()


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"part{number}") for number in range(3)]
    number = 0
    for path, count in zip(paths, (5, 0, 300), strict=True):
        with tf.io.TFRecordWriter(path) as writer:
            for _ in range(count):
                writer.write(example(number))
                number += 1
    return paths


def scan(files, **changes):
    options = {"label": "label", "name": "name", "cache_name": "a/b"}
    return records.scan(files, **{**options, **changes})


def test_records_are_read_in_any_order(files):
    images = scan(files)
    assert len(images) == 305 and images.names[304] == "n304"
    assert images.labels.tolist() == [n % 3 for n in range(305)]
    places = np.random.default_rng(0).permutation(305)
    dataset = tf.data.Dataset.from_tensor_slices(places.astype(np.int64))
    dataset = dataset.map(lambda i: images.read(i), num_parallel_calls=3)
    contents = [encoded for encoded, _ in dataset.as_numpy_iterator()]
    assert contents == [b"x" * (place + 1) for place in places]


def test_without_labels_and_names(files):
    index = scan(files, label=None, name=None)
    assert index.names is None and set(index.labels.tolist()) == {-1}


def test_the_index_is_kept_until_the_files_change(files, monkeypatch):
    first = scan(files)
    kept = list(io.cache_folder().glob("records-a-b-*.npz"))
    real = records._scan_file
    monkeypatch.setattr(
        records, "_scan_file", lambda *_: pytest.fail("scanned again")
    )
    again = scan(files)
    for name in ("shard", "offset", "labels", "names"):
        np.testing.assert_array_equal(
            getattr(again, name), getattr(first, name)
        )
    monkeypatch.setattr(records, "_scan_file", real)
    with tf.io.TFRecordWriter(files[0]) as writer:
        writer.write(example(7))
    assert len(scan(files)) == 301
    now = list(io.cache_folder().glob("records-a-b-*.npz"))
    assert len(now) == len(kept) + 1


def test_a_damaged_index_is_made_again(files):
    scan(files)
    for path in io.cache_folder().glob("*.npz"):
        path.write_bytes(b"PK no archive")
    assert len(scan(files)) == 305


def test_an_index_that_cannot_be_kept(files, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(scan(files)) == 305


def test_files_that_cannot_be_read(files):
    with pytest.raises(InputError, match="gone: cannot be read"):
        scan([*files, files[0] + "gone"])
    size = os.path.getsize(files[2])
    with open(files[2], "r+b") as file:
        file.truncate(size - 5)
    with pytest.raises(InputError, match="part2: is damaged: .*copy it again"):
        scan(files)
    message = (
        "part2 holds 299 examples, but dataset_info.json beside it promises "
        "300: it was not copied or written to its end; copy it again, or"
    )
    with pytest.raises(InputError, match=message):
        scan(files, promised=[5, 0, 300])


@pytest.mark.parametrize("left", [0, 100])
def test_fewer_records_than_promised(files, left):
    """Whole records: TensorFlow reads on; an index made before, too."""
    with open(files[2], "r+b") as file:
        file.truncate(_size(files[2], left))
    assert len(scan(files)) == 5 + left  # kept from now on
    message = f"part2 holds {left} examples, but .* promises 300"
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            scan(files, promised=[5, 0, 300])
    with pytest.raises(InputError, match="part0 holds 5 .*and 1 other file"):
        scan(files, promised=[6, 0, 300])
    assert len(scan(files, promised=[5, 0, left])) == 5 + left


def _size(path, count):
    """Bytes of the first records in a file."""
    dataset = tf.data.TFRecordDataset(path).take(count)
    return sum(len(r) + 16 for r in dataset.as_numpy_iterator())


def test_counted_without_tensorflow(files, tmp_path):
    assert [records.count(path) for path in files] == [5, 0, 300]
    records.check(files, [5, 0, 300])
    records.check(["gs://bucket/part0"], [5])  # not looked into
    content = pathlib.Path(files[2]).read_bytes()
    path = tmp_path / "cut"
    ends = [_size(files[2], n) for n in (1, 2, 3)]
    for size in range(ends[2]):
        path.write_bytes(content[:size])
        assert records.count(str(path)) == sum(end <= size for end in ends)


def test_missing_features(files):
    with pytest.raises(InputError, match="part0: cannot be read .*colour"):
        scan(files, label="colour")


@pytest.mark.parametrize("name", ["name", None])
def test_taken_and_joined(files, name):
    """Of (records 0 … 4) and (none, then 5 … 304): both have several files."""
    ones = scan(files[:1], name=name)
    others = scan(files[1:], name=name)
    places = [304, 0, 5, 4, 0]
    taken = [ones.join(others).take(np.array(places))]
    taken.append(
        others.take(np.array([299, 0]))
        .join(ones.take(np.array([4, 0])))
        .take(np.array([0, 3, 1, 2, 3]))
    )
    for images in taken:
        assert images.labels.tolist() == [place % 3 for place in places]
        read = [images.read(tf.constant(n))[0].numpy() for n in range(5)]
        assert read == [b"x" * (place + 1) for place in places]
        assert images.names == (name and [f"n{place}" for place in places])


def test_joined_with_images_without_names(files):
    named = scan(files[:1])
    unnamed = scan(files[2:], name=None)
    assert named.join(unnamed).names is unnamed.join(named).names is None
