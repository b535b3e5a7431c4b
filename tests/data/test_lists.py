import pytest

from simmatch_tf.data import lists
from simmatch_tf.data.sources import digits
from simmatch_tf.flags.commandline import InputError
from tests.data.test_splits import NAMED, draw, named


def test_a_list_by_name_by_bare_name_or_by_index(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("é.jpg\n\nphotos/a/x.jpg\n  2\r\n", encoding="utf-8")
    listed = lists.read(path, NAMED)
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
        lists.read(path, NAMED)


def test_a_list_that_is_no_text(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="list.txt: is no text in UTF-16"):
        lists.read(path, NAMED)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_list_as_editors_save_it(tmp_path, encoding):
    path = tmp_path / "list.txt"
    path.write_text("a/x.jpg\nb/x.jpg\n", encoding=encoding)
    assert lists.read(path, NAMED).tolist() == [0, 1]


def test_names_in_another_form_of_unicode(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("e\u0301.jpg\n", encoding="utf-8")
    assert (
        lists.read(path, NAMED).tolist()
        == lists.find(["\u00e9.jpg"], NAMED, "x").tolist()
    )


def test_a_list_without_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("x.png")
    with pytest.raises(InputError, match="'x.png' is not an index into digits"):
        lists.read(path, digits.load(8))


def test_names_that_are_equal_or_end_alike(tmp_path):
    path = tmp_path / "list.txt"
    same = named([0, 1, 0, 1], ["1.jpg", "2.jpg", "1.jpg", "3.jpg"])
    path.write_text("1.jpg")
    with pytest.raises(InputError, match="'1.jpg' is the name of several"):
        lists.read(path, same)
    nested = named([0, 1, 0, 1], ["x.jpg", "a/x.jpg", "b/a/x.jpg", "y.jpg"])
    path.write_text("a/x.jpg\nx.jpg")
    assert lists.read(path, nested).tolist() == [0, 1]
    path.write_text("c/b/a/x.jpg")
    with pytest.raises(InputError, match="is the name of several images"):
        lists.read(path, nested)


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
        lists.read(path, data)
    path.write_text("2\n3\n0\n")
    assert lists.read(path, data).tolist() == [0, 2, 3]


def test_zeros_in_front_of_an_index_where_there_are_no_names(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("003\n")
    assert lists.read(path, digits.load(8)).tolist() == [3]


def test_a_list_from_windows(tmp_path):
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa\\x.jpg\r\nb\\x.jpg\r\n".encode())
    assert lists.read(path, NAMED).tolist() == [0, 1]
