import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import export, predict
from simmatch_tf.evaluation import baselines, metrics
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import network
from simmatch_tf.reporting import printed_tables
from simmatch_tf.serving import exporting, loading, scoring
from simmatch_tf.training import workdir
from tests import runs
from tests.serving.helpers import SIGNATURES, TEST, run_predict


@pytest.fixture
def copied(finished_run, tmp_path):
    """A finished run to write to."""
    path = shutil.copytree(finished_run[0], tmp_path / "copied")
    return workdir.Workdir(path)


def variables(trained, name):
    return [v.numpy() for v in trained.networks[name].variables]


def test_networks_of_a_finished_run_are_read_without_its_other_state(
    copied, monkeypatch
):
    assert copied.model.is_file()
    restored = loading._read_checkpoint(copied)
    monkeypatch.setattr(
        loading.state, "restore", lambda *_: pytest.fail("state is restored")
    )
    for names in (("student", "ema"), (None,)):
        trained = loading.read_networks(copied, *names)
        assert trained.step == restored.step
        assert trained.weights_of_record == restored.weights_of_record == "ema"
        for name in (name or "ema" for name in names):
            for value, expected in zip(
                variables(trained, name), variables(restored, name), strict=True
            ):
                np.testing.assert_array_equal(value, expected)
        for name, value in trained.memory.items():
            np.testing.assert_array_equal(value, restored.memory[name])


def test_networks_of_other_runs_are_restored_from_the_checkpoint(
    copied, capsys
):
    expected = variables(loading.read_networks(copied, "ema"), "ema")
    content = (copied.path / "model.keras").read_bytes()
    (copied.path / "model.keras").write_bytes(content[:100])
    trained = loading.read_networks(copied, "ema")
    assert "model.keras: cannot be read" in capsys.readouterr().err
    for value, wanted in zip(variables(trained, "ema"), expected, strict=True):
        np.testing.assert_array_equal(value, wanted)
    # The file of an earlier end of a run that was continued is not read.
    text = copied.results.read_text()
    copied.results.write_text(text.replace('"steps": 6', '"steps": 4'))
    assert loading.read_networks(copied, "ema").step == 6
    assert not capsys.readouterr().err


def test_an_unfinished_run_is_warned_about(copied, capsys):
    def warnings():
        lines = capsys.readouterr().err.splitlines()
        return [line for line in lines if "Warning" in line]

    loading.run(copied.path)
    assert not warnings()
    copied.results.unlink()
    text = copied.flagfile.read_text()
    assert "--steps=6\n" in text
    copied.flagfile.write_text(text.replace("--steps=6\n", "--steps=400\n"))
    expected = f"Warning: {copied.path}: the run is at step 6"
    assert loading.run(copied.path).step == 6
    assert warnings() == [f"{expected} of 400"]
    scoring.of_run(copied, copied.read_config(), 64)
    assert warnings() == [f"{expected} of 400"]
    # In epochs, and without the number of images of an epoch.
    copied.flagfile.write_text(text.replace("--steps=6\n", "--epochs=9\n"))
    copied.split.write_text("damaged")
    copied.warn_unfinished(6)
    assert warnings() == [f"{expected} and not finished"]


def evaluated(workdir, result, error):
    report = {
        "step": result.steps,
        "scored_on": result.scored_on,
        "test_images": result.test_images,
        result.weights_of_record: {
            "top1": result.top1,
            "top5": result.top5,
            "calibration_error": error,
        },
    }
    (workdir / "evaluation.json").write_text(json.dumps(report))


@pytest.mark.slow
def test_calibration_error_is_noted(finished_run, photos, tmp_path, capsys):
    workdir, result = tmp_path / "run", finished_run[1]
    shutil.copytree(finished_run[0], workdir)
    error = result.ema["calibration"]["calibration_error"]
    assert simmatch_tf.predict(workdir, TEST.images[:12]).note == (
        "Confidences are calibrated on 397 test images, error by "
        f"cross-fitting; they are off by {error:.1%} on average: the "
        "calibration error of 397 test images."
    )
    evaluated(workdir, result, 0.123)
    predictions = simmatch_tf.predict(workdir, TEST.images[:12])
    assert "they are off by 12.3% on average" in predictions.note
    assert str(predictions).endswith(predictions.note)
    error = result.student["calibration"]["calibration_error"]
    student = simmatch_tf.predict(workdir, TEST.images[:12], weights="student")
    assert f"off by {error:.1%} on" in student.note
    run_predict(
        workdir, photos, tmp_path / "a.csv", html=str(tmp_path / "a.html")
    )
    assert predictions.note in capsys.readouterr().out
    page = (tmp_path / "a.html").read_text("utf-8")
    assert predictions.note in page
    assert "ordered by confidence alone" in page
    assert "teaches" not in page


