"""Which image of a folder is labeled, and which is not; by names alone.

`sources/test_folder.py` has the layout with labeled/.
"""

import json
import os

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf import terminal
from simmatch_tf.data import fingerprint, layout
from simmatch_tf.flags.errors import InputError

TRAIN = ("train/cat/a.png", "train/cat/b.png", "train/dog/a.png")
TEST = ("test/cat/t.png", "test/dog/t.png")
VAL = ("val/cat/v.png", "val/dog/v.png")
FLAT = ("1.png", "2.png", "3.png", "more/4.png", "more/5.png")


@pytest.fixture(autouse=True)
def warned(monkeypatch):
    lines = []
    monkeypatch.setattr(terminal, "warn", lines.append)
    return lines


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def table(path, text):
    path.write_text(text, "utf-8")
    return str(path)


def listing(root, labels_csv=None, **how):
    return layout.Listing(str(root), labels_csv, **how)


def by_part(listed):
    """Part → name → class."""
    parts = {}
    for name, part, label in zip(
        listed.names, listed.parts, listed.labels, strict=True
    ):
        class_name = listed.class_names[label] if label >= 0 else None
        parts.setdefault(part, {})[name] = class_name
    return parts


def refused(message, root, labels_csv=None, *, need_unlabeled=False):
    with pytest.raises(InputError, match=message):
        listing(root, labels_csv).check(need_unlabeled=need_unlabeled)


def overview(listed):
    return [
        row[:2] for row in listed.overview(range(len(listed.paths)), {})[1:]
    ]


# ------------------------------------------------------------- ImageFolder --


def test_train_and_test(tmp_path, warned):
    root = make(tmp_path, *TRAIN, *TEST, "unlabeled/x/u.png")
    listed = listing(root)
    listed.check(need_unlabeled=True)
    assert by_part(listed) == {
        "labeled": {"train/cat/a.png": "cat", "train/cat/b.png": "cat",
                    "train/dog/a.png": "dog"},
        "unlabeled": {"unlabeled/x/u.png": None},
        "test": {"test/cat/t.png": "cat", "test/dog/t.png": "dog"},
    }  # fmt: skip
    assert list(by_part(listed)) == ["labeled", "unlabeled", "test"]
    listed.warn()
    assert warned == []


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_images_without_a_test_part(tmp_path, name):
    images = [image.replace("val/", f"{name}/") for image in VAL]
    listed = listing(make(tmp_path, *TRAIN, *images))
    assert listed.has_test
    assert [*by_part(listed)["test"]] == images
    assert overview(listed) == [
        ["labeled: train/", "3"],
        [f"test: {name}/ (val, as there is no test)", "2"],
    ]


def test_validation_images_beside_a_test_part(tmp_path):
    listed = listing(make(tmp_path, *TRAIN, *TEST, *VAL))
    assert [*by_part(listed)] == ["labeled", "validation", "test"]
    assert [*by_part(listed)["validation"]] == [*VAL]
    # They need not be of all classes.
    os.remove(tmp_path / VAL[0])
    listing(tmp_path).check(need_unlabeled=False)


def test_two_folders_of_validation_images(tmp_path):
    make(tmp_path, *TRAIN, *VAL, "valid/cat/x.png")
    refused("holds val/ and valid/, but the validation images must", tmp_path)


