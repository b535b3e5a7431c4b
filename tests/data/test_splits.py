import dataclasses
import json

import numpy as np
import pytest

from simmatch_tf.data import splits
from simmatch_tf.data.sources import digits, source
from simmatch_tf.flags.errors import InputError

DRAW = {
    "labels": 40,
    "label_fraction": None,
    "split_seed": 0,
    "validation_fraction": 0.0,
    "unlabeled_includes_labeled": True,
}


@pytest.fixture(scope="module")
def data():
    return digits.load(8)


def draw(data, **changes):
    return splits.draw(data, **{**DRAW, **changes})


def test_digits_are_1400_and_397_distinct_images(data):
    assert len(data.train) == 1400 and len(data.test) == 397
    assert data.train.images.dtype == np.uint8
    assert data.image_shape == (8, 8, 1) and not data.flip
    assert digits.load().image_shape == (16, 16, 1)
    again = digits.load(8)
    np.testing.assert_array_equal(data.test.images, again.test.images)
    # All values of the originals, 0 to 16, fill the range of a byte.
    assert data.train.images.min() == 0 and data.train.images.max() == 255


def test_balanced_in_class_order_then_by_index(data):
    split = draw(data)
    labels = data.train.labels[split.labeled]
    np.testing.assert_array_equal(labels, np.repeat(np.arange(10), 4))
    for label in range(10):
        assert (np.diff(split.labeled[labels == label]) > 0).all()
    assert len(split.unlabeled) == 1400 and not len(split.validation)


def test_the_split_depends_on_the_seed(data):
    one, same, other = draw(data), draw(data), draw(data, split_seed=1)
    np.testing.assert_array_equal(one.labeled, same.labeled)
    assert len(np.intersect1d(one.labeled, other.labeled)) < 10
    # Fewer labels of a seed are among its more.
    more = draw(data, labels=100)
    assert np.isin(one.labeled, more.labeled).all()


def test_validation_leaves_training_memory_and_unlabeled(data):
    split = draw(data, validation_fraction=0.25)
    assert len(split.labeled) == 30 and len(split.validation) == 10
    np.testing.assert_array_equal(
        data.train.labels[split.validation], np.arange(10)
    )
    assert not np.isin(split.validation, split.labeled).any()
    assert not np.isin(split.validation, split.unlabeled).any()
    assert len(split.unlabeled) == 1390
    # At least one of each class, however small the share.
    assert len(draw(data, validation_fraction=0.01).validation) == 10


def test_labeled_images_out_of_the_unlabeled_set(data):
    split = draw(data, unlabeled_includes_labeled=False)
    assert len(split.unlabeled) == 1360
    assert not np.isin(split.labeled, split.unlabeled).any()


def test_label_fraction(data):
    split = draw(data, labels=None, label_fraction=0.1)
    counts = np.bincount(data.train.labels[split.labeled])
    sizes = np.bincount(data.train.labels)
    np.testing.assert_array_equal(counts, np.round(0.1 * sizes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": 45}, "--labels=45 is not divisible by the 10 classes"),
        ({"labels": 2000}, "needs 200 images of each class, but class"),
        (
            {"labels": 10, "validation_fraction": 0.5},
            "has 1 labeled image, and with 1 set aside none would be left to "
            "train on; label more of them, leave the class out, or give",
        ),
    ],
)
def test_bad_arguments(data, changes, message):
    with pytest.raises(InputError, match=message):
        draw(data, **changes)


def test_no_unlabeled_image_left():
    images = np.zeros([4, 8, 8, 1], np.uint8)
    labels = np.array([0, 0, 1, 1])
    tiny = source.Source(
        "tiny",
        ["a", "b"],
        source.Images(images, labels),
        source.Images(images, labels),
        False,
    )
    with pytest.raises(InputError, match="no unlabeled image is left"):
        draw(tiny, labels=4, unlabeled_includes_labeled=False)


def test_written_and_read_back(data, tmp_path):
    split = draw(data, validation_fraction=0.25)
    path = tmp_path / "split.json"
    splits.write(path, split, data)
    restored = splits.read(path, data)
    for name in ("labeled", "validation", "unlabeled"):
        np.testing.assert_array_equal(
            getattr(restored, name), getattr(split, name)
        )
    content = json.loads(path.read_text())
    assert content["labels"] == [label for label in range(10) for _ in range(3)]
    assert list(tmp_path.iterdir()) == [path]


