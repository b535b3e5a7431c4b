import dataclasses
import json
import types

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf import io
from simmatch_tf.data import fingerprint
from simmatch_tf.experiments import identity, plan, summary
from simmatch_tf.experiments import store as store_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import comparison
from simmatch_tf.training import results

CONFIG = config_lib.Config(dataset="digits", labels=40, steps=7, seed=3)
FOUND = store_lib.Finished(
    flags=identity.flags(CONFIG),
    top1=0.5,
    top5=0.9,
    student_top1=0.4,
    ema_top1=0.5,
    weights_of_record="ema",
    steps=7,
    labels=40,
    unlabeled=1400,
    test_images=397,
    scored_on="test",
    seconds=1.5,
    at_once=2,
    processor="x",
    date="2026-01-02",
    versions={"keras": "3"},
)


def write(store, config, **changes):
    """Puts a finished run into a store."""
    flags = identity.flags(config)
    content = {**dataclasses.asdict(FOUND), "flags": flags, **changes}
    path = store.folder / identity.name(config)
    path.write_text(json.dumps(content))


@pytest.fixture
def store(tmp_path):
    def fill(**changes):
        store = store_lib.Store(tmp_path)
        write(store, CONFIG, **changes)
        return store

    return fill


def test_a_run_is_found_by_the_flags_that_decide_its_result(store):
    filled_store = store()
    assert filled_store.find(CONFIG) == FOUND
    # Where and how it runs does not matter.
    moved = dataclasses.replace(CONFIG, workdir="/x", eval_every=3, devices=2)
    assert filled_store.find(moved) == FOUND
    for change in ({"seed": 4}, {"alpha": 0.8}, {"flip": False}):
        assert filled_store.find(dataclasses.replace(CONFIG, **change)) is None


def test_names():
    assert identity.name(CONFIG).startswith("digits_simmatch_seed3_")
    names = {
        identity.name(dataclasses.replace(CONFIG, **change))
        for change in ({}, {"seed": 4}, {"alpha": 0.8}, {"labels": 50})
    }
    assert len(names) == 4
    # Giving a flag its default changes nothing.
    assert identity.name(dataclasses.replace(CONFIG, alpha=0.9)) in names


def test_a_run_of_two_places_is_run_once(tmp_path, store):
    cells = plan.read("configs/plans/slides_figure5.cfg").cells()
    left = store_lib.Store(tmp_path / "none").missing(cells)
    assert (len(cells), len(left)) == (9, 8)
    other = plan.Cell("a", "b", 3, CONFIG)
    assert store().missing([other]) == []


def test_the_path_of_a_folder_is_part_of_the_name():
    one, other = (
        config_lib.Config(dataset="folder", data_dir=d, steps=7)
        for d in ("a", "b")
    )
    assert identity.name(one) != identity.name(other)


def test_a_folder_has_one_name_for_all_ways_to_write_it(tmp_path, monkeypatch):
    def name(folder):
        config = config_lib.Config(dataset="folder", data_dir=folder, steps=7)
        return identity.name(config)

    monkeypatch.chdir(tmp_path)
    assert name("a") == name("a/") == name(str(tmp_path / "a"))
    absolute = name("a")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir("b")
    assert name("a") != absolute


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/x: cannot be written"):
        store_lib.Store(tmp_path / "file" / "x").check_writable()
    store_lib.Store(tmp_path / "new").check_writable()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_new_flag_at_its_default_makes_no_difference(store):
    without = [w for w in FOUND.flags if w != "--scale_instances"]
    assert len(without) == len(FOUND.flags) - 1
    assert store(flags=without).find(CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"flags": [w.replace("a=0.9", "a=0.8") for w in FOUND.flags]},
            "is of other flags .--alpha=0.8 --alpha=0.9: a default",
        ),
        ({"flags": [*FOUND.flags, "--gone=1"]}, "is of other flags .--gone=1"),
        ({"more": 1}, "cannot be read as a finished run"),
        ({"top1": 97.5}, "top1: 97.5 is no accuracy in .0, 1."),
        ({"ema_top1": None}, "ema_top1: None is no accuracy"),
        ({"student_top1": float("nan")}, "student_top1: nan is no accuracy"),
        ({"seconds": "x"}, "seconds: 'x' is no positive number"),
        ({"flags": None}, "flags: None is no list of words"),
    ],
)
def test_wrong_files(store, changes, message):
    with pytest.raises(InputError, match=message):
        store(**changes).find(CONFIG)


@pytest.mark.parametrize("times", [None, "[{", "[{}]", "3"])
def test_a_run_whose_times_cannot_be_read(tmp_path, times):
    workdir = tmp_path / "run"
    workdir.mkdir()
    result = {field.name: None for field in dataclasses.fields(results.Result)}
    io.write_json(workdir / "results.json", result)
    if times is not None:
        (workdir / "timing.json").write_text(times)
    with pytest.raises(InputError, match="timing.json: .* to run it again"):
        store_lib.Store(tmp_path).add(CONFIG, workdir, 1)


@pytest.mark.parametrize(
    ("changes", "lead"),
    [({}, True), ({"test_images": 398}, False), ({"scored_on": "x"}, False)],
)
def test_no_lead_between_results_of_other_images(tmp_path, changes, lead):
    path = tmp_path / "two.cfg"
    path.write_text(
        "[plan]\nbase = --dataset=digits --labels=40 --steps=7\n"
        "reference = A\n[method]\nA =\nB = --alpha=0.8\n"
    )
    small_plan = plan.read(str(path))
    store = store_lib.Store(tmp_path)
    for cell, values in zip(small_plan.cells(), ({}, changes), strict=True):
        write(store, cell.config, **values)
    compared = summary.compare(small_plan, small_plan.cells(), store)
    assert len(compared.scores) == 2
    assert (compared.reference is not None) == lead
    assert ("lead of A" in comparison.markdown(compared)) == lead


