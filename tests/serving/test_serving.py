"""Exports, and predictions by runs and by exports."""

import csv
import dataclasses
import fcntl
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import (
    availability,
    evaluate,
    export,
    predict,
)
from simmatch_tf.data import cropping, records, selection
from simmatch_tf.data.sources import digits
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.ops import propagation, similarity
from simmatch_tf.reporting import pages
from simmatch_tf.serving import (
    classifier,
    loading,
    prediction,
    preprocessing,
    verification,
    warmup,
)
from simmatch_tf.training import state
from tests import runs

SIGNATURES = {"serving_default", "classify_bytes", "embed", "explain"}
TEST = digits.load(8).test


def flags(workdir, output, **more):
    return export.ExportConfig(workdir=str(workdir), output=str(output), **more)


def png(pixels):
    if pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """The finished run's export, written and loaded."""
    output = tmp_path_factory.mktemp("exports") / "digits"
    written = export.write(flags(finished_run[0], output))
    return written, loading.export(written.path)


@pytest.fixture(scope="module")
def model(finished_run):
    return simmatch_tf.load(finished_run[0])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty digits as files, and what is no image."""
    root = tmp_path_factory.mktemp("photos")
    (root / "sub").mkdir()
    (root / ".hidden").mkdir()
    for number in range(40):
        place = "sub" if number % 3 == 0 else "."
        path = root / place / f"{number:02}.png"
        path.write_bytes(png(TEST.images[number]))
    (root / ".hidden" / "x.png").write_bytes(png(TEST.images[0]))
    (root / "notes.txt").write_text("no image")
    (root / "05 <b>&\"'.png").write_bytes(png(TEST.images[5]))
    (root / "cut.png").write_bytes(png(TEST.images[1])[:60])
    (root / "zz_empty.jpg").touch()
    return root


@pytest.mark.slow
def test_what_stands_in_an_export(exported, finished_run):
    written, loaded = exported
    assert written.path.name == "1"
    # All is there, but for the requests where the package for them is not.
    assert bool(written.notes) != warmup.available()
    assert (written.path / warmup.FILE).exists() == warmup.available()
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
    assert "| wrn&#95;10&#95;1, " in page
    assert f"{result.top1:.2%}" in page and "| inputs | images |" in page
    slots = json.loads((written.path / "assets" / loading.LABELED).read_text())
    assert [row["slot"] for row in slots] == list(range(20))
    names = zipfile.ZipFile(
        written.path / "assets.extra/labeled_thumbnails.zip"
    ).namelist()
    assert len(names) == 20
    # Nothing is left beside it.
    assert [p.name for p in written.path.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_signatures_give_what_the_run_s_network_gives(exported, model, count):
    _, loaded = exported
    pixels = TEST.images[:count]
    wanted = model(tf.constant(pixels), training=False)
    p = tf.nn.softmax(wanted["logits"]).numpy()
    images = tf.constant(pixels)
    encoded = tf.constant([png(image) for image in pixels], tf.string)
    default = loaded.signatures["serving_default"](images=images)
    for found in (
        default,
        loaded.signatures["classify_bytes"](image_bytes=encoded),
        loaded.signatures["explain"](images=images),
    ):
        np.testing.assert_allclose(found["probabilities"], p, atol=1e-6)
        names = found["classes"].numpy().astype(str)
        assert names.shape == (count, 5)
        order = np.argsort(-p, axis=1)[:, :1].astype(str)
        np.testing.assert_array_equal(names[:, :1], order)
        np.testing.assert_allclose(
            found["scores"], -np.sort(-p)[:, :5], atol=1e-6
        )
    found = loaded.signatures["embed"](images=images)
    for name in ("features", "embeddings"):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


@pytest.mark.parametrize("with_what", ["tf.saved_model.load", "TFSMLayer"])
def test_the_readme_s_way_to_load_it_elsewhere(
    exported, model, with_what, tmp_path, monkeypatch, capsys
):
    readme = pathlib.Path(__file__).parents[2] / "README.md"
    blocks = re.findall(r"```\n(.*?)```", readme.read_text("utf-8"), re.S)
    (code,) = (block for block in blocks if with_what in block)
    assert len(code.splitlines()) <= 4  # the import and three lines
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported[0].path, tmp_path / "exports" / "digits_40" / "1")
    (tmp_path / "7.png").write_bytes(png(TEST.images[7]))
    names = {"images": TEST.images[:3]}
    exec(code, names)
    p = tf.nn.softmax(model(TEST.images[:8], training=False)["logits"]).numpy()
    if with_what == "TFSMLayer":
        np.testing.assert_allclose(names["probabilities"], p[:3], atol=1e-6)
    else:
        name, score = capsys.readouterr().out.split()
        assert name == str(p[7].argmax())
        assert float(score) == pytest.approx(p[7].max(), abs=1e-6)


@pytest.mark.slow
def test_an_empty_batch_with_onednn_s_kernels(exported):
    """They give its convolutions' outputs the shape of the input."""
    code = (
        "import sys, tensorflow as tf;"
        "module = tf.saved_model.load(sys.argv[1]);"
        "none = tf.zeros([0, 8, 8, 1], tf.uint8);"
        "found = module.signatures['serving_default'](images=none);"
        "assert found['probabilities'].shape == (0, 10)"
    )
    subprocess.run(
        [sys.executable, "-c", code, exported[0].path],
        env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1"},
        check=True,
    )


