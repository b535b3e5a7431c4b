"""The baselines beside a run: their process, what is shared, what fails."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

import simmatch_tf
from simmatch_tf import signals
from simmatch_tf.data import fingerprint, splits
from simmatch_tf.data.sources import digits
from simmatch_tf.evaluation import baselines, metrics
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import network
from simmatch_tf.training import baseline_process, inputs
from simmatch_tf.training import workdir as workdir_lib
from tests import runs
from tests.training import test_loop

NAMES = [
    "SVM on HOG, grey levels and thumbnail",
    "logistic regression on HOG, grey levels and thumbnail",
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of each test's own: no test knows what another has measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "simmatch_tf"


def draw(source, seed=0):
    return splits.draw(
        source,
        labels=20,
        label_fraction=None,
        validation_fraction=0.0,
        unlabeled_includes_labeled=True,
        split_seed=seed,
    )


def make(folder, *, source=None, split=None, extends=None, **changes):
    """Baselines of a small run on digits in a folder."""
    folder.mkdir(exist_ok=True)
    config = runs.config(folder, **{"baselines": True, **changes})
    source = source or digits.load(8)
    split = split or draw(source)
    place = workdir_lib.Workdir(folder)
    place.extends = extends and extends._folder
    return baseline_process.Baselines(
        config,
        place,
        source,
        split,
        inputs.scored_images(source, split.validation),
    )


def known(count=397):
    return [
        baselines.Baseline(name, np.arange(count) % 4 < number)
        for number, name in enumerate(NAMES, 2)
    ]


def script(tmp_path, text):
    """A program to be started in place of Python."""
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def same(one, other):
    assert [each.name for each in one] == [each.name for each in other]
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.right, b.right)


# ---------------------------------------------------- what is known already ---


def test_known_baselines_are_not_measured_again(tmp_path, monkeypatch):
    first = make(tmp_path / "run")
    assert first.expected() and first.missing()
    baselines.write(tmp_path / "run" / "baselines.json", first._key, known())
    again = make(tmp_path / "run")
    assert not again.missing()
    same(again.measured, known())
    # Of other labels they are not these.
    other = draw(digits.load(8), seed=1)
    assert make(tmp_path / "run", split=other).missing()


def test_runs_share_baselines_through_the_cache(tmp_path, cache):
    one, other = make(tmp_path / "a"), make(tmp_path / "b", seed=5, steps=9)
    assert one.missing() and other.missing()
    cache.mkdir(parents=True)
    path = cache / f"baselines-{one._key}.json"
    baselines.write(path, one._key, known())
    assert not other.missing()
    # Before it begins, it expects none to measure. Those of a run with first
    # weights are known by then.
    assert not other.expected()
    assert not make(tmp_path / "c", init_from="x").expected()
    same(other.measured, known())
    other.store()
    assert (tmp_path / "b" / "baselines.json").read_text() == path.read_text()


def test_nothing_is_read_without_them(tmp_path):
    without = make(tmp_path, baselines=False)
    assert not without.missing() and not without.expected()


def test_key_is_of_images_labels_and_first_weights(tmp_path):
    source = digits.load(8)
    split = draw(source)
    keys = [make(tmp_path)._key]

    def changed(part, **values):
        images = dataclasses.replace(getattr(source, part), **values)
        return dataclasses.replace(source, **{part: images})

    pixels = source.train.images.copy()
    pixels[split.unlabeled[0]] ^= 1
    keys.append(make(tmp_path, source=changed("train", images=pixels))._key)
    labels = source.test.labels.copy()
    labels[0] = 9 - labels[0]
    keys.append(make(tmp_path, source=changed("test", labels=labels))._key)
    turned = dataclasses.replace(split, labeled=split.labeled[::-1])
    keys.append(make(tmp_path, split=turned)._key)
    weights = tmp_path / "x.keras"
    for content in ("a", "b"):
        weights.write_text(content)
        keys.append(make(tmp_path, init_from=str(weights))._key)
    # Another stride has the same weights, and other features.
    keys.append(make(tmp_path, init_from=str(weights), stem_stride=2)._key)
    # A run that goes on knows what the weights were.
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000002.index").touch()
    for digest in "ab":
        fingerprint.Fingerprint({"--init_from": (1, 1, digest)}).write(
            tmp_path / "data.json"
        )
        keys.append(make(tmp_path, init_from="x")._key)
    assert len(set(keys)) == len(keys)
    # Weights that are gone leave the key of a run without any.
    gone = make(tmp_path, init_from="x")
    gone.without_first_weights()
    assert gone._key == keys[0]
    # What trains otherwise has the same baselines.
    assert make(tmp_path, seed=3, steps=50, batch_size=4)._key == keys[0]


# ------------------------------------------------------------- the process ---


@pytest.mark.slow
def test_process_measures_what_the_arrays_say(tmp_path, cache):
    process = make(tmp_path / "run")
    assert process.missing()
    process.start()
    process.wait(signals.Request())
    source = digits.load(8)
    labeled = draw(source).labeled
    wanted = baselines.measure(
        {
            "images": source.train.images[labeled],
            "labels": source.train.labels[labeled],
            "scored_images": source.test.images,
            "scored_labels": source.test.labels,
            "remark": "",
        }
    )
    same(process.measured, wanted)
    (line,) = process.news()
    assert line.startswith(f"baselines on 397 test images: {NAMES[0]}")
    assert process.news() == []
    # Nothing else is left in the folder, and the next run has them.
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["baselines.json"]
    assert not make(tmp_path / "other").missing()


@pytest.mark.slow
def test_two_runs_at_once_measure_once(tmp_path, cache):
    one, other = make(tmp_path / "a"), make(tmp_path / "b")
    for each in (one, other):
        each.missing()
        each.start()
    for each in (one, other):
        each.wait(signals.Request())
    same(one.measured, other.measured)
    written = (cache / f"baselines-{one._key}.json").stat().st_mtime_ns
    for name in "ab":
        path = tmp_path / name / "baselines.json"
        assert path.stat().st_mtime_ns >= written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo oh >&2; echo no: full >&2; exit 1", "process failed: no: full"),
        ("exit 3", "process failed: it ended with status 3"),
        ("kill -9 $$", "killed by SIGKILL (out of memory?)"),
        ("exit 0", "baselines.json is damaged or missing"),
        (None, "cannot be started"),
    ],
)
def test_failure_is_a_warning_with_its_reason(
    tmp_path, monkeypatch, capsys, text, message
):
    program = "/nowhere/python" if text is None else script(tmp_path, text)
    monkeypatch.setattr(sys, "executable", program)
    process = make(tmp_path / "run")
    assert process.missing()
    process.start()
    process.wait(signals.Request())
    warning = capsys.readouterr().err
    assert "Warning: there are no baselines" in warning and message in warning
    outcome = process.outcome(np.ones(397, bool))
    assert (outcome.baselines, outcome.lead) == ([], None)
    assert process.news() == []
    process.close()


def test_what_takes_too_long_is_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", script(tmp_path, "exec sleep 60"))
    monkeypatch.setattr(baseline_process, "PATIENCE_SECONDS", 0)
    process = make(tmp_path / "run")
    process.missing()
    process.start()
    child = process._process
    process.wait(signals.Request())
    assert child.returncode == -signal.SIGKILL
    shown = capsys.readouterr().err
    assert "waiting for the baselines" in shown
    assert "not ready 0 s after the last step" in shown


def test_signal_ends_the_wait_and_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", script(tmp_path, "exec sleep 60"))
    process = make(tmp_path / "run")
    process.missing()
    process.start()
    child, request = process._process, signals.Request()
    request.signal = "SIGTERM"
    with pytest.raises(signals.Interrupted, match="--nobaselines"):
        process.wait(request)
    process.close()
    assert child.returncode == -signal.SIGKILL
    process.close()  # as often as one likes


@pytest.mark.slow
def test_process_ends_when_the_run_is_killed(tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(pathlib.Path(__file__).parents[2])!r})
import pathlib
from simmatch_tf.evaluation import baselines
from tests.training import test_baseline_process
process = test_baseline_process.make(pathlib.Path({str(tmp_path)!r}) / "run")
process.missing()
process.start()
print(process._process.pid, flush=True)
time.sleep(60)
"""
    # Stopped before it can end by itself.
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    ) as parent:
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    for _ in range(100):
        if not pathlib.Path(f"/proc/{child}").exists():
            break
        state = pathlib.Path(f"/proc/{child}/stat").read_text().split()[2]
        if state == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail(f"process {child} lives on")
    assert not (tmp_path / "run" / "baselines.json").exists()


