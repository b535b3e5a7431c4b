"""Baselines: features, validation, what is too large, the file, the process."""

import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import threadpoolctl

from simmatch_tf.evaluation import baselines, metrics

HANDMADE = "HOG, colours and thumbnail"


def striped(count, *, side=32, channels=3, seed=0):
    """Images of two classes, stripes across and down, with noise on them."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    stripes = np.where(np.arange(side) // 4 % 2, 200, 50)
    images = np.empty([count, side, side, channels])
    images[labels == 0] = stripes[:, None, None]
    images[labels == 1] = stripes[None, :, None]
    images += random.normal(0, 60, images.shape)
    return images.clip(0, 255).astype(np.uint8), labels


# What `measure` is told where there are first weights.
OF_FEATURES = {"classes": np.array(2), "scored_on": np.array("test")}


def task(**changes):
    images, labels = striped(12)
    scored_images, scored_labels = striped(30, seed=1)
    arrays = {
        "images": images,
        "labels": labels,
        "scored_images": scored_images,
        "scored_labels": scored_labels,
        "remark": "",
    }
    return arrays | changes


@pytest.fixture(autouse=True)
def one_thread():
    """As in a run: threads would wait for each other on so few numbers."""
    with threadpoolctl.threadpool_limits(1):
        yield


# -------------------------------------------------------------- features ---


def test_handmade_features_by_hand():
    image = np.zeros([32, 32, 3], np.uint8)
    image[:16] = [255, 64, 0]  # colour 3·16 + 1·4 + 0 of 64
    (row,) = baselines.handmade(image[None])
    gradients, colors, thumbnail = np.split(row, [324, 388])
    assert thumbnail.shape == (192,)
    assert colors[52] == colors[0] == pytest.approx(np.sqrt(0.5))
    assert np.count_nonzero(colors) == 2
    squares = thumbnail.reshape(8, 8, 3)
    np.testing.assert_allclose(squares[0, 0], [1, 64 / 255, 0], atol=1e-6)
    assert not squares[4:].any()
    # Nothing changes across: all of each cell's gradients point down, in the
    # bin around 90° of the nine, and those of one image only at the edge.
    bins = gradients.reshape(3, 3, 2, 2, 9)
    assert bins[..., 4].any() and not np.delete(bins, 4, axis=-1).any()


def test_grey_images_have_64_grey_levels():
    image = np.full([1, 32, 32, 1], 130, np.uint8)
    (row,) = baselines.handmade(image)
    assert row.shape == (324 + 64 + 64,)
    assert row[324:388].argmax() == 130 // 4 and row[324:388].sum() == 1


@pytest.mark.parametrize("shape", [(8, 8, 1), (64, 48, 3), (32, 64, 3)])
def test_images_of_other_sizes_are_resized(shape):
    images = np.full([2, *shape], 100, np.uint8)
    rows = baselines.handmade(images)
    assert rows.shape == (2, 324 + 64 + 64 * shape[-1])
    np.testing.assert_allclose(rows[:, 388:], 100 / 255, atol=1e-6)


def test_features_are_standardized_by_the_labeled_images_and_cut_off():
    train = np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 1.0 + 1e-4]])
    scored = np.array([[1.0, 6.0, 50.0]])
    standardized, other = baselines._standardized(train, scored)
    np.testing.assert_allclose(standardized, [[-1, 0, -1], [1, 0, 1]])
    np.testing.assert_allclose(other, [[0, 1, 5]])
    # What differs by the rounding of float32 is one value.
    train[1, 2] = np.float32(1 + 1e-6)
    standardized, other = baselines._standardized(train, scored)
    np.testing.assert_allclose(standardized[:, 2], [0, 0], atol=1e-6)


# ------------------------------------------------------------ validation ---


def test_folds_have_their_share_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [10, 5, 2, 1])
    fold = baselines.folds(labels)
    counts = [np.bincount(fold[labels == c], minlength=5) for c in range(3)]
    assert counts[0].tolist() == [2] * 5 and counts[1].tolist() == [1] * 5
    assert sorted(counts[2].tolist()) == [0, 0, 0, 1, 1]
    # The only image of its class is never held out.
    assert fold[labels == 3] == [-1]


def test_no_more_folds_than_the_largest_class_has_images():
    assert set(baselines.folds(np.repeat([0, 1], 3))) == {0, 1, 2}
    assert set(baselines.folds(np.arange(4))) == {-1}


def test_folds_are_of_one_size_where_classes_are_small():
    # Twenty classes of four: no fold of five is left out or twice as large.
    sizes = np.bincount(baselines.folds(np.repeat(np.arange(20), 4)))
    assert sizes.tolist() == [20, 20, 20, 20]
    sizes = np.bincount(
        baselines.folds(np.repeat(np.arange(20), [4] * 19 + [9]))
    )
    assert max(sizes) - min(sizes) <= 1


def test_the_setting_is_that_of_fewest_errors_on_held_out_labels():
    from sklearn import linear_model

    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    # One feature tells the class, 39 are noise: only strong regularization
    # keeps the regression from fitting the noise.
    rows = random.normal(size=[60, 40])
    rows[:, 0] += 3 * labels
    x, y, splits = baselines._validation(rows, labels)
    hits = {}
    for strength in baselines._REGRESSIONS:
        model = linear_model.LogisticRegression(
            C=strength / 40, max_iter=1000, tol=1e-3
        )
        hits[strength] = sum(
            np.sum(model.fit(x[a], y[a]).predict(x[b]) == y[b])
            for a, b in splits
        )
    best = max(hits, key=hits.get)
    assert len(set(hits.values())) > 1
    model = linear_model.LogisticRegression(
        C=best / 40, max_iter=1000, tol=1e-3
    )
    scored = random.normal(size=[50, 40])
    np.testing.assert_array_equal(
        baselines.logistic_regression(rows, labels, scored),
        model.fit(rows, labels).predict(scored),
    )


def test_the_machine_is_scikit_learn_s_with_a_gaussian_kernel(monkeypatch):
    from sklearn import svm

    random = np.random.default_rng(0)
    rows, scored = random.normal(size=[40, 6]), random.normal(size=[25, 6])
    labels = (rows[:, 0] + rows[:, 1] ** 2 > 0.5).astype(int) + 3
    monkeypatch.setattr(baselines, "_WIDTHS", (0.5,))
    monkeypatch.setattr(baselines, "_STRENGTHS", (3.0,))
    monkeypatch.setattr(baselines, "_ROWS", 10)  # in three parts
    np.testing.assert_array_equal(
        baselines.support_vector_machine(rows, labels, scored),
        svm.SVC(C=3.0, gamma=0.5 / 6).fit(rows, labels).predict(scored),
    )


def test_one_image_a_class_is_enough():
    images, labels = striped(2)
    for each in baselines.measure(task(images=images, labels=labels)):
        assert each.top1 > 0.8


# --------------------------------------------------------------- measure ---


def test_baselines_are_right_where_the_task_is_easy():
    measured = baselines.measure(task())
    assert [each.name for each in measured] == [
        f"SVM on {HANDMADE}",
        f"logistic regression on {HANDMADE}",
    ]
    for each in measured:
        assert each.right.shape == (30,) and each.top1 > 0.9
        summary = each.summary()
        low, high = summary["interval"]
        assert 0 <= low <= each.top1 == summary["top1"] <= high <= 1
        json.dumps(summary)


def test_baselines_depend_on_labels_and_images_alone():
    one, other = baselines.measure(task()), baselines.measure(task())
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.right, b.right)
    _, labels = striped(12)
    wrong = baselines.measure(task(labels=1 - labels))
    assert all(each.top1 < 0.1 for each in wrong)


def test_first_weights_have_baselines_of_their_own():
    labels = task()["labels"]
    noise = np.random.default_rng(0).normal(size=[30, 4]).astype(np.float32)
    features = np.eye(4, dtype=np.float32)[labels]
    measured = baselines.measure(
        task(features=features, scored_features=noise, **OF_FEATURES)
    )
    names = [each.name for each in measured]
    assert names[2:] == [
        "SVM on features of the first weights",
        "logistic regression on features of the first weights",
    ]
    assert measured[0].top1 > 0.9 > measured[2].top1


def test_cross_validation_learns_nothing_from_what_it_predicts():
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    features = np.arange(7.0)[:, None] ** 2  # [7, 1], no two alike
    fold = baselines.folds(labels)
    assert sorted(fold) == [-1, 0, 0, 1, 1, 2, 2]
    seen = []

    def predict(train, known, scored):
        # Undoes the standardization: by the images to learn from alone.
        number = len(seen)
        rows, others = fold != number, fold == number
        mean, deviation = features[rows].mean(), features[rows].std()
        np.testing.assert_allclose(train * deviation + mean, features[rows])
        np.testing.assert_allclose(scored * deviation + mean, features[others])
        np.testing.assert_array_equal(known, labels[rows])
        seen.append(number)
        return np.full(len(scored), number)

    predicted = baselines.cross_validated(predict, features, labels)
    assert seen == [0, 1, 2]
    # The only image of its class is never predicted.
    np.testing.assert_array_equal(predicted, fold)


def test_baselines_without_images_to_score_on():
    arrays = task(remark="cross-validation")
    del arrays["scored_images"], arrays["scored_labels"]
    # An image that is the only one of its class is always learned from.
    arrays["images"] = np.concatenate([arrays["images"], arrays["images"][:1]])
    arrays["labels"] = np.append(arrays["labels"], 2)
    measured = baselines.measure(arrays)
    assert [each.name for each in measured] == [
        f"SVM on {HANDMADE} (cross-validation)",
        f"logistic regression on {HANDMADE} (cross-validation)",
    ]
    for each in measured:
        assert each.right.shape == (12,)
        assert each.summary()["interval"] == list(metrics.wilson(each.top1, 12))
    assert max(each.top1 for each in measured) > 0.8
    # Noise tells nothing of labels. A classifier that had learned from the
    # images that it predicts would be right on nearly all of them.
    random = np.random.default_rng(0)
    arrays["images"] = random.integers(0, 256, [80, 32, 32, 3]).astype(np.uint8)
    arrays["labels"] = random.integers(0, 2, 80)
    features = random.normal(size=[80, 40]).astype(np.float32)
    measured = baselines.measure(arrays | {"features": features, "classes": 2})
    assert len(measured) == 4
    assert baselines.kept(measured) is measured[3]
    assert measured[3].kept["scored_on"] == "held-out labeled"
    assert "top5" not in measured[3].kept
    # As sure as it is right, which of two classes is half of the time.
    assert measured[3].kept["calibration_error"] < 0.2
    assert measured[3].kept["fitted_images"] == 80
    for each in measured:
        assert each.right.shape == (80,) and each.top1 < 0.7


def test_names_say_which_images_were_chosen():
    measured = baselines.measure(task(remark="12 of 90 labels"))
    assert measured[0].name == f"SVM on {HANDMADE} (12 of 90 labels)"


# ---------------------------------------------------------- what is kept ---


def featured(present=(0, 1, 2), seed=0, per_class=8, noise=1.5, scale=1.0):
    """Features and labels of a few classes, and as many to score."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(9).normal(size=[5, 6])
    arrays = {"remark": "", "scored_on": "test", "classes": 5}
    for prefix, each in (("", per_class), ("scored_", 60)):
        labels = np.repeat(present, each)
        features = centres[labels] + noise * random.normal(
            size=[len(labels), 6]
        )
        features *= scale * np.array([1, 1, 1, 100, 1e-3, 1])
        arrays[f"{prefix}features"] = features.astype(np.float32)
        arrays[f"{prefix}labels"] = labels
    return arrays