@pytest.mark.slow
def test_export_keeps_its_calibration_error(finished_run, tmp_path):
    workdir, result = tmp_path / "run", finished_run[1]
    shutil.copytree(finished_run[0], workdir)

    def export(name):
        return exporting.write(workdir, tmp_path / name)

    error = export("calibrated").card["accuracy"]["calibration_error"]
    assert error == result.ema["calibration"]["calibration_error"]
    # A run and a card of an older version.
    content = json.loads((workdir / "results.json").read_text())
    for name in ("student", "ema"):
        del content[name]["calibration"]
    (workdir / "results.json").write_text(json.dumps(content))
    before = export("before")
    assert "calibration_error" not in before.card["accuracy"]
    card = json.loads((before.path / "model_card.json").read_text())
    del card["calibration"]
    (before.path / "model_card.json").write_text(json.dumps(card))
    evaluated(workdir, result, 0.2)
    after = export("after")
    assert after.card["accuracy"] == {
        **{
            key: value
            for key, value in before.card["accuracy"].items()
            if key != "macro_accuracy"  # not in this file
        },
        "calibration_error": 0.2,
    }
    predictions = simmatch_tf.predict(after.path.parent, TEST.images[:12])
    assert "off by 20.0% on average" in predictions.note
    np.testing.assert_allclose(
        predictions.probabilities,
        simmatch_tf.predict(before.path, TEST.images[:12]).probabilities,
        atol=1e-6,
    )
    assert simmatch_tf.predict(before.path, TEST.images[:12]).note == (
        "Confidences are not calibrated; how far off they are was not measured."
    )
    # `evaluate --export` leaves its file beside the card.
    shutil.copy(workdir / "evaluation.json", before.path)
    assert (
        simmatch_tf.predict(before.path, TEST.images[:12]).note
        == predictions.note
    )


@pytest.mark.slow
def test_explain_without_a_memory(tmp_path, photos):
    workdir = tmp_path / "run"
    runs.fit(workdir, algorithm="supervised", steps=1)
    with pytest.raises(InputError, match="--explain: the run has no memory"):
        run_predict(workdir, photos, tmp_path / "a.csv", explain=True)
    assert not list(tmp_path.glob("a.csv*"))
    written = exporting.write(workdir, tmp_path / "out")
    assert set(loading.export(written.path).signatures) == SIGNATURES - {
        "explain"
    }
    assert any("no memory" in note for note in written.notes)
    with pytest.raises(InputError, match="exported without explain"):
        run_predict(written.path, photos, tmp_path / "a.csv", explain=True)


def test_saved_models_of_other_programs_are_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(InputError, match="is no export of simmatch_tf.export"):
        loading.export(tmp_path / "other")
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be loaded"):
        loading.export(tmp_path)


def test_a_loaded_network_refuses_scaled_images(model):
    floats = (TEST.images[:12] / 255.0).astype(np.float32)
    for images in (floats, 2 * floats - 1):
        with pytest.raises(ValueError, match=r"images are from -?\d to 1, but"):
            model(images)
    black = np.zeros([1, 8, 8, 1], np.uint8)
    for images in (
        TEST.images[:12],
        TEST.images[:12].astype(np.float32),
        black,
        black + 1,
    ):
        logits = model(images, training=False)["logits"]
    logits = model(TEST.images[:12], training=False)["logits"]
    predicted = model.predict(TEST.images[:12], verbose=0)["logits"]
    np.testing.assert_allclose(predicted, logits, atol=1e-5)


def test_a_loaded_network_has_class_names(finished_run, tmp_path):
    model = simmatch_tf.load(finished_run[0])
    names = list(finished_run[1].class_names)
    assert list(model.class_names) == names
    model.save(tmp_path / "a.keras")
    loaded = tf.keras.models.load_model(tmp_path / "a.keras")
    assert list(loaded.class_names) == names


