"""Figures of runs and exports, and the images that `report` shows."""

import dataclasses
import io
import json
import shutil

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from simmatch_tf import evaluate, report
from simmatch_tf.data.sources import tfds as tfds_source
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import exporting, loading, scoring
from simmatch_tf.training import results, workdir
from tests import runs
from tests.serving.helpers import TEST

# Confidences 0.9, 0.6, 0.8, 0.5, 0.7; the second, third and fifth are wrong.
P = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.5, 0.5], [0.3, 0.7]])
LABELS = np.array([0, 0, 1, 0, 0])


def test_ranking_of_wrong_and_uncertain_images():
    wrong, uncertain = scoring.rank(np.log(P) + 7, LABELS)
    assert wrong.tolist() == [2, 4, 1]  # 0.8, 0.7, 0.6
    assert uncertain.tolist() == [3, 1, 4, 2, 0]  # 0.5, 0.6, 0.7, 0.8, 0.9


def test_evaluating_an_export(exported, finished_run, tmp_path, capsys):
    written, _ = exported
    output = tmp_path / "e.json"
    evaluate.main(
        evaluate.EvaluateConfig(
            export=str(written.path.parent), output=str(output)
        )
    )
    report = json.loads(output.read_text())
    assert report["ema"]["top1"] == finished_run[1].top1
    assert "student" not in report and "ema *" in capsys.readouterr().out
    assert "images_changed" not in report
    with pytest.raises(InputError, match="evaluate it by --workdir"):
        evaluate.main(evaluate.EvaluateConfig(export=str(finished_run[0])))
    with pytest.raises(InputError, match="name the folder of a run, or an exp"):
        evaluate.EvaluateConfig()


def test_evaluating_an_export_of_other_training_images(
    exported, tmp_path, capsys
):
    """Images that were moved to test/ may have been trained on."""
    path = shutil.copytree(exported[0].path, tmp_path / "1")
    card = json.loads((path / "model_card.json").read_text())
    card["data"]["train_sha256"] = "another"
    (path / "model_card.json").write_text(json.dumps(card))
    config = evaluate.EvaluateConfig(
        export=str(path), output=str(tmp_path / "e.json")
    )
    evaluate.main(config)
    report = json.loads((tmp_path / "e.json").read_text())
    assert "training images' names or classes" in report["images_changed"]
    assert "result too good" in capsys.readouterr().err


def inspect(folder, result=None, **flags):
    inspector = scoring.Inspector(
        **{"images": 6, "neighbors": 5, "batch_size": 256, **flags}
    )
    folder = workdir.Workdir(folder)
    result = result or results.read(folder.results)
    return inspector.inspect(folder, result)


def custom(folder):
    """As if the run's images had been given from Python."""
    path = folder / "flags.cfg"
    text = path.read_text().replace("--dataset=digits", "--dataset=custom")
    path.write_text(text.replace("--image_size=8\n", ""))


def test_inspection_of_a_run(finished_run):
    path, result = finished_run
    inspection = inspect(path, neighbors=3)
    assert inspection.report["top1"] == result.top1
    assert (
        np.sum(inspection.report["confusion"]) == inspection.images == len(TEST)
    )
    assert inspection.errors == round(len(TEST) * (1 - result.top1))
    assert inspection.scored_on == "test" and inspection.why_not == ""
    assert len(inspection.wrong) == len(inspection.uncertain) == 6
    model = loading.run(path, neighbors=3).classifier
    explained = {
        name: value.numpy()
        for name, value in model.explain(TEST.images).items()
    }
    p = explained["probabilities"]
    for item in [*inspection.wrong, *inspection.uncertain]:
        number = int(item.name.removeprefix("image "))
        assert item.true == str(TEST.labels[number])
        assert item.predicted == str(p[number].argmax())
        assert item.confidence == pytest.approx(p[number].max(), abs=1e-5)
        own = p[number, TEST.labels[number]]
        assert item.true_confidence == pytest.approx(own, abs=1e-5)
        near = explained["neighbor_slots"][number].tolist()
        assert [n["slot"] for n in item.neighbors] == near
        assert {n["slot"] for n in item.neighbors} <= set(inspection.neighbors)
        cosines = [n["similarity"] for n in item.neighbors]
        assert cosines == sorted(cosines, reverse=True)
        with PIL.Image.open(io.BytesIO(item.picture)) as image:
            assert image.format == "JPEG"
    wrong = [item.confidence for item in inspection.wrong]
    assert wrong == sorted(wrong, reverse=True)
    assert all(item.true != item.predicted for item in inspection.wrong)
    least = np.sort(p.max(axis=1))[:6]
    assert [x.confidence for x in inspection.uncertain] == pytest.approx(
        least, abs=1e-5
    )


