"""Whole runs, in this process: results, resume, refusals."""

import json
import random
import shutil
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import registry
from simmatch_tf.data.sources import digits
from simmatch_tf.evaluation import metrics
from simmatch_tf.flags.errors import InputError
from simmatch_tf.ops import losses
from simmatch_tf.training import loop, results
from simmatch_tf.training import step as step_lib
from simmatch_tf.training import workdir as workdir_lib
from tests import runs


def tensors(workdir, step):
    """Every tensor of a checkpoint."""
    path = str(workdir / "checkpoints" / f"step_{step:08d}")
    reader = tf.train.load_checkpoint(path)
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "OBJECT_GRAPH" not in name
    }


def assert_same_run(one, other, step):
    a, b = tensors(one, step), tensors(other, step)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    first, second = (p / "results.json" for p in (one, other))
    assert first.read_bytes() == second.read_bytes()


def test_results(finished_run):
    workdir, result = finished_run
    content = json.loads((workdir / "results.json").read_text())
    assert content["steps"] == 6
    assert content["weights_of_record"] == "ema"
    assert content["top1"] == content["ema"]["last"]["top1"] == result.top1
    for name in ("student", "ema"):
        last, best = content[name]["last"], content[name]["best"]
        assert last["step"] == 6 and best["step"] in (3, 6)
        assert 0 <= last["top1"] <= best["top1"] <= 1
        assert last["top5"] >= last["top1"]
        assert best["chosen_on"] == "test"
        # A number of the 397 test images, exactly.
        for value in (last["top1"], best["top1"]):
            assert value * 397 == pytest.approx(round(value * 397), abs=1e-9)
    assert isinstance(content["loss"], float)
    assert content["loss"] == float(np.float32(content["loss"]))


def test_result_is_the_last_checkpoint_s(finished_run, tmp_path):
    workdir, result = finished_run
    model = simmatch_tf.load(workdir)
    from simmatch_tf.data.sources import digits

    test = digits.load(8).test
    logits = model.predict(test.images, verbose=0)["logits"]
    assert np.mean(logits.argmax(1) == test.labels) == result.top1
    student = simmatch_tf.load(workdir, weights="student")
    logits = student.predict(test.images, verbose=0)["logits"]
    assert (
        np.mean(logits.argmax(1) == test.labels)
        == (result.student["last"]["top1"])
    )
    # The saved network and the one in the checkpoint are the same.
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "run" / "model.keras").unlink()
    restored = simmatch_tf.load(tmp_path / "run")
    for own, other in zip(model.weights, restored.weights, strict=True):
        np.testing.assert_array_equal(own.numpy(), other.numpy())
    assert model.class_names == restored.class_names == result.class_names
    with pytest.raises(InputError, match="weights='best': must be"):
        simmatch_tf.load(workdir, weights="best")


def test_what_stands_in_the_workdir(finished_run):
    workdir, _ = finished_run
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "flags.cfg",
        "split.json",
        "data.json",
        "checkpoints",
        "tensorboard",
        "model.keras",
        "results.json",
        "timing.json",
        "lock",
    }
    # Of 2, 4 and 6 all three are kept; nothing else lies about.
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == [
        f"step_{step:08d}.{kind}"
        for step in (2, 4, 6)
        for kind in ("data-00000-of-00001", "index")
    ]
    (session,) = json.loads((workdir / "timing.json").read_text())
    assert (session["first_step"], session["last_step"]) == (1, 6)


def test_tensorboard_scalars(finished_run):
    workdir, result = finished_run
    (events,) = (workdir / "tensorboard").glob("events.*")
    scalars = {}
    for event in tf.compat.v1.train.summary_iterator(str(events)):
        for value in event.summary.value:
            if value.metadata.plugin_data.plugin_name != "scalars":
                continue
            scalars.setdefault(value.tag, {})[event.step] = tf.make_ndarray(
                value.tensor
            ).item()
    assert scalars.keys() >= {
        "loss/total",
        "loss/s",
        "loss/u",
        "loss/in",
        "pseudo_label/mask_rate",
        "learning_rate",
        "test/student_top1",
        "test/ema_top1",
    }
    assert list(scalars["loss/total"]) == [2, 4, 6]
    assert scalars["loss/total"][6] == np.float32(result.loss)
    assert list(scalars["test/ema_top1"]) == [3, 6]
    assert scalars["learning_rate"][2] == pytest.approx(
        0.03 * np.cos(7 * np.pi / 16 * 1 / 6)
    )


