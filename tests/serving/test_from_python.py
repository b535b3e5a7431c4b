"""`simmatch_tf.predict` as people call it."""

import functools
import io
import json
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
from simmatch_tf.data.sources import digits
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import from_python, models

TEST = digits.load(8).test
PIXELS = TEST.images[:12]


@pytest.fixture(scope="module")
def model(finished_run):
    return simmatch_tf.load(finished_run[0])


@pytest.fixture(scope="module")
def opened():
    return functools.cache(models.open_model)


@pytest.fixture
def once(opened, monkeypatch):
    """Opens a model once for all tests."""
    monkeypatch.setattr(models, "open_model", opened)


@pytest.fixture(scope="module")
def wanted(model):
    out = model(tf.constant(PIXELS), training=False)
    return tf.nn.softmax(out["logits"]).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(PIXELS[..., 0]):
        PIL.Image.fromarray(pixels).save(root / f"{number:02}.png")
    return root


def assert_close(found, probabilities):
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-6)


def test_files_and_arrays_give_what_the_network_gives(
    finished_run, model, wanted, folder, once
):
    run = str(finished_run[0])
    found = simmatch_tf.predict(run, folder)
    assert found.names == [f"{number:02}.png" for number in range(12)]
    assert found.class_names == [str(n) for n in range(10)] == model.class_names
    assert found.classes == [str(n) for n in wanted.argmax(axis=1)]
    assert_close(found, wanted)
    np.testing.assert_array_equal(
        found.confidences, found.probabilities.max(axis=1)
    )
    assert_close(simmatch_tf.predict(run, PIXELS, batch_size=5), wanted)


def test_ways_to_give_the_same_images(folder):
    names = [f"{number:02}.png" for number in range(12)]
    paths = [str(folder / name) for name in names]
    for files in (str(folder / "*.png"), paths, np.array(paths), folder):
        assert from_python._images(files)[0] == paths
    assert from_python._images([folder / n for n in names])[0] == paths
    _, called, encoded, _ = from_python._images(PIXELS)
    assert called[:2] == ["image 0", "image 1"]
    for images in (
        tf.constant(PIXELS),
        list(PIXELS),
        tuple(PIXELS[..., 0]),
        (pixels for pixels in PIXELS),
        [PIL.Image.fromarray(pixels) for pixels in PIXELS[..., 0]],
    ):
        assert from_python._images(images)[1:3] == (called, encoded)
    for image in (PIXELS[3], [PIXELS[3]], PIL.Image.open(paths[3])):
        assert from_python._images(image)[2] == encoded[3:4]


@pytest.mark.slow
def test_other_weights(finished_run, wanted):
    student = simmatch_tf.predict(finished_run[0], PIXELS, weights="student")
    assert np.abs(student.probabilities - wanted).max() > 1e-3


def test_its_table(finished_run, folder, tmp_path, once):
    found = simmatch_tf.predict(finished_run[0], folder)
    lines = str(found).splitlines()
    assert len(lines) == len(found) == 12
    best = found.confidences[0]
    assert lines[0].startswith(f"00.png  {found.classes[0]} {best:.1%}, ")
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
    assert [{**row, "error": None} for row in found.rows()] == rows


def test_images_of_any_size_are_treated_as_files_are(
    finished_run, tmp_path, once
):
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
        found = simmatch_tf.predict(
            finished_run[0],
            [
                upright,
                opened,
                image.convert("RGBA").transpose(PIL.Image.Transpose.ROTATE_270),
                paletted,
                np.asarray(paletted.convert("RGB")),
            ],
        ).probabilities
    for p in found[:3]:
        np.testing.assert_allclose(p, of_file.probabilities[0], atol=1e-6)
    np.testing.assert_allclose(found[3], found[4], atol=1e-6)


def png(**options):
    file = io.BytesIO()
    pixels = np.arange(16 * 20 * 3).reshape(16, 20, 3).astype(np.uint8)
    PIL.Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


