import dataclasses
import json

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf.commandline import InputError
from simmatch_tf.experiments import finished, identity, plan, summary
from simmatch_tf.reporting import comparison
from simmatch_tf.training import results

CONFIG = config_lib.Config(dataset="digits", labels=40, steps=7, seed=3)
FOUND = finished.Finished(
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


@pytest.fixture
def store(tmp_path):
    def write(**changes):
        content = {**dataclasses.asdict(FOUND), **changes}
        path = tmp_path / identity.name(CONFIG)
        path.write_text(json.dumps(content))
        return finished.Store(tmp_path)

    return write


def test_a_run_is_found_by_what_it_trains(store):
    found = store()
    assert found.find(CONFIG) == FOUND
    # Where and how it runs is no part of it.
    moved = dataclasses.replace(CONFIG, workdir="/x", eval_every=3, devices=2)
    assert found.find(moved) == FOUND
    for change in ({"seed": 4}, {"alpha": 0.8}, {"flip": False}):
        assert found.find(dataclasses.replace(CONFIG, **change)) is None


def test_names():
    assert identity.name(CONFIG).startswith("digits_simmatch_seed3_")
    names = {
        identity.name(dataclasses.replace(CONFIG, **change))
        for change in ({}, {"seed": 4}, {"alpha": 0.8}, {"labels": 50})
    }
    assert len(names) == 4
    # A default that is given is no other run.
    assert identity.name(dataclasses.replace(CONFIG, alpha=0.9)) in names


def test_a_run_of_two_places_is_run_once(tmp_path, store):
    cells = plan.read("configs/plans/slides_figure5.cfg").cells()
    left = finished.missing(cells, finished.Store(tmp_path / "none"))
    assert (len(cells), len(left)) == (9, 8)
    other = plan.Cell("a", "b", 3, (), CONFIG)
    assert finished.missing([other], store()) == []


def test_a_folder_s_place_is_part_of_it():
    one, other = (
        config_lib.Config(dataset="folder", data_dir=d, steps=7)
        for d in ("a", "b")
    )
    assert identity.name(one) != identity.name(other)


def test_a_folder_is_one_however_it_is_named(tmp_path, monkeypatch):
    def name(folder):
        config = config_lib.Config(dataset="folder", data_dir=folder, steps=7)
        return identity.name(config)

    monkeypatch.chdir(tmp_path)
    assert name("a") == name("a/") == name(str(tmp_path / "a"))
    there = name("a")
    (tmp_path / "b").mkdir()
    monkeypatch.chdir("b")
    assert name("a") != there


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/x: cannot be written"):
        finished.Store(tmp_path / "file" / "x").check_writable()
    finished.Store(tmp_path / "new").check_writable()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_flag_that_is_new_is_no_difference_at_its_default(store):
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
def test_a_file_of_something_else(store, changes, message):
    with pytest.raises(InputError, match=message):
        store(**changes).find(CONFIG)


@pytest.mark.parametrize("times", [None, "[{", "[{}]", "3"])
def test_a_run_whose_times_cannot_be_read(tmp_path, times):
    workdir = tmp_path / "run"
    workdir.mkdir()
    result = {field.name: None for field in dataclasses.fields(results.Result)}
    results.write_json(workdir / "results.json", result)
    if times is not None:
        (workdir / "timing.json").write_text(times)
    with pytest.raises(InputError, match="timing.json: .* it is run again"):
        finished.Store(tmp_path).keep(CONFIG, workdir, 1)


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
    what = plan.read(str(path))
    for cell, values in zip(what.cells(), ({}, changes), strict=True):
        content = {
            **dataclasses.asdict(FOUND),
            "flags": identity.flags(cell.config),
            **values,
        }
        (tmp_path / identity.name(cell.config)).write_text(json.dumps(content))
    found = summary.compare(what, what.cells(), finished.Store(tmp_path))
    assert len(found.scores) == 2
    assert (found.reference is not None) == lead
    assert ("lead of A" in comparison.markdown(found)) == lead