@pytest.fixture(scope="module")
def calibrated(finished_run, tmp_path_factory):
    """The finished run as if images had been set aside: its temperature is 2.5.

    The temperature of its student is another one.
    """
    workdir = tmp_path_factory.mktemp("calibrated") / "run"
    shutil.copytree(finished_run[0], workdir)
    content = json.loads((workdir / "results.json").read_text())
    for name, temperature in (("ema", 2.5), ("student", 0.5)):
        content[name]["calibration"] |= {
            "temperature": temperature,
            "fitted_on": "validation",
            "images": 50,
        }
    (workdir / "results.json").write_text(json.dumps(content))
    return workdir


def scaled(workdir, temperature, images):
    logits = simmatch_tf.load(workdir)(images)["logits"].numpy()
    return metrics.softmax(logits.astype(np.float64) / temperature)


@pytest.mark.slow
def test_a_run_predicts_with_its_temperature(calibrated, finished_run):
    images = TEST.images[:12]
    predictions = simmatch_tf.predict(calibrated, images)
    np.testing.assert_allclose(
        predictions.probabilities, scaled(calibrated, 2.5, images), atol=1e-6
    )
    assert predictions.note.startswith(
        "Confidences are calibrated on 50 validation images; they are off by "
    )
    plain = simmatch_tf.predict(finished_run[0], images)
    assert predictions.classes == plain.classes
    assert not np.allclose(predictions.probabilities, plain.probabilities)
    run = loading.run(calibrated)
    assert run.identity["temperature"] == 2.5
    plain = finished_run[1].ema["calibration"]["temperature"]
    assert loading.run(finished_run[0]).identity["temperature"] == plain
    # What explains is as in training.
    for key in ("aggregated", "propagated", "weights"):
        np.testing.assert_array_equal(
            run.explain(images)[key],
            loading.run(finished_run[0]).explain(images)[key],
        )
    student = loading.run(calibrated, weights="student")
    assert student.classifier.temperature == 0.5


@pytest.mark.slow
def test_an_export_has_the_temperature_in_its_graph(calibrated, tmp_path):
    written = exporting.write(calibrated, tmp_path / "exports")
    assert written.card["calibration"] == {
        "temperature": 2.5,
        "fitted_on": "validation",
        "images": 50,
    }
    images = TEST.images[:12]
    expected = scaled(calibrated, 2.5, images)
    predictions = simmatch_tf.predict(written.path, images)
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-5)
    assert "calibrated on 50 validation images;" in predictions.note
    page = (written.path / "model_card.md").read_text()
    assert "| temperature | 2.5 |" in page
    assert "| confidences | calibrated on 50 validation images; they" in page
    # Evaluated, it is not scaled a second time.
    scores = scoring.of_export(
        written.path, runs.config(calibrated), batch_size=64
    )
    run = scoring.of_run(
        workdir.Workdir(calibrated), runs.config(calibrated), batch_size=64
    )
    one, other = scores.describe("ema", 15), run.describe("ema", 15)
    for name in ("calibration_error", "uncalibrated_error"):
        assert one[name] == pytest.approx(other[name], abs=1e-4)
    for figures in (one, other):
        assert figures["temperature"] == 2.5
        assert figures["fitted_on"] == "validation"
        assert figures["fitted_images"] == 50
    assert other["uncalibrated_error"] != other["calibration_error"]


def test_a_damaged_result_is_told_when_predicting(calibrated, tmp_path, capsys):
    copied = tmp_path / "run"
    shutil.copytree(calibrated, copied)
    (copied / "model.keras").unlink()
    (copied / "results.json").write_text("{")
    run = loading.run(copied)
    assert run.calibration is None and run.classifier.temperature is None
    assert "Warning: confidences are not calibrated" in capsys.readouterr().err


# ------------------------------------------------------- the frozen baseline --


@pytest.fixture
def frozen(frozen_run, tmp_path):
    """The run that was killed before its first step, to write to."""
    return workdir.Workdir(shutil.copytree(frozen_run, tmp_path / "frozen"))


