"""Predictions by the command and by `simmatch_tf.predict`."""

import csv
import dataclasses
import functools
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import predict
from simmatch_tf.data import selection
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import pages
from simmatch_tf.serving import exporting, loading, prediction
from tests import runs
from tests.serving.helpers import TEST, photograph, png, run_predict

PIXELS = TEST.images[:12]


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_run_and_export_predict_the_same(
    exported, model, calibrated_softmax, finished_run, photos, tmp_path, capsys
):
    written, _ = exported
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    run_predict(
        finished_run[0],
        photos,
        first,
        explain=True,
        html=str(tmp_path / "a.html"),
    )
    out = capsys.readouterr().out
    assert "43 images, 2 of them unreadable" in out
    assert "unreadable: zz_empty.jpg: the file is empty" in out
    run_predict(
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
    p = calibrated_softmax(model(TEST.images[:40], training=False)["logits"])
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
def test_interrupted_output_is_continued(
    exported, photos, tmp_path, monkeypatch, capsys
):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run_predict(exported[1].path, photos, whole)
    real = prediction._outputs

    def stopping(*args, **kwargs):
        for number, batch in enumerate(real(*args, **kwargs)):
            if number == 1:
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(prediction, "_outputs", stopping)
    assert run_predict(exported[1].path, photos, cut) == 42
    assert "start it again, without --overwrite" in capsys.readouterr().err
    assert not cut.exists()
    partial = tmp_path / "cut.jsonl.partial"
    lines = partial.read_bytes().splitlines()
    assert 10 < len(lines) < 30
    # As a full disk or a power cut leaves it: half a line at the end.
    partial.write_bytes(partial.read_bytes()[:-20])
    starts = []

    def noting(model, function, images, indices, **kwargs):
        starts.append(indices[0])
        return real(model, function, images, indices, **kwargs)

    monkeypatch.setattr(prediction, "_outputs", noting)
    run_predict(exported[1].path, photos, cut)
    assert starts == [len(lines) - 2]
    assert cut.read_bytes() == whole.read_bytes()
    assert not partial.exists()
    with pytest.raises(InputError, match="exists already"):
        run_predict(exported[1].path, photos, cut)
    # What was to be replaced stays until then, and goes on without the flag.
    monkeypatch.setattr(prediction, "_outputs", stopping)
    assert run_predict(exported[1].path, photos, cut, overwrite=True) == 42
    assert cut.exists() and partial.exists()
    monkeypatch.setattr(prediction, "_outputs", noting)
    assert run_predict(exported[1].path, photos, cut) == 0
    assert starts[-1] > 10 and not partial.exists()
    assert cut.read_bytes() == whole.read_bytes()
    # Other images, or another model: refused.
    shutil.copy(whole, partial)
    with pytest.raises(InputError, match="begun with another model"):
        cut.unlink()
        run_predict(exported[1].path, photos, cut)


@pytest.mark.slow
def test_output_of_another_model_or_images_is_not_continued(
    finished_run, tmp_path, monkeypatch
):
    """Weights and the content of files count, not only names."""
    workdir, images = tmp_path / "run", tmp_path / "images"
    shutil.copytree(finished_run[0], workdir)
    images.mkdir()
    for number in range(4):
        (images / f"{number}.png").write_bytes(png(TEST.images[number]))
    output = tmp_path / "a.csv"

    def stop(*_, **__):
        raise KeyboardInterrupt

    real = prediction._outputs
    monkeypatch.setattr(prediction, "_outputs", stop)
    assert run_predict(workdir, images, output) == 42
    monkeypatch.setattr(prediction, "_outputs", real)
    first = (images / "0.png").read_bytes()
    (images / "0.png").write_bytes(png(TEST.images[9]))
    with pytest.raises(InputError, match="begun with another model, other"):
        run_predict(workdir, images, output)
    (images / "0.png").write_bytes(first)
    with pytest.raises(InputError, match="begun with another"):
        run_predict(workdir, images, output)  # it may hold anything by now
    assert run_predict(workdir, images, output, overwrite=True) == 0
    assert [row["error"] for row in table(output)] == [""] * 4
    # The same step, trained anew.
    output.unlink()
    monkeypatch.setattr(prediction, "_outputs", stop)
    assert run_predict(workdir, images, output) == 42
    monkeypatch.setattr(prediction, "_outputs", real)
    runs.fit(workdir, seed=1, overwrite=True)
    with pytest.raises(InputError, match="begun with another"):
        run_predict(workdir, images, output)


def test_unreadable_images_and_unwritable_pages(
    exported, tmp_path, capsys, monkeypatch
):
    images = tmp_path / "images"
    images.mkdir()
    (images / "text.png").write_text("no image")
    (images / "\x1b[31m.jpg").touch()
    output = tmp_path / "a.csv"
    with pytest.raises(SystemExit, match="no image could be read"):
        run_predict(exported[1].path, images, output)
    out = capsys.readouterr().out
    assert "2 images, 2 of them unreadable" in out
    assert "unreadable: \\x1b[31m.jpg: the file is empty" in out
    # Names with all characters that need quoting.
    for name in ('c"d,.png', "e\nf.png"):
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
    assert good == {'c"d,.png', "e\nf.png"} and len(rows) == 5
    assert "otherwise than viewers" in rows["cmyk.jpg"]
    with pytest.raises(InputError, match="is the file that --images names"):
        run_predict(exported[1].path, output, output, overwrite=True)
    # Neither an export nor a run on digits knows images to classify.
    with pytest.raises(InputError, match="--images is missing: give a folder"):
        predict.main(dataclasses.replace(config, images=None))


def test_parquet_output_of_a_list(exported, photos, tmp_path):
    from pyarrow import parquet

    (tmp_path / "list.txt").write_text(
        f"# mine\n{photos}/01.png\nnone.png\n\n{photos}/sub/00.png\n"
    )
    output = tmp_path / "a.parquet"
    run_predict(exported[1].path, tmp_path / "list.txt", output, explain=True)
    rows = parquet.read_table(output).to_pylist()
    assert [row["file"] for row in rows] == [
        f"{photos}/01.png",
        "none.png",
        f"{photos}/sub/00.png",
    ]
    assert "No such file" in rows[1]["error"] and rows[1]["class"] is None
    assert len(rows[0]["neighbors"]) == 5
    assert isinstance(rows[0]["neighbors"][0]["slot"], int)
    matches = selection.find(f"{photos}/**/0*.png")
    assert len(matches) == 11
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
def test_photographs_to_a_network_trained_on_records(small_tfds, tmp_path):
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
    written = exporting.write(workdir, tmp_path / "out")
    probabilities = (
        loading.export(written.path)
        .signatures["classify_bytes"](
            image_bytes=tf.constant([photograph(), upright])
        )["probabilities"]
        .numpy()
    )
    # Two images of one batch, which differ in rounding.
    np.testing.assert_allclose(probabilities[0], probabilities[1], rtol=1e-6)


@pytest.fixture(scope="module")
def opened():
    return functools.cache(loading.open_model)


@pytest.fixture
def once(opened, monkeypatch):
    """Opens a model once for all tests."""
    monkeypatch.setattr(loading, "open_model", opened)


@pytest.fixture(scope="module")
def wanted(model, calibrated_softmax):
    out = model(tf.constant(PIXELS), training=False)
    return calibrated_softmax(out["logits"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(PIXELS[..., 0]):
        PIL.Image.fromarray(pixels).save(root / f"{number:02}.png")
    return root


def assert_close(predictions, probabilities):
    np.testing.assert_allclose(
        predictions.probabilities, probabilities, atol=1e-6
    )


def test_files_and_arrays_agree_with_the_network(
    finished_run, model, wanted, folder, once
):
    run = str(finished_run[0])
    predictions = simmatch_tf.predict(run, folder)
    assert predictions.names == [f"{number:02}.png" for number in range(12)]
    assert (
        predictions.class_names
        == [str(n) for n in range(10)]
        == model.class_names
    )
    assert predictions.classes == [str(n) for n in wanted.argmax(axis=1)]
    assert_close(predictions, wanted)
    np.testing.assert_array_equal(
        predictions.confidences, predictions.probabilities.max(axis=1)
    )
    assert_close(simmatch_tf.predict(run, PIXELS, batch_size=5), wanted)


def test_ways_to_give_the_same_images(folder):
    names = [f"{number:02}.png" for number in range(12)]
    paths = [str(folder / name) for name in names]
    for files in (str(folder / "*.png"), paths, np.array(paths), folder):
        assert prediction._given(files).paths == paths
    assert prediction._given([folder / name for name in names]).paths == paths
    # No user's home folder.
    assert prediction._given(["~draft.png"]).paths == [
        os.path.abspath("~draft.png")
    ]
    expected = prediction._given(PIXELS)
    assert expected.names[:2] == ["image 0", "image 1"]
    for images in (
        tf.constant(PIXELS),
        list(PIXELS),
        tuple(PIXELS[..., 0]),
        (pixels for pixels in PIXELS),
        [PIL.Image.fromarray(pixels) for pixels in PIXELS[..., 0]],
    ):
        given = prediction._given(images)
        assert given.names == expected.names
        assert given.encoded == expected.encoded
    for image in (PIXELS[3], [PIXELS[3]], PIL.Image.open(paths[3])):
        assert prediction._given(image).encoded == expected.encoded[3:4]


@pytest.mark.slow
def test_predict_with_other_weights(finished_run, wanted):
    student = simmatch_tf.predict(finished_run[0], PIXELS, weights="student")
    assert np.abs(student.probabilities - wanted).max() > 1e-3


def test_printed_table_and_rows(finished_run, folder, tmp_path, once):
    predictions = simmatch_tf.predict(finished_run[0], folder)
    *lines, note = str(predictions).splitlines()
    assert len(lines) == len(predictions) == 12
    assert note == predictions.note
    assert note.startswith("Confidences are calibrated on 397 test images, ")
    best = predictions.confidences[0]
    assert lines[0].startswith(f"00.png  {predictions.classes[0]} {best:.1%}, ")
    predict.main(
        predict.PredictConfig(
            model=str(finished_run[0]),
            images=str(folder),
            output=str(tmp_path / "a.jsonl"),
        )
    )
    rows = [
        json.loads(line)
        for line in (tmp_path / "a.jsonl").read_text().splitlines()
    ]
    assert [{**row, "error": None} for row in predictions.rows()] == rows


def test_arrays_are_preprocessed_as_files_are(finished_run, tmp_path, once):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, [30, 20, 3]).astype(np.uint8)
    image = PIL.Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    of_file = simmatch_tf.predict(finished_run[0], tmp_path / "a.png")
    upright = np.rot90(pixels, -1)
    paletted = image.convert("P")
    with PIL.Image.open(tmp_path / "a.png") as opened:
        probabilities = simmatch_tf.predict(
            finished_run[0],
            [
                upright,
                opened,
                image.convert("RGBA").transpose(PIL.Image.Transpose.ROTATE_270),
                paletted,
                np.asarray(paletted.convert("RGB")),
            ],
        ).probabilities
    for p in probabilities[:3]:
        np.testing.assert_allclose(p, of_file.probabilities[0], atol=1e-6)
    np.testing.assert_allclose(probabilities[3], probabilities[4], atol=1e-6)


def colorful(**options):
    file = io.BytesIO()
    pixels = np.arange(16 * 20 * 3).reshape(16, 20, 3).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


FLOATS = (PIXELS / 255.0).astype(np.float32)
TRUNCATED = PIL.Image.open(io.BytesIO(colorful()[:-80]))
CLOSED = PIL.Image.open(io.BytesIO(colorful()))
CLOSED.close()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            FLOATS,
            r"image 0 is float32: must be uint8.*\(255 \* image\)",
        ),
        (PIXELS.astype(int), "image 0 is int64: must be uint8 from 0"),
        (PIXELS[:0], "there are none"),
        ([], "there are none"),
        (PIXELS[..., 0], r"shape \(12, 8, 8\).*images\[\.\.\., None\]"),
        (PIXELS.reshape(12, 64), r"array of shape \(12, 64\)"),
        (PIXELS.transpose(0, 3, 1, 2), r"shape \(1, 8, 8\): must be \[height"),
        ([np.zeros([8, 8, 4], np.uint8)], r"leave out alpha: image\[..., :3\]"),
        ([np.zeros([0, 8, 3], np.uint8)], r"shape \(0, 8, 3\)"),
        ([PIXELS[0], "a.png"], "some are paths and some are not"),
        (None, "of type NoneType: must be paths, arrays or Pillow"),
        (b"\x89PNG", "of type bytes: must be paths"),
        ({"a": PIXELS[0]}, "of type dict: must be paths"),
        ([None], "image 0 is object: must be uint8"),
        ([[[0], [0, 0]]], "image 0, of type list, is no array"),
        (TRUNCATED, r"image 0: Pillow cannot read it \(.*truncated"),
        ([PIXELS[0], CLOSED], "image 1: Pillow cannot read it"),
        ([[1.0]], "image 0 is float64: must be"),
        (PIL.Image.new("I;16", (8, 8)), "Pillow's mode I;16"),
        ("none/*.png", "names no image"),
        ("none", "no such file or folder"),
    ],
)
def test_invalid_images_are_refused(images, message):
    # Before the model is loaded: there is none.
    with pytest.raises(InputError, match=message):
        simmatch_tf.predict("no model", images)