def measure_kept(arrays):
    views = [arrays["features"], arrays["scored_features"]]
    return baselines._kept("logistic regression", views, arrays)


@pytest.mark.parametrize("present", [(0, 1, 2, 3, 4), (1, 2, 4), (1, 3)])
def test_kept_classifier_predicts_what_the_regression_does(present):
    arrays = featured(present)
    # Far from all labels, so that it matters where features are cut off.
    arrays["scored_features"][::7] *= 30
    train, scored = baselines._standardized(
        arrays["features"], arrays["scored_features"]
    )
    wanted = baselines.logistic_regression(train, arrays["labels"], scored)
    kept = measure_kept(arrays)
    logits = kept.classifier.logits(arrays["scored_features"])
    assert logits.shape == (len(scored), 5)
    np.testing.assert_array_equal(logits.argmax(axis=1), wanted)
    np.testing.assert_array_equal(kept.right, wanted == arrays["scored_labels"])
    assert 0.5 < kept.top1 < 1
    probabilities = metrics.softmax(logits)
    missing = [label for label in range(5) if label not in present]
    assert not probabilities[:, missing].any()
    # Its probabilities are scikit-learn's, also of two classes.
    model, _, _ = baselines._regression(train, arrays["labels"], 5)
    np.testing.assert_allclose(
        probabilities[:, present], model.predict_proba(scored), atol=1e-5
    )
    figures = kept.kept
    assert figures["scored_on"] == "test"
    assert kept.top1 <= figures["top5"] <= 1
    assert figures["macro_accuracy"] == pytest.approx(kept.top1)


