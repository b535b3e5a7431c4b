"""A finished run is shown for the same question only; nothing is trained."""

import dataclasses
import json
import os
import shutil

import numpy as np
import PIL.Image
import pytest
from absl import logging

import simmatch_tf
from simmatch_tf import config as config_lib
from simmatch_tf import evaluate, registry, terminal, train
from simmatch_tf.data import fingerprint, layout
from simmatch_tf.data.sources import digits
from simmatch_tf.data.sources import folder as folder_source
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.data.sources import tfds as tfds_source
from simmatch_tf.experiments import identity, plan
from simmatch_tf.experiments import store as store_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import scoring
from simmatch_tf.training import results, workdir
from tests import runs

LAST = {"top1": 0.5, "top5": 1.0, "step": 6}
RESULT = results.Result(
    top1=0.5,
    top5=1.0,
    loss=1.0,
    steps=6,
    weights_of_record="ema",
    student={
        "last": LAST,
        "best": {"top1": 0.5, "step": 6, "chosen_on": "test"},
    },
    ema={"last": LAST, "best": {"top1": 0.5, "step": 6, "chosen_on": "test"}},
    algorithm="simmatch",
    dataset="folder",
    class_names=["a", "b"],
    labels=4,
    validation_labels=0,
    unlabeled=6,
    scored_on="test",
    test_images=2,
    seed=0,
    split_seed=0,
    versions={},
)
NAMES = ("labeled/a/1.png", "labeled/b/1.png", "unlabeled/1.png")


@pytest.fixture
def logged(monkeypatch):
    """Warnings, as they are read."""
    lines = []
    monkeypatch.setattr(terminal, "warn", lines.append)
    monkeypatch.setattr(
        logging, "warning", lambda text, *values: lines.append(text % values)
    )
    return lines


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        write(tmp_path / "photos" / name)
    return tmp_path / "photos"