# ------------------------------------------------------------- the outcome ---


def test_lead_is_over_the_best_of_them_image_by_image(tmp_path):
    process = make(tmp_path)
    process.measured = known()
    right = np.arange(397) % 4 < 3
    right[:20] = True
    outcome = process.outcome(right)
    assert [each["name"] for each in outcome.baselines] == NAMES
    assert outcome.lead["over"] == NAMES[1] and outcome.lead["images"] == 397
    assert outcome.lead["top1"] == pytest.approx(5 / 397)
    low, high = outcome.lead["interval"]
    assert 0 < low < 5 / 397 < high
    json.dumps(dataclasses.asdict(outcome))


def test_lead_is_on_the_chosen_images_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "MOST_SCORED", 40)
    process = make(tmp_path)
    assert process.scored.shape == (40,)
    assert process.choice.remark == "40 of 397 images"
    process.measured = known(40)
    right = np.zeros(397, bool)
    right[process.scored] = process.measured[1].right
    lead = process.outcome(right).lead
    assert lead["images"] == 40 and lead["top1"] == 0


def unscored(source=None):
    return dataclasses.replace(source or digits.load(8), test=None)


def test_without_images_to_score_on_there_is_no_lead(tmp_path):
    process = make(tmp_path, source=unscored())
    assert process.left_out is None and process.missing()
    assert len(process.sets) == 1 and len(process.sets[0][1]) == 20
    assert process._key != make(tmp_path)._key
    process.measured = known(20)
    assert process.news() == [
        "baselines by cross-validation on 20 labels: SVM on HOG, grey levels "
        "and thumbnail 50.00%, logistic regression on HOG, grey levels and "
        "thumbnail 75.00%"
    ]
    outcome = process.outcome(None)
    assert outcome.lead is None
    assert [each["top1"] for each in outcome.baselines] == [0.5, 0.75]