@pytest.mark.slow
def test_the_baseline_predicts_without_a_checkpoint(frozen_run, capsys):
    kept = baselines.read_kept(frozen_run / "baselines.json")
    run = loading.run(frozen_run, weights="baseline")
    assert (run.step, run.weights, run.weights_of_record) == (
        0,
        "baseline",
        None,
    )
    assert run.explain is None and "baseline" in run.why_not
    assert run.accuracy["top1"] == kept["top1"]
    assert (run.accuracy["scored_on"], run.accuracy["images"]) == ("test", 397)
    predictions = simmatch_tf.predict(
        frozen_run, TEST.images, weights="baseline"
    )
    right = predictions.probabilities.argmax(axis=1) == TEST.labels
    assert right.mean() == kept["top1"]
    assert "Warning" not in capsys.readouterr().err  # it is whole
    logits = simmatch_tf.load(frozen_run, weights="baseline")(TEST.images)
    np.testing.assert_allclose(
        predictions.probabilities,
        metrics.softmax(logits["logits"].numpy() / kept["temperature"]),
        atol=1e-5,
    )
    assert predictions.note == (
        "Confidences are calibrated on 40 held-out labeled images; they are "
        f"off by {kept['calibration_error']:.1%} on average: the calibration "
        "error of 397 test images."
    )
    # Without the file, nothing is known of it, and it predicts all the same.
    with pytest.raises(InputError, match="no checkpoint yet"):
        simmatch_tf.predict(frozen_run, TEST.images)
    with pytest.raises(InputError, match="must be student, ema or baseline"):
        simmatch_tf.predict(frozen_run, TEST.images, weights="baselines")


@pytest.mark.slow
def test_the_identity_of_a_baseline(frozen, finished_run):
    def identity():
        return loading.run(frozen.path, weights="baseline").identity

    before = identity()
    assert before["weights"] == "baseline" and before["step"] == 0
    other = loading.run(finished_run[0]).identity
    assert before["checkpoint"] != other["checkpoint"]
    model = network.load(frozen.baseline)
    # Written again, as by a run that begins again, it is the same model.
    network.save(model, frozen.baseline, model.class_names)
    assert identity() == before
    model.weights[-1].assign_add(np.ones(10))
    network.save(model, frozen.baseline, model.class_names)
    assert identity()["checkpoint"] != before["checkpoint"]
    frozen.baselines.unlink()
    run = loading.run(frozen.path, weights="baseline")
    assert run.accuracy is run.calibration is None
    assert run.note.startswith("Confidences are not calibrated; how far")


@pytest.mark.slow
def test_the_command_predicts_with_a_baseline(
    frozen_run, photos, tmp_path, capsys
):
    output = tmp_path / "a.jsonl"
    assert not run_predict(frozen_run, photos, output, weights="baseline")
    assert "calibrated on 40 held-out labeled" in capsys.readouterr().out
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    names = {f"{n:02}.png": n for n in range(40) if n % 3}
    rows = {r["file"]: r for r in rows if r["file"] in names}
    images = TEST.images[[names[name] for name in rows]]
    wanted = simmatch_tf.predict(frozen_run, images, weights="baseline")
    assert [row["class"] for row in rows.values()] == wanted.classes


def flags_of_predict(model, **changes):
    return predict.PredictConfig(
        model=str(model), images="photos", output="a.csv", **changes
    )


@pytest.mark.slow
def test_a_baseline_explains_nothing(frozen_run, tmp_path, photos, monkeypatch):
    flags = flags_of_predict(frozen_run, weights="baseline", explain=True)
    with monkeypatch.context() as patch:
        patch.setattr(predict.preflight, "start", None)
        with pytest.raises(InputError, match="--explain and --weights=basel"):
            predict.main(flags)
    with pytest.raises(InputError, match="no checkpoint yet"):
        predict._check(flags_of_predict(frozen_run))


def flagged(tmp_path, **changes):
    """A folder with the flags of a run alone."""
    folder = workdir.Workdir(tmp_path / "run")
    folder.path.mkdir()
    folder.write_flags(runs.config(folder.path, **changes))
    return folder.path


@pytest.mark.parametrize(
    ("flags", "turn"),
    [
        ({"baselines": True}, "made of the weights of --init_from"),
        ({"init_from": "x.keras"}, "has --nobaselines; start it again"),
        (
            {"init_from": "x.keras", "baselines": True},
            "has not come to it, or its baselines were left out or failed",
        ),
    ],
)
def test_a_run_without_a_baseline_says_what_to_do(flags, turn, tmp_path):
    path = flagged(tmp_path, **flags)
    message = f"^--weights=baseline: .*baseline.keras does not exist: .*{turn}"
    commands = (
        lambda: predict._check(flags_of_predict(path, weights="baseline")),
        lambda: export.main(
            export.ExportConfig(
                workdir=str(path),
                output=str(tmp_path / "out"),
                weights="baseline",
            )
        ),
        lambda: simmatch_tf.load(path, weights="baseline"),
    )
    for command in commands:
        with pytest.raises(InputError, match=message):
            command()
    assert not (tmp_path / "out").exists()


