import pytest

from simmatch_tf.data import answers
from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import pool


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.fixture(autouse=True)
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(pool.layout.terminal, "warn", lines.append)
    return lines


def test_any_folder_has_images_without_labels(tmp_path, warnings):
    touch(tmp_path, "b/2.jpg", "a.png", "notes.txt")
    images = pool.find(str(tmp_path))
    assert images.names == ["a.png", "b/2.jpg"]
    assert images.paths == [str(tmp_path / name) for name in images.names]
    assert not images.labels and len(images) == 2
    assert "1 files are left out" in warnings[0]


def test_names_are_composed(tmp_path):
    touch(tmp_path, "cafe\u0301.jpg")
    images = pool.find(str(tmp_path))
    assert images.names == ["caf\u00e9.jpg"]
    assert images.paths == [str(tmp_path / "cafe\u0301.jpg")]


def test_names_of_classes_are_composed(tmp_path):
    touch(tmp_path, "labeled/cafe\u0301/1.jpg", "2.jpg")
    images = pool.find(str(tmp_path))
    assert images.names == ["2.jpg", "labeled/caf\u00e9/1.jpg"]
    assert dict(images.labels) == {1: "caf\u00e9"}


def test_folders_name_classes_and_test_images_are_left_out(tmp_path):
    touch(tmp_path, "labeled/cat/1.jpg", "labeled/dog/1.jpg")
    touch(tmp_path, "unlabeled/x/1.jpg", "test/cat/2.jpg", "test/dog/3.jpg")
    images = pool.find(str(tmp_path))
    assert images.names == [
        "labeled/cat/1.jpg",
        "labeled/dog/1.jpg",
        "unlabeled/x/1.jpg",
    ]
    assert dict(images.labels) == {0: "cat", 1: "dog"}
    assert list(images.class_names) == ["cat", "dog"]


def test_a_table_names_classes(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "sub/3.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("file,class\n2.jpg,cat\nsub/3.jpg,dog\n")
    images = pool.find(str(tmp_path), str(table))
    assert dict(images.labels) == {1: "cat", 2: "dog"}


def test_answers_name_classes_and_images_of_none(tmp_path):
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    log = tmp_path / "labels.jsonl"
    with answers.Writer(log, images=tmp_path, classes=["cat", "dog"]) as writer:
        for name, answer in (
            ("1.jpg", {"answer": "class", "class": "cat"}),
            ("2.jpg", {"answer": "none"}),
            ("3.jpg", {"answer": "class", "class": "dog"}),
            ("4.jpg", {"answer": "skip"}),
        ):
            writer.append({"file": name, **answer})
    images = pool.find(str(tmp_path), str(log))
    assert images.names == ["1.jpg", "3.jpg", "4.jpg"]
    assert dict(images.labels) == {0: "cat", 1: "dog"}


def test_a_part_of_a_pool_keeps_its_labels(tmp_path):
    touch(tmp_path, "labeled/cat/1.jpg", "labeled/dog/1.jpg")
    touch(tmp_path, "unlabeled/1.jpg", "unlabeled/2.jpg")
    part = pool.find(str(tmp_path)).take([1, 3])
    assert part.names == ["labeled/dog/1.jpg", "unlabeled/2.jpg"]
    assert dict(part.labels) == {0: "dog"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "does not exist; give a folder"),
        ("file.jpg", "is a file; give a folder"),
        ("empty", "has no image; images end in"),
    ],
)
def test_wrong_folders_are_refused(tmp_path, name, message):
    touch(tmp_path, "file.jpg", "empty/notes.txt")
    with pytest.raises(InputError, match=message):
        pool.find(str(tmp_path / name))


def test_labels_of_one_class_so_far(tmp_path):
    """More will follow: that is what the images are chosen for."""
    touch(tmp_path, "1.jpg", "2.jpg", "test/cat/3.jpg", "test/dog/4.jpg")
    table = tmp_path / "labels.csv"
    table.write_text("file,class\n1.jpg,cat\n")
    images = pool.find(str(tmp_path), str(table))
    assert images.names == ["1.jpg", "2.jpg"]
    assert dict(images.labels) == {0: "cat"}
    assert list(images.class_names) == ["cat", "dog"]