def test_explain_is_the_method_s(exported, finished_run):
    _, loaded = exported
    workdir, _ = finished_run
    restored, _, _ = state.restore(workdir)
    images = tf.constant(TEST.images[:9])
    found = loaded.signatures["explain"](images=images)
    out = restored.networks()["ema"](images, training=False)
    p, z = tf.nn.softmax(out["logits"]), out["embeddings"]
    memory = restored.memory
    q = similarity.instance_similarity(z, memory.features, 0.1)
    aggregated = propagation.aggregate(q, memory.labels, 10)
    np.testing.assert_allclose(found["aggregated"], aggregated, atol=1e-6)
    np.testing.assert_allclose(
        found["propagated"],
        propagation.smooth(p, aggregated, restored.config.alpha),
        atol=1e-6,
    )
    cosines = (z @ tf.transpose(memory.features)).numpy()
    slots = found["neighbor_slots"].numpy()
    np.testing.assert_allclose(
        np.take_along_axis(cosines, slots, 1), -np.sort(-cosines)[:, :5],
        atol=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(
        np.take_along_axis(q.numpy(), slots, 1), found["weights"], atol=1e-6
    )
    split = json.loads((workdir / "split.json").read_text())
    for number in range(9):
        for k in range(5):
            slot = slots[number, k]
            name = found["neighbor_ids"].numpy()[number, k].decode()
            assert name == str(split["labeled"][slot])
            label = found["neighbor_classes"].numpy()[number, k].decode()
            assert label == str(split["labels"][slot])


def test_what_a_signature_refuses(exported):
    _, loaded = exported
    good = png(TEST.images[0])
    function = loaded.signatures["classify_bytes"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"bytes\[1 3\]"):
        function(image_bytes=tf.constant([good, good[:50], good, b"", good]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(image_bytes=tf.constant([b"no image"]))
    huge = bytearray(good)
    huge[16:24] = b"\x00\x01\x00\x00" * 2  # a header of 4 gigapixels
    with pytest.raises(tf.errors.InvalidArgumentError, match="megapixels"):
        function(image_bytes=tf.constant([bytes(huge)]))
    function(image_bytes=tf.constant([good]))  # and goes on
    with pytest.raises(Exception, match="uint8|dtype"):
        loaded.signatures["serving_default"](images=tf.zeros([1, 8, 8, 1]))


def test_images_of_any_size_and_kind(exported):
    _, loaded = exported
    how = loaded.preprocessing
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [30, 20, 3]).astype(np.uint8)
    for kind in ("PNG", "JPEG", "BMP", "GIF", "WEBP"):
        file = io.BytesIO()
        PIL.Image.fromarray(pixels).save(file, kind)
        assert how.decode(tf.constant(file.getvalue())).shape == (8, 8, 1)
    # Grey as Pillow makes it, and unchanged where it is grey already.
    file = io.BytesIO()
    PIL.Image.fromarray(pixels[:8, :8]).save(file, "PNG")
    grey = np.asarray(PIL.Image.fromarray(pixels[:8, :8]).convert("L"))
    found = how.decode(tf.constant(file.getvalue()))[..., 0]
    np.testing.assert_array_equal(found, grey)
    image = TEST.images[3]
    np.testing.assert_array_equal(how.decode(tf.constant(png(image))), image)


@pytest.mark.slow
def test_versions_count_up_and_a_difference_leaves_nothing(
    finished_run, exported, tmp_path, monkeypatch
):
    output = tmp_path / "out"
    (output / "7").mkdir(parents=True)
    (output / "notes").mkdir()
    monkeypatch.setattr(verification, "_gap", lambda *_: 2e-5)
    monkeypatch.setattr(warmup, "available", lambda: False)
    with pytest.raises(InputError, match="differs from the training network"):
        export.write(flags(finished_run[0], output))
    assert sorted(p.name for p in output.iterdir()) == ["7", "notes"]
    monkeypatch.undo()
    # Of a killed export, and of one that is at work.
    dead, alive = output / ".unfinished-dead", output / ".unfinished-alive"
    dead.mkdir()
    alive.mkdir()
    lock = os.open(alive, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    written = export.write(
        flags(
            finished_run[0],
            output,
            weights="student",
            input_dtype="float32",
            neighbors=50,
            thumbnails=False,
        )
    )
    os.close(lock)
    assert alive.exists() and not dead.exists()
    assert written.path.name == "8"
    assert any("all 20 labeled images" in note for note in written.notes)
    loaded = loading.export(written.path)
    assert loaded.input_dtype == "float32"
    student = simmatch_tf.load(finished_run[0], weights="student")
    images = TEST.images[:3]
    found = loaded.signatures["explain"](images=tf.constant(images, tf.float32))
    np.testing.assert_allclose(
        found["probabilities"],
        tf.nn.softmax(student(images, training=False)["logits"]),
        atol=1e-6,
    )
    assert found["neighbor_slots"].shape == (3, 20)  # no more are there
    assert not (written.path / "assets.extra/labeled_thumbnails.zip").exists()


@pytest.mark.extra
def test_warmup_is_in_the_server_s_format(exported):
    log_pb2 = pytest.importorskip(
        "tensorflow_serving.apis.prediction_log_pb2",
        reason="pip install -e '.[serving]'",
    )
    written, loaded = exported
    path = str(written.path / warmup.FILE)
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
def test_other_runtimes(finished_run, model, tmp_path, kind):
    from simmatch_tf.serving import conversion

    for name in availability._NEEDED[kind]:
        pytest.importorskip(name, reason=f"pip install -e '.[{kind}]'")
    written = export.write(flags(finished_run[0], tmp_path, format=kind))
    path = written.path / conversion.FILES[kind]
    images = digits.load(8).train.images[:1000]
    wanted = model(images, training=False)["logits"].numpy().argmax(1)
    found = conversion.load(path)(images).argmax(1)
    assert np.mean(found == wanted) >= 0.999


def test_a_format_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"simmatch_tf\[onnx\]"):
        export.main(flags("x", tmp_path, format="onnx"))


def test_evaluate_takes_an_export(exported, finished_run, tmp_path, capsys):
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


def test_an_export_of_other_training_images(exported, tmp_path, caplog):
    """Images that have moved to test/ since may have been trained on."""
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
    assert any("result too good" in text for text in caplog.messages)


def predicted(model, photos, output, **more):
    config = predict.PredictConfig(
        model=str(model),
        images=str(photos),
        output=str(output),
        **{"batch_size": 16, **more},
    )
    return predict.main(config)


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_and_its_export_predict_the_same(
    exported, model, finished_run, photos, tmp_path, capsys
):
    written, _ = exported
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    predicted(
        finished_run[0],
        photos,
        first,
        explain=True,
        html=str(tmp_path / "a.html"),
    )
    out = capsys.readouterr().out
    assert "43 images, 2 of them unreadable" in out
    assert "unreadable: zz_empty.jpg: the file is empty" in out
    predicted(
        written.path.parent,
        photos,
        second,
        explain=True,
        html=str(tmp_path / "b.html"),
    )
    rows = table(first)
    assert rows == table(second)
    names = [row["file"] for row in rows]
    assert names == sorted(names) and len(names) == 43
    p = tf.nn.softmax(model(TEST.images[:40], training=False)["logits"]).numpy()
    for row in rows:
        number = row["file"].removeprefix("sub/").removesuffix(".png")
        if row["error"]:
            assert row["class"] == row["neighbor_1_id"] == ""
        elif number.isdecimal():
            assert row["class"] == str(p[int(number)].argmax())
            assert float(row["confidence"]) == pytest.approx(
                p[int(number)].max(), abs=1e-5
            )
    page = (tmp_path / "a.html").read_text("utf-8")
    assert "05 &lt;b&gt;&amp;&#34;&#39;.png" in page and "05 <b>" not in page
    # A picture of each image that could be read, and of the neighbours.
    assert page.count('<img src="data:image/jpeg;base64,') == 41
    slots = {r["neighbor_1_slot"] for r in rows if not r["error"]}
    for slot in slots:
        assert page.count(f".slot{slot} {{ background-image") == 1
    assert (
        "http:" not in page and "https:" not in page and "<script" not in page
    )


@pytest.mark.slow
def test_an_interrupted_output_goes_on(
    exported, photos, tmp_path, monkeypatch, capsys
):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    predicted(exported[1].path, photos, whole)
    real = prediction._batches

    def stopping(*arguments):
        for number, batch in enumerate(real(*arguments)):
            if number == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(prediction, "_batches", stopping)
    assert predicted(exported[1].path, photos, cut) == 42
    assert "start it again, without --overwrite" in capsys.readouterr().err
    assert not cut.exists()
    partial = tmp_path / "cut.jsonl.partial"
    lines = partial.read_bytes().splitlines()
    assert 10 < len(lines) < 30
    # As a full disk or a power cut leaves it: half a line at the end.
    partial.write_bytes(partial.read_bytes()[:-20])
    starts = []

    def noting(model, paths, places, config):
        starts.append(places[0])
        return real(model, paths, places, config)

    monkeypatch.setattr(prediction, "_batches", noting)
    predicted(exported[1].path, photos, cut)
    assert starts == [len(lines) - 2]
    assert cut.read_bytes() == whole.read_bytes()
    assert not partial.exists()
    with pytest.raises(InputError, match="is there already"):
        predicted(exported[1].path, photos, cut)
    # What was to be replaced stays until then, and goes on without the flag.
    monkeypatch.setattr(prediction, "_batches", stopping)
    assert predicted(exported[1].path, photos, cut, overwrite=True) == 42
    assert cut.exists() and partial.exists()
    monkeypatch.setattr(prediction, "_batches", noting)
    assert predicted(exported[1].path, photos, cut) == 0
    assert starts[-1] > 10 and not partial.exists()
    assert cut.read_bytes() == whole.read_bytes()
    # Other images, or another model: refused.
    shutil.copy(whole, partial)
    with pytest.raises(InputError, match="begun with another model"):
        cut.unlink()
        predicted(exported[1].path, photos, cut)


@pytest.mark.slow
def test_what_was_begun_with_others_is_refused(
    finished_run, tmp_path, monkeypatch
):
    """Not the names alone: the weights, and what the files hold."""
    workdir, images = tmp_path / "run", tmp_path / "images"
    shutil.copytree(finished_run[0], workdir)
    images.mkdir()
    for number in range(4):
        (images / f"{number}.png").write_bytes(png(TEST.images[number]))
    output = tmp_path / "a.csv"

    def stop(*_):
        raise KeyboardInterrupt

    real = prediction._batches
    monkeypatch.setattr(prediction, "_batches", stop)
    assert predicted(workdir, images, output) == 42
    monkeypatch.setattr(prediction, "_batches", real)
    first = (images / "0.png").read_bytes()
    (images / "0.png").write_bytes(png(TEST.images[9]))
    with pytest.raises(InputError, match="begun with another model, other"):
        predicted(workdir, images, output)
    (images / "0.png").write_bytes(first)
    with pytest.raises(InputError, match="begun with another"):
        predicted(workdir, images, output)  # it may hold anything by now
    assert predicted(workdir, images, output, overwrite=True) == 0
    assert [row["error"] for row in table(output)] == [""] * 4
    # The same step, trained anew.
    output.unlink()
    monkeypatch.setattr(prediction, "_batches", stop)
    assert predicted(workdir, images, output) == 42
    monkeypatch.setattr(prediction, "_batches", real)
    runs.fit(workdir, seed=1, overwrite=True)
    with pytest.raises(InputError, match="begun with another"):
        predicted(workdir, images, output)


def test_what_cannot_be_read_or_written(
    exported, tmp_path, capsys, monkeypatch
):
    images = tmp_path / "images"
    images.mkdir()
    (images / "text.png").write_text("no image")
    (images / "\x1b[31m.jpg").touch()
    output = tmp_path / "a.csv"
    with pytest.raises(SystemExit, match="not one image could be read"):
        predicted(exported[1].path, images, output)
    out = capsys.readouterr().out
    assert "2 images, 2 of them unreadable" in out
    assert "unreadable: \\x1b[31m.jpg: the file is empty" in out
    # Names with every sign that a table has.
    for name in ("a\rb.png", 'c"d,.png', "e\nf.png"):
        (images / name).write_bytes(png(TEST.images[0]))
    cmyk = PIL.Image.fromarray(
        np.full([8, 8, 4], [0, 255, 255, 0], np.uint8), "CMYK"
    )
    file = io.BytesIO()
    cmyk.save(file, "JPEG")
    plain = file.getvalue()
    place = plain.index(b"\xff\xee")  # Adobe's mark
    size = 2 + int.from_bytes(plain[place + 2 : place + 4], "big")
    (images / "cmyk.jpg").write_bytes(plain[:place] + plain[place + size :])
    # A page that cannot be written costs no prediction.
    config = predict.PredictConfig(
        model=str(exported[1].path),
        images=str(images),
        output=str(output),
        overwrite=True,
        html=str(tmp_path / "a.html"),
    )

    def full(*_):
        raise InputError("a.html: cannot be written")

    with monkeypatch.context() as patch:
        patch.setattr(pages, "predictions", full)
        with pytest.raises(InputError, match="cannot be written"):
            predict.main(config)
    assert (tmp_path / "a.csv.partial").exists()
    assert predict.main(dataclasses.replace(config, overwrite=False)) == 0
    assert (tmp_path / "a.html").exists()
    rows = {row["file"]: row["error"] for row in table(output)}
    good = {name for name, error in rows.items() if not error}
    assert good == {"a\rb.png", 'c"d,.png', "e\nf.png"} and len(rows) == 6
    assert "otherwise than viewers" in rows["cmyk.jpg"]
    with pytest.raises(InputError, match="is what --images names"):
        predicted(exported[1].path, output, output, overwrite=True)


def test_parquet_lists_and_patterns(exported, photos, tmp_path):
    from pyarrow import parquet

    (tmp_path / "list.txt").write_text(
        f"# mine\n{photos}/01.png\nnone.png\n\n{photos}/sub/00.png\n"
    )
    output = tmp_path / "a.parquet"
    predicted(exported[1].path, tmp_path / "list.txt", output, explain=True)
    rows = parquet.read_table(output).to_pylist()
    assert [row["file"] for row in rows] == [
        f"{photos}/01.png",
        "none.png",
        f"{photos}/sub/00.png",
    ]
    assert "No such file" in rows[1]["error"] and rows[1]["class"] is None
    assert len(rows[0]["neighbors"]) == 5
    assert isinstance(rows[0]["neighbors"][0]["slot"], int)
    found = selection.find(f"{photos}/**/0*.png")
    assert len(found) == 11
    assert len(selection.find(f"{photos}/01.png")) == 1
    for name, message in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "no*.gif", "names no image"),
        (photos / "notes.txt", None),
    ):
        if message is None:
            assert selection.find(str(name)).names == ["no image"]
            continue
        with pytest.raises(InputError, match=message):
            selection.find(str(name))