def write(path, content=b"image"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def config_of(root, **changes):
    return config_lib.Config(
        **{
            "workdir": str(root.parent / "run"),
            "dataset": "folder",
            "data_dir": str(root),
            "steps": 6,
            **changes,
        }
    )


def of_folder(root):
    listing = layout.Listing(str(root))
    paths = [f"{listing.root}/{path}" for path in listing.paths]
    digests = fingerprint.digests(paths)
    return listing.fingerprint(dict(zip(listing.names, digests, strict=True)))


def finish(config, data):
    """Leaves a run that has ended."""
    with workdir.claim(config) as folder:
        folder.begin(config, lambda: data)
        RESULT.write(folder.results)
    return folder


@pytest.fixture
def config(root):
    config = config_of(root)
    finish(config, of_folder(root))
    return config


def test_the_same_question(config, root, logged, capsys):
    train.main(config)
    assert "50.00" in capsys.readouterr().out
    # Moved, and copied without its times.
    shutil.copytree(root, f"{root}2", copy_function=shutil.copyfile)
    for name in NAMES:
        os.utime(f"{root}2/{name}", (1, 1))
    shutil.rmtree(root)
    train.main(dataclasses.replace(config, data_dir=f"{root}2"))
    assert "50.00" in capsys.readouterr().out
    assert logged == []


def refused(config, message):
    """Neither shown nor resumed."""
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            train.main(config)
        with pytest.raises(InputError, match=message):
            simmatch_tf.fit(config)
        # As if it had been killed before its end.
        folder = workdir.Workdir(config.workdir)
        write(folder.checkpoints / "step_00000002.index")
        folder.results.unlink(missing_ok=True)


def test_more_labels(config, root):
    for number in (2, 3, 4):
        write(root / f"labeled/a/{number}.png")
    refused(
        config,
        "run holds a run on other data than --data_dir=.*photos has now: 3 "
        r"are new \(labeled/a/2.png, labeled/a/3.png, labeled/a/4.png\)\. For "
        "a new run give another --workdir, or --overwrite",
    )
    with workdir.claim(dataclasses.replace(config, overwrite=True)) as folder:
        assert folder.anew


def test_another_class_in_a_table(root, tmp_path):
    table = tmp_path / "labels.csv"
    rows = "file,class\nlabeled/a/1.png,a\nmore/1.png,b\nmore/2.png,a\n"
    table.write_text(rows)
    for number in (1, 2, 3):
        write(root / f"more/{number}.png", b"%d" % number)
    config = config_of(root, labels_csv=str(table))
    listing = layout.Listing(str(root), str(table))
    finish(config, listing.fingerprint())
    train.main(config)
    # As a spreadsheet saves it.
    table.write_text(rows.replace(",", ";"), "utf-8-sig")
    train.main(config)
    moved = table.rename(tmp_path / "moved.csv")
    train.main(dataclasses.replace(config, labels_csv=str(moved)))
    moved.rename(table)
    table.write_text(rows.replace("1.png,b", "1.png,a"))
    refused(
        config,
        r"now: 1 is new \(more/1.png as 'a'\), 1 is gone \(more/1.png as 'b'",
    )
    table.unlink()
    refused(
        config,
        "--labels_csv=.*labels.csv: no such file. If the table of a run has "
        "moved, put it back, or start train again with its new place",
    )
    config = dataclasses.replace(config, labels_csv=None)
    refused(config, r"5 are gone \(more/1.png, more/1.png as 'b', ")


def test_more_answers_of_the_labeling_page(root, tmp_path):
    names = [f"more/{number}.png" for number in range(1, 6)]
    for name in names:
        write(root / name, name.encode())
    path = tmp_path / "labels.jsonl"
    head = {"version": 1, "images": str(root), "classes": ["a", "b"]}
    log = [head] + [
        {"file": name, "answer": "class", "class": label}
        for name, label in zip(names, "ab", strict=False)
    ]

    def answer(*lines):
        log.extend(lines)
        path.write_text("".join(f"{json.dumps(line)}\n" for line in log))

    answer()
    config = config_of(root, labels_from=str(path))
    finish(config, layout.of_flags(config).fingerprint())
    answer({"file": names[2], "answer": "skip"})  # it stays unlabeled
    train.main(config)
    answer(
        {"file": names[2], "answer": "class", "class": "b"},
        {"file": names[3], "answer": "none"},
    )
    refused(
        config,
        r"now: 2 are new \(more/3.png as 'b', more/4.png as none of the "
        r"classes\), 1 is gone \(more/4.png\)\. For a new run give another",
    )


def test_another_label(config, root):
    os.rename(root / "labeled/a/1.png", root / "labeled/b/2.png")
    write(root / "labeled/a/3.png")
    refused(config, r"2 are new \(.*, 1 is gone \(labeled/a/1.png\)")


def test_another_folder(config, tmp_path):
    for name in ("labeled/x/1.png", "labeled/y/1.png", "unlabeled/1.png"):
        write(tmp_path / "other" / name)
    other = dataclasses.replace(config, data_dir=str(tmp_path / "other"))
    refused(other, "2 are new .*, 2 are gone")


def test_another_content_of_the_same_size(config, root):
    path = root / "unlabeled/1.png"
    path.write_bytes(b"IMAGE")
    os.utime(path, (5, 5))
    refused(config, r"1 is changed \(unlabeled/1.png\)")


def test_a_folder_that_is_not_there(config):
    config = dataclasses.replace(config, data_dir=config.data_dir + "x")
    refused(config, "--data_dir=.*photosx: no such folder")


def test_other_flags_that_change_no_result_are_printed(config, capsys):
    changed = dataclasses.replace(config, log_every=7)
    with workdir.claim(changed):
        pass
    said = capsys.readouterr().err.splitlines()
    assert said == [f"--log_every is now 7 (before: {config.log_every})"]


def test_other_flags_come_first(config, root):
    write(root / "unlabeled/2.png")
    with pytest.raises(InputError, match="--seed is 0 there and 1 here"):
        train.main(dataclasses.replace(config, seed=1))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"a": [1]}'])
def test_a_run_without_a_list_of_its_images(config, logged, capsys, content):
    """As those of older versions: it is shown, and says so."""
    folder = workdir.Workdir(config.workdir)
    if content is None:
        folder.data.unlink()
    else:
        folder.data.write_text(content)
    train.main(config)
    assert "50.00" in capsys.readouterr().out
    (line,) = logged
    assert "the same is not checked" in line
    if content is None:  # resumed, it has one from then on
        folder.begin(config, lambda: of_folder(config.data_dir))
        assert folder.data.is_file()