def test_beside_labeled_nothing_has_changed(tmp_path, warned):
    root = make(
        tmp_path, "labeled/cat/a.png", "labeled/dog/a.png", *TRAIN, *VAL
    )
    listed = listing(root)
    assert [*by_part(listed)["labeled"]] == [
        "labeled/cat/a.png", "labeled/dog/a.png",
    ]  # fmt: skip
    assert not listed.has_test and len(listed.paths) == 2
    assert overview(listed)[1:] == [
        ["not used: train/", "3"],
        ["not used: val/ (to measure on val/, call it test/)", "2"],
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["train/1.png", "train/2.png"],
            "train/1.png: lies directly in train/",
        ),
        (["train/cat/1.png"], r"train/ has 1 class folders \(cat\), but at le"),
        ([*TRAIN, "test/1.png"], "or, without a class, to unlabeled/; or name"),
        (
            [*TRAIN, "test/cat/1.png"],
            "no images in test/dog; every class of tr",
        ),
        (
            [*TRAIN, "val/cow/1.png"],
            "val/cow is a class that train/ does not h",
        ),
        ([*TRAIN, *TEST, "val/cow/1.png"], "val/cow is a class that train/ do"),
        (
            ["1.png", "2.png"],
            "2 images lie directly in it, such as 1.png: name",
        ),
        (["cat/1.png", "dog/1.png"], "It holds cat/; dog/: if these are class"),
        (["x/cat/1.png", "x/dog/1.png"], r"FILE names\. It holds x/$"),
    ],
)
def test_wrong_layouts(tmp_path, names, message):
    refused(message, make(tmp_path, *names))


def test_all_are_labeled(tmp_path):
    make(tmp_path, *TRAIN)
    refused(
        "no images in unlabeled/; .*--labels=N to label N images of train/ .*"
        "--algorithm=supervised",
        tmp_path,
        need_unlabeled=True,
    )
    listing(tmp_path).check(need_unlabeled=False)


# ----------------------------------------------------------- --labels_csv --


def test_a_flat_folder(tmp_path, warned):
    root = make(tmp_path / "data", *FLAT, "notes.txt")
    path = table(root / "l.csv", "file,class\n3.png,dog\nmore/4.png,cat\n")
    listed = listing(root, path)
    listed.check(need_unlabeled=True)
    assert by_part(listed) == {
        "labeled": {"more/4.png": "cat", "3.png": "dog"},
        "unlabeled": {"1.png": None, "2.png": None, "more/5.png": None},
    }
    assert listed.names[:2] == ["more/4.png", "3.png"]  # by class
    assert not listed.has_test
    assert overview(listed) == [
        ["labeled: l.csv", "2"],
        ["unlabeled: all that l.csv gives no class", "3"],
    ]
    listed.warn()
    assert len(warned) == 1 and warned[0].endswith(".gif: . 1 .txt")


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    root = make(tmp_path / "data", *FLAT)
    rows = ["1.png,b", "2.png,a", "3.png,b", "more/4.png,a"]
    one, other = (
        listing(root, table(tmp_path / "l.csv", "\n".join(["file,class", *r])))
        for r in (rows, rows[::-1])
    )
    assert one.names == other.names and one.labels == other.labels


def test_parts_of_a_table(tmp_path):
    root = make(tmp_path / "data", *FLAT, *FLAT[:2], "6.png", "7.png")
    text = (
        "file,class,part\n1.png,a,\n2.png,b,train\n3.png,a,{0}\n"
        "4.png,b,{0}\n5.png,,\n6.png,a,val\n"
    )
    listed = listing(root, table(tmp_path / "l.csv", text.format("test")))
    parts = {part: [*names] for part, names in by_part(listed).items()}
    assert parts == {
        "labeled": ["1.png", "2.png"],
        "unlabeled": ["7.png", "more/5.png"],
        "validation": ["6.png"],
        "test": ["3.png", "more/4.png"],
    }
    listed = listing(root, table(tmp_path / "l.csv", text.format("val")))
    assert [*by_part(listed)["test"]] == ["3.png", "6.png", "more/4.png"]
    assert listed.has_test and "validation" not in by_part(listed)
    assert overview(listed)[2][0] == "test: l.csv (val, as there is no test)"


