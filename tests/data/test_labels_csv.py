import csv
import io
import json

import pytest

from simmatch_tf.data import labels_csv
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import prediction_file

NAMES = [
    "a.jpg",
    "b.jpg",
    "more/a.jpg",
    "more/c d.png",
    "more/é.png",
    "x/y.gif",
]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return str(path)


def found(table, names=NAMES, unusable=(), root="/data/photos"):
    rows = table.find(names, unusable, root)
    return {names[i]: row.class_name for i, row in rows.items()}


def read(tmp_path, text, **how):
    return labels_csv.read(write(tmp_path / "l.csv", text, **how))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("file,class\na.jpg,cat\nb.jpg,dog\n", "utf-8"),
        ("file,class\r\na.jpg,cat\r\nb.jpg,dog", "utf-8"),
        ("file,class\na.jpg,cat\nb.jpg,dog\n", "utf-8-sig"),
        ("file,class\na.jpg,cat\nb.jpg,dog\n", "utf-16"),
        ("file;class\na.jpg;cat\nb.jpg;dog\n", "utf-8"),
        ("sep=;\r\nfile;class\r\na.jpg;cat\r\nb.jpg;dog\r\n", "utf-8-sig"),
        ("file\tclass\na.jpg\tcat\nb.jpg\tdog\n", "utf-8"),
        ('"file";"class"\n"a.jpg";"cat"\n"b.jpg";"dog"\n', "utf-8"),
        ("id,Class, File \n1,  cat , a.jpg\n2,dog\t,b.jpg \n", "utf-8"),
        ("file,class\n\na.jpg,cat,\n,\nb.jpg,dog,,\n\n", "utf-8"),
        ("file,class\n./a.jpg,cat\nmore/../b.jpg,dog\n", "utf-8"),
        ("file,class\na.jpg,cat\na.jpg,cat\na.jpg,\nb.jpg,dog\n", "utf-8"),
        ("file,class\nb.jpg,dog\na.jpg\na.jpg,cat\n", "utf-8"),
    ],
)
def test_one_table_in_many_forms(tmp_path, text, encoding):
    table = read(tmp_path, text, encoding=encoding)
    assert found(table) == {"a.jpg": "cat", "b.jpg": "dog"}
    assert table.remarks == []


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/data/photos/a.jpg", "a.jpg"),
        ("/data/photos/more/a.jpg", "more/a.jpg"),
        ("photos/more/a.jpg", "more/a.jpg"),  # --images='photos/**'
        ("../photos/a.jpg", "a.jpg"),
        ("/before/it/was/moved/photos/b.jpg", "b.jpg"),
        (r"C:\photos\more\c d.png", "more/c d.png"),
        (r"more\a.jpg", "more/a.jpg"),
        ("c d.png", "more/c d.png"),
        ("é.png", "more/é.png"),
        ("more/e\u0301.png", "more/é.png"),
        ("a.jpg", "a.jpg"),  # that of the folder itself
    ],
)
def test_names_of_one_image(tmp_path, file, name):
    table = read(tmp_path, f"file,class\n{file},cat\n")
    assert found(table) == {name: "cat"}


def test_names_that_begin_at_a_folder_within(tmp_path):
    """As predict writes them for --images=photos/more."""
    names = ["more/a.jpg", "more/b.jpg", "z/a.jpg"]
    table = read(tmp_path, "file,class\na.jpg,cat\nb.jpg,dog\n")
    assert found(table, names) == {"more/a.jpg": "cat", "more/b.jpg": "dog"}
    table = read(tmp_path, "file,class\na.jpg,cat\n")
    with pytest.raises(InputError, match=r"row 2: 'a.jpg' may be any of 2 im"):
        found(table, names)


def test_what_predict_writes(tmp_path):
    """With an image that could not be read, and names that need quotes."""
    p = [0.25, 0.75]
    rows = [
        {"file": name, **prediction_file.likeliest(_array(p), ["cat", "dog"])}
        for name in ("a.jpg", 'more/"x", y.png')
    ]
    rows = [{**row, "error": None} for row in rows]
    rows.append(prediction_file.unreadable("b.jpg", "the file is empty", None))
    prediction_file._write_csv(tmp_path / "labels.csv", iter(rows))
    table = labels_csv.read(str(tmp_path / "labels.csv"))
    names = ["a.jpg", "b.jpg", 'more/"x", y.png']
    # The row without a class says nothing of b.jpg.
    assert found(table, names) == {
        "a.jpg": "dog", 'more/"x", y.png': "dog", "b.jpg": "",
    }  # fmt: skip
    assert "2 of its rows have a class and a confidence" in table.remarks[0]
    # As a spreadsheet saves it where the comma is in numbers.
    text = (tmp_path / "labels.csv").read_text("utf-8")
    other = io.StringIO()
    writer = csv.writer(other, delimiter=";")
    writer.writerows(csv.reader(io.StringIO(text)))
    path = write(tmp_path / "o.csv", other.getvalue(), "utf-8-sig")
    assert labels_csv.read(path).rows == table.rows