def test_temperature_is_fitted_on_labels_that_were_held_out(monkeypatch):
    seen = []
    fit = metrics.fit_temperature

    def watch(logits, labels):
        seen.append((logits, labels))
        return fit(logits, labels)

    monkeypatch.setattr(metrics, "fit_temperature", watch)
    arrays = featured(per_class=30, noise=6.0)
    kept = measure_kept(arrays).kept
    ((logits, labels),) = seen
    # On those that it was fitted on, it would be right far more often.
    held_out = np.mean(logits.argmax(axis=1) == labels)
    train, _ = baselines._standardized(arrays["features"], arrays["features"])
    own = baselines.logistic_regression(train, arrays["labels"], train)
    assert held_out < np.mean(own == arrays["labels"])
    np.testing.assert_array_equal(np.sort(labels), arrays["labels"])
    assert kept["temperature"] == fit(logits, labels) > 0
    assert kept["fitted_on"] == "held-out labeled"
    assert kept["fitted_images"] == 90
    # Nine labels are too few.
    kept = measure_kept(featured(per_class=3)).kept
    assert (kept["temperature"], kept["fitted_on"]) == (None, None)
    assert kept["fitted_images"] == 0 and 0 < kept["calibration_error"] < 1


# ------------------------------------------------------- what is too large ---