def test_inspection_of_a_run_trained_elsewhere(finished_run, tmp_path):
    """It needs neither workers nor the data service."""
    run = shutil.copytree(finished_run[0], tmp_path / "run")
    with open(run / "flags.cfg", "a") as file:
        file.write("--strategy=multi_worker\n--data_service=grpc://no:1\n")
    assert inspect(run, images=1).report["top1"] == finished_run[1].top1


def test_inspection_of_a_run_without_memory(tmp_path):
    runs.fit(tmp_path / "run", algorithm="supervised", steps=1)
    inspection = inspect(tmp_path / "run", images=2)
    assert "has no memory" in inspection.why_not and inspection.neighbors == {}
    assert all(item.neighbors == [] for item in inspection.uncertain)


def test_inspection_refuses_what_is_missing(
    finished_run, tmp_path, monkeypatch
):
    path, result = finished_run
    many = dataclasses.replace(result, test_images=scoring.MOST + 1)
    with pytest.raises(InputError, match="20,001 test images are more"):
        inspect(path, many)
    later = dataclasses.replace(result, steps=9)
    with pytest.raises(InputError, match="is of step 6, the result of step 9"):
        inspect(path, later)
    run = shutil.copytree(path, tmp_path / "run")
    text = (run / "flags.cfg").read_text()

    def of(*flags):
        (run / "flags.cfg").write_text(text + "\n".join(flags) + "\n")
        return inspect(run, result)

    with pytest.raises(InputError, match="no such folder"):
        of("--dataset=folder", f"--data_dir={tmp_path}/none")
    (run / "flags.cfg").write_text(text)
    custom(run)
    with pytest.raises(InputError, match="images were given from Python"):
        inspect(run, result)

    def download(*_, **__):
        raise AssertionError("it would be downloaded")

    monkeypatch.setattr(tfds_source, "_prepare", download)
    with pytest.raises(InputError, match="mnist is not prepared here"):
        of("--dataset=mnist", f"--tfds_dir={tmp_path}")


def test_changed_images_are_not_inspected(finished_run, tmp_path):
    path, result = finished_run
    run = shutil.copytree(path, tmp_path / "run")
    content = json.loads((run / "data.json").read_text())
    content["digits.csv.gz"][1:] = [5, "another"]
    (run / "data.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"began with: 1 is changed \(digits.csv.gz\)"
    ):
        inspect(run)
    (run / "data.json").unlink()  # as an older version left it
    assert inspect(run, images=1).report["top1"] == result.top1


def test_a_dataset_is_loaded_once(finished_run, monkeypatch):
    loads = []
    real = scoring.inputs.make_source
    monkeypatch.setattr(
        scoring.inputs,
        "make_source",
        lambda config: loads.append(1) or real(config),
    )
    inspector = scoring.Inspector(images=24, neighbors=5, batch_size=256)
    for pictures in (True, False):
        inspection = inspector.inspect(
            workdir.Workdir(finished_run[0]), finished_run[1], pictures=pictures
        )
        assert bool(inspection.wrong) == bool(inspection.neighbors) == pictures
    assert len(loads) == 1


@pytest.mark.slow
def test_inspection_of_validation_images_in_files(tmp_path):
    """Without test images, validation images are shown with their names."""
    rng = np.random.default_rng(0)
    for name in ("a$x$", "<b>"):
        folder = tmp_path / "data" / "labeled" / name
        folder.mkdir(parents=True)
        for number in range(6):
            pixels = rng.integers(0, 256, [20, 30, 3], np.uint8)
            PIL.Image.fromarray(pixels).save(folder / f"{number}.png")
    (tmp_path / "data" / "unlabeled").mkdir()
    for number in range(20):
        pixels = rng.integers(0, 256, [20, 30, 3], np.uint8)
        path = tmp_path / "data" / "unlabeled" / f"{number}.png"
        PIL.Image.fromarray(pixels).save(path)
    runs.fit(
        tmp_path / "run",
        dataset="folder",
        data_dir=str(tmp_path / "data"),
        labels=None,
        label_fraction=1.0,
        validation_fraction=0.3,
        batch_size=4,
        steps=1,
    )
    inspection = inspect(tmp_path / "run")
    assert inspection.scored_on == "validation"
    assert (
        2 <= inspection.images <= 4
        and len(inspection.uncertain) == inspection.images
    )
    for item in inspection.uncertain:
        assert item.name.startswith(f"labeled/{item.true}/")
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(InputError, match="data: no such folder"):
        inspect(tmp_path / "run")
    moved = str(tmp_path / "moved")
    inspect(
        tmp_path / "run",
        data_dir=moved,
    )


