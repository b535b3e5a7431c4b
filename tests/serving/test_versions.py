"""A folder of versions is one model's: nothing here needs a trained network."""

import dataclasses
import json

import pytest

from simmatch_tf import export
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import printed_tables
from simmatch_tf.serving import versions
from simmatch_tf.training import workdir as workdir_lib
from tests import runs
from tests.reporting.test_printed_tables import CONFIG, RESULT

NAMES = ["café", "dog"]


def write(output, number, config, digest="abc", names=NAMES):
    """What an export leaves, as far as it is looked at."""
    folder = output / str(number)
    folder.mkdir(parents=True)
    flags = {
        name: value
        for name, value in config.values().items()
        if value is not None
    }
    card = {
        "flags": flags,
        "data": {
            "dataset": config.dataset,
            "train_sha256": digest,
            "class_names": names,
        },
        "date": "2026-11-28T00:00:00+00:00",
    }
    (folder / "saved_model.pb").touch()
    (folder / "model_card.json").write_text(json.dumps(card))


def refused(output, config, digest="abc", names=NAMES):
    images = {"train_sha256": digest, "class_names": names}
    try:
        versions.check_model(output, config, images)
    except InputError as error:
        return str(error)
    return ""


KEPT = {
    "scored_on": "test",
    "top5": 0.9,
    "macro_accuracy": 0.4,
    "calibration_error": 0.05,
    "temperature": 1.5,
    "fitted_on": "held-out labeled",
    "fitted_images": 40,
}


def of_baseline(folder, kept):
    """What is known of the baseline of a run that has right on 3 of 4."""
    entries = [{"name": "SVM", "top1": 1.0, "right": "1111"}]
    entries.append({"name": "a", "top1": 0.75, "right": "1101", "kept": kept})
    text = json.dumps({"key": "k", "baselines": entries})
    (folder / "baselines.json").write_text(text)
    folder = workdir_lib.Workdir(folder)
    return (
        versions.accuracy(folder, "baseline", 0),
        versions.calibration(folder, "baseline", 0),
    )


def test_accuracy_of_the_baseline_is_that_of_baselines_json(tmp_path):
    folder = workdir_lib.Workdir(tmp_path)
    assert versions.accuracy(folder, "baseline", 0) is None
    assert versions.calibration(folder, "baseline", 0) is None
    accuracy, calibration = of_baseline(tmp_path, KEPT)
    assert accuracy == {
        "top1": 0.75,
        "top5": 0.9,
        "macro_accuracy": 0.4,
        "calibration_error": 0.05,
        "scored_on": "test",
        "images": 4,
    }
    assert calibration == {
        "temperature": 1.5,
        "fitted_on": "held-out labeled",
        "images": 40,
    }
    assert versions.confidences(calibration, accuracy) == (
        "calibrated on 40 held-out labeled images; they are off by 5.0% on "
        "average: the calibration error of 4 test images"
    )


def test_a_baseline_that_was_cross_validated_or_has_few_labels(tmp_path):
    kept = {
        "scored_on": "held-out labeled",
        "calibration_error": 0.1,
        "temperature": 2.0,
        "fitted_on": "held-out labeled",
        "fitted_images": 40,
    }
    accuracy, calibration = of_baseline(tmp_path, kept)
    assert "top5" not in accuracy and accuracy["top1"] == 0.75
    text = versions.confidences(calibration, accuracy)
    assert text.startswith(
        "calibrated on 40 held-out labeled images, error by cross-fitting; "
    )
    kept |= {"temperature": None, "fitted_on": None, "fitted_images": 0}
    accuracy, calibration = of_baseline(tmp_path, kept)
    assert calibration is None
    text = versions.confidences(calibration, accuracy)
    assert text.startswith("not calibrated; they are off by 10.0%")


def test_another_run_s_model_is_refused(tmp_path):
    first = runs.config(tmp_path / "runs" / "digits_40")
    output = tmp_path / "exports"
    assert not refused(output, first)
    output.mkdir()
    assert not refused(output, first)
    write(output, 1, first)
    write(output, 2, first)
    second = runs.config(tmp_path / "runs" / "digits_100", labels=100)
    text = refused(output, second)
    assert f"(version 2 is of run {first.workdir}, simmatch on digits" in text
    assert f"such as {output / 'digits_100'}, or --replace_model" in text
    # The newest counts, and an empty folder is no model.
    write(output, 10, second)
    (output / "11").mkdir()
    assert not refused(output, second)
    assert f"(version 10 is of run {second.workdir}, " in refused(output, first)


