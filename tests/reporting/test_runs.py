import dataclasses
import json
import math
import subprocess
import sys

import pytest

from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import runs
from tests.reporting import written


def read(*words):
    return runs.read(list(map(str, words)))


def test_names(tmp_path):
    for name in ("a", "b/a", "x=y"):
        written.run(tmp_path / name)

    def names(*words):
        return [run.name for run in read(*words)]

    assert names(tmp_path / "a") == ["a"]
    assert names(f"Mine={tmp_path}/a", tmp_path / "b/a") == ["Mine", "a"]
    # Two folders of one name are called by their paths.
    both = [str(tmp_path / "a"), str(tmp_path / "b/a")]
    assert names(*both) == both
    # A folder with = in its name is a folder.
    assert names(tmp_path / "x=y") == ["x=y"]
    assert names(f"a=b={tmp_path}/x=y"[2:]) == ["b"]


def test_folders_that_hold_no_run(tmp_path):
    one = written.run(tmp_path / "one")
    other = written.run(tmp_path / "other")
    for words, message in (
        ([tmp_path], "no run here .flags.cfg is missing"),
        ([tmp_path / "none"], "none: no such folder"),
        ([f"A={tmp_path}/none"], "none: no such folder"),
        (["A="], "must be the folder of a run"),
        ([""], "must be the folder of a run"),
        ([f"={one}"], "must have a name"),
        ([one, tmp_path / "x" / ".." / "one"], "no such folder"),
        ([one, f"A={one}"], "one: is given twice"),
        ([f"A={one}", f"A={other}"], "are both called A; give another"),
        ([one, f"one={other}"], "are both called one"),
    ):
        with pytest.raises(InputError, match=message):
            read(*words)
    (one / "flags.cfg").write_text("--nonsense=1\n")
    with pytest.raises(InputError, match="flags.cfg: --nonsense: unknown"):
        read(one)


def test_a_finished_run(tmp_path):
    folder = written.run(tmp_path / "a", 0.75)
    written.evaluation(folder, [[60, 10], [15, 15]])
    (run,) = read(folder)
    assert run.result.top1 == 0.75
    assert run.reached == run.steps == 30 and run.timed
    assert run.record_tag == "test/ema_top1"
    assert (run.seconds, run.views_per_second) == (60, 1000)
    assert run.evaluation["calibration_error"] == 0.123
    # An evaluation of other weights is not this result's.
    report = json.loads((folder / "evaluation.json").read_text())
    for name, value in (
        ("step", 20),
        ("class_names", ["a"]),
        ("test_images", 7),
    ):
        (folder / "evaluation.json").write_text(
            json.dumps({**report, name: value})
        )
        assert read(folder)[0].evaluation is None


def test_an_unfinished_run(tmp_path):
    folder = written.run(tmp_path / "a", None)
    (run,) = read(folder)
    assert run.result is None and run.seconds is None
    assert (run.reached, run.steps) == (30, 30)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step_00000044.index").touch()
    assert read(folder)[0].reached == 44
    # An epoch is 1400 // (64 · 7) = 3 steps.
    folder = written.run(tmp_path / "b", None, None, steps=None, epochs=20.0)
    (run,) = read(folder)
    assert (run.reached, run.steps) == (0, 60)
    (folder / "split.json").unlink()
    assert read(folder)[0].steps is None


@pytest.mark.parametrize(
    ("flags", "record"),
    [
        ({}, "ema"),
        ({"targets_from": "teacher"}, "student"),
        ({"targets_from": "teacher", "algorithm": "fixmatch"}, "student"),
        ({"algorithm": "supervised"}, "ema"),
    ],
)
def test_evaluation_weights_without_a_result(tmp_path, flags, record):
    (run,) = read(written.run(tmp_path / "a", None, **flags))
    assert run.record == record


def test_torn_files(tmp_path):
    folder = written.run(tmp_path / "a")
    for name in ("timing.json", "split.json", "evaluation.json"):
        (folder / name).write_text("[{")
    (run,) = read(folder)
    assert run.sessions == [] and run.split == {}
    (folder / "results.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as a result"):
        read(folder)


def test_times_of_a_run_that_was_killed(tmp_path):
    folder = written.run(tmp_path / "a")
    times = json.loads((folder / "timing.json").read_text())
    times[0]["first_step"] = 11
    (folder / "timing.json").write_text(json.dumps(times))
    assert not read(folder)[0].timed


def test_groups(tmp_path):
    words = [
        written.run(tmp_path / "sim_seed1", seed=1, split_seed=1),
        written.run(tmp_path / "low", alpha=0.5),
        written.run(tmp_path / "sim_seed0", eval_every=7, devices=2),
    ]
    first, second = runs.group(read(*words))
    assert first.name == "sim"
    assert [run.name for run in first.runs] == ["sim_seed0", "sim_seed1"]
    assert second.name == "low" and len(second.runs) == 1
    assert runs.differences([first, second]) == {"alpha": [0.9, 0.5]}