@pytest.mark.parametrize("dataset", ["folder", "plugged"])
def test_a_plugin_that_changed(root, tmp_path, monkeypatch, dataset, logged):
    """It is part of the method: not resumed, and shown with a warning."""
    for each in (registry.algorithms, registry.sources):
        list(each)
        monkeypatch.setattr(each, "_entries", dict(each._entries))
    monkeypatch.setattr(registry, "_plugins", {})
    monkeypatch.setattr(registry, "_moved", {})
    plugin = tmp_path / "own_match.py"
    plugin.write_text(
        "from simmatch_tf import registry\n"
        "from simmatch_tf.algorithms import fixmatch\n"
        "@registry.algorithms.register('own_match')\n"
        "class OwnMatch(fixmatch.FixMatch): pass\n"
        "@registry.sources.register('plugged')\n"
        "def load(config): pass\n"
    )
    changes = {"algorithm": "own_match", "plugin": (str(plugin),)}
    if dataset == "plugged":
        changes |= {"dataset": "plugged", "data_dir": None, "labels": 4}
    config = config_of(root, **changes)
    folder = finish(config, of_folder(root))
    assert "--plugin=own_match.py" in folder.data.read_text()
    name = identity.name(config)
    folder.check_data(config)
    assert folder.unread == (dataset == "plugged") and not logged
    before = folder.data.read_text()
    plugin.write_text(plugin.read_text() + "# other\n")
    assert identity.name(config) != name
    refused(config, "its --plugin=own_match.py has changed since the run began")
    assert logged == []
    for _ in range(2):
        folder.read_config()
    assert logged == [
        f"{folder.path}: {plugin} has changed since the run began"
    ]
    # A run of an older version has no entry for it.
    lines = before.splitlines()
    kept = [line for line in lines if "--plugin" not in line]
    kept[-2] = kept[-2].rstrip(",")
    folder.data.write_text("\n".join(kept))
    folder.check_data(config)


@pytest.mark.slow
def test_the_size_of_a_folders_images(tmp_path):
    root = tmp_path / "photos"
    for place, name in enumerate(NAMES * 2):
        path = root / name.replace("1.png", f"{place}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.full([12, 12, 3], 40 * place, np.uint8)
        PIL.Image.fromarray(array).save(path)
    flags = {
        "dataset": "folder",
        "data_dir": str(root),
        "backbone": "scatter_2",
        "image_size": None,
        "labels": None,
        "batch_size": 2,
        "validation_fraction": 0.5,
        "schedule": "cooldown",
        "steps": 4,
    }
    path = tmp_path / "run"
    result = runs.fit(path, **flags)
    data = path / "checkpoints/step_00000004.data-00000-of-00001"
    whole, shape = data.read_bytes(), simmatch_tf.load(path).inputs[0].shape
    assert shape == (None, 12, 12, 3)
    # Killed before its end, it goes on with the same size.
    (path / "results.json").unlink()
    for file in path.glob("checkpoints/step_00000004*"):
        file.unlink()
    assert runs.fit(path, **flags) == result
    assert runs.began_after(path) == 2 and data.read_bytes() == whole
    with pytest.raises(InputError, match="image_size is None there and 10"):
        runs.fit(path, **{**flags, "image_size": 10})
    # A given size is not forgotten where the flag is left out.
    runs.fit(tmp_path / "given", **{**flags, "image_size": 10})
    for more in ({}, {"extend_steps": 2}):
        with pytest.raises(InputError, match="image_size is 10 there and None"):
            runs.fit(tmp_path / "given", **flags, **more)


@pytest.mark.slow
def test_the_side_of_a_run_stays(tmp_path):
    """Even if another version takes another side for the same flags."""
    root = tmp_path / "photos"
    for place, name in enumerate(NAMES * 2):
        path = root / name.replace("1.png", f"{place}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        array = np.full([12, 12, 3], 40 * place, np.uint8)
        PIL.Image.fromarray(array).save(path)
    flags = {
        "dataset": "folder",
        "data_dir": str(root),
        "image_size": None,
        "labels": None,
        "batch_size": 2,
        "validation_fraction": 0.5,
        "steps": 4,
    }
    path = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_source, "IMAGE_SIZE", 16)
        result = runs.fit(path, **flags)
    assert simmatch_tf.load(path).inputs[0].shape == (None, 16, 16, 3)
    (path / "results.json").unlink()
    for file in path.glob("checkpoints/step_00000004*"):
        file.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_source, "IMAGE_SIZE", 8)
        assert runs.fit(path, **flags) == result
        folder = workdir.Workdir(path)
        scores = scoring.of_run(folder, folder.read_config(), 2)
    assert scores.about["test_images"] == len(scores.labels)
    assert "image_size" not in folder.flagfile.read_text()