def _array(values):
    import numpy as np

    return np.array(values)


def test_parts(tmp_path):
    text = "file,class,Split\na.jpg,cat,Train\nb.jpg,dog,test\nx/y.gif,cat,val"
    rows = read(tmp_path, text).rows
    assert [row.part for row in rows] == ["labeled", "test", "validation"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first row must be file,class"),
        ("\n", "is empty; its first row must be file,class"),
        ("file,class\n\n", "is empty; name a file and its class in each row"),
        ("file,class\na.jpg,\n", "no row of 1 has a class; fill the column"),
        (
            "image,label\na.jpg,cat\n",
            "has no column file and no column class; its first row is "
            "'image', 'label', but must name the columns file and class",
        ),
        ("file,label\na.jpg,cat\n", "has no column class; its first row is 'f"),
        (
            "a.jpg,cat\n",
            "no column file and no column class; its first row is ",
        ),
        ("file,class,class\na.jpg,cat,dog\n", "has 2 columns named class"),
        ("file,class,part,split\n", "has 2 columns named part or split"),
        ("file,class\na,b.jpg,cat\n", "row 2: has 3 cells, but the head names"),
        (
            'file,class\na.jpg,cat\n"b.jpg,dog\n',
            "row 3: cannot be read .*twice",
        ),
        ("file,class\na.jpg,cat\n,dog\n", "row 3: has no file, but the class "),
        (
            "file,class,part\na.jpg,cat,tset\n",
            "row 2: part 'tset' is unknown; it must be train, val or test, or",
        ),
        ("file,class,part\na.jpg,,test\n", "row 2: is of part 'test', but has"),
        (
            "file,class\na.jpg,cat\n./a.jpg,dog\n",
            "row 3: './a.jpg' is 'dog' here, but 'cat' in row 2; keep one",
        ),
        (
            "file,class,part\na.jpg,cat,\na.jpg,cat,test\n",
            r"row 3: 'a.jpg' is 'cat' \(test\) here, but 'cat' in row 2",
        ),
        (
            "file,class\na.jpg,cat\nq.jpg,dog\nr.jpg,dog\n",
            "row 3: there is no image 'q.jpg' in /data/photos; names there are "
            "like 'a.jpg'; in all, 2 of 3 rows name no image there",
        ),
        ("file,class\nB.JPG,cat\n", "no image 'B.JPG' .* did you mean 'b.jpg'"),
        ("file,class\ny,cat\n", "no image 'y' .* did you mean 'x/y.gif'"),
        ("file,class\n/else/q.jpg,cat\n", "'/else/q.jpg' lies outside of --da"),
    ],
)
def test_errors_name_row_and_value(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as error:
        found(read(tmp_path, text))
    assert str(error.value).startswith(f"--labels_csv={tmp_path}/l.csv")


def test_files_that_are_no_such_table(tmp_path):
    with pytest.raises(InputError, match="labels.xlsx: must be a CSV file"):
        labels_csv.read(write(tmp_path / "labels.xlsx", "PK"))
    with pytest.raises(InputError, match="is no text in UTF-8 .* save it as"):
        read(tmp_path, "file,class\na.jpg,caf\xe9\n", encoding="latin-1")
    with pytest.raises(InputError, match=r"gone.csv: no such file\. If the"):
        labels_csv.read(str(tmp_path / "gone.csv"))


def test_rows_of_other_formats_are_counted(tmp_path):
    table = read(tmp_path, "file,class\na.jpg,cat\nq.webp,dog\n")
    assert found(table, unusable=["q.webp"]) == {"a.jpg": "cat"}
    assert "1 rows are left out, as their files are of form" in table.remarks[0]


def test_hidden_files_are_named_as_such(tmp_path):
    (tmp_path / ".a.jpg").touch()
    table = read(tmp_path, "file,class\n.a.jpg,cat\n")
    with pytest.raises(InputError, match="'.a.jpg' is left out of the images"):
        found(table, root=str(tmp_path))


def test_classes_that_look_alike(tmp_path):
    table = read(tmp_path, "file,class\na.jpg,Cat\nb.jpg,cat\nx/y.gif,dog\n")
    assert "differ in capitals or blanks alone" in table.remarks[0]
    assert "'Cat' and 'cat'" in table.remarks[0]


# ------------------------------------------------------ the labeling page --

HEAD = {"version": 1, "images": "/data/photos", "classes": ["cat", "dog"]}


def of_class(file, name):
    return {"file": file, "answer": "class", "class": name}


def log(path, *lines, **head):
    path.write_text(
        "".join(f"{json.dumps(line)}\n" for line in (HEAD | head, *lines)),
        "utf-8",
    )
    return str(path)


def answers(tmp_path, *lines, **head):
    path = log(tmp_path / "labels.jsonl", *lines, **head)
    return labels_csv.read(path, "labels_from")


def test_answers_are_rows(tmp_path):
    table = answers(
        tmp_path,
        of_class("b.jpg", "cat"),
        {"answer": "add_class", "class": "fox"},
        of_class("more/é.png", "fox"),
        of_class("b.jpg", "dog"),  # the last answer counts
        of_class("a.jpg", "cat"),
        {"file": "a.jpg", "answer": "undo"},
        {"file": "x/y.gif", "answer": "none"},
        {"file": "more/a.jpg", "answer": "skip"},
    )
    assert table.classes == ["cat", "dog", "fox"] and table.remarks == []
    assert found(table) == {"b.jpg": "dog", "more/é.png": "fox", "x/y.gif": ""}
    aside = [row.file for row in table.rows if row.aside]
    assert aside == ["x/y.gif"]


def test_a_csv_file_by_either_flag(tmp_path):
    path = write(tmp_path / "l.csv", "file,class\na.jpg,cat\nb.jpg,dog\n")
    one, other = labels_csv.read(path), labels_csv.read(path, "labels_from")
    assert one.rows == other.rows
    assert (one.given, other.given) == (
        f"--labels_csv={path}",
        f"--labels_from={path}",
    )


@pytest.mark.parametrize("root", ["/data/photos", "/moved/elsewhere"])
def test_answers_are_paths_from_their_folder(tmp_path, root):
    """A name without its folders may be another image's; in a CSV file not."""
    table = answers(
        tmp_path, of_class("a.jpg", "cat"), of_class("b.jpg", "dog")
    )
    assert found(table, ["more/a.jpg", "a.jpg", "b.jpg"], root=root) == {
        "a.jpg": "cat",
        "b.jpg": "dog",
    }
    if root == "/data/photos":  # a.jpg was removed
        assert found(table, ["more/a.jpg", "b.jpg"], root=root) == {
            "b.jpg": "dog"
        }
        assert len(table.remarks) == 1 and table.remarks[0].endswith(
            "labels.jsonl: there is no image 'a.jpg' in /data/photos; left out"
        )
    else:
        with pytest.raises(
            InputError,
            match="'a.jpg' in /moved/elsewhere; the answers are about images "
            "in /data/photos: give that folder by --data_dir or, if it has",
        ):
            found(table, ["more/a.jpg", "b.jpg"], root=root)


def test_answers_of_a_folder_in_the_folder(tmp_path):
    table = answers(
        tmp_path,
        of_class("a.jpg", "cat"),
        of_class("b.jpg", "dog"),
        images="/data/photos/unlabeled",
    )
    names = ["a.jpg", "unlabeled/a.jpg", "unlabeled/b.jpg"]
    assert found(table, names) == {
        "unlabeled/a.jpg": "cat",
        "unlabeled/b.jpg": "dog",
    }
    # Its folder's name is that of the beginning of another one.
    with pytest.raises(
        InputError, match="there is no image 'b.jpg' in /data/p"
    ):
        found(table, names, root="/data/photos/unlab")


def test_answers_of_another_folder(tmp_path):
    lines = [of_class(f"{i}.jpg", "cat") for i in range(3)]
    lines.append(of_class("a.jpg", "dog"))
    with pytest.raises(
        InputError,
        match="labels.jsonl: there is no image '0.jpg' in /data/photos; the "
        "answers are about images in /other: .*; in all, 3 of 4 answers name",
    ):
        found(answers(tmp_path, *lines, images="/other"))
    with pytest.raises(InputError, match="in all, 3 of 3 answers name no imag"):
        found(answers(tmp_path, *lines[:3]))


def test_answers_about_other_formats(tmp_path):
    table = answers(tmp_path, of_class("a.jpg", "cat"), of_class("w.webp", "a"),
                    classes=["a", "cat"])  # fmt: skip
    assert found(table, unusable=["w.webp"]) == {"a.jpg": "cat"}
    assert "1 answers are left out, as their files are of f" in table.remarks[0]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no image has a class yet; .*simmatch_tf.label --images=/data/ph"),
        ([{"file": "a.jpg", "answer": "none"}], "no image has a class yet"),
        ([of_class("a.jpg", "owl"), of_class("b.jpg", "cat")], "line 2: "),
    ],
)
def test_answers_that_cannot_be_used(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        answers(tmp_path, *lines)


def test_answers_by_the_wrong_flag(tmp_path):
    path = log(tmp_path / "labels.jsonl", of_class("a.jpg", "cat"))
    with pytest.raises(
        InputError,
        match="--labels_csv=.*: must be a CSV file with the columns file and "
        "class; answers of the labeling page are given by --labels_from",
    ):
        labels_csv.read(path)
    with pytest.raises(
        InputError,
        match=r"--labels_from=t.xlsx: must be a CSV file .* or answers of the "
        r"labeling page \(.jsonl\); save the table as CSV",
    ):
        labels_csv.read("t.xlsx", "labels_from")