@registry.networks.register("with_dropout")
def with_dropout(shape):
    images = keras.Input(shape)
    x = keras.layers.Conv2D(8, 3, strides=2)(images)
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(
    "targets_from", ["student", pytest.param("teacher", marks=pytest.mark.slow)]
)
def test_interrupted_and_resumed_is_the_same_run(
    targets_from, tmp_path, monkeypatch, finished_run
):
    """With a network that draws random numbers of its own, too."""
    changes, whole = {"targets_from": targets_from}, finished_run[0]
    if targets_from == "teacher":
        changes["backbone"] = "with_dropout"
        whole = tmp_path / "whole"
        runs.fit(whole, **changes)
    # Dies after step 3: the checkpoint of step 2 is the last.
    broken = tmp_path / "broken"
    evaluate = loop._Run._evaluate

    def die(self, step):
        if step == 3:
            raise RuntimeError("killed")
        evaluate(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_evaluate", die)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(broken, **changes)
    assert not (broken / "results.json").exists()
    # Operational flags may differ.
    changes |= {"log_every": 1, "parallel_calls": 1}
    runs.fit(broken, **changes)
    assert runs.began_after(broken) == 2
    assert_same_run(whole, broken, 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"steps_per_loop": 4}, {"on_nonfinite": "skip"}]
)
def test_ways_to_run_the_same_steps(
    changes, tmp_path, finished_run, monkeypatch
):
    """Not a bit of the result hangs on them."""
    counts, call = [], step_lib.Stepper.__call__

    def count_steps(self, first, count, *arguments, **words):
        counts.append(count)
        return call(self, first, count, *arguments, **words)

    monkeypatch.setattr(step_lib.Stepper, "__call__", count_steps)
    simmatch_tf.fit(runs.config(tmp_path, **changes))
    assert sum(counts) == 6
    assert (max(counts) > 1) == ("steps_per_loop" in changes)
    assert_same_run(finished_run[0], tmp_path, 6)


