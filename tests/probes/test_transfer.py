"""The command, from flags to tables."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from sklearn import linear_model

from simmatch_tf import io, transfer
from simmatch_tf.data.sources import digits, source
from simmatch_tf.flags import commandline
from simmatch_tf.flags.errors import InputError
from simmatch_tf.probes import (
    classifiers,
    encoders,
    features,
    measuring,
    tasks,
)

MODEL = "keras_applications:ResNet50"


def flags(**values):
    return transfer.TransferConfig(
        **{
            "model": (MODEL,),
            "datasets": "digits",
            "progress": False,
            **values,
        }
    )


@pytest.mark.slow
def test_linear_is_scikit_learn_by_hand_to_the_last_image(
    finished_run, tmp_path, capsys
):
    output = tmp_path / "out"
    config = flags(model=(str(finished_run[0]),), output=str(output))
    assert transfer.main(config) is None
    (outcome,) = json.loads((output / "linear.json").read_text())["outcomes"]

    (encoder,) = encoders.load(config)
    task = tasks.load("digits", config)
    (train, test) = (
        np.load(io.cache_folder() / "features" / _file(encoder, task, which))
        for which in ("train", "test")
    )
    # The digits' originals have the network's own size.
    shown = digits.load(8)
    out = encoder.network(shown.test.images[:50], training=False)
    np.testing.assert_allclose(test[:50], out["features"], atol=1e-5)
    y, held = shown.train.labels, task.held_out
    validation = {
        strength: linear_model.LogisticRegression(C=1 / strength, max_iter=1000)
        .fit(train[~held], y[~held])
        .score(train[held], y[held])
        for strength in np.logspace(-6, 5, 45)
    }
    chosen = outcome["details"]["strength"]
    near = max(validation.values()) - validation[chosen]
    assert near <= 1.5 / held.sum()  # warm or cold: one image
    model = linear_model.LogisticRegression(C=1 / chosen, max_iter=1000)
    model.fit(train, y)
    right = model.predict(test) == shown.test.labels
    assert outcome["score"] == right.mean()
    assert (output / "linear.png").stat().st_size > 10_000
    assert outcome["details"]["iterations"] == model.n_iter_[0]
    assert outcome["details"]["converged"] and outcome["metric"] == "top1"
    assert len(outcome["details"]["strengths"]) == 45
    assert (outcome["train_images"], outcome["test_images"]) == (1400, 397)
    assert outcome["validation_images"] == held.sum()
    assert f"{100 * right.mean():.2f}" in capsys.readouterr().out


def _file(encoder, task, which):
    return features._key(encoder, task.digests[which]) + ".npy"


def test_what_is_finished_is_not_measured_again(
    finished_run, tmp_path, monkeypatch, capsys
):
    config = flags(
        model=(str(finished_run[0]),), output=str(tmp_path), protocol="knn"
    )
    transfer.main(config)
    first = capsys.readouterr().out
    monkeypatch.setitem(measuring._PROTOCOLS, "knn", None)
    transfer.main(config)
    assert capsys.readouterr().out == first
    # Another name is no other measurement; another k is.
    transfer.main(flags(
        model=(f"mine={finished_run[0]}",), output=str(tmp_path), protocol="knn"
    ))  # fmt: skip
    assert "mine on digits" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "knn.csv").read_text().split("\n")))
    assert [row["method"] for row in rows] == ["mine"]
    with pytest.raises(TypeError, match="not callable"):
        transfer.main(flags(
            model=(str(finished_run[0]),), output=str(tmp_path),
            protocol="knn", neighbors=5,
        ))  # fmt: skip
    (kept,) = (tmp_path / "finished").iterdir()
    kept.write_text("{")
    with pytest.raises(TypeError, match="not callable"):
        transfer.main(config)  # damaged: measured anew


def pixels(encoder, task, which, **how):
    """Features that are the pixels."""
    images = getattr(task, which).images
    return images.reshape(len(images), -1).astype(np.float32)


@pytest.fixture
def measure(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "extract", pixels)
    own = commandline.HyperParameters()
    encoder = encoders.Encoder("pixels", "none", (8, 8, 1), own, {}, "3")

    def measure(task, **values):
        config = flags(output=str(tmp_path / "out"), **values)
        return measuring.measure(config, encoder, task)

    return measure


def pixels_task(validation):
    x = digits.load(8)
    parts = np.split(np.arange(1400), [200, 300])
    train, held, _ = (x.train.take(part) for part in parts)
    return tasks.Task(
        "caltech101",
        tuple(x.class_names),
        train,
        held if validation else None,
        x.test,
        False,
    )


@pytest.mark.parametrize("validation", [True, False])
def test_validation_images_join_the_last_fit(measure, validation):
    task = pixels_task(validation)
    outcome = measure(task)
    size = 300 if validation else 200
    assert (outcome.train_images, outcome.epochs) == (size, "3")
    wanted = "official" if validation else "held out"
    assert outcome.validation == wanted and outcome.metric == "mean_per_class"
    assert outcome.validation_images == (
        100 if validation else task.held_out.sum()
    )
    x = digits.load(8)
    model = classifiers.regression(
        outcome.details["strength"], max_iter=1000, tol=1e-4
    )
    rows = x.train.images[:size].reshape(size, -1).astype(np.float32)
    classifiers.fit(model, rows, x.train.labels[:size])
    predicted = model.predict(x.test.images.reshape(397, -1).astype(np.float32))
    assert outcome.score == classifiers.score(
        "mean_per_class", x.test.labels, predicted
    )


def test_no_convergence_is_told(measure, capsys):
    outcome = measure(pixels_task(True), max_iter=1)
    assert (
        not outcome.details["converged"] and outcome.details["iterations"] == 1
    )
    assert "not converge in --max_iter=1" in capsys.readouterr().err


def test_an_interruption_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def stop(flags):
        raise KeyboardInterrupt

    monkeypatch.setattr(transfer, "_measure", stop)
    assert transfer.main(flags(output=str(tmp_path))) == 42
    assert "started again with the same flags" in capsys.readouterr().err


def test_neighbors_need_nothing_held_out(measure):
    x = digits.load(8).train
    first = [int(np.flatnonzero(x.labels == label)[0]) for label in range(10)]
    single = x.take(np.array(first))
    task = tasks.Task("own", tuple("0123456789"), single, None, x, False)
    outcome = measure(task, protocol="knn", neighbors=1)
    assert (outcome.validation, outcome.validation_images) == ("none", 0)
    with pytest.raises(InputError, match="every class has only one training"):
        measure(task)


def test_too_many_neighbors(measure):
    with pytest.raises(
        InputError, match="--neighbors=301: caltech101 has only"
    ):
        measure(pixels_task(True), protocol="knn", neighbors=301)


def test_an_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--output=.*cannot be written"):
        measuring.measure(flags(output=f"{tmp_path}/file/x"), None, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": ()}, "--model is missing: name the folder"),
        ({"model": ("/no",)}, "--model=/no: no such file or folder"),
        ({"model": ("a=",)}, "--model=a=: must be MODEL or NAME=MODEL"),
        ({"model": ("keras_applications:ResNet5",)}, "did you mean .*ResNet50"),
        ({"model": (MODEL, MODEL)}, "two are called keras_applications:ResNet"),
        ({"datasets": None}, "--datasets is missing: name some, such as"),
        ({"datasets": "digits,digits"}, "digits twice"),
        ({"datasets": "Digits"}, "--datasets=Digits is unknown .* mean digits"),
        ({"datasets": "custom"}, "--datasets=custom: is not the name"),
        ({"datasets": "folder"}, "--data_dir is missing: name the folder of"),
        ({"data_dir": "."}, "--data_dir=.: is for --datasets=folder, not "),
        ({"weights": "ema"}, "--weights=ema: is for runs; for keras_app"),
        ({"weights": "/no.h5"}, "--weights=/no.h5: no such file"),
        ({"image_size": 16}, "with sides of at least 32, not 16"),
        ({"neighbors": 3}, "--neighbors=3: is for --protocol=knn, not linear"),
        (
            {"protocol": "finetune", "cache_dir": "x"},
            "--cache_dir=x: is for --protocol=linear or knn, not finetune",
        ),
        (
            {"weights": "random", "random_backbone": True},
            "--random_backbone and --weights=random: all weights are new",
        ),
        ({"seed": 1}, "--seed=1: nothing is drawn"),
        ({"on_bad_image": "skip"}, "=skip: is not read by --datasets=digits"),
        ({"tfds_dir": "/x"}, "--tfds_dir=/x: is not read by"),
        ({"labels_csv": "/x"}, "--labels_csv=/x: is not read by"),
        ({"labels_from": "/x"}, "--labels_from=/x: is not read by"),
        ({"labels_csv": "a", "labels_from": "b"}, "give one of the two"),
        ({"protocol": "finetune", "rates": "0"}, "--rates=0: must be numbers"),
        ({"protocol": "finetune", "rates": "1,1.0000001"}, "each once"),
        ({"protocol": "finetune", "rates": "101"}, "at most 100"),
        (
            {"protocol": "finetune", "rates": "0.1,1", "decays": "0,0.2"},
            "so 0.2 must not be above 0.1",
        ),
        ({"output": "~nobody/x/y", "model": ("~nobody/z",)}, "no such file"),
        ({"protocol": "finetune", "decays": "x"}, "--decays=x: must be num"),
        ({"output": " "}, "--output= : must be a folder"),
        ({"protocol": "svm"}, "--protocol=svm is unknown"),
    ],
)  # fmt: skip
def test_wrong_flags_are_answered_at_once(values, message):
    with pytest.raises(InputError, match=message):
        flags(**values)


def test_names_of_models(finished_run, tmp_path, monkeypatch):
    def names(*model):
        return [each.name for each in flags(model=model).named_models()]

    folder = tmp_path / "a=b"
    folder.symlink_to(finished_run[0])
    assert names(f"x={finished_run[0]}", str(folder)) == ["x", "run"]
    assert names(MODEL, f"y={MODEL}") == [MODEL, "y"]
    monkeypatch.chdir(finished_run[0])
    assert names(".") == ["run"]


def test_weights_of_a_run_are_student_or_ema(finished_run):
    with pytest.raises(InputError, match="run it must be student or ema"):
        flags(model=(str(finished_run[0]),), weights="random")


def test_no_tensorflow_before_the_flags_are_checked():
    code = (
        "import sys; from simmatch_tf import transfer;"
        "assert 'tensorflow' not in sys.modules;"
        "assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_datasets_without_classes_are_named(tmp_path):
    import tensorflow_datasets as tfds

    tfds.dataset_builders.store_as_tfds_dataset(
        name="pictures",
        version="1.0.0",
        data_dir=tmp_path,
        features=tfds.features.FeaturesDict(
            {"image": tfds.features.Image(shape=(8, 8, 1))}
        ),
        split_datasets={
            "train": [(0, {"image": np.zeros([8, 8, 1], np.uint8)})]
        },
        disable_shuffling=True,
    )
    config = flags(datasets="pictures", tfds_dir=str(tmp_path))
    with pytest.raises(
        InputError,
        match="--dataset=pictures/1.0.0: is no image classification",
    ):
        tasks.load("pictures", config)


def test_a_source_of_images_is_a_task():
    task = tasks.of_source(
        source.Source("x", ["a", "b"], *2 * [digits.load(8).train.take(
            np.flatnonzero(digits.load(8).train.labels < 2)
        )], False)
    )  # fmt: skip
    assert task.class_names == ("a", "b")