def test_a_run_without_a_checkpoint_begins_anew(root):
    config = config_of(root)
    with workdir.claim(config) as folder:
        folder.begin(config, lambda: of_folder(root))
    write(root / "unlabeled/2.png")
    with workdir.claim(config) as folder:
        folder.begin(config, lambda: of_folder(root))
    assert "unlabeled/2.png" in folder.data.read_text()


def test_digits(tmp_path, capsys, logged):
    config = runs.config(tmp_path / "run")
    finish(config, digits.fingerprint())
    train.main(config)
    assert "50.00" in capsys.readouterr().out and logged == []


def test_a_dataset_of_tfds(small_tfds, tmp_path, logged):
    folder = shutil.copytree(f"{small_tfds}/cifar10", tmp_path / "t/cifar10")
    config = runs.config(
        tmp_path / "run", dataset="cifar10", tfds_dir=str(tmp_path / "t")
    )
    source = tfds_source.load("cifar10", tfds_dir=config.tfds_dir)
    finish(config, source.fingerprint())
    train.main(config)
    assert logged == []
    (path,) = folder.glob("*/*train*")
    os.utime(path, (5, 5))
    train.main(config)
    assert "1 files of its dataset have been written since" in logged[0]
    logged.clear()
    # Prepared nowhere near: the name and its version are the question.
    train.main(dataclasses.replace(config, tfds_dir=str(tmp_path)))
    assert "is not prepared here now" in logged[0]
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    refused(
        config, r"than --dataset=cifar10 has now: 1 is changed \(cifar10/3.0.2/"
    )
    path.unlink()
    refused(config, r"1 is gone \(cifar10/3.0.2/cifar10-train")
    # Resumed where TFDS has to prepare it, it is compared once it has.
    moved = dataclasses.replace(config, tfds_dir=str(tmp_path))
    path.write_bytes(content)
    with workdir.claim(moved) as claimed:
        assert claimed.resumed()
        claimed.begin(moved, source.fingerprint)
        claimed.compared = False
        path.write_bytes(b"other")
        with pytest.raises(InputError, match="1 is changed"):
            claimed.begin(moved, source.fingerprint)


def test_images_from_python(tmp_path):
    def make(level, labels=(0, 1)):
        images = source_lib.Images(
            np.full([2, 8, 8, 1], level, np.uint8), np.array(labels)
        )
        return source_lib.Source("mine", ["a", "b"], images, images, False)

    config = runs.config(
        tmp_path / "run", dataset="custom", image_size=None, labels=2
    )
    finish(config, make(3).fingerprint())
    assert simmatch_tf.fit(config, source=make(3)) == RESULT
    for other in (make(4), make(3, (1, 0))):
        with pytest.raises(InputError, match="2 are changed .test, train"):
            simmatch_tf.fit(config, source=other)


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        ("labeled_list", "file"),
        ("split_file", "file"),
        ("init_from", "file"),
        ("init_from", "run"),
        ("init_from", "export"),
    ],
)
def test_another_file_of_a_flag(tmp_path, capsys, flag, kind):
    """Its content is a part of the question, too."""
    named = tmp_path / "mine.h5"
    content = {
        "file": named,
        "run": named / "checkpoints/step_00000002.index",
        "export": named / "variables/variables.index",
    }[kind]
    write(content, b"one")
    if kind == "run":
        write(named / "flags.cfg")
    if kind == "export":
        write(named / "saved_model.pb")
    changes = {flag: str(named)}
    if flag != "init_from":
        changes["labels"] = None
    config = runs.config(tmp_path / "run", **changes)
    finish(config, digits.fingerprint())
    os.utime(content, (5, 5))
    train.main(config)
    assert "50.00" in capsys.readouterr().out
    content.write_bytes(b"two")
    refused(config, rf"has now: 1 is changed \(--{flag}\)")
    # Its images are the same, for `evaluate` and `report`.
    evaluated = evaluate.EvaluateConfig(workdir=config.workdir)
    assert evaluate._changes(workdir.Workdir(config.workdir), evaluated) == {}
    # A run that has begun needs none of them again.
    content.unlink()
    with workdir.claim(config) as folder:
        assert folder.resumed()


