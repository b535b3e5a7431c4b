import dataclasses
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.data import files, fingerprint, records
from simmatch_tf.data.sources import source
from simmatch_tf.flags.commandline import InputError


def digests(*sets):
    return [source.digest(images) for images in sets]


def all_differ(*sets):
    found = digests(*sets)
    return len(set(found)) == len(found)


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
    index = records.Index(
        files=[str(path) for path, _ in files],
        shard=np.repeat(np.arange(len(files), dtype=np.int32), counts),
        offset=np.concatenate([np.arange(count) * 90 for count in counts]),
        labels=np.concatenate([np.arange(count) for count in counts]),
        names=None,
    )
    return records.RecordImages(index)


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
    index = dataclasses.replace(
        ones.index, files=[str(tmp_path / "copy")], labels=np.array([0] * 4)
    )
    copied = dataclasses.replace(ones, index=index)
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
    found = [
        source_of(*sets).identity()
        for sets in ((one,), (one, other), (other, one), (other, other))
    ]
    assert len({first, *found}) == 5


def test_identity_of_images_in_record_files(tmp_path):
    """Of names, sizes and places; not of where the folder is."""

    def identity(name, count=3, content=None, offsets=None):
        images = in_records(tmp_path / "x", count)
        if offsets is not None:
            index = dataclasses.replace(images.index, offset=offsets)
            images = dataclasses.replace(images, index=index)
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
