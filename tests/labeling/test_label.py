import csv
import json
import os
import signal
import subprocess
import sys
import urllib.error

import numpy as np
import PIL.Image
import pytest

from simmatch_tf import label, select
from simmatch_tf.data import answers as answers_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.labeling import server
from tests.labeling import helpers, processes


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return helpers.write_images(tmp_path / "photos", 12)


@pytest.fixture
def never_served(monkeypatch):
    """Makes a command fail that opens its page."""

    def serve(self, app):
        raise AssertionError("the page was opened")

    monkeypatch.setattr(server.Server, "serve", serve)


def run(**values):
    order = {} if "list" in values else {"order": "random"}
    return label.main(
        label.LabelConfig(**{"images": "photos"} | order | values)
    )


# --------------------------------------------------- before anything is opened


@pytest.mark.parametrize(
    "values, message",
    [
        ({"images": None}, "--images is missing"),
        ({"images": "none"}, "--images=none: does not exist"),
        ({"classes": "cat,,dog"}, "--classes=cat,,dog: '' is no name"),
        ({"classes": "cat,Cat"}, "exists already"),
        ({"classes": "a/b"}, "must neither have"),
        ({"labels": "none/labels.jsonl"}, "in a folder that exists"),
        ({"labels": "labels.csv"}, "must end in .jsonl"),
        ({"list": "none.csv"}, "--list=none.csv: cannot be read"),
        ({"model": "none"}, "--model=none: "),
        ({"count": 0}, "--count=0: must be at least 1"),
        (
            {"list": "a.csv", "order": "random"},
            "--order=random and --list=a.csv: a list has an order of its own",
        ),
        ({"port": 65536}, "--port=65536: must be in"),
        ({"host": "a b"}, "--host=a b: must be HOST"),
    ],
)
def test_flags_that_are_refused(photos, never_served, values, message):
    with pytest.raises(InputError) as error:
        run(**values)
    assert message in str(error.value)
    assert not photos.with_name("labels.jsonl").exists()


def test_a_port_that_is_in_use(photos, never_served):
    with server.Server("127.0.0.1", 0) as other:
        with pytest.raises(InputError, match=f"--port={other.port}: cannot be"):
            run(port=other.port)
    assert not photos.with_name("labels.jsonl").exists()


def test_answers_about_another_folder(photos, never_served):
    helpers.write_images(photos.with_name("others"), 2)
    with answers_lib.Writer("labels.jsonl", images="others"):
        pass
    with pytest.raises(
        InputError, match="answers about the images in .*others"
    ):
        run()


def test_a_second_server_of_the_same_answers(photos, never_served):
    with answers_lib.Writer("labels.jsonl", images="photos"):
        with pytest.raises(InputError, match="another process is writing"):
            run()


def test_a_damaged_line(photos, never_served):
    with answers_lib.Writer("labels.jsonl", images="photos"):
        pass
    with open("labels.jsonl", "a") as file:
        file.write("damaged\n")
    with pytest.raises(InputError, match="labels.jsonl, line 2: is no JSON"):
        run()


# -------------------------------------------------------------- in one process


def test_classes_come_from_the_flag_the_answers_and_the_folders(
    photos, monkeypatch, capsys
):
    helpers.write_images(photos / "labeled" / "owl", 1)
    monkeypatch.setattr(server.Server, "serve", lambda self, app: None)
    run(classes="cat, dog")
    assert answers_lib.read("labels.jsonl").classes == ["owl", "cat", "dog"]
    run(classes="fox")
    assert answers_lib.read("labels.jsonl").classes[3:] == ["fox"]
    printed = capsys.readouterr().out
    assert "12 images; answers go to labels.jsonl" in printed
    assert "0 images have a class (owl 0, cat 0, dog 0)" in printed
    assert "Next:" not in printed


def test_a_host_for_others_is_warned_about(photos, monkeypatch, capsys):
    monkeypatch.setattr(server.Server, "serve", lambda self, app: None)
    run(host="0.0.0.0")
    printed = capsys.readouterr()
    assert "Warning: --host=0.0.0.0: whoever can reach" in printed.err
    assert "Open http://0.0.0.0" not in printed.out
    run(host="::1")
    printed = capsys.readouterr()
    assert "Warning" not in printed.err
    assert "Open http://[::1]:" in printed.out