def test_all_images_are_chosen_up_to_a_number():
    choice = baselines.choose(np.zeros(5_000, int), 10_000)
    assert len(choice.labeled) == 5_000 and len(choice.scored) == 10_000
    assert choice.remark == ""
    choice = baselines.choose(np.zeros(60, int), 0)
    assert len(choice.labeled) == 60 and len(choice.scored) == 0
    assert choice.remark == "cross-validation"


def test_too_many_images_are_chosen_from_by_class():
    labels = np.random.default_rng(0).permutation(
        np.repeat([0, 1, 2], [40_000, 9_999, 1])
    )
    choice = baselines.choose(labels, 60_000)
    counts = np.bincount(labels[choice.labeled])
    assert counts[2] == 1 and abs(counts[1] - 1_000) <= 1
    assert 5_000 <= len(choice.labeled) <= 5_002
    assert len(np.unique(choice.scored)) == 10_000
    assert choice.scored.max() > 59_000
    assert choice.remark == (
        f"{len(choice.labeled):,} of 50,000 labels; 10,000 of 60,000 images"
    )
    again = baselines.choose(labels, 60_000)
    np.testing.assert_array_equal(choice.labeled, again.labeled)
    np.testing.assert_array_equal(choice.scored, again.scored)


def test_what_has_no_baselines():
    assert baselines.left_out(np.array([0, 1]), 2, 9) is None
    assert "one class" in baselines.left_out(np.array([1, 1]), 2, 9)
    reason = baselines.left_out(np.arange(1_000), 1_000, 9)
    assert "1,000 classes" in reason and "200" in reason
    # Without images to score on, one labeled image must be held out.
    assert "held out" in baselines.left_out(np.array([0, 1]), 2, 0)
    assert baselines.left_out(np.array([0, 1, 1]), 2, 0) is None