def test_a_later_checkpoint_of_the_first_weights(tmp_path):
    named = tmp_path / "first"
    write(named / "flags.cfg")
    write(named / "checkpoints/step_00000002.index", b"two")
    config = runs.config(tmp_path / "run", init_from=str(named))
    finish(config, digits.fingerprint())
    write(named / "checkpoints/step_00000010.index", b"ten")
    refused(config, r"1 is changed \(--init_from\)")


def test_evaluation_of_other_images_says_so(config, root, logged):
    folder = workdir.Workdir(config.workdir)
    flags = evaluate.EvaluateConfig(workdir=config.workdir)
    assert evaluate._changes(folder, flags) == {} and logged == []
    write(root / "unlabeled/1.png", b"other")
    os.utime(root / "unlabeled/1.png", (5, 5))
    changes = {"images_changed": "1 is changed (unlabeled/1.png)"}
    assert evaluate._changes(folder, flags) == changes
    assert "are not those that it began with: 1 is changed" in logged[0]
    folder.data.unlink()
    assert evaluate._changes(folder, flags) == {}


def test_an_experiment_on_images_that_changed(config, root, tmp_path):
    folder = workdir.Workdir(config.workdir)
    times = [{"seconds": 1.0}]
    folder.timing.write_text(json.dumps(times))
    store = store_lib.Store(tmp_path / "finished")
    store.check_writable()
    kept = store.add(config, folder.path, 1)
    assert store.find(config) == kept
    identity._in_folder.cache_clear()
    write(root / "labeled/a/2.png")
    with pytest.raises(
        InputError, match="is of other data: files of --data_dir"
    ):
        store.find(config)
    with pytest.raises(InputError, match="is of other data"):
        store.missing([cell_of(config)])
    # Without the folder, its results are still a table's.
    identity._in_folder.cache_clear()
    shutil.rmtree(root)
    assert store.find(config) == kept


def cell_of(config):
    return plan.Cell("a", "b", 0, config)


def test_an_experiment_on_a_list_that_changed(tmp_path):
    write(tmp_path / "list", b"1")
    config = runs.config(
        tmp_path / "run", labels=None, labeled_list=str(tmp_path / "list")
    )
    folder = finish(config, digits.fingerprint())
    folder.timing.write_text(json.dumps([{"seconds": 1.0}]))
    store = store_lib.Store(tmp_path)
    kept = store.add(config, folder.path, 1)
    assert store.find(config) == kept
    write(tmp_path / "list", b"2")
    with pytest.raises(InputError, match="is of other data"):
        store.find(config)


def test_each_folder_has_a_workdir_of_its_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def of(*words):
        argv = ["train", "--dataset=folder", "--steps=1", *words]
        return config_lib.Config.from_argv(argv).workdir

    recipe = "--flagfile=configs/folder.cfg"
    assert of(recipe, "--data_dir=a/photos") == "runs/folder-photos"
    assert of(recipe, "--data_dir=a/photos/") == "runs/folder-photos"
    assert of(recipe, "--data_dir=other") == "runs/folder-other"
    assert of("--data_dir=other") == "runs/default-other"
    assert of(recipe, "--data_dir=.") == f"runs/folder-{tmp_path.name}"
    assert of(recipe, "--data_dir=/") == "runs/folder"
    assert of(recipe, "--data_dir=a", "--workdir=w") == "w"
