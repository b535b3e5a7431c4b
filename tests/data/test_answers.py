import json
import os
import subprocess
import sys

import pytest

from simmatch_tf.data import answers as answers_lib
from simmatch_tf.flags.errors import InputError


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def log(tmp_path):
    return tmp_path / "labels.jsonl"


def label(file, name):
    return {"file": file, "answer": "class", "class": name}


def test_the_last_line_about_a_file_counts(images, log):
    with answers_lib.Writer(
        log, images=images, classes=["cat", "dog"]
    ) as writer:
        writer.append(label("a.jpg", "cat"), label("b.jpg", "cat"))
        writer.append({"file": "c.jpg", "answer": "none"})
        writer.append({"file": "d.jpg", "answer": "skip"})
        writer.append(label("a.jpg", "dog"))
        writer.append({"file": "b.jpg", "answer": "undo"})
        assert writer.add_class(" fox ") == "fox"
        writer.append(label("d.jpg", "fox"))
        written = writer.answers
    answers = answers_lib.read(log)
    assert answers.images == str(images)
    assert answers.classes == ["cat", "dog", "fox"]
    assert answers.labels == {"a.jpg": "dog", "d.jpg": "fox"}
    assert answers.none == {"c.jpg"}
    assert answers.skipped == []
    assert answers.counts() == {"cat": 0, "dog": 1, "fox": 1}
    assert answers.of("a.jpg") == ("class", "dog")
    assert answers.of("c.jpg") == ("none", None)
    assert answers.of("b.jpg") is None
    assert answers == written


def test_skipped_files_are_in_the_order_of_skipping(images, log):
    with answers_lib.Writer(log, images=images) as writer:
        for file in ("b", "a", "c", "b"):
            writer.append({"file": file, "answer": "skip"})
    assert answers_lib.read(log).skipped == ["a", "c", "b"]


def test_each_line_is_json_with_its_time(images, log):
    with answers_lib.Writer(log, images=images, classes=["é"]) as writer:
        writer.append(label("é.jpg", "é") | {"request": "1"})
    head, line = map(json.loads, log.read_text("utf-8").splitlines())
    assert head == {"version": 1, "images": str(images), "classes": ["é"]}
    time = line.pop("time")
    assert len(time) == 20 and time.endswith("Z")
    assert line == label("é.jpg", "é") | {"request": "1"}


def test_names_are_composed(images, log):
    decomposed = "e\u0301"
    head = {"version": 1, "images": str(images), "classes": [decomposed]}
    lines = [head, label(f"{decomposed}.jpg", decomposed)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert answers_lib.read(log).labels == {"\xe9.jpg": "\xe9"}


@pytest.mark.parametrize("kept", [1, 10, 30])
def test_half_a_last_line_is_ignored_and_cut_off(images, log, kept):
    with answers_lib.Writer(log, images=images, classes=["cat"]) as writer:
        writer.append(label("a.jpg", "cat"))
        whole = log.read_bytes()
        writer.append(label("b.jpg", "cat"))
    log.write_bytes(log.read_bytes()[: len(whole) + kept])
    assert answers_lib.read(log).labels == {"a.jpg": "cat"}
    with answers_lib.Writer(log, images=images) as writer:
        assert writer.answers.labels == {"a.jpg": "cat"}
        writer.append(label("c.jpg", "cat"))
    assert answers_lib.read(log).labels == {"a.jpg": "cat", "c.jpg": "cat"}


def test_a_whole_last_line_counts_without_its_newline(images, log):
    # As an editor may leave it.
    with answers_lib.Writer(log, images=images, classes=["cat"]) as writer:
        writer.append(label("a.jpg", "cat"))
    log.write_bytes(log.read_bytes()[:-1])
    assert answers_lib.read(log).labels == {"a.jpg": "cat"}
    with answers_lib.Writer(log, images=images) as writer:
        writer.append(label("b.jpg", "cat"))
    assert len(answers_lib.read(log).labels) == 2


@pytest.mark.parametrize("kept", [0, 1, 20])
def test_half_a_head_is_written_again(images, log, kept):
    with answers_lib.Writer(log, images=images):
        pass
    log.write_bytes(log.read_bytes()[:kept])
    with pytest.raises(InputError, match="no first line"):
        answers_lib.read(log)
    with answers_lib.Writer(log, images=images, classes=["cat"]):
        pass
    assert answers_lib.read(log).classes == ["cat"]


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"file": "a.jp', "line 3: is no JSON"),
        ("[1]", "line 3: is no JSON object"),
        ('{"file": "a", "answer": "maybe"}', "line 3: has the answer 'maybe'"),
        ('{"file": "", "answer": "skip"}', "line 3: has the file ''"),
        ('{"answer": "skip"}', "line 3: has the file None"),
        (
            '{"file": "a", "answer": "class", "class": "owl"}',
            "line 3: has the class 'owl', which no line before it names; the "
            "classes are cat",
        ),
        ('{"answer": "add_class"}', "line 3: has the class None"),
        ('{"answer": "add_class", "class": "Cat"}', "line 3: 'Cat' exists"),
    ],
)
def test_any_other_damaged_line_is_named(images, log, line, message):
    with answers_lib.Writer(log, images=images, classes=["cat"]) as writer:
        writer.append(label("a.jpg", "cat"))
    log.write_text(f"{log.read_text()}{line}\n")
    with pytest.raises(InputError, match=message):
        answers_lib.read(log)
    before = log.read_bytes()
    with pytest.raises(InputError, match=message):
        answers_lib.Writer(log, images=images)
    assert log.read_bytes() == before