# ------------------------------------------------------------------ file ---


def test_file_gives_back_what_was_measured(tmp_path):
    path = tmp_path / "baselines.json"
    right = np.array([True, False, True])
    baselines.write(path, "abc", [baselines.Baseline("SVM", right)])
    (each,) = baselines.read(path, "abc")
    assert each.name == "SVM" and each.right.dtype == bool
    np.testing.assert_array_equal(each.right, right)
    assert baselines.read(path, "abd") is None  # of other images


def test_file_gives_back_what_is_kept(tmp_path):
    path, arrays = tmp_path / "baselines.json", tmp_path / "baselines.npz"
    other = baselines.Baseline("SVM", np.ones(180, bool))
    kept = measure_kept(featured())
    baselines.write(path, "k", [other, kept])
    measured = baselines.read(path, "k")
    assert baselines.has_classifier(measured)
    read = baselines.kept(measured)
    assert read is measured[1] and read.kept == kept.kept
    for name, array in vars(kept.classifier).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(getattr(read.classifier, name), array)
    assert baselines.read_kept(path) == {
        **kept.kept,
        "top1": kept.top1,
        "images": 180,
    }
    # Without its arrays, or with those of others, it is not whole.
    content = arrays.read_bytes()
    for damaged in (content[:200], b"", b"nothing"):
        arrays.write_bytes(damaged)
        measured = baselines.read(path, "k")
        assert not baselines.has_classifier(measured) and len(measured) == 2
    baselines.write(tmp_path / "other.json", "other", [kept])
    (tmp_path / "other.npz").rename(arrays)
    assert not baselines.has_classifier(baselines.read(path, "k"))
    arrays.unlink()
    assert not baselines.has_classifier(baselines.read(path, "k"))
    assert baselines.read_kept(path)["top1"] == kept.top1
    # Written again without its arrays, as by a run that has the model.
    baselines.write(path, "k", baselines.read(path, "k"))
    assert baselines.read_kept(path)["top1"] == kept.top1
    for text in ("{", "[]", '{"baselines": [{"kept": {}}]}'):
        path.write_text(text)
        assert baselines.read_kept(path) is None


def test_nothing_is_kept_without_first_weights(tmp_path):
    path = tmp_path / "baselines.json"
    baselines.write(path, "k", [baselines.Baseline("SVM", np.ones(3, bool))])
    assert baselines.read_kept(path) is None
    assert not baselines.has_classifier(baselines.read(path, "k"))
    assert not baselines.has_classifier(None)
    assert [p.name for p in tmp_path.iterdir()] == ["baselines.json"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"key": "k", "baselines": []}',
        '{"key": "k", "baselines": [{"name": "a", "right": ""}]}',
        '{"key": "k", "baselines": [{"name": "a", "right": "012"}]}',
        '{"key": "k", "baselines": [{"name": "a", "right": 5}]}',
        '{"key": "k", "baselines": [{"name": "a", "right": "01"}, '
        '{"name": "b", "right": "011"}]}',
    ],
)
def test_damaged_file_is_no_file(tmp_path, text):
    path = tmp_path / "baselines.json"
    if text is not None:
        path.write_text(text)
    assert baselines.read(path, "k") is None


def test_key_changes_with_each_part():
    keys = [
        baselines.key("a", "b"),
        baselines.key("a", "c"),
        baselines.key("ab"),
        baselines.key("b", "a"),
    ]
    assert len(set(keys)) == 4 and keys[0] == baselines.key("a", "b")


# --------------------------------------------------------------- process ---


def start(tmp_path, arrays, *words, parent=None):
    content = io.BytesIO()
    np.savez(content, **arrays)
    path = tmp_path / "task.npz"
    path.write_bytes(content.getvalue())
    command = [
        *(sys.executable, "-m", "simmatch_tf.evaluation.baselines"),
        f"--output={tmp_path / 'baselines.json'}",
        f"--parent={parent or os.getpid()}",
        *words,
    ]
    with path.open("rb") as file:
        return subprocess.run(
            command, stdin=file, capture_output=True, text=True
        )