def test_the_next_command_quotes_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    helpers.write_images(tmp_path / "my photos", 2)
    with answers_lib.Writer(
        "labels.jsonl", images="my photos", classes=["a"]
    ) as writer:
        line = {"file": "000.png", "answer": "class", "class": "a"}
        writer.append(line)
    monkeypatch.setattr(server.Server, "serve", lambda self, app: None)
    run(images="my photos")
    assert (
        "1 images have a class (a 1), 0 show none of these, 0 were skipped "
        "(labels.jsonl).\nNext:\npython -m simmatch_tf.train "
        "--flagfile=configs/folder.cfg '--data_dir=my photos' "
        "--labels_from=labels.jsonl\nIt needs two classes or more, and two "
        "images of each, unless labeled/ or test/ has some; of a there is one."
    ) in capsys.readouterr().out


# ------------------------------------------------------------------ its rounds


@pytest.fixture
def varied(tmp_path, monkeypatch):
    """A folder of 12 images that resemble each other in threes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(server.Server, "serve", lambda self, app: None)
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for kind in range(4):
        plan = rng.integers(0, 256, [4, 4, 3])
        for number in range(3):
            changed = np.clip(plan + rng.normal(0, 40, plan.shape), 0, 255)
            image = PIL.Image.fromarray(changed.astype(np.uint8))
            image.resize([32, 32]).save(f"photos/{kind}{number}.png")
    return tmp_path / "photos"


def chosen(**values):
    """Begins or continues a round; returns its images."""
    run(**{"order": "chosen", "count": 4} | values)
    with open("labels.selected.csv", newline="") as file:
        return [row["file"] for row in csv.DictReader(file)]


def answer_each(files, answer="class", **name):
    with answers_lib.Writer(
        "labels.jsonl", images="photos", classes=["a", "b"]
    ) as writer:
        for file in files:
            writer.append({"file": file, "answer": answer, **name})


def test_rounds_follow_each_other(varied, capsys):
    first = chosen()
    assert sorted(file[0] for file in first) == ["0", "1", "2", "3"]
    said = capsys.readouterr().err
    assert "by pixels alone" in said and "are in labels.selected.csv" in said
    answer_each(first[:1], **{"class": "a"})
    answer_each(first[1:2], **{"class": "b"})
    assert chosen(count=2) == first  # as it was begun
    assert "2 of 4 images are left; remove it" in capsys.readouterr().err
    answer_each(first[2:], **{"class": "a"})
    second = chosen()
    assert len(second) == 4 and not set(first) & set(second)
    assert "4 images have labels already" in capsys.readouterr().err


def test_what_is_left_is_chosen_at_the_end(varied, capsys):
    files = sorted(path.name for path in varied.iterdir())
    answer_each(files[:10], **{"class": "a"})
    assert sorted(chosen()) == files[10:]
    answer_each(files[10:], **{"class": "b"})
    os.remove("labels.selected.csv")
    run(order="chosen")
    assert not os.path.exists("labels.selected.csv")


def test_images_of_none_of_the_classes_are_not_chosen(varied):
    files = sorted(path.name for path in varied.iterdir())
    answer_each(files[:9], answer="none")
    assert sorted(chosen()) == files[9:]


def test_a_round_goes_on_without_images_that_are_gone(varied, capsys):
    first = chosen()
    (varied / first[0]).unlink()
    answer_each(first[1:2], **{"class": "a"})
    assert chosen() == first
    said = capsys.readouterr()
    assert "2 of 4 images are left" in said.err
    assert "11 images; answers go to" in said.out
    answer_each(first[2:], **{"class": "b"})
    assert not set(first) & set(chosen())


def test_select_and_label_see_the_same_images(varied):
    """Whatever folders there are, and whether classes are known."""
    for name in ("test/cat/1.png", "val/dog/2.png", "labeled/cat/3.png"):
        path = varied / name
        path.parent.mkdir(parents=True)
        pixels = np.random.default_rng(9).integers(
            0, 256, [32, 32, 3], np.uint8
        )
        PIL.Image.fromarray(pixels).save(path)
    given = ["x", f"--images={varied}", "--count=12", "--output=all.csv"]
    for words in ([], ["--labels_from=labels.jsonl"]):
        if words:
            answer_each(["01.png"], **{"class": "cat"})
            given[2] = "--count=10"
        select.main(select.SelectConfig.from_argv([*given, *words]))
        run(list="all.csv")  # it names no image that label does not have


def test_the_list_of_another_program(varied):
    with open("own.csv", "w") as file:
        file.write(f"nr;file\n1;00.png\n2;{varied}/11.png\n")
    run(list="own.csv")


def test_names_with_line_breaks(varied):
    (varied / "00.png").rename(varied / "new\nline.png")
    assert len(chosen(count=12)) >= 11
    run(order="chosen")


def test_another_file_in_the_list_s_place_is_kept(varied):
    with open("labels.selected.csv", "w") as file:
        file.write("file,class\n00.png,a\n")
    with pytest.raises(InputError, match="labels.selected.csv: exists, and is"):
        run(order="chosen")
    assert not os.path.exists("labels.jsonl")
    with open("labels.selected.csv") as file:
        assert file.read() == "file,class\n00.png,a\n"


@pytest.mark.parametrize(
    ("model", "workdir"), [("run", "run-2"), ("run-2/", "run-3")]
)
def test_the_next_round_trains_in_a_folder_of_its_own(
    tmp_path, monkeypatch, model, workdir
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / model / "checkpoints").mkdir(parents=True)
    (tmp_path / model / "checkpoints" / "step_1.index").touch()
    flags = label.LabelConfig(images="photos", model=model)
    command = label._next_command(flags, "labels.jsonl")
    assert command.endswith(f"--labels_from=labels.jsonl --workdir={workdir}")


# ----------------------------------------------------------- as a real process


def answer(process, state, name, browser="annannann"):
    current = state["current"]
    number = state["done"]
    return process.post(
        "answer",
        request=f"{browser}-{current['index']}x{number}",
        images=[current["index"]],
        was=[current["was"]],
        answer="class",
        **{"class": name},
    )


@pytest.mark.slow
def test_starts_without_tensorflow(photos):
    program = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from simmatch_tf import label\n"
        "from simmatch_tf.labeling import server\n"
        "server.Server.serve = lambda self, app: None\n"
        "label.main(label.LabelConfig(images='photos'))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_a_summary_and_the_next_command(photos, number):
    with processes.Process("photos", "--classes=cat,dog") as process:
        state = process.post("view", browser="annannann")
        answer(process, state, "cat")
        # An image that cannot be read is named at the end, too.
        (photos / "000.png").write_text("text")
        with pytest.raises(urllib.error.HTTPError, match="422"):
            process.get("/image/0")
        status, printed, errors = process.end(number)
    assert status == 0
    assert "1 images have a class (cat 1, dog 0)" in printed
    assert "--data_dir=photos --labels_from=labels.jsonl" in printed
    assert "Warning: 000.png was passed over: is no JPEG" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_no_answer_is_lost_by_kills(photos):
    given = {}
    for session in range(4):
        with processes.Process("photos", "--classes=cat,dog") as process:
            state = process.post("view", browser="annannann")
            assert state["done"] == len(given)
            for number in range(3):
                name = ("cat", "dog")[(session + number) % 2]
                given[state["current"]["name"]] = name
                state = answer(process, state, name, f"browser{session}")
            process.kill()
        assert answers_lib.read("labels.jsonl").labels == given
        # What a kill in the middle of a line leaves.
        with open("labels.jsonl", "a") as file:
            file.write(json.dumps({"file": "000.png"})[: 5 + session])
    assert len(given) == 12


@pytest.mark.slow
def test_a_second_process_of_the_same_answers_is_refused(photos):
    with processes.Process("photos"):
        done = subprocess.run(
            [sys.executable, "-m", "simmatch_tf.label", "--images=photos"],
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1
    assert "another process is writing to it" in done.stderr


@pytest.mark.slow
def test_the_guesses_of_a_run(finished_run, tmp_path, monkeypatch):
    workdir, _ = finished_run
    monkeypatch.chdir(tmp_path)
    helpers.write_images(tmp_path / "photos", 3)
    with processes.Process("photos", f"--model={workdir}") as process:
        state = process.post("view", browser="annannann")
        assert state["has_guesses"]
        assert [c["name"] for c in state["classes"]] == list("0123456789")
        guess = None
        while guess is None:
            guess = process.post("open", image=0)["guess"]
        status, _, errors = process.end()
    assert status == 0, errors
    from simmatch_tf.serving import prediction

    expected = prediction.predict(workdir, "photos")
    assert guess["class"] == expected.classes[0]
    assert guess["confidence"] == pytest.approx(
        float(expected.confidences[0]), abs=1e-3
    )