@pytest.mark.slow
def test_what_cannot_be_explained(tmp_path, photos):
    workdir = tmp_path / "run"
    runs.fit(workdir, algorithm="supervised", steps=1)
    with pytest.raises(InputError, match="--explain: the run has no memory"):
        predicted(workdir, photos, tmp_path / "a.csv", explain=True)
    assert not list(tmp_path.glob("a.csv*"))
    written = export.write(flags(workdir, tmp_path / "out"))
    assert set(loading.export(written.path).signatures) == SIGNATURES - {
        "explain"
    }
    assert any("no memory" in note for note in written.notes)
    with pytest.raises(InputError, match="exported without explain"):
        predicted(written.path, photos, tmp_path / "a.csv", explain=True)


def test_wrong_flags_are_answered_at_once(tmp_path, finished_run):
    file = tmp_path / "a"
    file.touch()
    for kind, values, message in (
        (export.ExportConfig, {}, "--workdir=None"),
        (export.ExportConfig, {"workdir": "x"}, "--output=None"),
        (
            export.ExportConfig,
            {"workdir": "x", "output": str(file)},
            "is a file",
        ),
        (
            export.ExportConfig,
            {"workdir": "x", "output": "y", "format": "onnx", "neighbors": 9},
            "--neighbors=9: is for --format=saved_model",
        ),
        (
            predict.PredictConfig,
            {"model": "x", "images": "y", "output": "z.csv", "neighbors": 3},
            "--neighbors=3: needs --explain",
        ),
        (predict.PredictConfig, {}, "--model=None"),
        (
            predict.PredictConfig,
            {"model": "x", "images": "y", "output": "z.txt"},
            "must end in .csv or .jsonl or .parquet",
        ),
        (
            predict.PredictConfig,
            {"model": "x", "images": "y", "output": "/no/z.csv"},
            "in a folder that exists",
        ),
    ):
        with pytest.raises(InputError, match=message):
            kind(**values)
    with pytest.raises(InputError, match="no run here"):
        export.main(flags(tmp_path, tmp_path / "out"))
    config = predict.PredictConfig(
        model=str(tmp_path), images="x", output=str(tmp_path / "a.csv")
    )
    with pytest.raises(InputError, match="must be a run's folder"):
        predict.main(config)
    code = (
        "import sys; from simmatch_tf import export, predict;"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_examples_of_a_user_s_files_are_read_as_in_evaluation(tmp_path):
    """Not by the export's own decoding, which is what they check."""
    rng = np.random.default_rng(0)
    image = PIL.Image.fromarray(rng.integers(0, 256, [30, 20, 3], np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    found = verification.readable(str(tmp_path), 5)
    how = preprocessing.Preprocessing((8, 8, 3), 10)
    shown = verification.of_files(found, how)
    decoded = how.decode(tf.constant(shown.encoded[0]))
    np.testing.assert_array_equal(shown.pixels[0], decoded)
    assert found.orientations[0] == 6


def photograph(size=(30, 20), *, turned=True):
    """A JPEG that lies on its side, or the same one as viewers show it."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, [3, 4, 3], np.uint8)
    image = PIL.Image.fromarray(small).resize(size)
    file = io.BytesIO()
    exif = image.getexif()
    if turned:
        exif[0x0112] = 6
        image = image.transpose(PIL.Image.Transpose.ROTATE_90)
    # Lossless, so that both have the same pixels.
    image.save(file, "PNG", exif=exif)
    return file.getvalue()


def test_a_user_s_file_is_turned_whatever_was_trained_on(tmp_path):
    for dataset in ("digits", "cifar10"):
        config = runs.config(tmp_path, dataset=dataset)
        how = preprocessing.Preprocessing.of_run(config, (8, 8, 3))
        turned, upright = (
            how.decode(tf.constant(photograph(turned=t))) for t in (True, False)
        )
        np.testing.assert_array_equal(turned, upright)


class TurnedRecords(records.RecordImages):
    """One record with an orientation, which training takes as stored."""

    def __init__(self):
        pass

    labels = np.zeros([1], np.int32)

    def __len__(self):
        return 1

    def read(self, index):
        return tf.constant(photograph()), tf.constant(1)


def test_records_are_compared_as_their_bytes_are_served():
    images = TurnedRecords()
    shown = verification.examples(images, np.arange(1), side=8, resize=10)
    how = preprocessing.Preprocessing((8, 8, 3), 10)
    served = how.decode_batch(tf.constant(shown.encoded))
    np.testing.assert_array_equal(shown.pixels, served)
    stored = cropping.whole(images, tf.range(1), side=8, resize=10)
    assert (stored != served).numpy().any()


@pytest.mark.slow
def test_photographs_to_a_network_of_a_tfds_dataset(small_tfds, tmp_path):
    """Turned as viewers show them, by predict and by the export's bytes."""
    workdir = tmp_path / "run"
    runs.fit(
        workdir, dataset="cifar10", tfds_dir=small_tfds, image_size=16, steps=2
    )
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "turned.png").write_bytes(photograph())
    upright = photograph(turned=False)
    (tmp_path / "photos" / "upright.png").write_bytes(upright)
    predict.main(
        predict.PredictConfig(
            model=str(workdir),
            images=str(tmp_path / "photos"),
            output=str(tmp_path / "labels.jsonl"),
        )
    )
    one, other = (
        json.loads(line)
        for line in (tmp_path / "labels.jsonl").read_text().splitlines()
    )
    assert one.pop("file") != other.pop("file") and one == other
    written = export.write(flags(workdir, tmp_path / "out"))
    found = (
        loading.export(written.path)
        .signatures["classify_bytes"](
            image_bytes=tf.constant([photograph(), upright])
        )["probabilities"]
        .numpy()
    )
    np.testing.assert_array_equal(found[0], found[1])


def test_an_export_that_is_none_of_ours(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    with pytest.raises(InputError, match="is no export of simmatch_tf.export"):
        loading.export(tmp_path / "other")
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be loaded"):
        loading.export(tmp_path)


def test_a_memory_that_is_partly_written(finished_run):
    run = loading.run(finished_run[0])
    some = run.classifier.labeled
    keep = np.array([3, 11, 19])
    part = classifier.Labeled(
        features=some.features[keep],
        slots=some.slots[keep],
        labels=some.labels[keep],
        ids=[some.ids[i] for i in keep],
        temperature=0.1,
        alpha=0.9,
    )
    made = classifier.Classifier(
        run.classifier.network,
        run.classifier.class_names,
        run.classifier.preprocessing,
        labeled=part,
    )
    found = made.explain(tf.constant(TEST.images[:4]))
    assert set(found["neighbor_slots"].numpy().ravel()) == {3, 11, 19}