def test_a_run_with_nothing_but_its_baseline_says_how_to_use_it(tmp_path):
    path = flagged(tmp_path)
    with pytest.raises(InputError, match="no checkpoint yet$"):
        predict._check(flags_of_predict(path))
    (path / "baseline.keras").touch()
    with pytest.raises(InputError, match="yet; baseline.keras is there"):
        predict._check(flags_of_predict(path))


@pytest.mark.slow
def test_an_export_of_a_baseline(frozen_run, tmp_path, capsys):
    export.main(
        export.ExportConfig(
            workdir=str(frozen_run),
            output=str(tmp_path / "out"),
            weights="baseline",
        )
    )
    out = capsys.readouterr().out
    assert "agrees with the baseline network of step 0" in out
    exported = loading.export(tmp_path / "out" / "1")
    assert set(exported.signatures) == SIGNATURES - {"explain"}
    kept = baselines.read_kept(frozen_run / "baselines.json")
    model = exported.card["model"]
    assert (model["weights"], model["step"]) == ("baseline", 0)
    assert model["weights_of_record"] is None and not model["explains"]
    assert exported.card["accuracy"]["top1"] == kept["top1"]
    assert exported.card["calibration"]["fitted_on"] == "held-out labeled"
    page = (exported.path / "model_card.md").read_text()
    assert "| weights | baseline, step 0 |" in page
    assert f"top-1 {kept['top1']:.2%}" in page and "on 397 test images" in page
    predictions = simmatch_tf.predict(exported.path, TEST.images)
    right = predictions.probabilities.argmax(axis=1) == TEST.labels
    assert right.mean() == kept["top1"]
    # Evaluated, it is the baseline again.
    scores = scoring.of_export(
        exported.path, runs.config(frozen_run), batch_size=64
    )
    figures = scores.describe("baseline", 15)
    assert figures["top1"] == kept["top1"]
    assert figures["calibration_error"] == pytest.approx(
        kept["calibration_error"], abs=1e-3
    )
    text = printed_tables.evaluation({**scores.about, "baseline": figures})
    assert "baseline *" in text
    assert "fitted on 40 held-out labeled images" in text


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.parametrize(
    ("kind", "needs"), [("litert", "ai_edge_litert"), ("onnx", "tf2onnx")]
)
def test_other_formats_of_a_baseline(kind, needs, frozen_run, tmp_path):
    pytest.importorskip(needs)
    written = exporting.write(
        frozen_run, tmp_path / "out", weights="baseline", kind=kind
    )
    assert written.card["model"]["weights"] == "baseline"


@pytest.mark.slow
def test_evaluate_has_a_column_of_the_baseline(frozen, capsys):
    kept = baselines.read_kept(frozen.baselines)
    config = frozen.read_config()
    for path in (frozen.baseline, frozen.baselines):
        shutil.copy(path, frozen.path.parent / path.name)
    runs.fit(frozen.path, labels=40, init_from=config.init_from, steps=2)
    for path in (frozen.baseline, frozen.baselines):
        shutil.copy(frozen.path.parent / path.name, path)
    scores = scoring.of_run(frozen, frozen.read_config(), 64)
    assert set(scores.logits) == {"student", "ema", "baseline"}
    figures = scores.describe("baseline", 15)
    assert figures["top1"] == kept["top1"]
    assert figures["temperature"] == kept["temperature"]
    report = {n: scores.describe(n, 15) for n in scores.logits}
    text = printed_tables.evaluation({**scores.about, **report})
    assert "student" in text and "baseline" in text and "ema *" in text
    run = loading.run(frozen.path, weights="baseline")
    assert run.weights_of_record == "ema" and run.step == 0
    frozen.baseline.write_bytes(b"damaged")
    capsys.readouterr()
    scores = scoring.of_run(frozen, frozen.read_config(), 64)
    assert set(scores.logits) == {"student", "ema"}
    assert "baseline is left out" in capsys.readouterr().err