def test_the_same_run_goes_on(tmp_path):
    first = runs.config(tmp_path / "run")
    write(tmp_path / "out", 1, first)
    # Trained anew there with other flags; moved; other operational flags.
    for changes in (
        {"labels": 100},
        {"workdir": str(tmp_path / "moved")},
        {"workdir": str(tmp_path / "moved"), "eval_every": 1, "keep": 9},
    ):
        changed = dataclasses.replace(first, **changes)
        assert not refused(tmp_path / "out", changed)
    # Other images, another seed elsewhere, another dataset in its place.
    moved = dataclasses.replace(first, workdir=str(tmp_path / "moved"))
    assert refused(tmp_path / "out", moved, "other")
    assert refused(tmp_path / "out", dataclasses.replace(moved, seed=1))
    other = dataclasses.replace(first, dataset="cifar10")
    assert refused(tmp_path / "out", other)


def test_another_folder_in_the_same_workdir(tmp_path):
    """Two folders of one name have one default workdir."""
    run = tmp_path / "runs" / "fl-photos"
    first = runs.config(
        run, dataset="folder", data_dir="/a/photos", labels=None
    )
    other = dataclasses.replace(first, data_dir="/b/photos")
    output = tmp_path / "exports"
    write(output, 1, first)
    # The same folder with more labels; it moved; macOS's form of a name.
    assert not refused(output, first, "more labels")
    assert not refused(output, other)
    assert not refused(output, first, names=["cafe\u0301", "dog"])
    # Other classes; the same ones, but other images.
    text = refused(output, other, "other", names=["cat", "dog"])
    assert "simmatch on /a/photos, exported " in text
    assert refused(output, other, "other")
    assert refused(output, first, names=["dog", "café"])
    # A run whose split is not readable is refused later, and for that.
    versions.check_model(output, first, {})


def test_what_tells_a_run_s_images(tmp_path):
    folder = workdir_lib.Workdir(tmp_path)
    assert folder.images() == {}
    for text in ("{", "[]", "3"):
        folder.split.write_text(text)
        assert folder.images() == {}
    folder.split.write_text('{"class_names": ["a"], "train_images": 3}')
    assert folder.images() == {"class_names": ["a"]}


def test_what_export_did_not_write_is_another_model(tmp_path):
    (tmp_path / "out" / "1").mkdir(parents=True)
    (tmp_path / "out" / "1" / "saved_model.pb").touch()
    text = refused(tmp_path / "out", runs.config(tmp_path / "run"))
    assert "was not written by export: 1/ has no model_card.json" in text


def test_export_answers_before_tensorflow(tmp_path, monkeypatch):
    workdir = tmp_path / "runs" / "second"
    workdir.mkdir(parents=True)
    (workdir / "flags.cfg").write_text("--labels=20\n--steps=2\n")
    (workdir / "checkpoints").mkdir()
    (workdir / "checkpoints" / "step_2.index").touch()
    write(tmp_path / "exports", 1, runs.config(tmp_path / "runs" / "first"))
    flags = {"workdir": str(workdir), "output": str(tmp_path / "exports")}
    with pytest.raises(InputError, match="holds another model"):
        export.main(export.ExportConfig(**flags))
    # With the flag it goes on, to what this workdir lacks.
    with pytest.raises(InputError, match="split"):
        export.main(export.ExportConfig(**flags, replace_model=True))


def test_the_command_that_a_run_suggests_is_its_own(tmp_path, monkeypatch):
    for workdir, folder in (
        (tmp_path / "digits_40", "exports/digits_40"),
        (tmp_path / "my run", "'exports/my run'"),
    ):
        text = printed_tables.next_steps(workdir, CONFIG, RESULT)
        assert f" --output={folder}\n" in f"{text}\n"
    monkeypatch.chdir(tmp_path)
    text = printed_tables.next_steps(
        tmp_path.relative_to(tmp_path), CONFIG, RESULT
    )
    assert f"--output=exports/{tmp_path.name}" in text


def evaluation(**changes):
    record = {"top1": 0.5, "top5": 1.0, "calibration_error": 0.2}
    report = {"step": 6, "scored_on": "test", "test_images": 20, "ema": record}
    return json.dumps({**report, **changes})


def test_what_evaluate_measured_on_changed_images_is_not_taken(tmp_path):
    path = tmp_path / "evaluation.json"
    assert versions.evaluated(path, "ema", 6) is None
    path.write_text(evaluation())
    measured = {"top1": 0.5, "top5": 1.0, "scored_on": "test", "images": 20}
    assert versions.evaluated(path, "ema", 6) == {
        **measured,
        "calibration_error": 0.2,
    }
    assert versions.evaluated(path, "student", 6) is None
    for changes in (
        {"images_changed": "15 are changed (test/a/0.png, …)"},
        {"step": 7},
    ):
        path.write_text(evaluation(**changes))
        assert versions.evaluated(path, "ema", 6) is None
