import pytest

from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import worklist
from tests.labeling import helpers


@pytest.fixture
def photos(tmp_path):
    return helpers.write_images(tmp_path / "photos", 8)


def asked(work):
    return [work.names[index] for index in work.order]


def test_all_images_in_an_order_that_looks_random(photos):
    helpers.write_images(photos / "more", 2)
    work = worklist.make(str(photos))
    names = [f"{i:03}.png" for i in range(8)] + ["more/000.png", "more/001.png"]
    assert list(work.names) == names
    assert work.paths[-1] == str(photos / "more" / "001.png")
    assert sorted(work.order) == list(range(10))
    assert asked(work) != names
    assert not work.listed and not work.clusters and not work.classes


def test_images_that_are_added_leave_the_order_of_the_others(photos):
    before = asked(worklist.make(str(photos)))
    helpers.write_images(photos / "more", 5)
    after = asked(worklist.make(str(photos)))
    assert [name for name in after if name in before] == before


def test_a_list_comes_first_in_its_order(photos, tmp_path):
    chosen = tmp_path / "selected.csv"
    chosen.write_text("rank,file,cluster\n1,005.png,7\n2,002.png,\n")
    work = worklist.make(str(photos), str(chosen))
    assert asked(work)[:2] == ["005.png", "002.png"]
    assert len(work.order) == 8 and work.listed == 2
    assert work.clusters == {5: "7"}
    rest = [
        n for n in asked(worklist.make(str(photos))) if n[:3] not in "005002"
    ]
    assert [n for n in asked(work)[2:] if n in rest] == rest


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "column file"),
        ("file\n", "at least one row"),
        ("name\n005.png\n", "column file"),
        (
            "file\n005.png\nnone.png\n../a.png\n",
            r"2 of 3 rows name no image .*'none.png' \(row 3\), '../a.png'",
        ),
        ("file\n005.png\n005.png\n", "row 3: '005.png' is there twice"),
    ],
)
def test_lists_that_are_refused(photos, tmp_path, text, message):
    chosen = tmp_path / "selected.csv"
    chosen.write_text(text)
    with pytest.raises(InputError, match=message):
        worklist.make(str(photos), str(chosen))


def test_folders_of_labeled_and_test_images_are_left_out(tmp_path, capsys):
    for part in ("labeled", "test", "val"):
        for name in ("cat", "dog"):
            helpers.write_images(tmp_path / part / name, 2)
    helpers.write_images(tmp_path / "unlabeled", 3)
    helpers.write_images(tmp_path / "valid" / "holiday", 1)
    work = worklist.make(str(tmp_path))
    assert list(work.classes) == ["cat", "dog"]
    assert {name.partition("/")[0] for name in work.names} == {"unlabeled"}
    # Whoever names classes on the page is not asked about test images either.
    said = capsys.readouterr().err
    assert "valid/ is left out, as its folders name the classes" in said
    assert "test/ is" not in said
    worklist.make(str(tmp_path), classes=["holiday"])
    assert "left out" not in capsys.readouterr().err
    # Photographs that lie in it directly are no classes.
    helpers.write_images(tmp_path / "valid", 1)
    work = worklist.make(str(tmp_path))
    tops = {name.partition("/")[0] for name in work.names}
    assert tops == {"unlabeled", "valid"}


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(InputError, match="no: does not exist"):
        worklist.make(str(tmp_path / "no"))
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(InputError, match="is a file"):
        worklist.make(str(tmp_path / "a.txt"))
    with pytest.raises(InputError, match=r"no image to label; .* 1 \.txt"):
        worklist.make(str(tmp_path))
    helpers.write_images(tmp_path / "labeled" / "cat", 1)
    with pytest.raises(InputError, match="beside those in labeled/"):
        worklist.make(str(tmp_path))


def test_two_names_that_are_one_when_composed(tmp_path):
    for name in ("e\u0301.png", "\xe9.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="name of two images"):
        worklist.make(str(tmp_path))