@pytest.mark.slow
def test_process_cross_validates(tmp_path, cache):
    process = make(tmp_path / "run", source=unscored())
    assert process.missing()
    process.start()
    process.wait(signals.Request())
    images = digits.load(8).train
    labeled = draw(digits.load(8)).labeled
    wanted = baselines.measure(
        {
            "images": images.images[labeled],
            "labels": images.labels[labeled],
            "remark": "cross-validation",
        }
    )
    same(process.measured, wanted)
    assert all(len(each.right) == 20 for each in process.measured)


def test_too_many_classes_leave_them_out(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "MOST_CLASSES", 9)
    process = make(tmp_path)
    assert not process.missing() and "10 classes" in process.left_out


# -------------------------------------------------------------- whole runs ---


def assert_same_tensors(*folders):
    one, other = (test_loop.tensors(folder, 6) for folder in folders)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
def test_steps_are_the_same_with_and_without(tmp_path):
    result = runs.fit(tmp_path / "with", baselines=True)
    runs.fit(tmp_path / "without")
    assert_same_tensors(tmp_path / "with", tmp_path / "without")
    one, other = (
        json.loads((tmp_path / name / "results.json").read_text())
        for name in ("with", "without")
    )
    assert [each["name"] for each in one.pop("baselines")] == NAMES
    assert other.pop("baselines") == [] and other.pop("lead") is None
    lead = one.pop("lead")
    assert one == other
    best = max(each["top1"] for each in result.baselines)
    assert lead["top1"] == pytest.approx(result.top1 - best)


