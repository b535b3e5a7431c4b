"""Whole runs on the user's own images, lists and splits."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import signal
import time
import types

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import evaluate, io, predict, preflight
from simmatch_tf.data import answers, files
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import printed_tables
from simmatch_tf.serving import exporting
from simmatch_tf.training import inputs, results, workdir
from tests import recording, runs

FOLDER = {
    "dataset": "folder",
    "image_size": 16,
    "labels": None,
    "weak": "resized_crop",
    "batch_size": 4,
    "steps": 4,
    "eval_every": 4,
}


def make_photos(root, places, per_place=6, seed=0):
    rng = np.random.default_rng(seed)
    for level, place in enumerate(places):
        (root / place).mkdir(parents=True)
        for number in range(per_place):
            size = [*rng.integers(10, 40, 2), 3]
            image = rng.integers(
                20 + 90 * (level % 2), 130 + 90 * (level % 2), size
            )
            path = root / place / f"{number}{('.jpg', '.png')[number % 2]}"
            PIL.Image.fromarray(image.astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    make_photos(root, ("labeled/ä", "labeled/b", "unlabeled"))
    return root


def weights(workdir):
    path = tf.train.latest_checkpoint(workdir / "checkpoints") or max(
        str(p)[: -len(".index")]
        for p in (pathlib.Path(workdir) / "checkpoints").glob("*.index")
    )
    reader = tf.train.load_checkpoint(path)
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "OBJECT_GRAPH" not in name
    }


def assert_same_weights(one, other):
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], name)


@pytest.mark.slow
def test_a_folder_without_test_images(photos, tmp_path, capsys):
    options = {**FOLDER, "data_dir": str(photos)}
    options["validation_fraction"] = 0.3
    result = runs.fit(tmp_path / "run", **options)
    assert result.scored_on == "validation" and result.test_images == 4
    assert result.class_names == ["b", "ä"]  # by code point
    assert (result.labels, result.unlabeled) == (8, 14)
    assert "has no test images" in capsys.readouterr().err
    evaluate.main(evaluate.EvaluateConfig(workdir=str(tmp_path / "run")))
    report = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert report["scored_on"] == "validation" and report["test_images"] == 4
    record = report[report["weights_of_record"]]
    assert record["top1"] == result.top1


@pytest.mark.slow
def test_a_folder_without_images_to_score_on(
    photos, tmp_path, monkeypatch, capsys
):
    """It trains on all labels; baselines are cross-validated on them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    options = {**FOLDER, "data_dir": str(photos), "baselines": True}
    result = runs.fit(folder, **options)
    assert result.scored_on is None and result.test_images == 0
    for network in (result.student, result.ema):
        assert network["last"]["top1"] is network["best"]["top1"] is None
        assert network["calibration"]["temperature"] is None
    assert result.top1 is result.top5 is result.lead is None
    assert (result.labels, result.validation_labels) == (12, 0)
    assert results.read(folder / "results.json") == result
    assert [each["name"][-18:] for each in result.baselines] == [
        "(cross-validation)"
    ] * 2
    err = " ".join(capsys.readouterr().err.split())
    assert "the accuracy of this run will not be known" in err
    text = printed_tables.result(result, runs.config(folder, **options))
    assert "was not measured" in text and "(cross-validation)" in text
    note = simmatch_tf.predict(folder, photos / "labeled").note
    assert note == (
        "Confidences are not calibrated; how far off they are was not measured."
    )
    with pytest.raises(InputError, match="set no labeled ones aside to eval"):
        evaluate.main(evaluate.EvaluateConfig(workdir=str(folder)))
    written = exporting.write(folder, tmp_path / "exports")
    assert written.card["accuracy"] is None
    assert "not measured" in (written.path / "model_card.md").read_text()
    # Killed before its result was written, it has the same one.
    for name in ("results.json", "model.keras"):
        (folder / name).unlink()
    assert runs.fit(folder, **options) == result


@pytest.mark.slow
def test_a_folder_with_test_images_killed_and_resumed(photos, tmp_path):
    make_photos(photos, ("test/ä", "test/b"), 3, seed=1)
    options = {**FOLDER, "data_dir": str(photos), "checkpoint_every": 2}
    whole = runs.fit(tmp_path / "whole", **options)
    assert whole.scored_on == "test" and whole.test_images == 6
    # As if killed after the checkpoint of step 2.
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    (cut / "results.json").unlink()
    for path in (cut / "checkpoints").glob("step_00000004*"):
        path.unlink()
    assert runs.fit(cut, **options) == whole
    assert runs.began_after(cut) == 2
    assert_same_weights(tmp_path / "whole", cut)