def test_a_table_beside_class_folders(tmp_path):
    root = make(tmp_path / "data", *FLAT, *TEST, "labeled/cat/l.png")
    text = "file,class\n1.png,dog\n2.png,cat\nl.png,cat\ntest/cat/t.png,cat\n"
    listed = listing(root, table(tmp_path / "l.csv", text))
    parts = by_part(listed)
    assert parts["labeled"] == {
        "2.png": "cat", "labeled/cat/l.png": "cat", "1.png": "dog",
    }  # fmt: skip
    assert [*parts["test"]] == [*TEST] and len(parts["unlabeled"]) == 3
    assert overview(listed)[0] == ["labeled: labeled/ and l.csv", "3"]
    for row, message in (
        (
            "l.png,dog",
            "row 6: 'l.png' is 'dog' here, but lies under 'cat' in l",
        ),
        ("test/dog/t.png,cat", "is 'cat' here, but lies under 'dog' in test/"),
    ):
        lines = text.replace("l.png,cat\n", "") + f"3.png,cat\n{row}\n"
        refused(message, root, table(tmp_path / "l.csv", lines))
    lines = "file,class,part\n1.png,dog,\ntest/cat/t.png,cat,train\n"
    refused(
        "row 3: .* is 'cat' of part train here, but lies under 'cat' in test/",
        root,
        table(tmp_path / "l.csv", lines),
    )


def test_folders_without_classes_are_like_any_other(tmp_path):
    """As competitions give them: images in train/ and test/, and a table."""
    names = ["train/1.png", "train/2.png", "train/x/3.png", "test/4.png"]
    root = make(tmp_path / "data", *names, "val/5.png", "labeled/6.png")
    text = "file,class\n1.png,a\ntrain/2.png,b\nlabeled/6.png,b\n"
    parts = by_part(listing(root, table(tmp_path / "l.csv", text)))
    assert parts == {
        "labeled": {"train/1.png": "a", "labeled/6.png": "b",
                    "train/2.png": "b"},
        "unlabeled": dict.fromkeys(["test/4.png", "train/x/3.png",
                                    "val/5.png"]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1.png,a,\n2.png,a,", r"names 1 classes \(a\), but at least 2 are"),
        ("1.png,a,test\n2.png,b,test", "names 0 classes"),
        (
            "1.png,a,\n2.png,b,\n3.png,c,test",
            "row 4: no labeled image has the class 'c' of this test image; the "
            "classes are a, b",
        ),
        (
            "1.png,a,\n2.png,b,\n3.png,a,test",
            "no images of class 'b' among the test images of l.csv; every",
        ),
        (
            "1.png,a,\n2.png,b,\n3.png,a,\n4.png,a,\n5.png,b,",
            "no unlabeled images: l.csv or a folder names the class of each; "
            ".*--labels=N to label N images of those .*--algorithm=supervised",
        ),
    ],
)
def test_tables_that_lack_something(tmp_path, text, message):
    root = make(tmp_path / "data", *FLAT)
    path = table(tmp_path / "l.csv", "file,class,part\n" + text)
    refused(message, root, path, need_unlabeled=True)


def test_a_class_in_other_forms_of_unicode(tmp_path):
    root = make(tmp_path / "data", *FLAT, "labeled/caf\u00e9/l.png")
    text = "file,class\n1.png,cafe\u0301\n2.png,tea\n"
    listed = listing(root, table(tmp_path / "l.csv", text))
    assert listed.class_names == ["caf\u00e9", "tea"]
    assert listed.labels[:3] == [0, 0, 1]


def test_without_unlabeled_images(tmp_path):
    root = make(tmp_path / "data", *FLAT)
    path = table(tmp_path / "l.csv", "file,class\n1.png,a\n2.png,b\n")
    listed = listing(root, path, unlabeled=False)
    assert listed.names == ["1.png", "2.png"]


# -------------------------------------------------------- the labeling page --


def log(path, root, *lines, classes=("cat", "dog", "owl")):
    """Answers: file → class, or None for none of them."""
    head = {"version": 1, "images": str(root), "classes": [*classes]}
    entries = [
        {"file": file, "answer": "class", "class": name}
        if name
        else {"file": file, "answer": "none"}
        for file, name in lines
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in (head, *entries))
    path.write_text(text, "utf-8")
    return str(path)