@pytest.mark.slow
def test_resumed_run_has_the_same_baselines(tmp_path, monkeypatch):
    runs.fit(tmp_path / "whole", baselines=True)
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    runs.fit(tmp_path / "resumed", baselines=True, checkpoint_every=2)
    for name in ("results.json", "model.keras"):
        (tmp_path / "resumed" / name).unlink()
    for path in (tmp_path / "resumed" / "checkpoints").glob("*_00000006*"):
        path.unlink()
    # They are known: no process is started.
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    runs.fit(tmp_path / "resumed", baselines=True)
    assert runs.began_after(tmp_path / "resumed") == 4
    test_loop.assert_same_run(tmp_path / "whole", tmp_path / "resumed", 6)


@pytest.mark.slow
def test_run_keeps_its_result_if_they_fail(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", script(tmp_path, "kill -9 $$"))
    result = runs.fit(tmp_path / "run", baselines=True)
    assert (result.baselines, result.lead) == ([], None)
    assert "killed by SIGKILL" in capsys.readouterr().err
    assert simmatch_tf.load(tmp_path / "run") is not None


# ------------------------------------------------- the one that is kept ---


def right_of(workdir, name="baselines.json"):
    """Whether the baseline that is kept is right, image by image."""
    content = json.loads((workdir / name).read_text())
    (entry,) = [each for each in content["baselines"] if "kept" in each]
    return np.array([digit == "1" for digit in entry["right"]])


def known_kept(classes=10, width=64):
    """What a process might have measured, with arrays of its own."""
    random = np.random.default_rng(1)
    classifier = baselines.Classifier(
        *random.uniform(0.5, 1, [2, width]).astype(np.float32),
        random.normal(size=[width, classes]).astype(np.float32),
        random.normal(size=classes).astype(np.float32),
    )
    kept = {
        "scored_on": "test",
        "top5": 0.9,
        "macro_accuracy": 0.5,
        "calibration_error": 0.1,
        "temperature": 2.0,
        "fitted_on": "held-out labeled",
        "fitted_images": 20,
    }
    name = f"{baselines.KEPT} on {baselines.FIRST_WEIGHTS}"
    right = np.arange(397) % 2 == 0
    return [*known(), baselines.Baseline(name, right, kept, classifier)]


def variables(path):
    model = network.load(path)
    return [np.asarray(variable.value) for variable in model.variables]


@pytest.mark.slow
def test_the_model_predicts_what_the_baseline_does(frozen_run):
    right, test = right_of(frozen_run), digits.load(8).test
    assert 0.3 < right.mean() < 0.95
    model = simmatch_tf.load(frozen_run, weights="baseline")
    logits = model(test.images, training=False)["logits"].numpy()
    np.testing.assert_array_equal(logits.argmax(axis=1) == test.labels, right)
    # No image is at the edge: these figures are not those of rounding.
    best = np.sort(logits, axis=1)
    assert (best[:, -1] - best[:, -2]).min() > 1e-5
    content = json.loads((frozen_run / "baselines.json").read_text())
    entry = content["baselines"][-1]
    assert (
        entry["name"] == "logistic regression on features of the first weights"
    )
    kept = entry["kept"]
    assert kept["top5"] == metrics.top_k(logits, test.labels, 5)
    assert kept["calibration_error"] == pytest.approx(
        metrics.calibration_error(logits / kept["temperature"], test.labels),
        abs=1e-4,
    )
    assert (kept["scored_on"], kept["fitted_images"]) == ("test", 40)
    # What is cut off matters: features far from all labels are there.
    layer = network.parts(model)["classifier"]
    features = model(test.images)["features"].numpy()
    x = (features - layer.mean) / layer.deviation
    assert np.abs(x).max() > baselines.MOST_DEVIATIONS
    assert list(model.class_names) == [str(number) for number in range(10)]
    assert sorted(path.name for path in frozen_run.iterdir()) == [
        "baseline.keras",
        "baselines.json",
        "data.json",
        "flags.cfg",
        "lock",
        "split.json",
        "tensorboard",
    ]


def test_what_is_missing_of_the_one_that_is_kept(
    tmp_path, cache, first_weights
):
    flags = {"init_from": str(first_weights)}
    first = make(tmp_path / "a", **flags)
    assert first.missing() and not first.to_keep()
    first.store()  # nothing yet
    first.measured = known_kept()
    first.store()
    home = tmp_path / "a"
    assert {p.name for p in home.iterdir()} == {
        "baselines.json",
        "baselines.npz",
    }
    # Killed before the model was written: nothing is to be measured again.
    again = make(home, **flags)
    assert not again.missing() and again.to_keep()
    model = keras.saving.load_model(first_weights)
    again.keep(model)
    assert not again.to_keep()
    assert {p.name for p in home.iterdir()} == {
        "baselines.json",
        "baseline.keras",
    }
    again = make(home, **flags)
    assert not again.missing() and not again.to_keep()
    written = (home / "baselines.json").stat().st_mtime_ns
    again.store()
    assert (home / "baselines.json").stat().st_mtime_ns == written
    # Without the model, its arrays are needed.
    (home / "baseline.keras").unlink()
    assert make(home, **flags).missing()
    # Those of another run do, and a cache without them does not.
    cache.mkdir(parents=True)
    path = cache / f"baselines-{first._key}.json"
    baselines.write(path, first._key, known_kept())
    other = make(home, **flags)
    assert not other.missing() and other.to_keep()
    other.store()
    assert (home / "baselines.npz").is_file()
    (home / "baselines.npz").unlink()
    baselines.arrays_path(path).unlink()
    assert make(home, **flags).missing()
    # The model of other baselines is never left beside the file.
    other = make(tmp_path / "a", labels=30, **flags)
    (home / "baseline.keras").touch()
    (home / "baselines.json").write_text('{"key": "another"}')
    assert other.missing()
    other.measured = known_kept()
    other.store()
    assert not (home / "baseline.keras").exists()
    # Another run's files, which --overwrite removes later, are not looked at.
    other = make(tmp_path / "a", **flags)
    other._folder.anew = True
    assert other.missing()


def test_an_extension_has_the_baselines_of_its_run(tmp_path, first_weights):
    flags = {"init_from": str(first_weights)}
    first = make(tmp_path / "run", **flags)
    first.measured = known_kept()
    first.store()
    first.keep(keras.saving.load_model(first_weights))
    extension = make(tmp_path / "run" / "extension", **flags, extends=first)
    assert not extension.missing() and not extension.to_keep()
    extension.store()
    assert not any((tmp_path / "run" / "extension").iterdir())
    # Those that it measures itself are its run's.
    (tmp_path / "run" / "baselines.json").unlink()
    extension.store()
    assert extension.to_keep() is False  # its arrays are gone
    assert (tmp_path / "run" / "baselines.json").is_file()


def test_news_of_the_one_that_is_kept(tmp_path, first_weights):
    process = make(tmp_path, init_from=str(first_weights))
    process.measured = known_kept()
    _, line = process.news()
    assert line == (
        "frozen features, logistic regression: 50.1 % [45.2, 55.0] on 397 "
        "test images"
    )
    process._told = False
    process.keep(keras.saving.load_model(first_weights))
    _, line = process.news()
    assert line.endswith("397 test images; kept: predict --weights=baseline")


def test_a_model_that_cannot_be_written_is_a_warning(
    tmp_path, first_weights, monkeypatch, capsys
):
    process = make(tmp_path, init_from=str(first_weights))
    process.measured = known_kept()
    process.store()

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(network, "save", fail)
        process.keep(keras.saving.load_model(first_weights))
    warning = capsys.readouterr().err
    assert "baseline.keras: cannot be written (No space left" in warning
    assert process.to_keep() and (tmp_path / "baselines.npz").is_file()


def test_signal_ends_the_measurement_before_the_first_step(
    tmp_path, monkeypatch, first_weights
):
    monkeypatch.setattr(sys, "executable", script(tmp_path, "exec sleep 60"))
    process = make(tmp_path / "run", init_from=str(first_weights))
    assert process.missing()
    request, children, start = signals.Request(), [], process.start

    def watch(features):
        start(features)
        children.append(process._process)
        request.signal = "SIGTERM"

    monkeypatch.setattr(process, "start", watch)
    features = [np.zeros([20, 4]), np.zeros([397, 4])]
    with pytest.raises(
        signals.Interrupted, match="SIGTERM while the baselines"
    ):
        process.measure(features, request)
    assert children[0].returncode == -signal.SIGKILL
    assert not any((tmp_path / "run").iterdir())


def test_failure_before_the_first_step_is_one_warning(
    tmp_path, monkeypatch, capsys, first_weights
):
    monkeypatch.setattr(sys, "executable", script(tmp_path, "kill -9 $$"))
    process = make(tmp_path / "run", init_from=str(first_weights))
    assert process.missing()
    process.measure([np.zeros([20, 4]), np.zeros([397, 4])], signals.Request())
    warning = capsys.readouterr().err
    assert "killed by SIGKILL" in warning and "goes on without" in warning
    assert not process.missing() and not process.to_keep()
    process.store()
    process.wait(signals.Request())  # at the end
    assert capsys.readouterr().err == ""
    assert not any((tmp_path / "run").iterdir())


@pytest.mark.slow
def test_the_one_that_is_kept_without_images_to_score_on(
    tmp_path, cache, first_weights
):
    source = unscored()
    process = make(
        tmp_path / "run", source=source, init_from=str(first_weights)
    )
    assert process.missing()
    model = keras.saving.load_model(first_weights)
    images = source.train.images[process.labeled]
    features = np.asarray(model(images)["features"])
    process.measure([features], signals.Request())
    process.store()
    process.keep(model)
    wanted = baselines.measure(
        {
            "images": images,
            "labels": source.train.labels[process.labeled],
            "features": features,
            "classes": np.array(10),
            "remark": "cross-validation",
        }
    )
    same(process.measured, wanted)
    kept = baselines.read_kept(tmp_path / "run" / "baselines.json")
    assert kept["scored_on"] == "held-out labeled" and kept["images"] == 20
    _, line = process.news()
    assert "by cross-validation on 20 labels; kept: predict" in line
    # The model has learned from all labels.
    logits = network.load(tmp_path / "run" / "baseline.keras")(images)["logits"]
    np.testing.assert_allclose(
        logits, wanted[-1].classifier.logits(features), atol=1e-3
    )


@pytest.mark.slow
def test_first_weights_have_baselines_that_a_resumed_run_measures_again(
    tmp_path, monkeypatch, capsys
):
    runs.fit(tmp_path / "first", steps=4)
    flags = {"baselines": True, "init_from": str(tmp_path / "first")}
    whole = runs.fit(tmp_path / "whole", **flags)
    runs.fit(tmp_path / "none", **{**flags, "baselines": False})
    assert_same_tensors(tmp_path / "whole", tmp_path / "none")
    assert not (tmp_path / "none" / "baseline.keras").exists()
    names = [each["name"] for each in whole.baselines]
    assert names == [
        *NAMES,
        "SVM on features of the first weights",
        "logistic regression on features of the first weights",
    ]
    assert set(whole.baselines[0]) == {"name", "top1", "interval"}
    wanted = variables(tmp_path / "whole" / "baseline.keras")
    # From the cache, without a process.
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nowhere/python")
        capsys.readouterr()
        runs.fit(tmp_path / "cached", **flags)
    shown = capsys.readouterr().err
    assert "kept: predict --weights=baseline" in shown
    assert "Warning" not in shown and "measuring the baselines" not in shown
    test_loop.assert_same_run(tmp_path / "whole", tmp_path / "cached", 6)
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])

    def unfinish(name):
        for path in (tmp_path / name / "checkpoints").glob("*_00000006*"):
            path.unlink()
        for file in ("results.json", "model.keras"):
            (tmp_path / name / file).unlink()

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for name in ("baselines.json", "baseline.keras"):
        (tmp_path / "resumed" / name).unlink()
    unfinish("resumed")
    shutil.copytree(tmp_path / "resumed", tmp_path / "without")
    # Only the model is gone, and no cache has its arrays.
    unfinish("cached")
    (tmp_path / "cached" / "baseline.keras").unlink()
    for name in ("resumed", "cached"):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
        runs.fit(tmp_path / name, **flags)
        assert runs.began_after(tmp_path / name) == 4
        test_loop.assert_same_run(tmp_path / "whole", tmp_path / name, 6)
        for one, other in zip(
            wanted,
            variables(tmp_path / name / "baseline.keras"),
            strict=True,
        ):
            np.testing.assert_array_equal(one, other)
    # The weights are gone: the others are measured all the same.
    shutil.rmtree(os.environ["XDG_CACHE_HOME"])
    shutil.rmtree(tmp_path / "first")
    result = runs.fit(tmp_path / "without", **flags)
    assert [each["name"] for each in result.baselines] == NAMES
    assert not (tmp_path / "without" / "baseline.keras").exists()
    # They are no cached baselines of a run that has the weights.
    (path,) = pathlib.Path(os.environ["XDG_CACHE_HOME"]).rglob("*.json")
    assert make(tmp_path / "plain").missing() is False