def test_class_names_in_another_form_of_unicode(data, tmp_path):
    """As those of a run whose folder came out of an archive of macOS."""
    path = tmp_path / "split.json"
    names = [f"caf\u00e9 {number}" for number in range(10)]
    here = dataclasses.replace(data, class_names=names)
    splits.write(path, draw(data), here)
    text = path.read_text(encoding="utf-8")
    for mark in ("", "\ufeff"):  # as an editor may leave it
        other = text.replace("\u00e9", "e\u0301")
        path.write_text(mark + other, encoding="utf-8")
        restored = splits.read(path, here)
        np.testing.assert_array_equal(restored.labeled, draw(data).labeled)


def test_unreadable_or_foreign_file(data, tmp_path):
    path = tmp_path / "split.json"
    with pytest.raises(InputError, match="cannot read the run's label split"):
        splits.read(path, data)
    path.write_text("{}")
    with pytest.raises(InputError, match="cannot read the run's label split"):
        splits.read(path, data)
    split = draw(data)
    splits.write(path, split, data)
    good = json.loads(path.read_text())
    for changes, message in (
        ({"image_shape": [9, 8, 1]}, r"is \[9, 8, 1\] there and \[8, 8, 1\] h"),
        ({"class_names": ["a"]}, r"class_names is \['a'\] there"),
        ({"train_images": 1401}, "train_images is 1401 there and 1400 here"),
        ({"validation": [1400]}, r"validation: not all are in \[0, 1400\)"),
        ({"labels": [0]}, "labels and labeled are not of one length"),
    ):
        path.write_text(json.dumps({**good, **changes}))
        with pytest.raises(InputError, match=message):
            splits.read(path, data)


def test_a_split_that_cannot_be_written(data, tmp_path):
    (tmp_path / "split.json").mkdir()
    with pytest.raises(InputError, match="split.json: cannot be written"):
        splits.write(tmp_path / "split.json", draw(data), data)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros([2, 8, 8, 1]), [0, 0], "images are float64"),
        (np.zeros([2, 8, 8, 2], np.uint8), [0, 0], "have 2 channels"),
        (np.zeros([2, 8, 8, 1], np.uint8), [0], r"labels have shape \(1,\)"),
        (np.zeros([2, 8, 8, 1], np.uint8), [0, 1.7], "labels are float64"),
        (np.zeros([2, 8, 8, 1], np.uint8), [0, -2], "labels from -2 to 0"),
        (
            np.zeros([2, 8, 8, 1], np.uint8),
            [0, 2**32],
            "labels from 0 to 42949",
        ),
        (np.zeros([0, 8, 8, 1], np.uint8), [], "there are 0 images"),
    ],
)
def test_bad_images(images, labels, message):
    with pytest.raises(ValueError, match=message):
        source.Images(images, labels)


@pytest.mark.parametrize(
    ("shape", "label", "message"),
    [
        ((8, 8, 3), 0, r"shape \(8, 8, 1\), test images \(8, 8, 3\)"),
        ((8, 8, 1), -1, "label -1 in test, but the class of every test image"),
    ],
)
def test_a_test_split_that_does_not_fit(shape, label, message):
    train = source.Images(np.zeros([1, 8, 8, 1], np.uint8), [-1])
    test = source.Images(np.zeros([1, *shape], np.uint8), [label])
    with pytest.raises(ValueError, match=message):
        source.Source("x", ["a"], train, test, False)


def test_labels_beyond_the_classes():
    images = source.Images(np.zeros([1, 8, 8, 1], np.uint8), np.array([2]))
    with pytest.raises(ValueError, match="label 2 in train, but there are 2"):
        source.Source("x", ["a", "b"], images, images, False)


def blank(*shape, label=0):
    return source.Images(np.zeros([1, *shape], np.uint8), [label])