FLOATS = (PIXELS / 255.0).astype(np.float32)
TRUNCATED = PIL.Image.open(io.BytesIO(png()[:-80]))
CLOSED = PIL.Image.open(io.BytesIO(png()))
CLOSED.close()


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (FLOATS, r"image 0 is float32 from 0 to 1, but uint8.*\(255 \* images"),
        (FLOATS * 255, r"from 0 to 255, but uint8.*images\.round\(\)"),
        (2 * FLOATS - 1, r"float32 from -1 to 1, but uint8 from 0"),
        (PIXELS.astype(int), r"int64 from 0 to 255, but uint8"),
        (PIXELS[:0], "there are none"),
        ([], "there are none"),
        (PIXELS[..., 0], r"shape \(12, 8, 8\).*images\[\.\.\., None\]"),
        (PIXELS.reshape(12, 64), r"array of shape \(12, 64\)"),
        (PIXELS.transpose(0, 3, 1, 2), r"shape \(1, 8, 8\), but \[height"),
        ([np.zeros([8, 8, 4], np.uint8)], r"leave out alpha: image\[..., :3\]"),
        ([np.zeros([0, 8, 3], np.uint8)], r"shape \(0, 8, 3\)"),
        ([PIXELS[0], "a.png"], "some are paths and some are not"),
        (None, "of type NoneType, but paths, arrays or Pillow"),
        (b"\x89PNG", "of type bytes, but paths"),
        ({"a": PIXELS[0]}, "of type dict, but paths"),
        ([None], "image 0 is of type object"),
        ([[[0], [0, 0]]], "image 0, of type list, is no array"),
        (TRUNCATED, r"image 0: Pillow cannot read it \(.*truncated"),
        ([PIXELS[0], CLOSED], "image 1: Pillow cannot read it"),
        ([[1.0]], "is float64 from 1 to 1"),
        (PIL.Image.new("I;16", (8, 8)), "Pillow's mode I;16"),
        ("none/*.png", "names no image"),
        ("none", "no such file or folder"),
    ],
)
def test_what_is_no_image_is_refused(images, message):
    # Before the model is loaded: there is none.
    with pytest.raises(InputError, match=message):
        simmatch_tf.predict("no model", images)


