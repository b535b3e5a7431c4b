"""--init_from: runs, SavedModels, .keras and .h5 files."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import preflight
from simmatch_tf.data.sources import digits
from simmatch_tf.distributed import strategies
from simmatch_tf.evaluation import baselines
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import batch_norm, network
from simmatch_tf.serving import exporting
from simmatch_tf.training import initial, state
from tests import runs, variants


@pytest.fixture(scope="module")
def files(finished_run, tmp_path_factory):
    """The finished run's weights in every form, by name."""
    workdir, _ = finished_run
    folder = tmp_path_factory.mktemp("files")
    model = simmatch_tf.load(workdir)
    backbone = network.parts(model)["backbone"]
    model.save(folder / "whole.keras")
    model.save_weights(folder / "whole.weights.h5")
    model.export(str(folder / "exported"), verbose=False)
    tf.saved_model.save(model, str(folder / "saved"))
    # As a server has it: the newest version counts.
    (folder / "versions" / "9").mkdir(parents=True)
    model.export(str(folder / "versions" / "10"), verbose=False)
    model.export(str(folder / "versions" / "2"), verbose=False)
    backbone.save(folder / "backbone.keras")
    backbone.save_weights(folder / "backbone.weights.h5")
    return folder, model, workdir


NAMES = [str(number) for number in range(10)]


def algorithm(*, num_classes=10, **changes):
    config = runs.config("unused", **changes)
    return state.make_algorithm(
        config,
        strategies.one(),
        image_shape=(8, 8, 1),
        slot_labels=np.arange(20) % num_classes,
        num_classes=num_classes,
        statistics=([0.123], [0.456]),
    )


def arrays(part):
    return [keras.ops.convert_to_numpy(v) for v in part.variables]


ALL = {"normalize", "backbone", "classifier", "projection_head"}


def taken(target, model, names=ALL):
    """Which of these parts are the model's, to the last bit."""
    here, source_parts = network.parts(target.student), network.parts(model)
    for one, other in zip(
        target.student.variables, target.teacher.model.variables, strict=True
    ):
        np.testing.assert_array_equal(one.value, other.value)
    return {
        name
        for name in names
        if all(
            np.array_equal(one, other)
            for one, other in zip(
                arrays(here[name]), arrays(source_parts[name]), strict=True
            )
        )
    }