def test_files_and_pillow_images_are_turned_by_exif(finished_run, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    paths = [tmp_path / "exif.png", tmp_path / "stored.png"]
    paths[0].write_bytes(colorful(exif=exif))
    paths[1].write_bytes(colorful())
    for given in (paths, [PIL.Image.open(path) for path in paths]):
        turned, stored = simmatch_tf.predict(
            finished_run[0], given
        ).probabilities
        assert np.abs(turned - stored).max() > 1e-4


def test_invalid_models_are_refused(tmp_path, model):
    with pytest.raises(InputError, match="no such file or folder"):
        simmatch_tf.predict(tmp_path / "none", PIXELS)
    with pytest.raises(InputError, match="is of type .*: must be the path"):
        simmatch_tf.predict(model, PIXELS)
    with pytest.raises(InputError, match="batch_size=0"):
        simmatch_tf.predict(tmp_path, PIXELS, batch_size=0)


def test_unreadable_files_are_named(finished_run, folder, tmp_path, once):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "05.png").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"1 of 12 .* 05.png: the file is empt"
    ):
        simmatch_tf.predict(finished_run[0], tmp_path)
    with pytest.raises(InputError, match=r"1 of 1 .*none.png: No such file"):
        simmatch_tf.predict(finished_run[0], [tmp_path / "none.png"])
    with pytest.raises(InputError, match="must be student, ema or baseline"):
        simmatch_tf.predict(finished_run[0], PIXELS, weights="teacher")