def test_images_in_memory_for_another_size():
    train, wide = blank(8, 8, 1), blank(6, 9, 1)
    parts = ["x", ["a"], train]
    resized = source.Source(*parts, blank(9, 9, 1), False, image_size=32)
    assert resized.image_shape == (32, 32, 1)
    for other in (wide, blank(9, 9, 3)):
        with pytest.raises(ValueError, match="in memory are .* but with an"):
            source.Source(*parts, other, False, image_size=32)
    own = source.Source("x", ["a"], blank(6, 9, 3), None, False)
    assert own.image_shape == (6, 9, 3)
    with pytest.raises(ValueError, match="in memory are 6×9 with 1 channels"):
        source.Source("x", ["a"], wide, None, False, image_size=6)


def test_validation_labels_beyond_the_classes():
    parts = ["x", ["a", "b"], blank(8, 8, 1), None, False]
    images = blank(8, 8, 1, label=1)
    assert source.Source(*parts, validation=images).validation is images
    with pytest.raises(ValueError, match="label 2 in validation, but there"):
        source.Source(*parts, validation=blank(8, 8, 1, label=2))
    with pytest.raises(ValueError, match="label -1 in validation, but the"):
        source.Source(*parts, validation=blank(8, 8, 1, label=-1))


def named(labels, names):
    images = np.zeros([len(labels), 8, 8, 1], np.uint8)
    some = source.Images(images, np.array(labels), names)
    return source.Source("mine", ["a", "b"], some, None, False)


NAMED = named(
    [0, 1, 0, 1, -1, 0],
    ["a/x.jpg", "b/x.jpg", "a/y.jpg", "b/é.jpg", "u/z.jpg", "a/7.jpg"],
)


def test_everything_whose_class_is_known():
    split = draw(NAMED, labels=None)
    assert split.labeled.tolist() == [0, 2, 5, 1, 3]


def test_a_class_without_a_labeled_image():
    with pytest.raises(InputError, match="class 'b' of mine has no labeled im"):
        draw(NAMED, labels=None, listed=np.array([0, 2]))


def test_the_split_of_another_run(data, tmp_path):
    path = tmp_path / "split.json"
    split = draw(data, validation_fraction=0.25)
    splits.write(path, split, data)
    larger = digits.load(16)  # the same images at another size
    handed_over = splits.hand_over(
        path, larger, unlabeled_includes_labeled=False
    )
    np.testing.assert_array_equal(handed_over.labeled, split.labeled)
    np.testing.assert_array_equal(handed_over.validation, split.validation)
    assert len(handed_over.unlabeled) == 1400 - 40
    handed_over = splits.hand_over(
        path, larger, unlabeled_includes_labeled=True
    )
    np.testing.assert_array_equal(handed_over.unlabeled, split.unlabeled)
    with pytest.raises(InputError, match=r"image_shape is \[8, 8, 1\] there"):
        splits.read(path, larger)
    with pytest.raises(InputError, match="the split does not fit the dataset"):
        splits.hand_over(path, NAMED, unlabeled_includes_labeled=True)


def test_files_that_changed_since(tmp_path):
    path = tmp_path / "split.json"
    split = draw(NAMED, labels=None)
    splits.write(path, split, NAMED)
    assert splits.read(path, NAMED).labeled.tolist() == split.labeled.tolist()
    other = named(
        [0, 1, 0, 1, -1, 0],
        ["a/x.jpg", "b/x.jpg", "a/new.jpg", "b/é.jpg", "u/z.jpg", "a/7.jpg"],
    )
    with pytest.raises(InputError, match="names or classes of its train ima"):
        splits.read(path, other)


def test_a_million_images(tmp_path):
    """An index alone: drawing and keeping a split needs no pixels."""
    size = 1_281_167

    class Index:
        encoded = True
        labels = np.arange(size, dtype=np.int32) % 1000
        names = None

        def __len__(self):
            return size

    big = source.Source(
        "big",
        [str(n) for n in range(1000)],
        Index(),
        None,
        True,
        image_size=224,
    )
    split = draw(big, labels=None, label_fraction=0.1)
    assert len(split.labeled) == 128_000 and len(split.unlabeled) == size
    splits.write(tmp_path / "split.json", split, big)
    restored = splits.read(tmp_path / "split.json", big)
    np.testing.assert_array_equal(restored.labeled, split.labeled)
    np.testing.assert_array_equal(restored.unlabeled, split.unlabeled)