def test_a_signal_breaks_off_the_inspection(photos, tmp_path, monkeypatch):
    """What was found is kept, and nobody waits for the rest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_photos(photos, ("unlabeled/more",), 100)
    seen, examine = [], files.examine

    def slow(path):
        seen.append(path)
        if len(seen) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        return examine(path)

    monkeypatch.setattr(files, "examine", slow)
    options = {**FOLDER, "data_dir": str(photos), "validation_fraction": 0.3}
    with pytest.raises(
        simmatch_tf.Interrupted, match="SIGTERM while reading the images of fo"
    ):
        runs.fit(tmp_path / "run", **options)
    assert len(seen) < 100
    inputs.make_source(runs.config(tmp_path / "run", **options))
    # All but the one or two whose turn it was when the signal came.
    assert len(set(seen)) == 118 and len(seen) < 130


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_loop", [1, 4])
def test_an_image_that_disappears_during_the_run(
    photos, tmp_path, monkeypatch, steps_per_loop
):
    options = {
        **FOLDER,
        "data_dir": str(photos),
        "validation_fraction": 0.3,
        "checkpoint_every": 4,
        "steps_per_loop": steps_per_loop,
        "steps": 400,
        "eval_every": 400,
    }
    from simmatch_tf.training import checkpoints

    save = checkpoints.Checkpoints.save

    def then_remove(self, step):
        save(self, step)
        for path in (photos / "unlabeled").glob("*.png"):
            path.rename(path.with_suffix(".gone"))

    monkeypatch.setattr(checkpoints.Checkpoints, "save", then_remove)
    with pytest.raises(InputError) as caught:
        runs.fit(tmp_path / "run", **options)
    assert re.fullmatch(
        r"an image could not be read (at|from) step \d+( on)?: "
        rf"{photos}/unlabeled/\d\.png; No such file or directory "
        r"\(the last checkpoint stays: put it right and start again\)",
        str(caught.value),
    ), caught.value
    (session,) = json.loads((tmp_path / "run" / "timing.json").read_text())
    assert session["first_step"] == 1
    assert 4 <= session["last_step"] < 400 and session["seconds"] > 0


@pytest.mark.slow
def test_an_image_that_goes_bad_during_the_run(photos, tmp_path, monkeypatch):
    options = {
        **FOLDER,
        "data_dir": str(photos),
        "validation_fraction": 0.3,
        "checkpoint_every": 1,
    }
    from simmatch_tf.training import checkpoints

    save = checkpoints.Checkpoints.save

    def then_break(self, step):
        save(self, step)
        for path in (photos / "unlabeled").iterdir():
            path.write_bytes(b"gone")

    monkeypatch.setattr(checkpoints.Checkpoints, "save", then_break)
    options["steps"] = 40
    with pytest.raises(InputError, match="an image could not be read at step"):
        runs.fit(tmp_path / "run", **options)
    assert list((tmp_path / "run" / "checkpoints").glob("*.index"))


@pytest.mark.slow
def test_views_in_front_of_the_step_train_the_same_weights(tmp_path):
    changes = {"steps": 3, "strong": "randaugment"}
    result = runs.fit(tmp_path / "host", **changes)
    with recording.reads() as record:
        again = runs.fit(tmp_path / "device", **changes, views_on="device")
    assert "draws/unlabeled_strong" in record["training"][0][0]
    assert again == result
    assert_same_weights(tmp_path / "host", tmp_path / "device")


@pytest.mark.slow
def test_a_split_is_handed_to_another_run(finished_run, tmp_path):
    workdir, _ = finished_run
    split = json.loads((workdir / "split.json").read_text())
    result = runs.fit(
        tmp_path / "run",
        labels=None,
        split_file=str(workdir / "split.json"),
        split_seed=7,
        image_size=12,
        steps=1,
    )
    own = json.loads((tmp_path / "run" / "split.json").read_text())
    assert own["labeled"] == split["labeled"] and result.labels == 20


@pytest.mark.slow
def test_a_split_of_other_images_than_the_checkpoint_s(finished_run, tmp_path):
    workdir, _ = finished_run
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "split.json"
    split = json.loads(path.read_text())
    # The same classes, two slots of one class swapped.
    labeled = split["labeled"]
    labeled[0], labeled[1] = labeled[1], labeled[0]
    path.write_text(json.dumps(split))
    with pytest.raises(InputError, match="other data than split.json names: l"):
        simmatch_tf.load(tmp_path / "run", weights="student")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(InputError, match="restore the run's own split.json"):
        runs.fit(tmp_path / "run")


@pytest.mark.slow
def test_labeled_images_from_a_list(tmp_path):
    path = tmp_path / "list.txt"
    from simmatch_tf.data.sources import digits

    labels = digits.load(8).train.labels
    chosen = [int(np.flatnonzero(labels == label)[3]) for label in range(10)]
    path.write_text("".join(f"{index}\n" for index in chosen))
    runs.fit(tmp_path / "run", labels=None, labeled_list=str(path), steps=1)
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert split["labeled"] == chosen


@pytest.mark.slow
def test_a_dataset_of_tfds(small_tfds, tmp_path):
    result = runs.fit(
        tmp_path / "run",
        dataset="imagenet2012",
        tfds_dir=small_tfds,
        labels=None,
        label_fraction=0.1,
        unlabeled_includes_labeled=False,
        image_size=16,
        eval_resize=20,
        weak="resized_crop",
        strong="moco",
        steps=2,
    )
    assert (result.labels, result.unlabeled) == (1000, 1000)
    assert result.test_images == 1000 and len(result.class_names) == 1000
    model = simmatch_tf.load(str(tmp_path / "run"))
    assert model.output["logits"].shape == (None, 1000)


def custom(tmp_path, source, **changes):
    config = runs.config(
        tmp_path / "run", dataset="custom", image_size=None, **changes
    )
    return simmatch_tf.fit(config, source=source)


def in_memory(height, width):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [40, height, width, 1]).astype(np.uint8)
    images = simmatch_tf.Images(images, np.arange(40) % 10)
    names = [str(name) for name in range(10)]
    return simmatch_tf.Source("mine", names, images, images, True)


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((8, 12), {"weak": "resized_crop"}, "mine has images of 8×12: --weak"),
        ((8, 12), {"eval_resize": 16}, "need square ones; give --image_size"),
        ((16, 16), {"eval_resize": 8}, "--eval_resize=8: must be at least the"),
    ],
)
def test_sizes_that_do_not_go_together(tmp_path, shape, changes, message):
    with pytest.raises(InputError, match=message):
        custom(tmp_path, in_memory(*shape), **changes)
    assert not (tmp_path / "run" / "flags.cfg").exists()


@pytest.mark.slow
def test_images_that_are_not_square(tmp_path):
    result = custom(tmp_path, in_memory(16, 8), steps=1, labels=10)
    assert result.test_images == 40


def test_the_rest_of_labeled_is_unlabeled(photos, tmp_path):
    """Without unlabeled/, where flags label a part or nothing is to learn."""
    shutil.rmtree(photos / "unlabeled")
    options = {**FOLDER, "data_dir": str(photos)}

    def split_of(**changes):
        config = runs.config(tmp_path / "run", **{**options, **changes})
        preflight.check_available(config)
        source = inputs.make_source(config)
        return inputs.make_split(
            config, source, workdir.Workdir(tmp_path / "run")
        )

    for changes, labeled in (
        ({"labels": 4}, 4),
        ({"label_fraction": 0.5}, 6),
        ({"algorithm": "supervised"}, 12),
    ):
        split = split_of(**changes)
        assert (len(split.labeled), len(split.unlabeled)) == (labeled, 12)
    split = split_of(labels=4, unlabeled_includes_labeled=False)
    assert len(split.unlabeled) == 8
    with pytest.raises(InputError, match="no images in unlabeled/; .*--labels"):
        split_of()
    with pytest.raises(InputError, match="no unlabeled image is left"):
        split_of(labels=12, unlabeled_includes_labeled=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"labels": 4}, {"algorithm": "supervised"}], ids=str
)
def test_a_run_without_an_unlabeled_folder(photos, tmp_path, changes):
    shutil.rmtree(photos / "unlabeled")
    make_photos(photos, ("test/ä", "test/b"), 3, seed=1)
    options = {**FOLDER, "data_dir": str(photos), "steps": 2, **changes}
    result = runs.fit(tmp_path / "run", **options)
    assert result.labels == changes.get("labels", 12)
    assert result.unlabeled == 12


def test_one_image_in_a_class(photos, tmp_path):
    """What to do depends on whether there are test images."""
    for path in sorted((photos / "labeled" / "b").iterdir())[1:]:
        path.unlink()
    options = {**FOLDER, "data_dir": str(photos), "validation_fraction": 0.2}
    config = runs.config(tmp_path / "run", **options)

    def draw(config):
        source = inputs.make_source(config)
        folder = workdir.Workdir(tmp_path / "run")
        return inputs.make_split(config, source, folder)

    message = (
        "class 'b' has 1 labeled image, and with 1 set aside none would be "
        "left to train on; label more of them, leave the class out, or give"
    )
    with pytest.raises(InputError, match=message):
        draw(config)
    make_photos(photos, ("test/ä", "test/b"), 3, seed=1)
    with pytest.raises(InputError, match="give --validation_fraction=0 "):
        draw(config)
    for change in {"validation_fraction": 0.0}, {"validation_when": "no_test"}:
        split = draw(dataclasses.replace(config, **change))
        assert len(split.labeled) == 7 and not len(split.validation)


def test_labels_are_set_aside_only_without_test_images(photos, tmp_path):
    options = {**FOLDER, "data_dir": str(photos), "validation_fraction": 0.5}
    config = runs.config(tmp_path, **options, validation_when="no_test")

    def sizes():
        source = inputs.make_source(config)
        split = inputs.make_split(config, source, workdir.Workdir(tmp_path))
        return len(split.labeled), len(split.validation)

    labeled, validation = sizes()
    assert labeled == validation > 0
    make_photos(photos, ("test/ä", "test/b"), 3, seed=1)
    assert sizes() == (labeled + validation, 0)


@pytest.mark.slow
def test_a_folder_that_changed_since(photos, tmp_path):
    options = {
        **FOLDER,
        "data_dir": str(photos),
        "validation_fraction": 0.3,
        "checkpoint_every": 2,
    }
    run = tmp_path / "run"
    whole = runs.fit(run, **options)
    (run / "results.json").unlink()
    # Moved as a whole, it is the same data.
    moved = photos.rename(tmp_path / "elsewhere")
    options["data_dir"] = str(moved)
    assert runs.fit(run, **options) == whole
    # Nor is a finished run read for other images, nor a begun one resumed.
    renamed = moved / "unlabeled" / "1.png"
    renamed = renamed.rename(renamed.with_name("9.png"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 is new \(unlabeled/9.png\)"):
            runs.fit(run, **options)
        (run / "results.json").unlink(missing_ok=True)
    # A run of an older version has the names in its split.
    (run / "data.json").unlink()
    with pytest.raises(InputError, match="names or classes of its train imag"):
        runs.fit(run, **options)
    renamed.rename(renamed.with_name("1.png"))
    shutil.copytree(moved / "labeled", moved / "test")
    with pytest.raises(InputError, match="names or classes of its test imag"):
        runs.fit(run, **options)
    shutil.rmtree(moved)
    with pytest.raises(InputError, match="--data_dir=.*: no such folder"):
        runs.fit(run, **options)


@pytest.mark.slow
def test_a_folder_that_grew_before_the_first_checkpoint(photos, tmp_path):
    options = {**FOLDER, "data_dir": str(photos), "validation_fraction": 0.3}
    run = tmp_path / "run"
    runs.fit(run, **options)
    (run / "results.json").unlink()
    shutil.rmtree(run / "checkpoints")
    shutil.copy(photos / "unlabeled" / "1.png", photos / "unlabeled" / "8.png")
    assert runs.fit(run, **options).unlabeled == 15


@pytest.mark.slow
def test_a_test_image_that_goes_bad(photos, tmp_path, monkeypatch):
    make_photos(photos, ("test/ä", "test/b"), 3, seed=1)
    from simmatch_tf.evaluation import evaluator

    logits = evaluator.Evaluator.logits

    def broken(self, images, indices):
        pathlib.Path(images.paths[0]).write_bytes(b"gone")
        return logits(self, images, indices)

    monkeypatch.setattr(evaluator.Evaluator, "logits", broken)
    with pytest.raises(InputError, match="could not be read in evaluation"):
        runs.fit(tmp_path / "run", **FOLDER, data_dir=str(photos))


@pytest.mark.slow
def test_a_labeled_image_that_goes_bad_before_it_is_shown(
    photos, tmp_path, monkeypatch
):
    make_photos(photos, ("test/ä", "test/b"), 3, seed=1)
    from simmatch_tf.data import decoding
    from simmatch_tf.monitoring import tensorboard_writer

    def broken(images, indices, **how):
        for index in indices.numpy():
            pathlib.Path(images.paths[index]).write_bytes(b"gone")
        return decoding.centre_crops(images, indices, **how)

    changed = types.SimpleNamespace(centre_crops=broken)
    monkeypatch.setattr(tensorboard_writer, "decoding", changed)
    with pytest.raises(InputError, match="could not be read for a picture"):
        runs.fit(tmp_path / "run", **FOLDER, data_dir=str(photos))


@pytest.mark.slow
def test_flags_of_a_run_hold_in_any_folder(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    options = {**FOLDER, "data_dir": "photos", "validation_fraction": 0.3}
    runs.fit(tmp_path / "run", **options)
    monkeypatch.chdir("/")
    evaluate.main(evaluate.EvaluateConfig(workdir=str(tmp_path / "run")))
    flags = (tmp_path / "run" / "flags.cfg").read_text("utf-8")
    assert f"--data_dir={photos}" in flags


@pytest.mark.slow
def test_a_flat_folder_labeled_again_with_predictions(photos, tmp_path):
    """A table of labels; then what predict wrote, corrected and cut short."""
    flat = tmp_path / "flat"
    flat.mkdir()
    rows = ["file;class;part"]
    for path in sorted(photos.rglob("*.*")):
        class_name, name = path.parent.name, f"{path.parent.name}_{path.name}"
        shutil.copy(path, flat / name)
        if class_name != "unlabeled":
            part = "test" if path.stem in "45" else ""
            rows.append(f"{name};{class_name};{part}")
    table = flat / "labels.csv"
    table.write_text("\n".join(rows), "utf-8-sig")
    options = {**FOLDER, "data_dir": str(flat), "labels_csv": str(table)}
    options["checkpoint_every"] = 2
    whole = runs.fit(tmp_path / "run", **options)
    assert (whole.labels, whole.unlabeled) == (8, 14)
    assert whole.scored_on == "test" and whole.test_images == 4
    split = json.loads((tmp_path / "run" / "split.json").read_text("utf-8"))
    assert split["names"][:2] == ["b_0.jpg", "b_1.png"]
    # Killed and resumed, also where the folder has moved.
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "run", cut)
    (cut / "results.json").unlink()
    for path in (cut / "checkpoints").glob("step_00000004*"):
        path.unlink()
    moved = flat.rename(tmp_path / "moved")
    options |= {"data_dir": str(moved), "labels_csv": f"{moved}/labels.csv"}
    assert runs.fit(cut, **options) == whole
    assert runs.began_after(cut) == 2
    assert_same_weights(tmp_path / "run", cut)
    evaluate.main(
        evaluate.EvaluateConfig(workdir=str(cut), data_dir=str(moved))
    )
    report = json.loads((cut / "evaluation.json").read_text())
    assert report["test_images"] == 4 and "images_changed" not in report
    # predict says what the rest are; a person corrects one and drops others.
    rest = tmp_path / "rest.csv"
    predict.main(
        predict.PredictConfig(
            model=str(cut), data_dir=str(moved), output=str(rest)
        )
    )
    names = [line.split(",")[0] for line in rest.read_text().splitlines()[1:]]
    assert names == sorted(p.name for p in moved.glob("unlabeled*"))
    hidden = [path.rename(tmp_path / path.name) for path in moved.glob("unl*")]
    with pytest.raises(InputError, match="all images of the run have a class"):
        predict.main(
            predict.PredictConfig(
                model=str(cut), data_dir=str(moved), output=f"{rest}.csv"
            )
        )
    for path in hidden:
        path.rename(moved / path.name)
    output = tmp_path / "predicted.csv"
    predict.main(
        predict.PredictConfig(
            model=str(cut), images=str(moved), output=str(output)
        )
    )
    head, *lines = output.read_text("utf-8").splitlines()
    cells = [line.split(",") for line in lines]
    assert [row[0] for row in cells] == [
        name for name in sorted(os.listdir(moved)) if name != "labels.csv"
    ]
    kept = [row for row in cells if row[0].startswith("unlabeled")][:4]
    for number, row in enumerate(kept):
        row[1] = "bä"[number % 2]
    text = "\n".join([head, *map(",".join, kept)])
    output.write_text(text, "utf-8")
    options |= {"labels_csv": str(output), "validation_fraction": 0.5}
    result = runs.fit(tmp_path / "again", **options)
    assert (result.labels, result.validation_labels) == (2, 2)
    assert result.unlabeled == 16
    # A corrected table is another dataset.
    output.write_text(text.replace("ä,", "b,", 1), "utf-8")
    with pytest.raises(InputError, match="as 'b'.* as 'ä'"):
        runs.fit(tmp_path / "again", **options)


@pytest.mark.slow
def test_two_rounds_of_the_labeling_page(photos, tmp_path, capsys):
    """Answers are trained on as a table of the same classes is."""
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in sorted(photos.rglob("*.*")):
        shutil.copy(path, flat / f"{path.parent.name}_{path.name}")
    names = sorted(os.listdir(flat))
    labels, table = tmp_path / "labels.jsonl", tmp_path / "labels.csv"
    with answers.Writer(labels, images=flat, classes=["b", "ä"]) as writer:
        for name in names[:4] + names[-4:]:  # b_… and ä_…
            answer = {"file": io.nfc(name), "answer": "class", "class": name[0]}
            writer.append(answer)
        writer.append({"file": names[8], "answer": "skip"})
    rows = [f"{name},{name[0]}" for name in names[:4] + names[-4:]]
    table.write_text("\n".join(["file,class", *rows]), "utf-8")
    options = {**FOLDER, "data_dir": str(flat), "validation_fraction": 0.25}
    by_table = runs.fit(tmp_path / "table", **options, labels_csv=str(table))
    options["labels_from"] = str(labels)
    result = runs.fit(tmp_path / "run", **options)
    assert result == by_table and result.labels == 6
    assert_same_weights(tmp_path / "run", tmp_path / "table")
    capsys.readouterr()
    # The next round: the run is not another one because of its answers.
    with answers.Writer(labels, images=flat) as writer:
        writer.append({"file": names[8], "answer": "class", "class": "b"})
        writer.append({"file": names[9], "answer": "none"})
    with pytest.raises(
        InputError,
        match=f"2 are new .{names[8]} as 'b', {names[9]} as none of the cl",
    ):
        runs.fit(tmp_path / "run", **options)
    predict.main(
        predict.PredictConfig(
            model=str(tmp_path / "run"), output=str(tmp_path / "p.csv")
        )
    )
    lines = (tmp_path / "p.csv").read_text("utf-8").splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [
        name
        for name in names
        if name not in names[:4] + names[-4:] + names[8:10]
    ]
    result = runs.fit(tmp_path / "second", **options)
    assert (result.labels, result.validation_labels) == (7, 2)
    # All but those set aside: for validation, and of none of the classes.
    assert result.unlabeled == len(names) - 2 - 1
    said = " ".join(capsys.readouterr().err.split())
    assert "set aside: none of the classes (labels.jsonl) 1" in said
    evaluate.main(evaluate.EvaluateConfig(workdir=str(tmp_path / "second")))


@pytest.mark.slow
def test_validation_images_choose_the_best_step(photos, tmp_path, capsys):
    """train/, val/ and test/, with all training images labeled."""
    (photos / "labeled").rename(photos / "train")
    shutil.rmtree(photos / "unlabeled")
    make_photos(photos, ("val/ä", "val/b", "test/ä", "test/b"), 3, seed=1)
    options = {**FOLDER, "data_dir": str(photos), "validation_fraction": 0.2}
    with pytest.raises(InputError, match="--labels=N to label N images of tra"):
        runs.fit(tmp_path / "run", **options)
    result = runs.fit(tmp_path / "run", **{**options, "labels": 4})
    assert (result.labels, result.unlabeled) == (4, 12)
    assert result.validation_labels == 6 and result.test_images == 6
    assert result.scored_on == "test"
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["student"]["best"]["chosen_on"] == "validation"
    said = capsys.readouterr().err
    assert (
        "validation: val/; they choose the best step, instead of --va" in said
    )
    assert (
        "labeled: train/; --labels=4 chooses from them, the rest is u" in said
    )
    assert "6 validation images choose the best step" in said
    result = runs.fit(tmp_path / "all", **options, algorithm="supervised")
    assert (result.labels, result.validation_labels) == (12, 6)
