"""Networks as far as their features, from wherever they come."""

import functools

import keras
import numpy as np
import pytest

from simmatch_tf import export, transfer
from simmatch_tf.data.sources import digits
from simmatch_tf.export import ExportConfig
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import library_backbone, network
from simmatch_tf.probes import encoders
from simmatch_tf.training import state

MOBILE = "keras_applications:MobileNetV2"


@functools.cache
def some_digits():
    return digits.load(8).test.images[:9]


def find(*models, **values):
    flags = transfer.TransferConfig(
        model=tuple(map(str, models)), datasets="digits", **values
    )
    return encoders.load(flags)


def features(encoder, images=None):
    images = some_digits() if images is None else images
    out = encoder.network(images, training=False)
    return out["features"].numpy()


def test_a_run_s_weights_of_record_and_others(finished_run):
    workdir = finished_run[0]
    (record,) = find(workdir)
    wanted = state.load(workdir)(some_digits(), training=False)["features"]
    np.testing.assert_array_equal(features(record), wanted)
    assert (record.name, record.image_shape) == ("run", (8, 8, 1))
    # 6 steps of 16 unlabeled images, of 1,400.
    assert record.epochs == "0.0686"
    (student,) = find(f"mine={workdir}", weights="student")
    assert student.name == "mine" and student.digest != record.digest
    wanted = state.load(workdir, weights="student")(
        some_digits(), training=False
    )
    np.testing.assert_array_equal(features(student), wanted["features"])
    assert find(workdir)[0].digest == record.digest


@pytest.mark.slow
def test_an_export_is_its_run(finished_run, tmp_path):
    export.main(
        ExportConfig(workdir=str(finished_run[0]), output=str(tmp_path))
    )
    run, exported = find(finished_run[0], f"export={tmp_path}")
    assert exported.digest == run.digest
    np.testing.assert_array_equal(features(exported), features(run))
    with pytest.raises(InputError, match="is an export, which has the weights"):
        find(tmp_path, weights="ema")


def test_another_size_keeps_the_weights(finished_run):
    small, large = find(finished_run[0]), find(finished_run[0], image_size=20)
    assert large[0].image_shape == (20, 20, 1)
    assert large[0].digest != small[0].digest
    for name, values in small[0].weights.items():
        for one, other in zip(values, large[0].weights[name], strict=True):
            np.testing.assert_array_equal(one, other)
    assert features(large[0], np.ones([2, 20, 20, 1])).shape == (2, 64)


@pytest.mark.slow
def test_new_weights_are_the_seed_s_and_keep_the_normalisation(finished_run):
    trained, new = find(finished_run[0], random_backbone=True)
    assert new.name == "run, new weights" and new.epochs == "0"
    np.testing.assert_array_equal(
        new.weights["normalize"], trained.weights["normalize"]
    )
    assert not np.allclose(features(new), features(trained))
    _, same = find(finished_run[0], random_backbone=True)
    _, other = find(finished_run[0], random_backbone=True, seed=1)
    assert new.digest == same.digest != other.digest


@pytest.mark.slow
def test_a_library_s_architecture(tmp_path):
    (new,) = find(MOBILE, weights="random", image_size=32)
    assert new.image_shape == (32, 32, 3)
    assert (new.name, new.epochs) == (f"{MOBILE}, new weights", "0")
    path = tmp_path / "mine.weights.h5"
    network.parts(new.network)["backbone"].save_weights(path)
    (encoder,) = find(MOBILE, weights=str(path), image_size=32, seed=3,
                      random_backbone=True)[:1]  # fmt: skip
    assert encoder.digest == new.digest
    with pytest.raises(InputError, match="--weights=.*another backbone than"):
        find("keras_applications:ResNet50", weights=str(path), image_size=32)


@pytest.mark.slow
def test_published_weights_are_the_library_s(monkeypatch):
    """As the library would fetch them; there is no net in a test."""
    backbone = keras.applications.MobileNetV2(
        include_top=False, weights=None, pooling="avg", input_shape=(64, 64, 3)
    )

    def fetch(include_top, weights, pooling):
        assert (include_top, weights, pooling) == (False, "imagenet", "avg")
        return backbone

    monkeypatch.setattr(keras.applications, "MobileNetV2", fetch)
    values = library_backbone.published("keras_applications", "MobileNetV2")
    monkeypatch.undo()
    monkeypatch.setattr(library_backbone, "published", lambda *args: values)
    (encoder,) = find(MOBILE, image_size=64)
    images = np.random.default_rng(0).integers(0, 256, [2, 64, 64, 3])
    wanted = backbone(
        keras.applications.mobilenet_v2.preprocess_input(
            images.astype(np.float32)
        )
    )
    np.testing.assert_allclose(features(encoder, images), wanted, atol=1e-5)


def test_published_weights_of_keras_cv(monkeypatch):
    import keras_cv

    kind = keras_cv.models.ResNetBackbone
    core, _ = library_backbone._keras_cv("resnet18", (32, 32, 3))

    def fetch(name):
        assert name == "resnet18_imagenet"
        return core

    monkeypatch.setattr(kind, "from_preset", fetch)
    (encoder,) = find("keras_cv:resnet18", image_size=32)
    for one, other in zip(
        encoder.weights["backbone"], core.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_weights_that_cannot_be_fetched_are_named(monkeypatch):
    def fail(**how):
        raise OSError("no route to host")

    monkeypatch.setattr(keras.applications, "MobileNetV2", fail)
    message = "cannot be fetched .no route to host.. keras_applications keeps"
    with pytest.raises(InputError, match=message):
        # Built before, by its real class.
        monkeypatch.setattr(encoders, "_build", lambda *args: None)
        find(MOBILE)


def test_images_that_a_model_does_not_take(finished_run, tmp_path):
    with pytest.raises(InputError, match="least 32, not 16: give another --im"):
        find(MOBILE, image_size=16)
    with pytest.raises(InputError, match="multiple of 32, not 240"):
        find("keras_cv:mit_b0", image_size=240)
    (run,) = find(finished_run[0])
    with pytest.raises(InputError, match="takes images of 8×9, but they must"):
        encoders._side(transfer.Named("x", "x", None), (8, 9, 1), None)