ANSWERED = (("3.png", "dog"), ("more/4.png", "cat"), ("1.png", None))


def test_a_flat_folder_labeled_on_the_page(tmp_path, warned):
    root = make(tmp_path / "data", *FLAT)
    path = log(root / "labels.jsonl", root, *ANSWERED)
    listed = listing(root, labels_from=path)
    listed.check(need_unlabeled=True)
    assert by_part(listed) == {
        "labeled": {"more/4.png": "cat", "3.png": "dog"},
        "unlabeled": {"2.png": None, "more/5.png": None},
    }
    assert listed.aside == ["1.png"]
    assert overview(listed) == [
        ["labeled: labels.jsonl", "2"],
        ["unlabeled: all that labels.jsonl gives no class", "2"],
        ["set aside: none of the classes (labels.jsonl)", "1"],
    ]
    listed.warn()
    assert warned == [
        f"--labels_from={path}: 1 of its classes have no labeled image, and "
        "are none of this run's classes: owl"
    ]
    # As by a table, but for the image that is set aside.
    rows = "file,class\nmore/4.png,cat\n3.png,dog\n"
    same = listing(root, table(tmp_path / "l.csv", rows))
    assert set(same.names) == {*listed.names, "1.png"}
    other = listing(root, labels_from=table(tmp_path / "l.csv", rows))
    assert other.names == same.names and other.labels == same.labels
    moved = root.rename(tmp_path / "moved")
    other = listing(moved, labels_from=str(moved / "labels.jsonl"))
    assert (other.names, other.labels) == (listed.names, listed.labels)


def test_more_answers_are_another_dataset(tmp_path):
    root = make(tmp_path / "data", *FLAT)

    def of(*answers):
        path = log(tmp_path / "labels.jsonl", root, *answers)
        return listing(root, labels_from=path).fingerprint()

    then = of(*ANSWERED)
    assert then.digest() == of(*ANSWERED[::-1]).digest()
    for more, changes in (
        (("2.png", "cat"), "1 is new (2.png as 'cat')"),
        (
            ("2.png", None),
            "1 is new (2.png as none of the classes), 1 is gone (2.png)",
        ),
    ):
        assert fingerprint.compare(then, of(*ANSWERED, more)).text() == changes


def test_answers_beside_class_folders(tmp_path):
    root = make(tmp_path / "data", *FLAT, "labeled/owl/l.png")
    path = log(tmp_path / "labels.jsonl", root, *ANSWERED)
    assert listing(root, labels_from=path).class_names == ["cat", "dog", "owl"]
    for answer, message in (
        (None, "'labeled/owl/l.png' is none of the classes here, but lies under"
         " 'owl' in labeled/; correct the answer, or remove it"),
        ("cat", "is 'cat' here, but lies under 'owl' in labeled/"),
    ):  # fmt: skip
        wrong = ("labeled/owl/l.png", answer)
        path = log(tmp_path / "labels.jsonl", root, *ANSWERED, wrong)
        with pytest.raises(InputError, match=f"labels.jsonl: .*{message}"):
            listing(root, labels_from=path)


# -------------------------------------------------------------- fingerprints --