def test_groups_of_runs_of_minutes(tmp_path):
    """What their minutes were in steps differs from seed to seed."""
    minutes = {"steps": None, "minutes": 5.0, "schedule": "cooldown"}
    words = [
        written.run(tmp_path / "a0", **minutes, measured_steps=90),
        written.run(tmp_path / "a1", **minutes, measured_steps=80, seed=1),
        written.run(
            tmp_path / "a2", **minutes, measured_steps=80, extended_steps=300,
            seed=2,
        ),
    ]  # fmt: skip
    first, second = runs.group(read(*words))
    assert [run.name for run in first.runs] == ["a0", "a1"]
    assert [run.name for run in second.runs] == ["a2"]
    assert runs.differences([first, second]) == {"extended_steps": [None, 300]}


def test_a_run_of_equal_seeds_does_not_count_twice(tmp_path):
    words = [
        written.run(tmp_path / name, seed=seed)
        for name, seed in (("a0", 0), ("a1", 1), ("again", 0), ("b0", 0))
    ]
    groups = runs.group(read(*words))
    names = [[run.name for run in group.runs] for group in groups]
    assert names == [["a0", "a1"], ["again"], ["b0"]]


def test_names_of_groups(tmp_path):
    def name(*names):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        words = [
            f"{n}={written.run(folder / str(i), seed=i)}"
            for i, n in enumerate(names)
        ]
        (group,) = runs.group(read(*words))
        return group.name

    assert name("a") == "a"
    assert name("fixmatch-10", "fixmatch-11") == "fixmatch"
    assert name("SimMatch, seed 0", "SimMatch, seed 1") == "SimMatch"
    assert name("one", "two") == "one, two"
    assert name("x" * 30, "y" * 30, "z") == "x" * 30 + " and 2 more"
    # A name is not used twice.
    words = [written.run(tmp_path / "p" / "sim", alpha=0.5)]
    words += [written.run(tmp_path / "p" / f"sim{i}", seed=i) for i in (0, 1)]
    groups = runs.group(read(*words))
    assert [each.name for each in groups] == ["sim", "sim0, sim1"]


def test_other_images_are_another_group(tmp_path):
    for name in ("x", "y"):
        written.run(tmp_path / name, dataset="folder", data_dir=f"/data/{name}")
    groups = runs.group(read(tmp_path / "x", tmp_path / "y"))
    assert len(groups) == 2
    assert runs.differences(groups)["data_dir"] == ["/data/x", "/data/y"]


FILES = {"labeled/a/0.png": "one", "test/a/0.png": "two"}
OTHER_TEST = {**FILES, "test/a/0.png": "new"}


def folder_run(path, **changes):
    return written.run(path, dataset="folder", data_dir="/data/x", **changes)


@pytest.mark.parametrize(
    ("changed", "change"),
    [
        (OTHER_TEST, r"1 is changed (test/a/0.png)"),
        ({**FILES, "test/a/0.png": "more"}, "1 is changed (test/a/0.png)"),
        ({**FILES, "test/b/0.png": "two"}, "1 is new (test/b/0.png)"),
        ({"labeled/a/0.png": "one"}, "1 is gone (test/a/0.png)"),
    ],
)
def test_a_run_on_changed_images_is_another(tmp_path, changed, change):
    words = [
        folder_run(tmp_path / "sim0", data=FILES),
        folder_run(tmp_path / "sim1", data=changed, seed=1),
        folder_run(tmp_path / "sim2", data=dict(FILES), seed=2),
    ]
    groups = runs.group(read(*words))
    names = [[run.name for run in group.runs] for group in groups]
    assert names == [["sim0", "sim2"], ["sim1"]]
    assert runs.differences(groups) == {}
    (said,) = runs.separated_by_data(groups)
    assert (
        said
        == ("sim1 is not grouped with sim: its data are others: " + change)
        + "."
    )


def test_a_list_that_changed_is_other_data(tmp_path):
    words = [
        written.run(
            tmp_path / f"a{seed}",
            data={"digits.csv.gz": "one", "--labeled_list": content},
            labels=None,
            labeled_list="/data/list.txt",
            seed=seed,
        )
        for seed, content in enumerate(("one", "two", "one"))
    ]
    groups = runs.group(read(*words))
    assert [len(group.runs) for group in groups] == [2, 1]
    # That only one of them has a list is a matter of flags.
    words.append(written.run(tmp_path / "b", data={"digits.csv.gz": "one"}))
    groups = runs.group(read(words[0], words[-1]))
    assert len(groups) == 2 and not runs.data_changes(
        *(group.runs[0] for group in groups)
    )