@pytest.mark.slow
@pytest.mark.parametrize("method", ["store", "keep"])
def test_a_run_that_is_killed_around_its_baselines_starts_again(
    tmp_path, monkeypatch, first_weights, method
):
    flags = {"baselines": True, "init_from": str(first_weights), "steps": 2}

    def die(*arguments):
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(baseline_process.Baselines, method, die)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(tmp_path / "run", **flags)
    assert not (tmp_path / "run" / "baseline.keras").exists()
    result = runs.fit(tmp_path / "run", **flags)
    assert len(result.baselines) == 4
    assert (tmp_path / "run" / "baseline.keras").is_file()
    assert not (tmp_path / "run" / "baselines.npz").exists()


@pytest.mark.slow
def test_a_run_goes_on_if_the_process_of_the_first_weights_fails(
    tmp_path, monkeypatch, capsys, first_weights
):
    flags = {"baselines": True, "init_from": str(first_weights), "steps": 2}
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", script(tmp_path, "exit 3"))
        result = runs.fit(tmp_path / "run", **flags)
    assert (result.baselines, result.lead) == ([], None)
    assert capsys.readouterr().err.count("ended with status 3") == 1
    with pytest.raises(
        InputError, match="--weights=baseline: .*start it again"
    ):
        simmatch_tf.load(tmp_path / "run", weights="baseline")
    # Started again after its last step, it has them.
    for name in ("results.json", "model.keras"):
        (tmp_path / "run" / name).unlink()
    result = runs.fit(tmp_path / "run", **flags)
    assert len(result.baselines) == 4 and result.lead is not None
    right, test = right_of(tmp_path / "run"), digits.load(8).test
    model = simmatch_tf.load(tmp_path / "run", weights="baseline")
    logits = model(test.images, training=False)["logits"].numpy()
    np.testing.assert_array_equal(logits.argmax(axis=1) == test.labels, right)