FORMS = {
    "run": ALL,
    "whole.keras": ALL,
    "whole.weights.h5": ALL,
    "exported": ALL,
    "saved": ALL,
    "versions": ALL,
    "backbone.keras": {"backbone"},
    "backbone.weights.h5": {"backbone"},
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_every_form(files, form):
    folder, model, workdir = files
    path = workdir if form == "run" else folder / form
    target = algorithm()
    text = initial.initialize(target, str(path), NAMES)
    assert taken(target, model) == FORMS[form]
    assert text.startswith(f"starts from {path}: ") and "backbone" in text
    assert ("so new: " in text) == (FORMS[form] != ALL)


def rows(model):
    """Name in NAMES → its row of the classifier, weights and bias."""
    kernel, bias = arrays(network.parts(model)["classifier"])
    return dict(zip(NAMES, np.c_[kernel.T, bias], strict=True))


@pytest.fixture(scope="module")
def export_of_ours(finished_run, tmp_path_factory):
    output = tmp_path_factory.mktemp("exports") / "digits"
    return exporting.write(finished_run[0], output).path.parent


@pytest.mark.parametrize(
    "form",
    ["run", "model.keras", pytest.param("export", marks=pytest.mark.slow)],
)
def test_classes_are_found_by_name(files, form, request):
    _, model, workdir = files
    path = workdir if form == "run" else workdir / form
    if form == "export":
        path = request.getfixturevalue("export_of_ours")
    source_rows = rows(model)
    for names, remark in (
        (NAMES, "classifier (all 10 classes by name)"),
        (NAMES[::-1], "classifier (all 10 classes by name, in another order)"),
        (
            [*NAMES[5:], "ä", "b"],
            "classifier (5 of 7 classes by name; new: ä, b)",
        ),
    ):
        target = algorithm(num_classes=len(names))
        kernel, bias = arrays(network.parts(target.student)["classifier"])
        own = np.c_[kernel.T, bias]
        text = initial.initialize(target, str(path), names)
        assert remark in text
        kernel, bias = arrays(network.parts(target.student)["classifier"])
        for name, row, before in zip(
            names, np.c_[kernel.T, bias], own, strict=True
        ):
            np.testing.assert_array_equal(row, source_rows.get(name, before))
        assert taken(target, model, ALL - {"classifier"}) == ALL - {
            "classifier"
        }
    target = algorithm()
    before = arrays(network.parts(target.student)["classifier"])
    others = [f"other {name}" for name in NAMES]
    text = initial.initialize(target, str(path), others)
    assert text.endswith("so new: classifier")
    for one, other in zip(
        before, arrays(network.parts(target.student)["classifier"]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_run_on_the_same_classes_in_another_order(finished_run, tmp_path):
    """Without having learned anything it is as good as the run it is from."""
    data = digits.load(8)

    def turned(images):
        return simmatch_tf.Images(images.images, 9 - images.labels)

    source = simmatch_tf.Source(
        "turned", NAMES[::-1], turned(data.train), turned(data.test), False
    )
    config = runs.config(
        tmp_path / "run",
        dataset="custom",
        image_size=None,
        init_from=str(finished_run[0]),
        learning_rate=0,
        batch_norm_momentum=0.99999,
        steps=1,
    )
    result = simmatch_tf.fit(config, source=source)
    # The weights of record are the ones that it starts from.
    wanted = finished_run[1].top1
    assert result.student["last"]["top1"] == pytest.approx(wanted, abs=0.006)


def test_class_names_are_compared_as_people_read_them():
    weights = [
        initial.Weight("classifier/kernel", np.arange(6.0).reshape(2, 3)),
        initial.Weight("classifier/bias", np.arange(3.0)),
    ]
    own = [initial.Weight(w.path, -np.ones_like(w.value)) for w in weights]
    source_names = ["cafe\u0301", "twice", "twice"]
    values, remark = initial._rows_by_name(
        weights, source_names, own, ["twice", "x", "caf\u00e9"]
    )
    np.testing.assert_array_equal(values[1], [-1, -1, 0])
    np.testing.assert_array_equal(values[0], [[-1, -1, 0], [-1, -1, 3]])
    assert remark == "1 of 3 classes by name; new: twice, x"


@pytest.mark.parametrize("form", ["whole.weights.h5", "saved"])
def test_without_names_the_shape_decides_and_the_run_says_so(files, form):
    folder, model, _ = files
    target = algorithm()
    text = initial.initialize(target, str(folder / form), NAMES[::-1])
    assert "classifier (by its shape alone: no class names in it)" in text
    assert taken(target, model) == ALL


@pytest.mark.parametrize("form", ["whole.keras", "whole.weights.h5", "saved"])
def test_a_head_of_another_shape_stays_new_and_is_named(files, form):
    folder, model, _ = files
    target = algorithm(projection_dim=8)
    before = arrays(network.parts(target.student)["projection_head"])
    text = initial.initialize(target, str(folder / form), NAMES)
    assert text.endswith("not in it in this shape, so new: projection head")
    after = arrays(network.parts(target.student)["projection_head"])
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)
    rest = ALL - {"projection_head"}
    assert taken(target, model, rest) == rest


@pytest.mark.parametrize(
    "form",
    ["run", "whole.keras", "exported", "whole.weights.h5", "backbone.keras"],
)
def test_another_backbone_is_refused_and_nothing_changed(files, form):
    folder, _, workdir = files
    path = workdir if form == "run" else folder / form
    target = algorithm(backbone="wrn_16_1")
    before = arrays(target.student)
    with pytest.raises(InputError, match="holds another backbone than --back"):
        initial.initialize(target, str(path), NAMES)
    for one, other in zip(before, arrays(target.student), strict=True):
        np.testing.assert_array_equal(one, other)


def test_files_that_cannot_be_read(tmp_path):
    for name in ("a.keras", "a.weights.h5"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(InputError, match=f"{name}: cannot be read"):
            initial.initialize(algorithm(), str(tmp_path / name), NAMES)
    (tmp_path / "saved_model.pb").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="cannot be read"):
        initial.initialize(algorithm(), str(tmp_path), NAMES)


def test_the_classifier_of_a_baseline_is_not_taken(files, tmp_path):
    # It is one of standardized features, though it knows the same classes.
    _, model, _ = files
    random = np.random.default_rng(0)
    other = network.with_linear_classifier(
        model,
        random.normal(size=64),
        np.ones(64),
        random.normal(size=[64, 10]),
        random.normal(size=10),
        most=5.0,
    )
    network.save(other, tmp_path / "baseline.keras", NAMES)
    target = algorithm()
    text = initial.initialize(target, str(tmp_path / "baseline.keras"), NAMES)
    assert taken(target, model) == {"normalize", "backbone"}
    assert "so new: " in text and "classifier" in text.split("so new: ")[1]


def test_what_is_no_weights_is_refused_before_tensorflow(tmp_path):
    for path, message in (
        (tmp_path, "must be imagenet, a run's folder"),
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "none.keras", "no such file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            preflight.kind_of_weights(str(path))
    (tmp_path / "a.pth").touch()
    with pytest.raises(InputError, match="must be imagenet, a run's folder"):
        preflight.kind_of_weights(str(tmp_path / "a.pth"))
    config = runs.config(tmp_path / "run", init_from=str(tmp_path / "none"))
    with pytest.raises(InputError, match="--init_from=.*none: no such file"):
        simmatch_tf.fit(config)


@pytest.mark.slow
def test_a_run_starts_there_and_is_resumed_without_it(files, tmp_path, capsys):
    _, model, workdir = files
    source = tmp_path / "run"
    shutil.copytree(workdir, source)
    config = runs.config(
        tmp_path / "second",
        init_from=str(source),
        learning_rate=0,
        steps=2,
        ema_momentum=0.5,
    )
    simmatch_tf.fit(config)
    assert "starts from" in capsys.readouterr().err
    trained = simmatch_tf.load(tmp_path / "second", weights="student")
    for one, other in zip(
        trained.trainable_variables, model.trainable_variables, strict=True
    ):
        np.testing.assert_array_equal(one.value, other.value)
    source.rename(tmp_path / "gone")
    assert simmatch_tf.fit(config).steps == 2
    (tmp_path / "second" / "results.json").unlink()
    simmatch_tf.fit(config)  # from the last checkpoint
    assert "starts from" not in capsys.readouterr().err


def trained(workdir, tmp_path, **changes):
    """First and last backbone of a short run from other weights."""
    simmatch_tf.fit(
        runs.config(tmp_path / "run", init_from=str(workdir), **changes)
    )
    networks = simmatch_tf.load(workdir), simmatch_tf.load(tmp_path / "run")
    return [network.parts(model)["backbone"] for model in networks]


def test_backbone_without_a_rate_stays_as_it_is(finished_run, tmp_path):
    first, last = trained(
        finished_run[0], tmp_path, backbone_rate_factor=0.0, steps=3
    )
    for one, other in zip(arrays(first), arrays(last), strict=True):
        np.testing.assert_array_equal(one, other)
    heads = [
        network.parts(simmatch_tf.load(workdir))["classifier"]
        for workdir in (finished_run[0], tmp_path / "run")
    ]
    assert not np.array_equal(*(arrays(head)[0] for head in heads))


def test_frozen_batch_norm_stays_as_it_is(finished_run, tmp_path):
    first, last = trained(
        finished_run[0], tmp_path, batch_norm="frozen", steps=3
    )
    kept = {
        variable.path
        for layer in batch_norm.layers(first)
        for variable in layer.variables
    }
    assert kept
    for one, other in zip(first.variables, last.variables, strict=True):
        same = np.array_equal(np.array(one), np.array(other))
        assert same == (one.path in kept), one.path


@pytest.mark.parametrize("factor", variants.of([0.5, 2.0], [0.5]))
def test_rate_of_the_backbone(finished_run, tmp_path, factor):
    """After one step the backbone has moved by that factor, heads equally."""
    moved = {}
    for each in (1.0, factor):
        folder = tmp_path / str(each)
        simmatch_tf.fit(
            runs.config(
                folder,
                init_from=str(finished_run[0]),
                backbone_rate_factor=each,
                steps=1,
            )
        )
        start = simmatch_tf.load(finished_run[0])
        end = simmatch_tf.load(folder, weights="student")
        moved[each] = {
            part: np.array(network.parts(end)[part].trainable_variables[0])
            - np.array(network.parts(start)[part].trainable_variables[0])
            for part in ("backbone", "classifier")
        }
    np.testing.assert_allclose(
        moved[factor]["backbone"], factor * moved[1.0]["backbone"], atol=2e-7
    )
    np.testing.assert_array_equal(
        moved[factor]["classifier"], moved[1.0]["classifier"]
    )
    assert np.abs(moved[1.0]["backbone"]).max() > 1e-5


@pytest.mark.parametrize(
    "flags",
    [
        {"batch_norm": "frozen"},
        {"backbone_rate_factor": 0.0},
        {"classifier_init": "frozen_features"},
    ],
)
def test_what_keeps_first_weights_needs_some(flags, tmp_path):
    (name,) = flags
    with pytest.raises(
        InputError, match=f"--{name}=.*give them by --init_from"
    ):
        runs.config(tmp_path, **flags)


def fitted(model, split):
    """The regression on a network's features of labeled digits."""
    images, labels = (
        getattr(digits.load(8).train, name)[split["labeled"]]
        for name in ("images", "labels")
    )
    features = np.array(model(images)["features"])
    return baselines.fit_classifier(features, labels, 10), images, features


def test_classifier_begins_with_a_regression_on_frozen_features(
    finished_run, tmp_path
):
    workdir, _ = finished_run
    first = simmatch_tf.load(workdir)
    network.parts(first)["backbone"].save(tmp_path / "backbone.keras")
    simmatch_tf.fit(
        runs.config(
            tmp_path / "run",
            init_from=str(tmp_path / "backbone.keras"),
            classifier_init="frozen_features",
            batch_norm="frozen",
            learning_rate=0.0,
            steps=1,
        )
    )
    split = json.loads((tmp_path / "run" / "split.json").read_text("utf-8"))
    for weights in ("student", "ema"):
        run = simmatch_tf.load(tmp_path / "run", weights=weights)
        classifier, images, features = fitted(run, split)
        logits = np.array(run(images)["logits"])
        x = (features - classifier.mean) / classifier.deviation
        wanted = x @ classifier.kernel + classifier.bias  # nothing cut off
        np.testing.assert_allclose(logits, wanted, atol=1e-3)
        assert np.abs(wanted).max() > 0.1
        labels = digits.load(8).train.labels[split["labeled"]]
        # Of other features or another order of classes it would be chance.
        assert np.mean(logits.argmax(1) == labels) > 0.9


def test_classifier_that_the_weights_bring_is_kept(finished_run, tmp_path):
    workdir, _ = finished_run
    simmatch_tf.fit(
        runs.config(
            tmp_path / "run",
            init_from=str(workdir),
            classifier_init="frozen_features",
            learning_rate=0.0,
            steps=1,
        )
    )
    kernels = [
        arrays(network.parts(simmatch_tf.load(path))["classifier"])[0]
        for path in (workdir, tmp_path / "run")
    ]
    np.testing.assert_array_equal(*kernels)


def test_a_class_without_labels_begins_as_the_least_likely():
    target = algorithm(num_classes=3)
    features = np.random.default_rng(0).normal(size=(6, 64)).astype("f4")
    found = baselines.fit_classifier(features, np.array([0, 2] * 3), 3)
    assert found.known.tolist() == [True, False, True]
    initial._assign_linear(network.parts(target.student), found)
    kernel, bias = arrays(network.parts(target.student)["classifier"])
    assert not kernel[:, 1].any() and np.isfinite(bias).all()
    assert np.abs(bias).max() < 1e3
    one = baselines.fit_classifier(features, np.zeros(6, int), 3)
    assert one is None


def test_layer_norm_is_found_by_its_name_alone(tmp_path):
    """The scale and offset of the one BatchNorm have its shapes."""

    def backbone(shape):
        images = keras.Input(shape)
        x = keras.layers.Conv2D(6, 3, name="conv")(images)
        x = keras.layers.BatchNormalization(name="bn")(x)
        return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))

    def build(feature_norm, value):
        model = network.build(
            backbone,
            image_shape=(8, 8, 1),
            num_classes=3,
            projection_dim=2,
            mean=[0.1],
            std=[0.2],
            feature_norm=feature_norm,
        )
        for variable in model.variables:
            variable.assign(np.full(variable.shape, value))
        return model

    for stored, values in ((False, 1.0), (True, 2.0)):
        build(stored, 2.0).save(tmp_path / "stored.keras")
        model = build(True, 1.0)
        remarks = initial.fill(
            model, str(tmp_path / "stored.keras"), backbone="--backbone=x"
        )
        assert remarks["backbone"] == ""
        assert remarks["feature_norm"] == ("" if stored else None)
        for array in arrays(network.parts(model)["feature_norm"]):
            np.testing.assert_array_equal(array, np.full([6], values))