@pytest.mark.slow
def test_compiled_with_xla(tmp_path, finished_run):
    """But for rounding, the same; and resumed without it."""
    changes = {"jit_compile": True, "precision": "float64"}
    simmatch_tf.fit(runs.config(tmp_path / "a", **changes))
    for path in (tmp_path / "a" / "checkpoints").glob("step_00000006*"):
        path.unlink()
    (tmp_path / "a" / "results.json").unlink()
    changes["jit_compile"] = False
    simmatch_tf.fit(runs.config(tmp_path / "a", **changes))
    assert runs.began_after(tmp_path / "a") == 4
    simmatch_tf.fit(runs.config(tmp_path / "b", **changes))
    a, b = tensors(tmp_path / "a", 6), tensors(tmp_path / "b", 6)
    for name, value in b.items():
        if np.asarray(value).dtype.kind == "f":
            # The learning rate itself is a float32.
            np.testing.assert_allclose(a[name], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_flagfile_of_a_run_starts_the_same_run(finished_run, tmp_path):
    config = workdir_lib.Workdir(finished_run[0]).read_config()
    simmatch_tf.fit(
        simmatch_tf.Config.from_argv(
            [
                "x",
                f"--flagfile={finished_run[0] / 'flags.cfg'}",
                f"--workdir={tmp_path / 'again'}",
            ]
        )
    )
    assert_same_run(finished_run[0], tmp_path / "again", 6)
    assert config.workdir == str(finished_run[0])


def test_a_run_that_was_moved(finished_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run[0], tmp_path / "moved")
    config = simmatch_tf.Config.from_flagfile("moved/flags.cfg")
    assert config.workdir == "moved"
    assert simmatch_tf.fit(config) == finished_run[1]


def test_a_finished_run_is_read_not_trained(finished_run, monkeypatch, capsys):
    workdir, result = finished_run
    monkeypatch.setattr(loop, "_Run", None)
    assert runs.fit(workdir) == result
    assert "holds a finished run: its result is read" in capsys.readouterr().err


def test_killed_between_checkpoint_and_result(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    (workdir / "results.json").unlink()
    (workdir / "model.keras").write_bytes(b"torn")
    runs.fit(workdir)
    assert runs.began_after(workdir) == 6
    assert_same_run(finished_run[0], workdir, 6)
    models = [simmatch_tf.load(path) for path in (finished_run[0], workdir)]
    for own, other in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_array_equal(own.numpy(), other.numpy())


def test_a_saved_network_that_cannot_be_read(finished_run, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    (workdir / "model.keras").write_bytes(b"torn")
    model = simmatch_tf.load(workdir)
    assert "the last checkpoint is read instead" in capsys.readouterr().err
    saved = simmatch_tf.load(finished_run[0])
    for own, other in zip(model.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(own.numpy(), other.numpy())


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(
        InputError, match="the checkpoint of step 2 cannot be written"
    ):
        runs.fit(tmp_path, algorithm="supervised")


def test_supervised_runs_and_keeps_as_many_as_asked(tmp_path):
    result = runs.fit(
        tmp_path, algorithm="supervised", steps=3, checkpoint_every=1, keep=1
    )
    assert result.algorithm == "supervised"
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {name.split(".")[0] for name in names} == {"step_00000003"}
    assert "embeddings" not in simmatch_tf.load(tmp_path).output


@pytest.mark.slow
def test_images_set_aside_choose_the_best_and_calibrate(tmp_path):
    result = runs.fit(tmp_path, labels=40, validation_fraction=0.25, steps=3)
    assert result.validation_labels == 10 and result.labels == 30
    assert result.student["best"]["chosen_on"] == "validation"
    assert result.unlabeled == 1390
    split = json.loads((tmp_path / "split.json").read_text())
    assert len(split["validation"]) == 10 and len(split["labeled"]) == 30
    # The temperature is fitted on them alone, and measured on test images.
    model = simmatch_tf.load(tmp_path)
    source = digits.load(8)

    def scored(images, indices):
        logits = model(images.images[indices])["logits"].numpy()
        return logits, images.labels[indices]

    temperature = metrics.fit_temperature(
        *scored(source.train, split["validation"])
    )
    calibration = result.ema["calibration"]
    assert calibration["images"] == 10
    assert calibration["fitted_on"] == "validation"
    assert calibration["temperature"] == pytest.approx(temperature, rel=1e-3)
    figures = metrics.describe(
        *scored(source.test, np.arange(397)),
        temperature=calibration["temperature"],
    )
    for name in ("calibration_error", "uncalibrated_error"):
        assert calibration[name] == pytest.approx(figures[name], abs=1e-4)
    assert result.macro_accuracy == pytest.approx(figures["macro_accuracy"])


@pytest.mark.slow
def test_batch_larger_than_the_labeled_set(tmp_path):
    result = runs.fit(tmp_path, labels=10, batch_size=32, steps=2)
    assert result.labels == 10


@pytest.mark.slow
def test_epochs(tmp_path):
    # 1,400 images // (8 · 2) = 87 steps an epoch.
    result = runs.fit(tmp_path, steps=None, epochs=0.02)
    assert result.steps == 2


def test_result_changing_flags_are_refused(finished_run):
    workdir, _ = finished_run
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    for changes, message in (
        ({"alpha": 0.8}, "--alpha is 0.9 there and 0.8 here"),
        ({"seed": 1}, "--seed is 0 there and 1 here"),
        (
            {"steps": 9},
            r"--steps is 6 there and 9 here \(the learning rate was planned",
        ),
    ):
        with pytest.raises(InputError, match=message):
            runs.fit(workdir, **changes)
    after = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    del before[workdir / "lock"], after[workdir / "lock"]
    assert before == after


def test_a_run_that_cannot_start_removes_nothing(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match="140 images of each class"):
        runs.fit(workdir, labels=1400, overwrite=True)
    after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    del before[workdir / "lock"], after[workdir / "lock"]
    assert before == after
    # Nor does it leave anything in the way of the next.
    with pytest.raises(InputError, match="140 images of each class"):
        runs.fit(tmp_path / "new", labels=1400)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_flags_may_change_before_the_first_checkpoint(tmp_path):
    quick = {"algorithm": "supervised", "steps": 2}
    with workdir_lib.claim(runs.config(tmp_path, **quick)) as folder:
        folder.begin(runs.config(tmp_path, **quick))
    result = runs.fit(tmp_path, **quick, labels=10)
    assert result.labels == 10
    assert folder.read_config().labels == 10


@pytest.mark.slow
def test_runs_in_threads_do_not_disturb_each_other(tmp_path):
    random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    paths = [tmp_path / name for name in ("alone", "one", "other")]
    runs.fit(paths[0], algorithm="supervised")
    threads = [
        threading.Thread(
            target=runs.fit, args=(path,), kwargs={"algorithm": "supervised"}
        )
        for path in paths[1:]
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for path in paths[1:]:
        assert_same_run(paths[0], path, 6)
    # The caller's own random numbers go on where they were.
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize(
    "name", ["split.json", "tensorboard", "model.keras", "results.json"]
)
def test_a_file_that_cannot_be_written(name, tmp_path):
    if name != "tensorboard":  # a folder stands where the file would
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=f"{name}: cannot be written"):
        runs.fit(tmp_path, algorithm="supervised", steps=2)


@pytest.mark.slow
def test_overwrite_starts_anew(tmp_path):
    runs.fit(tmp_path, steps=2)
    (tmp_path / "mine.txt").write_text("not the run's")
    result = runs.fit(tmp_path, steps=3, overwrite=True)
    assert result.steps == 3
    assert (tmp_path / "mine.txt").exists()
    assert "--overwrite" not in (tmp_path / "flags.cfg").read_text()


def spoil(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    if how == "truncated":
        content = content[:middle]
    elif how == "flipped":
        flipped = bytes(255 - value for value in content[middle : middle + 64])
        content = content[:middle] + flipped + content[middle + 64 :]
    else:
        content = b""
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "how"),
    [
        ("data-00000-of-00001", "truncated"),
        ("data-00000-of-00001", "flipped"),
        ("index", "empty"),
    ],
)
def test_a_corrupt_newest_checkpoint_falls_back(
    ending, how, finished_run, tmp_path, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    (workdir / "results.json").unlink()
    spoil(workdir / "checkpoints" / f"step_00000006.{ending}", how)
    runs.fit(workdir)
    said = capsys.readouterr().err
    assert "cannot read the checkpoint of step 6" in said
    assert "falling back to the one of step 4" in said
    assert runs.began_after(workdir) == 4
    assert_same_run(finished_run[0], workdir, 6)


def test_no_readable_checkpoint(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    (workdir / "results.json").unlink()
    for path in (workdir / "checkpoints").glob("*.index"):
        spoil(path, "empty")
    with pytest.raises(InputError, match="no checkpoint in .* can be read"):
        runs.fit(workdir)


@pytest.mark.parametrize("name", ["split.json", "flags.cfg"])
def test_a_hand_deleted_file(name, finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    (workdir / "results.json").unlink()
    (workdir / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        runs.fit(workdir)


def test_a_result_that_cannot_be_read(finished_run, tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read as a result"):
        results.read(tmp_path / "results.json")


def test_a_loss_that_is_not_finite_stops(tmp_path):
    with pytest.raises(
        FloatingPointError, match="is not finite at step .* last good"
    ):
        runs.fit(
            tmp_path,
            steps=30,
            learning_rate=100.0,
            weight_decay=1.0,
            eval_every=30,
            checkpoint_every=1,
            log_every=30,
        )
    # No broken state replaced a good one.
    saved = sorted((tmp_path / "checkpoints").glob("*.index"))
    last = int(saved[-1].stem.split("_")[1])
    loss = tensors(tmp_path, last)[
        "algorithm/record/loss/.ATTRIBUTES/VARIABLE_VALUE"
    ]
    assert np.isfinite(loss)


@registry.algorithms.register("quiet")
class Quiet(simmatch_tf.Algorithm):
    unlabeled_views = ()

    def train_step(self, batch):
        with tf.GradientTape() as tape:
            logits = self.student(batch["labeled_weak"], training=True)
            loss = losses.supervised_loss(logits["logits"], batch["labels"])
        self.minimize(tape, loss)
        return {"loss/total": loss}


@registry.networks.register("tiny_loop")
def tiny_loop(shape):
    images = keras.Input(shape)
    x = keras.layers.Conv2D(4, 3)(images)
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def test_own_source_backbone_and_algorithm(tmp_path):
    rng = np.random.default_rng(0)

    def images(count):
        x = rng.integers(0, 256, [count, 10, 12, 3]).astype(np.uint8)
        return simmatch_tf.Images(x, np.arange(count) % 3)

    source = simmatch_tf.Source(
        "mine", ["a", "b", "c"], images(30), images(9), True
    )
    config = runs.config(
        tmp_path,
        dataset="custom",
        backbone="tiny_loop",
        algorithm="quiet",
        labels=6,
        image_size=None,
    )
    result = simmatch_tf.fit(config, source=source)
    assert result.dataset == "mine" and result.test_images == 9
    assert result.class_names == ["a", "b", "c"]
    model = simmatch_tf.load(tmp_path)
    assert model(np.zeros([1, 10, 12, 3], np.uint8))["logits"].shape == (1, 3)
    with pytest.raises(InputError, match="--dataset=digits, and source is g"):
        simmatch_tf.fit(runs.config(tmp_path / "x"), source=source)
    own = runs.config(tmp_path / "x", dataset="custom", image_size=None)
    with pytest.raises(InputError, match="only then, pass source= from Py"):
        simmatch_tf.fit(own)


def test_load_without_a_run(tmp_path):
    with pytest.raises(InputError, match="no run here"):
        simmatch_tf.load(tmp_path)


def test_load_before_the_first_checkpoint(finished_run, tmp_path):
    for name in ("flags.cfg", "split.json"):
        shutil.copy(finished_run[0] / name, tmp_path / name)
    with pytest.raises(InputError, match="no checkpoint yet"):
        simmatch_tf.load(tmp_path)


def test_a_checkpoint_of_another_network(finished_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    flags = (workdir / "flags.cfg").read_text()
    (workdir / "flags.cfg").write_text(flags.replace("wrn_10_1", "wrn_16_1"))
    with pytest.raises(InputError):
        simmatch_tf.load(workdir, weights="student")


@pytest.mark.slow
def test_without_images_set_aside_test_images_calibrate(finished_run):
    """The temperature is that of all test images, its error is cross-fitted."""
    workdir, result = finished_run
    test = digits.load(8).test
    for weights in ("student", "ema"):
        network = getattr(result, weights)
        calibration = network["calibration"]
        assert calibration["fitted_on"] == "test"
        assert calibration["images"] == 397
        model = simmatch_tf.load(workdir, weights=weights)
        logits = model(test.images)["logits"].numpy()
        temperature = metrics.fit_temperature(logits, test.labels)
        assert calibration["temperature"] == pytest.approx(
            temperature, rel=1e-3
        )
        scaled = metrics.cross_fitted(logits, test.labels)
        error = metrics.calibration_error(scaled, test.labels)
        assert calibration["calibration_error"] == pytest.approx(
            error, abs=1e-3
        )
        assert 0 <= network["last"]["macro_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "aside, tested, fitted_on, images",
    [(9, 12, "test", 12), (12, 12, "validation", 12), (9, 9, None, 0)],
)
def test_which_images_calibrate(tmp_path, aside, tested, fitted_on, images):
    """Those set aside, if they are ten; else the test images, if they are."""
    rng = np.random.default_rng(0)

    def noise(count):
        x = rng.integers(0, 256, [count, 8, 8, 1]).astype(np.uint8)
        return simmatch_tf.Images(x, np.arange(count) % 3)

    source = simmatch_tf.Source(
        "mine", ["a", "b", "c"], noise(60), noise(tested), True
    )
    config = runs.config(
        tmp_path,
        dataset="custom",
        backbone="tiny_loop",
        algorithm="quiet",
        labels=24,
        validation_fraction=aside / 24,
        image_size=None,
        steps=2,
    )
    result = simmatch_tf.fit(config, source=source)
    assert result.validation_labels == aside
    calibration = result.student["calibration"]
    assert calibration["fitted_on"] == fitted_on
    assert calibration["images"] == images
    assert (calibration["temperature"] is None) == (fitted_on is None)
    assert 0 <= calibration["calibration_error"] <= 1
    predictions = simmatch_tf.predict(tmp_path, source.test.images)
    assert {
        "test": "calibrated on 12 test images, error by cross-fitting; they",
        "validation": "calibrated on 12 validation images; they are off by",
        None: "Confidences are not calibrated; they are off by",
    }[fitted_on] in predictions.note