def test_runs_without_data_json(tmp_path):
    """They are grouped by their flags, names and classes."""
    words = [
        folder_run(tmp_path / "sim0"),
        folder_run(tmp_path / "sim1", seed=1),
        folder_run(tmp_path / "sim2", seed=2, data=FILES),
    ]
    groups = runs.group(read(*words))
    assert [len(group.runs) for group in groups] == [3]
    assert runs.separated_by_data(groups) == []
    # Of names and classes something stands in the split.
    words = [
        folder_run(tmp_path / name, seed=seed, split={"test_sha256": digest})
        for seed, (name, digest) in enumerate(
            (("x0", "one"), ("x1", "two"), ("x2", None))
        )
    ]
    groups = runs.group(read(*words))
    assert [len(group.runs) for group in groups] == [2, 1]
    (said,) = runs.separated_by_data(groups)
    assert said.endswith("others: other names or classes of test images.")
    (tmp_path / "x0" / "data.json").write_text("{torn")
    assert len(runs.group(read(words[0], words[2]))) == 1


def test_which_results_are_of_the_same_images(tmp_path):
    numbers = iter(range(99))

    def same(one, other, **changes):
        folders = [
            folder_run(tmp_path / str(next(numbers)), data=data)
            for data in (one, other)
        ]
        changed_runs = [
            dataclasses.replace(
                run, result=dataclasses.replace(run.result, **changes)
            )
            for run in read(*folders)
        ]
        assert runs.same_scored(changed_runs[:1])
        return runs.same_scored(changed_runs)

    more = {**FILES, "unlabeled/1.png": "more"}
    relabeled = {**FILES, "labeled/a/0.png": "new"}
    assert same(FILES, FILES) and same(FILES, None) and same(None, None)
    assert same(FILES, more) and same(FILES, relabeled)
    assert not same(FILES, OTHER_TEST)
    # Without test images, it is labeled ones that are set aside.
    aside = {"scored_on": "validation"}
    assert same(FILES, more, **aside) and same(FILES, OTHER_TEST, **aside)
    assert not same(FILES, relabeled, **aside)


def test_events_written_by_tensorflow(tmp_path):
    import tensorflow as tf

    writer = tf.summary.create_file_writer(str(tmp_path))
    with writer.as_default():
        for step in (2, 4):
            tf.summary.scalar("loss/total", step / 2, step=step)
        tf.summary.text("flags", "--x", step=2)
        tf.summary.histogram("weights", [1.0, 2.0], step=2)
    writer.close()
    assert runs.read_scalars(tmp_path) == {"loss/total": {2: 1.0, 4: 2.0}}


def test_a_resumed_run_replaces_the_steps_that_were_undone(tmp_path):
    """Killed at step 40, resumed from 20; loss/u was not written again."""
    first = {"loss/s": {10: 1.0, 20: 2.0, 30: 3.0, 40: 4.0}}
    first["loss/u"] = {20: 7.0, 30: 8.0}
    written.events(tmp_path, first, began=5)
    # The second of the names decides, not their order as text.
    written.events(tmp_path, {"loss/s": {30: 9.0}}, began=12)
    assert runs.read_scalars(tmp_path) == {
        "loss/s": {10: 1.0, 20: 2.0, 30: 9.0},
        "loss/u": {20: 7.0},
    }


def test_a_file_without_scalars_replaces_nothing(tmp_path):
    written.events(tmp_path, {"loss/s": {10: 1.0}}, began=1)
    written.events(tmp_path, {}, began=2)
    assert runs.read_scalars(tmp_path) == {"loss/s": {10: 1.0}}


def test_truncated_and_damaged_event_files(tmp_path):
    path = written.events(tmp_path, {"loss/s": {1: 1.0, 2: 2.0, 3: 3.0}})
    whole = path.read_bytes()
    for end in (len(whole) - 1, len(whole) - 12):
        path.write_bytes(whole[:end])
        assert runs.read_scalars(tmp_path) == {"loss/s": {1: 1.0, 2: 2.0}}
    broken = bytearray(whole)
    broken[-8] ^= 255  # in the last record
    path.write_bytes(broken)
    assert runs.read_scalars(tmp_path) == {"loss/s": {1: 1.0, 2: 2.0}}
    path.write_bytes(b"")
    assert runs.read_scalars(tmp_path) == {}
    assert runs.read_scalars(tmp_path / "none") == {}


def test_damage_is_told(tmp_path, capsys):
    path = written.events(tmp_path, {"loss/s": {i: 1.0 for i in range(9)}})
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-5])  # still being written
    assert len(runs.read_scalars(tmp_path)["loss/s"]) == 8
    assert not capsys.readouterr().err
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    assert 0 < len(runs.read_scalars(tmp_path)["loss/s"]) < 8
    assert f"{path}: is damaged; curves end there" in capsys.readouterr().err


def test_values_that_are_not_finite_are_kept(tmp_path):
    written.events(tmp_path, {"loss/s": {1: math.nan, 2: math.inf}})
    losses = runs.read_scalars(tmp_path)["loss/s"]
    assert math.isnan(losses[1]) and losses[2] == math.inf


def test_tensorflow_is_not_imported(tmp_path):
    written.events(tmp_path, written.CURVES)
    code = (
        "import pathlib, sys; from simmatch_tf.reporting import runs; "
        f"assert runs.read_scalars(pathlib.Path({str(tmp_path)!r})); "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