SHARDS = [f"mnist-train.tfrecord-0000{n}-of-00002" for n in range(2)]
TEST = "mnist-test.tfrecord-00000-of-00001"


@pytest.fixture
def tfds(tmp_path, monkeypatch):
    """Makes a finished run of a TFDS dataset, its folder and a store."""
    warnings = []
    monkeypatch.setattr(
        store_lib.logging,
        "warning",
        lambda text, *of: warnings.append(text % of),
    )

    def forget():
        """Clears all caches, as a new process would."""
        identity._state.cache_clear()
        store_lib._warn_once.cache_clear()
        warnings.clear()

    def config(root):
        return dataclasses.replace(
            CONFIG, dataset="mnist", tfds_dir=str(tmp_path / root)
        )

    def prepare(root, **contents):
        folder = tmp_path / root / "mnist/3.0.1"
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*SHARDS, TEST):
            record = contents.get(name[6:10], b"image, label")
            length = len(record).to_bytes(8, "little")
            (folder / name).write_bytes(length + b"crc:" + record + b"crc:")
        return folder

    folder = prepare("a")
    workdir = tmp_path / "run"
    workdir.mkdir()
    result = {field.name: None for field in dataclasses.fields(results.Result)}
    last = {"last": {"top1": 0.5, "top5": 1.0}}
    result |= {"top1": 0.5, "steps": 7, "student": last, "ema": last}
    io.write_json(workdir / "results.json", result)
    (workdir / "timing.json").write_text('[{"seconds": 1.0}]')
    fingerprint.of_files(
        {f"mnist/3.0.1/{path.name}": str(path) for path in folder.iterdir()}
    ).write(workdir / "data.json")
    store = store_lib.Store(tmp_path / "finished")
    store.check_writable()
    kept = store.add(config("a"), workdir, 1)
    yield types.SimpleNamespace(
        config=config,
        prepare=prepare,
        forget=forget,
        store=store,
        kept=kept,
        workdir=workdir,
        warnings=warnings,
    )
    forget()


def test_another_dataset_of_tfds_of_the_same_name(tfds):
    """Its folder has no part in a run's name, its files are compared."""
    assert tfds.store.find(tfds.config("a")) == tfds.kept
    assert [*tfds.kept.records] == [
        "mnist/3.0.1/mnist-test.tfrecord-*-of-00001",
        "mnist/3.0.1/mnist-train.tfrecord-*-of-00002",
    ]
    tfds.prepare("b")  # a copy
    assert tfds.store.find(tfds.config("b")) == tfds.kept
    tfds.prepare("c", trai=b"other image, label")
    with pytest.raises(
        InputError,
        match=r"other data than --dataset=mnist has in .*/c: files have other "
        r"sizes or records, or are missing "
        r"\(mnist/3.0.1/mnist-train.tfrecord-\*-of-00002\)",
    ):
        tfds.store.find(tfds.config("c"))
    # Or if it changed in place.
    tfds.forget()
    tfds.prepare("a", test=b"other image, label")
    with pytest.raises(InputError, match=r"missing \(mnist/3.0.1/mnist-test"):
        tfds.store.find(tfds.config("a"))
    tfds.forget()
    (tfds.prepare("a") / SHARDS[1]).unlink()
    with pytest.raises(InputError, match=r"missing \(mnist/3.0.1/mnist-train"):
        tfds.store.missing([plan.Cell("a", "b", 3, tfds.config("a"))])
    assert tfds.warnings == []


def test_a_dataset_of_tfds_that_may_be_another(tfds):
    """It is not prepared: one warning for a whole plan."""
    for _ in range(2):
        assert tfds.store.find(tfds.config("none")) == tfds.kept
    (warning,) = tfds.warnings
    assert "--dataset=mnist is not prepared in" in warning
    assert "/none, so the results in" in warning


def test_a_dataset_of_tfds_whose_files_have_the_same_sizes(tfds):
    """As after labels were corrected; the order of features may differ."""
    tfds.prepare("b", test=b"label, image")
    assert tfds.store.find(tfds.config("b")) == tfds.kept
    tfds.prepare("c", test=b"image, lapel")
    with pytest.raises(InputError, match=r"missing \(mnist/3.0.1/mnist-test"):
        tfds.store.find(tfds.config("c"))


def test_contents_of_large_datasets_are_not_read(tfds, monkeypatch):
    monkeypatch.setattr(identity, "_READ", 40)
    tfds.forget()
    now = identity.records(tfds.config("a"), tfds.kept.records)
    for name, (sizes, content) in tfds.kept.records.items():
        assert now[name] == [sizes, None if "train" in name else content]


def test_a_dataset_that_is_replaced_while_it_is_trained_on(tfds):
    """The store has the files that the run began with."""
    tfds.forget()
    tfds.prepare("a", trai=b"other image, label")
    tfds.store.add(tfds.config("a"), tfds.workdir, 1)
    with pytest.raises(InputError, match="is of other data"):
        tfds.store.find(tfds.config("a"))


def test_results_without_record_files(tfds):
    """As older versions wrote them."""
    path = tfds.store.folder / identity.name(tfds.config("a"))
    content = json.loads(path.read_text())
    del content["records"]
    path.write_text(json.dumps(content))
    tfds.prepare("c", trai=b"other image, label")
    assert tfds.store.find(tfds.config("c")).records is None
    path.write_text(json.dumps({**content, "records": {"a": 3}}))
    with pytest.raises(InputError, match="records: {'a': 3} is no list of"):
        tfds.store.find(tfds.config("c"))