@pytest.mark.slow
def test_report_of_two_runs(finished_run, tmp_path, capsys):
    path, result = finished_run
    other = shutil.copytree(path, tmp_path / "other")
    custom(other)
    before = {p: p.stat().st_mtime_ns for p in other.rglob("*")}
    output = tmp_path / "r.html"
    argv = ["report", f"A={path}", str(other), f"--output={output}"]
    argv += ["--images=3", f"--figures={tmp_path}/figures"]
    report.main(report.ReportConfig.from_argv(argv))
    out = capsys.readouterr().out
    assert "other: no test images are shown: the run's images were" in out
    text = output.read_text()
    assert f"{100 * result.top1:.1f} (1)" in text
    assert "of 397 test images are wrong" in text
    # Three wrong and three uncertain images, of the first run only.
    assert text.count('<img src="data:image/jpeg;base64,') == 6
    assert "Confusion matrix of A" in text
    assert "Confusion matrix of other" not in text
    names = {p.name for p in (tmp_path / "figures").iterdir()}
    assert {"accuracy.png", "losses.png", "confusion_A.png"} <= names
    # The runs are not changed.
    assert before == {p: p.stat().st_mtime_ns for p in other.rglob("*")}


@pytest.mark.slow
def test_images_are_shown_of_a_group_s_worst_run(
    finished_run, tmp_path, monkeypatch
):
    """Other seeds only count in the confusion matrix."""
    path, result = finished_run
    other = shutil.copytree(path, tmp_path / "other")
    with open(other / "flags.cfg", "a") as file:
        file.write("--seed=5\n")
    worse = dataclasses.replace(result, top1=result.top1 / 2)
    worse.write(other / "results.json")
    seen = {}
    real = scoring.Inspector.inspect

    def noting(self, folder, result, *, pictures):
        seen[folder.path.name] = pictures
        return real(self, folder, result, pictures=pictures)

    monkeypatch.setattr(scoring.Inspector, "inspect", noting)
    output = tmp_path / "r.html"
    argv = ["report", str(path), str(other), f"--output={output}"]
    report.main(report.ReportConfig.from_argv(argv))
    assert seen == {"run": False, "other": True}
    text = output.read_text()
    assert "All images of its 2 runs together." in text
    assert "other: " in text and "<summary>run: " not in text


def test_an_inspection_holds_no_tensors(finished_run):
    inspection = inspect(finished_run[0], images=1)
    for value in dataclasses.asdict(inspection.wrong[0]).values():
        assert not isinstance(value, tf.Tensor | np.ndarray)


def write_images(folder, numbers, seed):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in numbers:
        pixels = rng.integers(0, 256, [20, 30, 3], np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.slow
def test_results_on_changed_images(tmp_path, capsys):
    """Following the message gives a result and leaves the run unchanged."""
    data, path = tmp_path / "data", tmp_path / "run"
    for seed, name in enumerate(("a", "b")):
        write_images(data / "labeled" / name, range(4), seed)
        write_images(data / "test" / name, range(3), 2 + seed)
    write_images(data / "unlabeled", range(20), 4)
    folder = {"dataset": "folder", "data_dir": str(data), "labels": None}
    folder |= {"label_fraction": 1.0, "batch_size": 4, "steps": 1}
    runs.fit(path, **folder)
    assert inspect(path).images == 6
    write_images(data / "test" / "a", range(3), 5)
    with pytest.raises(InputError, match=r"3 are changed \(test/a/0.png, "):
        inspect(path)
    output = tmp_path / "r.html"
    report.main(report.ReportConfig(runs=(str(path),), output=str(output)))
    text = output.read_text("utf-8")
    assert "3 are changed (test/a/0.png" in text
    assert '<div class="item">' not in text
    # A run that began after the change is no second seed of it.
    later = tmp_path / "later"
    runs.fit(later, **folder, seed=1)
    both = (str(path), str(later))
    report.main(report.ReportConfig(runs=both, output=str(output)))
    text = output.read_text("utf-8")
    assert "(2)" not in text and "No lead is given" in text
    assert (
        "later is not grouped with run: its data are others: 3 are changed"
    ) in text
    out = capsys.readouterr().out
    assert "run: no test images are shown" in out
    assert "later: no test images are shown" not in out
    write_images(data / "test" / "a", [9], 6)
    with pytest.raises(
        InputError, match="export the run and evaluate --export"
    ):
        evaluate.main(evaluate.EvaluateConfig(workdir=str(path)))
    written = exporting.write(path, tmp_path / "exports")
    flags = evaluate.EvaluateConfig(export=str(written.path))
    evaluate.main(flags)
    evaluation = json.loads(
        (written.path / "evaluation.json").read_text("utf-8")
    )
    assert evaluation["test_images"] == 7
    assert (path / "results.json").is_file()
