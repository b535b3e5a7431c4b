"""Flagfiles, and words beside them."""

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf import experiment, predict, report
from simmatch_tf.flags import flagfiles
from simmatch_tf.flags.errors import InputError

Config = config_lib.Config


def test_what_a_flag_brings_replaces_its_alternatives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.cfg").write_text("--labels=40\n--steps=5\n")
    (tmp_path / "mine.cfg").write_text(
        "--flagfile=base.cfg\n--label_fraction=0.1\n"
    )
    c = Config.from_argv(["x", "--flagfile=mine.cfg"])
    assert (c.labels, c.label_fraction, c.steps) == (None, 0.1, 5)
    c = Config.from_argv(["x", "--flagfile=mine.cfg", "--epochs=2"])
    assert (c.steps, c.epochs) == (None, 2.0)
    c = Config.from_argv(["x", "--flagfile=mine.cfg", "--labels", "20"])
    assert (c.labels, c.label_fraction) == (20, None)
    c = Config.from_argv(
        [
            "x",
            "--flagfile=configs/folder.cfg",
            "--data_dir=x",
            "--split_file=y",
        ]
    )
    assert (c.split_file, c.validation_fraction) == ("y", 0.0)
    (tmp_path / "more.cfg").write_text("--flagfile=mine.cfg\n--epochs=3\n")
    c = Config.from_argv(["x", "--flagfile=base.cfg", "--flagfile=more.cfg"])
    assert (c.label_fraction, c.labels, c.epochs) == (0.1, None, 3.0)
    # Side by side they contradict each other.
    with pytest.raises(InputError, match="--steps=7 and --epochs=2.0: give"):
        Config.from_argv(
            ["x", "--flagfile=base.cfg", "--steps=7", "--epochs=2"]
        )


def test_flagfiles_nest_and_the_later_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.cfg").write_text("# base\n--alpha=0.5\n--labels=40\n")
    (tmp_path / "mine.cfg").write_text(
        "--flagfile=base.cfg\n\n// also a comment\n--steps=5\n--alpha=0.6\n"
    )
    c = Config.from_argv(["x", "--flagfile=mine.cfg", "--steps=7"])
    assert (c.alpha, c.labels, c.steps) == (0.6, 40, 7)
    assert c.workdir == "runs/mine"
    c = Config.from_argv(["x", "--flagfile", "mine.cfg", "--workdir=w"])
    assert c.workdir == "w"
    # A recipe of the package, from a folder that has no configs/.
    assert Config.from_flagfile("configs/digits_40.cfg").labels == 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("alpha=1", "'alpha=1' is neither a flag nor a comment"),
        ("--flagfile=self.cfg", "the file includes itself"),
        ("--alhpa=1", "--alhpa: unknown; did you mean --alpha"),
        ("--alpha=x", "--alpha=x: must be a number"),
        ("--flagfile=other.cfg", "--flagfile=other.cfg: no such file"),
        ("--labels=40\n--steps=5\n--\nword", "'word' is neither a flag"),
    ],
)
def test_bad_flagfiles(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "self.cfg").write_text(content)
    with pytest.raises(InputError, match=message):
        Config.from_flagfile("self.cfg")


def test_a_missing_recipe_names_the_nearest():
    with pytest.raises(InputError, match="did you mean configs/digits_40"):
        flagfiles.find("configs/digit_40.cfg")


def test_a_flagfile_that_is_not_text(tmp_path):
    path = tmp_path / "x.cfg"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="x.cfg: is no text in UTF-16"):
        Config.from_flagfile(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_a_flagfile_as_editors_save_it(tmp_path, encoding):
    base, path = tmp_path / "base.cfg", tmp_path / "mine.cfg"
    mark = "\ufeff" * (encoding == "utf-16-le")
    base.write_text(f"{mark}--labels=40\r\n--steps=5\r\n", encoding=encoding)
    path.write_text(
        f"{mark}# é\n--flagfile={base}\n--alpha=0.5\n", encoding=encoding
    )
    config = Config.from_flagfile(path)
    assert (config.labels, config.steps, config.alpha) == (40, 5, 0.5)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"--labels=40\n# caf\xe9", "is no text in UTF-8 .byte 18 is not"),
        ("--labels=40".encode("utf-16-le"), "zero bytes .*; save it as UTF-8"),
    ],
)
def test_a_flagfile_in_another_encoding(tmp_path, content, message):
    path = tmp_path / "x.cfg"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"--flagfile={path}: .*{message}"):
        Config.from_flagfile(path)


def test_words_that_are_no_flags():
    with pytest.raises(InputError, match="'more' is not a flag"):
        Config.from_argv(["x", "--labels=40", "--steps=5", "more"])


def test_the_last_of_the_words_without_a_name_may_be_many():
    kind = report.ReportConfig
    page = "--output=/tmp/x.html"
    config = kind.from_argv(["report", "a", page, "b", "--runs=c", "d"])
    assert sorted(config.runs) == ["a", "b", "c", "d"]
    assert kind.from_argv(["report", page, "--runs=c"]).runs == ("c",)
    again = kind.from_argv(["report", *config.to_flagfile().split()])
    assert again == config
    with pytest.raises(InputError, match="'b' is not a flag"):
        experiment.ExperimentConfig.from_argv(["experiment", "a.cfg", "b"])
    with pytest.raises(InputError, match="'a' is not a flag"):
        predict.PredictConfig.from_argv(["predict", "a"])


def test_more_flags_behind_a_flagfile(tmp_path):
    config = Config.from_flagfile(
        "configs/folder.cfg", data_dir=tmp_path, epochs=3, ema_warmup=False
    )
    assert config.data_dir == str(tmp_path) and config.ema_warmup is False
    # What excludes it in the file is replaced, as on a command line.
    assert (config.steps, config.epochs) == (None, 3.0)
    expected = Config.from_argv(
        [
            "x",
            "--flagfile=configs/folder.cfg",
            f"--data_dir={tmp_path}",
            "--epochs=3",
            "--noema_warmup",
        ]
    )
    assert (
        config == expected and config.workdir == f"runs/folder-{tmp_path.name}"
    )
    for values, message in (
        ({"data_dri": "x"}, "--data_dri: unknown; did you mean --data_dir.$"),
        ({"data_dir": "x", "steps": 0}, "--steps=0: must be at least 1"),
        ({"data_dir": "x", "steps": 1.5}, "steps"),
        ({"data_dir": None}, "--data_dir=None: leave it out"),
        ({}, "--data_dir is missing: name the folder"),
    ):
        with pytest.raises(InputError, match=message):
            Config.from_flagfile("configs/folder.cfg", **values)