@pytest.mark.parametrize(
    "code",
    [
        "function = simmatch_tf.predict; import simmatch_tf.predict as module",
        "import simmatch_tf.predict; function = module = simmatch_tf.predict",
        "from simmatch_tf import predict as function; module = function",
        "import importlib;"
        "module = importlib.import_module('simmatch_tf.predict');"
        "function = simmatch_tf.predict",
    ],
)
def test_the_module_of_the_command_is_a_function(code):
    code = (
        f"import sys, simmatch_tf; {code}; assert callable(function);"
        "assert callable(module) and callable(simmatch_tf.predict);"
        "assert module.main and sys.modules['simmatch_tf.predict'] is module;"
        "assert 'predict' in dir(simmatch_tf);"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_that_cannot_explain_says_so_before_tensorflow(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step_00000002.index").write_bytes(b"")
    (tmp_path / "flags.cfg").write_text(
        "--algorithm=fixmatch\n--labels=40\n--steps=2\n"
    )
    flags = predict.PredictConfig(
        model=str(tmp_path),
        images=str(tmp_path),
        output=str(tmp_path / "a.csv"),
        explain=True,
    )
    with pytest.raises(InputError, match="--explain: the run has no memory"):
        predict._check(flags)


def test_wrong_flags(tmp_path):
    for values, message in (
        (
            {"model": "x", "images": "y", "output": "z.csv", "neighbors": 3},
            "--neighbors=3: needs --explain",
        ),
        ({}, "--model is missing"),
        (
            {"model": "x", "images": "y", "output": "z.txt"},
            "must end in .csv or .jsonl or .parquet",
        ),
        (
            {"model": "x", "images": "y", "output": "/no/z.csv"},
            "in a folder that exists",
        ),
    ):
        with pytest.raises(InputError, match=message):
            predict.PredictConfig(**values)
    with pytest.raises(InputError, match="must be a run's folder"):
        run_predict(tmp_path, "x", tmp_path / "a.csv")