def test_orientations_that_stand_elsewhere(
    finished_run, tmp_path, once, caplog
):
    """A path, a Pillow image and the command go by the same, and say so."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text(
        "Raw profile type exif", f"\nexif\n{len(block):8}\n{block.hex()}\n"
    )
    (tmp_path / "photos").mkdir()
    paths = {}
    for name, data in {
        "exif": png(exif=exif),
        "raw": png(pnginfo=info),
        "stored": png(),
    }.items():
        paths[name] = str(tmp_path / "photos" / f"{name}.png")
        with open(paths[name], "wb") as file:
            file.write(data)
    run = finished_run[0]
    images = [PIL.Image.open(path) for path in paths.values()]
    for given, named in ((list(paths.values()), paths["raw"]), (images, "1")):
        caplog.clear()
        turned, raw, stored = simmatch_tf.predict(run, given).probabilities
        np.testing.assert_allclose(raw, stored, atol=1e-6)
        assert np.abs(turned - stored).max() > 1e-4
        (text,) = caplog.messages
        assert text.startswith("1 of 3 images are turned otherwise by viewers")
        assert f"{named}): only" in text
    caplog.clear()
    config = predict.PredictConfig(
        model=str(run),
        images=str(tmp_path / "photos"),
        output=str(tmp_path / "labels.csv"),
    )
    predict.main(config)
    (text,) = (line for line in caplog.messages if "viewers" in line)
    assert text.startswith("1 of 3 images") and "(such as raw.png)" in text


def test_what_is_no_model_is_refused(tmp_path, model):
    with pytest.raises(InputError, match="no such file or folder"):
        simmatch_tf.predict(tmp_path / "none", PIXELS)
    with pytest.raises(InputError, match="is of type Functional, but the path"):
        simmatch_tf.predict(model, PIXELS)
    with pytest.raises(InputError, match="batch_size=0"):
        simmatch_tf.predict(tmp_path, PIXELS, batch_size=0)


def test_files_that_cannot_be_read_are_named(
    finished_run, folder, tmp_path, once
):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "05.png").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"1 of 12 .* 05.png: the file is empt"
    ):
        simmatch_tf.predict(finished_run[0], tmp_path)
    with pytest.raises(InputError, match=r"1 of 1 .*none.png: No such file"):
        simmatch_tf.predict(finished_run[0], [tmp_path / "none.png"])
    with pytest.raises(InputError, match="must be student or ema"):
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
def test_the_command_s_module_and_the_function(code):
    code = (
        f"import sys, simmatch_tf; {code}; assert callable(function);"
        "assert callable(module) and callable(simmatch_tf.predict);"
        "assert module.main and sys.modules['simmatch_tf.predict'] is module;"
        "assert 'predict' in dir(simmatch_tf);"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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
def test_a_large_calibration_error_is_told(
    finished_run, folder, tmp_path, capsys
):
    workdir, result = tmp_path / "run", finished_run[1]
    shutil.copytree(finished_run[0], workdir)
    assert not simmatch_tf.predict(workdir, PIXELS).note
    evaluated(workdir, result, 0.049)
    assert not simmatch_tf.predict(workdir, PIXELS).note
    evaluated(workdir, result, 0.123)
    found = simmatch_tf.predict(workdir, PIXELS)
    assert found.note == (
        "Confidences are off by 12.3% on average: the calibration error of "
        "397 test images."
    )
    assert str(found).endswith(found.note)
    assert not simmatch_tf.predict(workdir, PIXELS, weights="student").note
    predict.main(
        predict.PredictConfig(
            model=str(workdir),
            images=str(folder),
            output=str(tmp_path / "a.csv"),
            html=str(tmp_path / "a.html"),
        )
    )
    assert found.note in capsys.readouterr().out
    page = (tmp_path / "a.html").read_text("utf-8")
    assert found.note in page
    assert "The order is that of the confidence alone" in page
    assert "teaches" not in page


@pytest.mark.slow
def test_an_export_keeps_its_calibration_error(finished_run, tmp_path):

    workdir, result = tmp_path / "run", finished_run[1]
    shutil.copytree(finished_run[0], workdir)

    def export(name):
        flags = export.ExportConfig(
            workdir=str(workdir), output=str(tmp_path / name)
        )
        return export.write(flags)

    before = export("before")
    assert "calibration_error" not in before.card["accuracy"]
    evaluated(workdir, result, 0.2)
    after = export("after")
    assert after.card["accuracy"] == {
        **before.card["accuracy"],
        "calibration_error": 0.2,
    }
    found = simmatch_tf.predict(after.path.parent, PIXELS)
    assert "off by 20.0% on average" in found.note
    assert_close(found, simmatch_tf.predict(before.path, PIXELS).probabilities)
    assert not simmatch_tf.predict(before.path, PIXELS).note
    # `evaluate --export` leaves its file beside the card.
    shutil.copy(workdir / "evaluation.json", before.path)
    assert simmatch_tf.predict(before.path, PIXELS).note == found.note


def test_more_flags_behind_a_flagfile(tmp_path):
    made = simmatch_tf.Config.from_flagfile(
        "configs/folder.cfg", data_dir=tmp_path, epochs=3, ema_warmup=False
    )
    assert made.data_dir == str(tmp_path) and made.ema_warmup is False
    # What excludes it in the file is replaced, as on a command line.
    assert (made.steps, made.epochs) == (None, 3.0)
    wanted = simmatch_tf.Config.from_argv(
        [
            "x",
            "--flagfile=configs/folder.cfg",
            f"--data_dir={tmp_path}",
            "--epochs=3",
            "--noema_warmup",
        ]
    )
    assert made == wanted and made.workdir == f"runs/folder-{tmp_path.name}"
    for values, message in (
        ({"data_dri": "x"}, "--data_dri: unknown; did you mean data_dir"),
        ({"data_dir": "x", "steps": 0}, "--steps=0: must be at least 1"),
        ({"data_dir": "x", "steps": 1.5}, "steps"),
        ({"data_dir": None}, "--data_dir=None: leave it out"),
        ({}, "needs --data_dir"),
    ):
        with pytest.raises(InputError, match=message):
            simmatch_tf.Config.from_flagfile("configs/folder.cfg", **values)


def test_a_loaded_network_refuses_what_is_scaled_already(model, wanted):
    for images in (FLOATS, 2 * FLOATS - 1):
        with pytest.raises(ValueError, match=r"images are from -?\d to 1, but"):
            model(images)
    black = np.zeros([1, 8, 8, 1], np.uint8)
    for images in (PIXELS, PIXELS.astype(np.float32), black, black + 1):
        found = model(images, training=False)["logits"]
    found = tf.nn.softmax(model(PIXELS, training=False)["logits"])
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    found = tf.nn.softmax(model.predict(PIXELS, verbose=0)["logits"])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_load_names_the_classes(finished_run, tmp_path):
    model = simmatch_tf.load(finished_run[0])
    assert list(model.class_names) == list(finished_run[1].class_names)
    model.save(tmp_path / "a.keras")  # it is no part of the model
    assert not hasattr(
        tf.keras.models.load_model(tmp_path / "a.keras"), "class_names"
    )
