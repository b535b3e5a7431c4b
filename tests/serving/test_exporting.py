"""What `export` writes, and how it is loaded elsewhere."""

import fcntl
import importlib.util
import json
import os
import pathlib
import re
import shutil
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import export, preflight
from simmatch_tf.data.sources import digits
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import exporting, loading, verification
from tests.serving.helpers import SIGNATURES, TEST, png


@pytest.mark.slow
def test_content_of_an_export(exported, finished_run):
    written, loaded = exported
    assert written.path.name == "1"
    # Warm-up requests need a package that may not be installed.
    available = importlib.util.find_spec("tensorflow_serving") is not None
    assert bool(written.notes) != available
    assert (written.path / exporting.WARMUP).exists() == available
    assert set(loaded.signatures) == SIGNATURES
    assert loaded.class_names == [str(n) for n in range(10)]
    assert loaded.preprocessing.image_shape == (8, 8, 1)
    card = json.loads((written.path / "model_card.json").read_text())
    _, result = finished_run
    assert card["accuracy"]["top1"] == result.top1
    assert card["flags"]["labels"] == 20 and card["model"]["step"] == 6
    assert card["split"]["labeled_per_class"] == dict.fromkeys(
        loaded.class_names, 2
    )
    assert set(card["interface"]) == SIGNATURES
    assert max(card["verified"]["largest_difference"].values()) <= 1e-5
    page = (written.path / "model_card.md").read_text()
    assert "| wrn_10_1, " in page
    assert f"{result.top1:.2%}" in page and "| inputs | images |" in page
    slots = json.loads((written.path / "assets" / loading.LABELED).read_text())
    assert [row["slot"] for row in slots] == list(range(20))
    names = zipfile.ZipFile(
        written.path / "assets.extra/labeled_thumbnails.zip"
    ).namelist()
    assert len(names) == 20
    # No temporary folder is left beside it.
    assert [p.name for p in written.path.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("loader", ["tf.saved_model.load", "TFSMLayer"])
def test_documented_ways_to_load_an_export(
    exported, model, calibrated_softmax, loader, tmp_path, monkeypatch, capsys
):
    page = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"
    blocks = re.findall(
        r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M
    )
    (code,) = (block for block in blocks if loader in block)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported[0].path, tmp_path / "exports" / "digits_40" / "1")
    (tmp_path / "7.png").write_bytes(png(TEST.images[7]))
    names = {"images": TEST.images[:3]}
    exec(code, names)
    p = calibrated_softmax(model(TEST.images[:8], training=False)["logits"])
    if loader == "TFSMLayer":
        np.testing.assert_allclose(names["probabilities"], p[:3], atol=1e-6)
    else:
        name, score = capsys.readouterr().out.split()
        assert name == str(p[7].argmax())
        assert float(score) == pytest.approx(p[7].max(), abs=1e-6)


@pytest.mark.slow
def test_versions_count_up_and_a_failed_comparison_leaves_nothing(
    finished_run, exported, calibrated_softmax, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    (output / "7").mkdir(parents=True)
    (output / "notes").mkdir()
    monkeypatch.setattr(verification, "_difference", lambda *_: 2e-5)
    monkeypatch.setattr(exporting, "_write_warmup", lambda *_: False)
    with pytest.raises(InputError, match="differs from the training network"):
        exporting.write(finished_run[0], output)
    assert sorted(p.name for p in output.iterdir()) == ["7", "notes"]
    monkeypatch.undo()
    # The folders of a killed export, and of one that is running.
    dead, alive = output / ".unfinished-dead", output / ".unfinished-alive"
    dead.mkdir()
    alive.mkdir()
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    written = exporting.write(
        finished_run[0],
        output,
        weights="student",
        input_dtype="float32",
        neighbors=50,
        keep_thumbnails=False,
    )
    os.close(lock)
    assert alive.exists() and not dead.exists()
    assert written.path.name == "8"
    assert any("all 20 labeled images" in note for note in written.notes)
    loaded = loading.export(written.path)
    assert loaded.input_dtype == "float32"
    student = simmatch_tf.load(finished_run[0], weights="student")
    images = TEST.images[:3]
    explanation = loaded.signatures["explain"](
        images=tf.constant(images, tf.float32)
    )
    np.testing.assert_allclose(
        explanation["probabilities"],
        calibrated_softmax(
            student(images, training=False)["logits"], "student"
        ),
        atol=1e-6,
    )
    assert explanation["neighbor_slots"].shape == (3, 20)
    assert not (written.path / "assets.extra/labeled_thumbnails.zip").exists()


@pytest.mark.extra
def test_warmup_requests_are_in_the_format_of_tensorflow_serving(exported):
    log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2",
        reason="pip install -e '.[serving]'",
    )
    written, loaded = exported
    path = str(written.path / exporting.WARMUP)
    seen = set()
    for record in tf.data.TFRecordDataset(path):
        log = log_pb2.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        name = request.model_spec.signature_name
        arguments = {
            key: tf.constant(tf.make_ndarray(value))
            for key, value in request.inputs.items()
        }
        loaded.signatures[name](**arguments)
        seen.add((name, len(next(iter(arguments.values())))))
    assert seen == {(name, n) for name in SIGNATURES for n in (1, 8, 32)}


@pytest.mark.extra
@pytest.mark.parametrize("kind", ["litert", "onnx"])
def test_litert_and_onnx_agree_with_the_network(
    finished_run, model, tmp_path, kind
):
    for name in preflight._NEEDED[kind]:
        pytest.importorskip(name, reason=f"pip install -e '.[{kind}]'")
    written = exporting.write(finished_run[0], tmp_path, kind=kind)
    path = written.path / exporting.FILES[kind]
    images = digits.load(8).train.images[:1000]
    wanted = model(images, training=False)["logits"].numpy().argmax(1)
    predicted = exporting.load_converted(path)(images).argmax(1)
    assert np.mean(predicted == wanted) >= 0.999


def test_format_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"simmatch_tf\[onnx\]"):
        export.main(
            export.ExportConfig(
                workdir="x", output=str(tmp_path), format="onnx"
            )
        )


def test_wrong_flags(tmp_path):
    file = tmp_path / "a"
    file.touch()
    for values, message in (
        ({}, "--workdir is missing"),
        ({"workdir": "x"}, "--output is missing"),
        ({"workdir": "x", "output": str(file)}, "is a file"),
        (
            {"workdir": "x", "output": "y", "format": "onnx", "neighbors": 9},
            "--neighbors=9: is for --format=saved_model",
        ),
    ):
        with pytest.raises(InputError, match=message):
            export.ExportConfig(**values)
    with pytest.raises(InputError, match="no run here"):
        export.main(
            export.ExportConfig(
                workdir=str(tmp_path), output=str(tmp_path / "out")
            )
        )