def test_a_changed_table_is_another_dataset(tmp_path):
    root = make(tmp_path / "data", *FLAT)

    def of(text):
        path = table(tmp_path / "l.csv", text)
        return listing(root, path).fingerprint()

    text = "file,class,part\n1.png,a,\n2.png,b,\n3.png,b,\n"
    then = of(text)
    # Written in another way, it says the same.
    same = of('id;File;CLASS\n7;3.png;b\n8;"1.png";a \n9;2.png;b\n')
    assert fingerprint.compare(then, same).text() == ""
    assert then.digest() == same.digest()
    for changed, changes in (
        (text.replace("1.png,a", "1.png,b").replace("2.png,b", "2.png,a"),
         "2 are new (1.png as 'b', 2.png as 'a'), 2 are gone (1.png as 'a', "
         "2.png as 'b')"),
        (text.replace("3.png,b,\n", ""), "1 is gone (3.png as 'b')"),
        (text + "4.png,a,\n", "1 is new (more/4.png as 'a')"),
        (text + "4.png,a,test\n5.png,b,test\n",
         "2 are new (more/4.png as 'a' (test), more/5.png as 'b' (test))"),
    ):  # fmt: skip
        now = of(changed)
        assert fingerprint.compare(then, now).text() == changes
        assert then.digest() != now.digest()
    then.write(tmp_path / "data.json")
    assert fingerprint.read(tmp_path / "data.json").files == then.files


def test_names_of_scored_images(tmp_path):
    root = make(tmp_path / "data", *FLAT, "labeled/cat/l.png")
    text = "file,class,part\n1.png,cat,\n2.png,as 'is,test\n3.png,as 'is,\n"
    text += "4.png,cat,test\n"
    path = table(tmp_path / "l.csv", text)
    names = listing(root, path).fingerprint().files
    assert layout.scored_names(names, "test") == {
        "2.png", "2.png as \"as 'is\" (test)",
        "more/4.png", "more/4.png as 'cat' (test)",
    }  # fmt: skip
    assert layout.scored_names(names, "validation") == {
        "labeled/cat/l.png", "1.png", "1.png as 'cat'",
        "3.png", "3.png as \"as 'is\"",
    }  # fmt: skip
    names = listing(make(tmp_path / "t", *TRAIN, *VAL)).fingerprint().files
    assert layout.scored_names(names, "test") == {*VAL}
    assert layout.scored_names(names, "validation") == {*TRAIN}


# -------------------------------------------------------------------- flags --


def config_of(**flags):
    return config_lib.Config(
        **{"dataset": "folder", "data_dir": "d", "steps": 1, **flags}
    )


def test_the_flag_is_for_folders():
    with pytest.raises(
        InputError, match="--labels_csv=x: is for --dataset=folder, not digits"
    ):
        config_lib.Config(labels_csv="x", labels=10, steps=1)
    with pytest.raises(InputError, match="--labels_csv=' ': names no file"):
        config_of(labels_csv=" ")
    with pytest.raises(
        InputError, match="--labels_from=x: is for --dataset=folder, not digits"
    ):
        config_lib.Config(labels_from="x", labels=10, steps=1)
    with pytest.raises(InputError, match="--labels_from='': names no file"):
        config_of(labels_from="")
    with pytest.raises(
        InputError,
        match="--labels_csv=a.csv and --labels_from=b.jsonl: both name the",
    ):
        config_of(labels_csv="a.csv", labels_from="b.jsonl")


def test_a_table_in_the_folder_moves_with_it():
    config = config_of(data_dir="/a/photos", labels_csv="/a/photos/x/l.csv")
    moved = config.moved("/b", None)
    assert (moved.data_dir, moved.labels_csv) == ("/b", "/b/x/l.csv")
    config = config_of(data_dir="/a/photos", labels_csv="/a/photos2/l.csv")
    assert config.moved("/b", None).labels_csv == "/a/photos2/l.csv"
    assert config.moved(None, None) == config
    config = config_of(data_dir="/a/photos", labels_from="/a/photos/l.jsonl")
    assert config.moved("/b", None).labels_from == "/b/l.jsonl"
    assert config_of(labels_from="l.jsonl").absolute().labels_from[0] == "/"


def test_which_flag_labels():
    assert config_of().labeled_by() is None
    assert config_of(labels=10).labeled_by() == "--labels=10"
    assert not config_of(label_fraction=0.1).needs_unlabeled_folder()
    assert config_of().needs_unlabeled_folder()
