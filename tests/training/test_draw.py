"""--draw: which images of a dataset with known classes are labeled."""

import json

import numpy as np
import pytest

from simmatch_tf import config as config_lib
from simmatch_tf import evaluate, export
from simmatch_tf.data import picking
from simmatch_tf.data.sources import digits, source
from simmatch_tf.evaluation import baselines, pixels
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import printed_tables, report_page
from simmatch_tf.reporting import runs as runs_lib
from simmatch_tf.training import inputs, workdir
from tests import runs


@pytest.fixture(scope="module")
def data():
    return digits.load(8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "simmatch_tf"


def split(data, tmp_path, **changes):
    config = runs.config(tmp_path / "run", **changes)
    return inputs.make_split(config, data, workdir.Workdir(config.workdir))


def labeled(data, tmp_path, **changes):
    return split(data, tmp_path, **changes).labeled


def images(pixel_values, labels, **how):
    """A dataset of images of one grey level each."""
    values = np.asarray(pixel_values, np.uint8)[:, None, None, None]
    pictures = np.tile(values, [1, 8, 8, 1])
    # HOG is that of equal edges, the thumbnail has the grey level.
    train = source.Images(pictures, np.asarray(labels, np.int32))
    return source.Source("grey", ["a", "b", "c"], train, None, True, **how)


def test_typical_is_what_picking_picks(data, tmp_path):
    """With numbers of labels that no class could share equally."""
    chosen = labeled(data, tmp_path, draw="typical", labels=23, split_seed=2)
    features = baselines.handmade(data.train.images)
    order = picking.pick(
        picking.principal(features), 23, method="typical", seed=2
    ).order
    assert sorted(chosen) == sorted(order) and len(set(order)) == 23
    by_class = np.lexsort((order, data.train.labels[order]))
    np.testing.assert_array_equal(chosen, order[by_class])


def test_typical_is_kept(data, tmp_path, cache, monkeypatch):
    how = {"draw": "typical", "labels": 20}
    first = labeled(data, tmp_path, **how)
    (kept,) = cache.glob("typical-*.npz")
    computed = []

    def read(*args, **how):
        computed.append(args)
        return real(*args, **how)

    real = pixels.read
    monkeypatch.setattr(pixels, "read", read)
    np.testing.assert_array_equal(first, labeled(data, tmp_path, **how))
    # Of another seed, another number of labels or other images, others are.
    others = [
        labeled(data, tmp_path, **how, split_seed=1),
        labeled(data, tmp_path, draw="typical", labels=21),
    ]
    rows = np.arange(10, len(data.train))
    fewer = source.Source(
        "digits", data.class_names, data.train.take(rows), data.test, False
    )
    others.append(labeled(fewer, tmp_path, **how) + 10)
    # And where the classes of the same images are known in part.
    classes = data.train.labels.copy()
    classes[first[:5]] = -1
    known = source.Images(data.train.images, classes)
    partly = source.Source("digits", data.class_names, known, data.test, False)
    others.append(labeled(partly, tmp_path, **how))
    assert not np.isin(first[:5], others[-1]).any()
    assert len(computed) == 4
    for other in others:
        assert not np.array_equal(first, other)
    kept.write_bytes(b"damaged")
    np.testing.assert_array_equal(first, labeled(data, tmp_path, **how))
    assert len(computed) == 5


def test_random_is_by_chance_and_nested(data, tmp_path):
    few = labeled(data, tmp_path, draw="random", labels=13)
    more = labeled(data, tmp_path, draw="random", labels=300)
    other = labeled(data, tmp_path, draw="random", labels=13, split_seed=1)
    assert len(few) == 13 and np.isin(few, more).all()
    assert not np.array_equal(few, other)
    # Stratified would have 30 of each class.
    assert np.ptp(np.bincount(data.train.labels[more])) > 0
    order = np.lexsort((more, data.train.labels[more]))
    np.testing.assert_array_equal(order, np.arange(300))


@pytest.mark.parametrize("draw", ["random", "typical"])
def test_only_images_of_a_known_class_that_are_not_set_aside(tmp_path, draw):
    labels = [0, 1, 2, -1, 0, 1, 2, -1, 0, 1]
    data = images(np.arange(10) * 25, labels, set_aside=[0, 9])
    chosen = split(data, tmp_path, draw=draw, labels=6)
    assert sorted(chosen.labeled) == [1, 2, 4, 5, 6, 8]
    assert chosen.validation.tolist() == [0, 9]
    with pytest.raises(
        InputError,
        match=f"--labels=7 and --draw={draw}: grey has 6 different images of",
    ):
        split(data, tmp_path, draw=draw, labels=7)


def test_copies_are_labeled_once(tmp_path):
    data = images([10, 10, 10, 90, 90, 200], [0, 0, 0, 1, 1, 2])
    assert labeled(data, tmp_path, draw="typical", labels=3).tolist() == [
        0,
        3,
        5,
    ]
    with pytest.raises(InputError, match="grey has 3 different images of a kn"):
        split(data, tmp_path, draw="typical", labels=4)


def test_of_very_many_images_some_are_drawn(data, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_MOST_CANDIDATES", 50)
    one = labeled(data, tmp_path, draw="typical", labels=50)
    other = labeled(data, tmp_path, draw="typical", labels=50, split_seed=1)
    assert len(np.intersect1d(one, other)) < 20
    assert len(labeled(data, tmp_path, draw="random", labels=60)) == 60


def test_validation_images_are_of_those_chosen(data, tmp_path):
    how = {"draw": "random", "labels": 60}
    chosen = split(data, tmp_path, **how, validation_fraction=0.2)
    both = np.union1d(chosen.labeled, chosen.validation)
    np.testing.assert_array_equal(both, np.sort(labeled(data, tmp_path, **how)))
    assert not np.isin(chosen.validation, chosen.unlabeled).any()
    classes = np.unique(data.train.labels[both])
    assert set(data.train.labels[chosen.validation]) == set(classes)


def test_a_class_without_a_label(data, tmp_path):
    """It has no part in validation; a prior of labels cannot have it."""
    how = {"draw": "random", "labels": 12}
    chosen = split(data, tmp_path, **how)
    counts = np.bincount(data.train.labels[chosen.labeled], minlength=10)
    missing = np.flatnonzero(counts == 0)
    assert len(missing) > 1
    config = runs.config(tmp_path / "run", **how, class_prior="labeled")
    with pytest.raises(
        InputError,
        match=f"--class_prior=labeled: no labeled image is of the class "
        f"'{missing[0]}', and {len(missing)} classes have none; .* give "
        "--class_prior=uniform, or --draw=stratified with --labels=20",
    ):
        inputs.class_prior(
            config, data, chosen, workdir.Workdir(config.workdir)
        )
    with pytest.raises(InputError, match="has 1 labeled image, and with 1 set"):
        split(data, tmp_path, **how, validation_fraction=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draw": "best"}, "--draw=best is unknown"),
        ({"labels": 13}, "--labels=13: not divisible by the 10 classes"),
        (
            {"draw": "typical", "labels": None, "label_fraction": 0.1},
            "--draw=typical: chooses the images of --labels=N, not "
            "--label_fraction=0.1",
        ),
        (
            {"draw": "random", "labels": None, "split_file": "s.json"},
            "--draw=random: chooses .*, not --split_file=s.json",
        ),
        (
            {"draw": "random", "labels": 2000},
            "--labels=2000: digits has 1400 training images",
        ),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        runs.config(tmp_path / "run", **changes)


def test_a_folder_needs_a_number_of_labels():
    with pytest.raises(
        InputError, match="--draw=typical: .*--labels=N, which is missing"
    ):
        config_lib.Config(
            dataset="folder", data_dir="d", steps=1, draw="typical"
        )


@pytest.mark.parametrize("dataset", ["cifar10", "imagenet2012"])
def test_datasets_of_tfds(tmp_path, small_tfds, dataset):
    """In memory, and encoded in files of records."""
    how = {"dataset": dataset, "tfds_dir": small_tfds, "image_size": 32}
    how |= {"weak": "resized_crop"}
    chosen = []
    for draw in ("typical", "random"):
        config = runs.config(tmp_path / "run", **how, draw=draw, labels=7)
        data = inputs.make_source(config)
        chosen.append(split(data, tmp_path, **how, draw=draw, labels=7).labeled)
    assert all(len(set(each)) == 7 for each in chosen)
    assert not np.array_equal(*chosen)


@pytest.mark.slow
def test_a_run_without_labels_of_a_class(tmp_path, capsys):
    """It trains, is resumed, compared and used as any other."""
    how = {"draw": "random", "labels": 12, "baselines": True}
    result = runs.fit(tmp_path / "run", **how)
    assert np.isfinite(result.loss) and result.labels == 12
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    missing = 10 - len(set(split["labels"]))
    said = " ".join(capsys.readouterr().err.split())
    assert (
        missing and f"warning: No labeled image is of {missing} of the" in said
    )
    assert len(result.baselines) == 2
    place = workdir.Workdir(tmp_path / "run")
    (place.path / "results.json").unlink()
    for path in (place.path / "checkpoints").glob("step_00000006*"):
        path.unlink()
    again = runs.fit(place.path, **how)
    assert again == result and runs.began_after(place.path) == 4
    with pytest.raises(InputError, match="--draw is random there and strati"):
        runs.fit(place.path, labels=20)
    config = place.read_config()
    assert config.draw == "random"
    assert "12 labels (random), 6 steps" in printed_tables.result(
        result, config
    )
    run = runs_lib.read([str(place.path)])[0]
    assert report_page._labels(run) == "12 random of 1,400"
    evaluate.main(evaluate.EvaluateConfig(workdir=str(place.path)))
    export.main(
        export.ExportConfig(
            workdir=str(place.path), output=str(tmp_path / "export")
        )
    )