def test_a_list_by_name_by_bare_name_or_by_index(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("é.jpg\n\nphotos/a/x.jpg\n  2\r\n", encoding="utf-8")
    listed = splits.read_list(path, NAMED)
    assert listed.tolist() == [0, 2, 3]
    split = draw(NAMED, labels=None, listed=listed)
    assert split.labeled.tolist() == [0, 2, 3]  # class order
    assert split.unlabeled.tolist() == [0, 1, 2, 3, 4, 5]
    split = draw(
        NAMED, labels=None, listed=listed, unlabeled_includes_labeled=False
    )
    assert split.unlabeled.tolist() == [1, 4, 5]
    # A number of labels is drawn from the list.
    split = draw(NAMED, labels=2, listed=listed)
    assert split.labeled[0] in (0, 2) and split.labeled[1] == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/x.jpg\nnone.jpg", "line 2: 'none.jpg' is no training image of min"),
        ("none.jpg", "its names are like 'a/x.jpg'"),
        ("x.jpg", "line 1: 'x.jpg' is the name of several images"),
        ("other/é.jpg", "'other/é.jpg' is no training image of mine"),
        ("é.jpg\nb\\é.jpg", "is the image of line 1"),
        ("9" * 5000, "is no training image of mine"),
        ("6", "line 1: '6': mine has 6 training images"),
        ("4", "line 1: '4' has no known class"),
        ("u/z.jpg", "line 1: 'u/z.jpg' has no known class"),
        ("1\n\nb/x.jpg", "line 3: 'b/x.jpg' is the image of line 1"),
        ("\n", "names no image"),
    ],
)
def test_bad_lists(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=f"--labeled_list={path}.*{message}"):
        splits.read_list(path, NAMED)


def test_a_list_that_is_no_text(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="list.txt: is no text in UTF-16"):
        splits.read_list(path, NAMED)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_list_as_editors_save_it(tmp_path, encoding):
    path = tmp_path / "list.txt"
    path.write_text("a/x.jpg\nb/x.jpg\n", encoding=encoding)
    assert splits.read_list(path, NAMED).tolist() == [0, 1]


def test_names_in_another_form_of_unicode(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("e\u0301.jpg\n", encoding="utf-8")
    assert (
        splits.read_list(path, NAMED).tolist()
        == splits.find_listed(["\u00e9.jpg"], NAMED, "x").tolist()
    )


def test_a_list_without_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("x.png")
    with pytest.raises(InputError, match="'x.png' is not an index into digits"):
        splits.read_list(path, digits.load(8))


def test_names_that_are_equal_or_end_alike(tmp_path):
    path = tmp_path / "list.txt"
    same = named([0, 1, 0, 1], ["1.jpg", "2.jpg", "1.jpg", "3.jpg"])
    path.write_text("1.jpg")
    with pytest.raises(InputError, match="'1.jpg' is the name of several"):
        splits.read_list(path, same)
    nested = named([0, 1, 0, 1], ["x.jpg", "a/x.jpg", "b/a/x.jpg", "y.jpg"])
    path.write_text("a/x.jpg\nx.jpg")
    assert splits.read_list(path, nested).tolist() == [0, 1]
    path.write_text("c/b/a/x.jpg")
    with pytest.raises(InputError, match="is the name of several images"):
        splits.read_list(path, nested)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("003", "may be the image 'a/003.jpg' or the index 3; write the ima"),
        # Without zeros, too, a name without its ending.
        ("11", "may be the image 'b/11.jpg' or the index 11"),
        ("002", "is the name of no image, and an index has no zeros in fro"),
    ],
)
def test_a_number_that_may_be_a_name(tmp_path, line, message):
    path = tmp_path / "list.txt"
    names = ["a/003.jpg", "b/11.jpg", *(f"{n}.png" for n in "uvwxyzabcdef")]
    data = named([0, 1] * 7, names)
    path.write_text(f"2\n{line}\n")
    with pytest.raises(InputError, match=f"line 2: {line!r} {message}"):
        splits.read_list(path, data)
    path.write_text("2\n3\n0\n")
    assert splits.read_list(path, data).tolist() == [0, 2, 3]


def test_zeros_in_front_of_an_index_where_there_are_no_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("003\n")
    assert splits.read_list(path, digits.load(8)).tolist() == [3]


def test_a_list_from_windows(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa\\x.jpg\r\nb\\x.jpg\r\n".encode())
    assert splits.read_list(path, NAMED).tolist() == [0, 1]