@pytest.mark.slow
def test_process_writes_what_measure_returns(tmp_path):
    cache = tmp_path / "cache" / "k.json"
    ended = start(tmp_path, task(), "--key=k", f"--cache={cache}")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    wanted = baselines.measure(task())
    for path in (tmp_path / "baselines.json", cache):
        for one, other in zip(baselines.read(path, "k"), wanted, strict=True):
            assert one.name == other.name
            np.testing.assert_array_equal(one.right, other.right)


def test_process_takes_what_another_run_has_measured(tmp_path, monkeypatch):
    cache = tmp_path / "k.json"
    baselines.write(
        cache, "k", [baselines.Baseline("SVM", np.array([True, False]))]
    )
    monkeypatch.setattr(os, "nice", lambda steps: None)
    monkeypatch.setattr(baselines, "_end_with", lambda parent: None)
    words = ["--key=k", f"--cache={cache}", "--parent=1"]
    output = tmp_path / "baselines.json"
    # Nothing to read: it would fail if it measured.
    baselines.main([*words, f"--output={output}"], io.BytesIO())
    assert baselines.read(output, "k")[0].name == "SVM"
    # Of other images it has to measure.
    words[0] = "--key=other"
    with pytest.raises(EOFError):
        baselines.main([*words, f"--output={output}"], io.BytesIO())


def test_process_measures_again_what_the_cache_has_without_arrays(
    tmp_path, monkeypatch
):
    cache, output = tmp_path / "cache.json", tmp_path / "baselines.json"
    kept = measure_kept(featured())
    baselines.write(cache, "k", [kept])
    monkeypatch.setattr(os, "nice", lambda steps: None)
    monkeypatch.setattr(baselines, "_end_with", lambda parent: None)
    monkeypatch.setattr(baselines, "measure", lambda arrays: [kept])
    words = ["--key=k", f"--cache={cache}", "--parent=1"]
    words.append(f"--output={output}")
    # Nothing to read: it would fail if it measured.
    baselines.main([*words, "--keeps"], io.BytesIO())
    assert baselines.has_classifier(baselines.read(output, "k"))
    baselines.arrays_path(cache).unlink()
    baselines.main(words, io.BytesIO())
    with pytest.raises(EOFError):
        baselines.main([*words, "--keeps"], io.BytesIO())
    content = io.BytesIO()
    np.savez(content, remark="")
    content.seek(0)
    baselines.main([*words, "--keeps"], content)
    assert baselines.has_classifier(baselines.read(cache, "k"))
    assert baselines.has_classifier(baselines.read(output, "k"))


def test_process_measures_where_no_cache_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "nice", lambda steps: None)
    monkeypatch.setattr(baselines, "_end_with", lambda parent: None)
    content = io.BytesIO()
    np.savez(content, **task())
    content.seek(0)
    output = tmp_path / "baselines.json"
    cache = tmp_path / "file" / "k.json"
    baselines.main(
        ["--key=k", f"--cache={cache}", "--parent=1", f"--output={output}"],
        content,
    )
    assert len(baselines.read(output, "k")) == 2


def test_process_of_a_run_that_has_ended_stops(tmp_path):
    ended = start(tmp_path, task(), "--key=k", parent=1)
    assert ended.returncode == 1 and ended.stderr == "the run has ended\n"
    assert not (tmp_path / "baselines.json").exists()


@pytest.mark.slow
def test_process_says_why_it_failed(tmp_path):
    (tmp_path / "baselines.json").mkdir()
    ended = start(tmp_path, task(), "--key=k")
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert "cannot be written" in ended.stderr


def test_nothing_here_imports_tensorflow():
    code = (
        "import sys; from simmatch_tf.evaluation import baselines; "
        "assert not {'tensorflow', 'keras', 'sklearn', 'skimage'} & "
        "sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