@pytest.mark.parametrize(
    "head, message",
    [
        ("{}", "the version None"),
        ('{"version": 2}', "the version 2"),
        ('{"version": 1, "images": "photos", "classes": []}', "no full path"),
        ('{"version": 1, "images": "/p", "classes": "cat"}', "no list"),
        ('{"version": 1, "images": "/p", "classes": [1]}', "no text"),
        ('{"version": 1, "images": "/p", "classes": ["a/b"]}', "'a/b' must"),
        ("file,class", "line 1: is no JSON"),
    ],
)
def test_a_file_of_another_kind_is_refused(log, head, message):
    log.write_text(f"{head}\n")
    with pytest.raises(InputError, match=message):
        answers_lib.read(log)


def test_no_file(tmp_path):
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read \(No"):
        answers_lib.read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    "name, message",
    [
        ("  ", "is no name"),
        ("a\nb", "is no name"),
        ("../b", "must neither have"),
        (".b", "must neither have"),
        ("é" * 101, "202 bytes"),
        ("CAT", "exists already, as 'cat'"),
    ],
)
def test_class_names_that_are_refused(images, log, name, message):
    with answers_lib.Writer(log, images=images, classes=["cat"]) as writer:
        with pytest.raises(ValueError, match=message):
            writer.add_class(name)
    assert answers_lib.read(log).classes == ["cat"]
    other = log.with_name("other.jsonl")
    with pytest.raises(InputError, match=message):
        answers_lib.Writer(other, images=images, classes=["cat", name])
    assert not other.exists()


def test_classes_are_added_to_those_of_the_file(images, log):
    for classes in (["cat"], ["Cat", "dog"], ["fox"]):
        with answers_lib.Writer(log, images=images, classes=classes):
            pass
    assert answers_lib.read(log).classes == ["cat", "dog", "fox"]


def test_another_folder_is_refused(images, log, tmp_path):
    with answers_lib.Writer(log, images=images):
        pass
    link = tmp_path / "link"
    link.symlink_to(images)
    with answers_lib.Writer(log, images=link):
        pass
    (tmp_path / "others").mkdir()
    with pytest.raises(InputError, match="answers about the images in .*photo"):
        answers_lib.Writer(log, images=tmp_path / "others")


def test_a_folder_that_cannot_be_written(images):
    with pytest.raises(InputError, match="cannot be written"):
        answers_lib.Writer(images / "no" / "labels.jsonl", images=images)


def test_one_writer_at_a_time(images, log):
    with answers_lib.Writer(log, images=images):
        with pytest.raises(InputError, match="another process is writing"):
            answers_lib.Writer(log, images=images)
    with answers_lib.Writer(log, images=images):
        pass


def test_a_wrong_line_is_not_written(images, log):
    with answers_lib.Writer(log, images=images, classes=["cat"]) as writer:
        before = log.read_bytes()
        with pytest.raises(ValueError, match="'dog'"):
            writer.append(label("a.jpg", "cat"), label("b.jpg", "dog"))
        assert log.read_bytes() == before
        assert not writer.answers.labels


def test_on_a_full_disk_none_of_the_lines_is_kept(images, log, monkeypatch):
    write, calls = os.write, []

    def write_seven(file, content):
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return write(file, content[:7])

    with answers_lib.Writer(log, images=images, classes=["cat"]) as writer:
        before = log.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", write_seven)
            with pytest.raises(OSError, match="No space left"):
                writer.append(label("a.jpg", "cat"))
        assert log.read_bytes() == before
        assert not writer.answers.labels
        writer.append(label("b.jpg", "cat"))
    assert answers_lib.read(log).labels == {"b.jpg": "cat"}


def test_answers_are_not_written_into_a_file_that_is_gone(images, log):
    with answers_lib.Writer(log, images=images, classes=["cat"]) as writer:
        log.unlink()
        with pytest.raises(FileNotFoundError):
            writer.append(label("a.jpg", "cat"))
        log.write_text("other\n")
        with pytest.raises(FileNotFoundError, match="was replaced"):
            writer.append(label("a.jpg", "cat"))
    assert log.read_text() == "other\n"


def test_lines_of_another_program_are_not_cut_off(images, log):
    with answers_lib.Writer(log, images=images, classes=["cat"]) as writer:
        with open(log, "a") as file:
            file.write(json.dumps(label("a.jpg", "cat")) + "\n")
        with pytest.raises(OSError, match="was changed by another program"):
            writer.append(label("b.jpg", "cat"))
    assert answers_lib.read(log).labels == {"a.jpg": "cat"}


def test_lines_are_synced_before_append_returns(images, log, monkeypatch):
    events, fsync, write = [], os.fsync, os.write
    with answers_lib.Writer(log, images=images) as writer:
        monkeypatch.setattr(
            os, "fsync", lambda file: (events.append("sync"), fsync(file))
        )
        monkeypatch.setattr(
            os,
            "write",
            lambda file, text: (events.append("write"), write(file, text))[1],
        )
        writer.append({"file": "a", "answer": "skip"})
        assert events == ["write", "sync"]


def test_without_tensorflow():
    program = (
        "import sys; from simmatch_tf.data import answers; "
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
