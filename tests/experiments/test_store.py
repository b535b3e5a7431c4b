import dataclasses
import json

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf import io
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


@pytest.mark.parametrize("flag", config_lib.TABLES)
def test_the_classes_in_a_table_are_part_of_the_data(tmp_path, flag):
    names = ("a.png", "b.png", "c.png")
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
    table = tmp_path / "l.csv"
    config = config_lib.Config(
        dataset="folder",
        data_dir=str(tmp_path),
        steps=7,
        **{flag: str(table)},
    )
    digests = []
    for classes in ("xy", "yx"):
        rows = zip(names, classes, strict=False)
        table.write_text("file,class\n" + "\n".join(map(",".join, rows)))
        identity._in_folder.cache_clear()
        digests.append(identity.data(config))
    assert None not in digests and digests[0] != digests[1]
    other = dataclasses.replace(config, **{flag: str(tmp_path / "m.csv")})
    assert identity.name(config) != identity.name(other)
    without = dataclasses.replace(config, **{flag: None})
    assert identity.flags(without) == [
        word for word in identity.flags(config) if flag not in word
    ]


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
    ],
)
def test_wrong_files(store, changes, message):
    with pytest.raises(InputError, match=message):
        store(**changes).find(CONFIG)


def test_torn_files_and_files_of_older_versions(store):
    path = store(records={}).folder / identity.name(CONFIG)
    filled_store = store(records={"more": 1})
    assert filled_store.find(CONFIG) == FOUND
    content = path.read_text()
    for torn in (content[:99], '{"flags": []}'):
        path.write_text(torn)
        with pytest.raises(InputError, match="be read as a finished run"):
            filled_store.find(CONFIG)


@pytest.mark.parametrize("times", [None, "[{", "[{}]", "3"])
def test_a_run_whose_times_cannot_be_read(tmp_path, times):
    workdir = tmp_path / "run"
    workdir.mkdir()
    result = {field.name: None for field in dataclasses.fields(results.Result)}
    io.write_json(workdir / "results.json", {**result, "top1": 0.5})
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


def test_the_best_baseline_stands_in_the_table(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    last = {"last": {"top1": 0.5}}
    names = {field.name for field in dataclasses.fields(results.Result)}
    result = dict.fromkeys(names, 0.5) | {"student": last, "ema": last}
    result |= {"versions": {}, "lead": {}, "labels": 40, "steps": 7}
    result["baselines"] = [{"top1": 0.3}, {"top1": 0.45}, {"top1": 0.4}]
    io.write_json(workdir / "results.json", result)
    (workdir / "timing.json").write_text('[{"seconds": 2.0}]')
    store = store_lib.Store(tmp_path)
    assert store.add(CONFIG, workdir, 1).baseline == 0.45
    assert store.find(CONFIG).baseline == 0.45
    path = tmp_path / "one.cfg"
    path.write_text(
        "[plan]\nbase = --dataset=digits --labels=40 --steps=7\nseeds = 3\n"
        "[method]\nA =\n"
    )
    small_plan = plan.read(str(path))
    write(store, small_plan.cells()[0].config, baseline=0.45)
    compared = summary.compare(small_plan, small_plan.cells(), store)
    assert "| best baseline, % (runs) |" in comparison.markdown(compared)
    assert "| 45.0 (1) |" in comparison.markdown(compared)
