import json

from simmatch_tf.reporting import report_tables, runs
from tests.reporting import written


def groups(*folders):
    return runs.group(
        [runs.read(p) for p in runs.find(list(map(str, folders)))]
    )


def column(table, name):
    return [row[table.head.index(name)] for row in table.rows]


def test_results_of_groups(tmp_path):
    """70, 80 and 90 %: mean 80, deviation 10; ahead by 5 in two pairs."""
    folders = [
        written.run(tmp_path / f"sim{s}", 0.7 + 0.1 * s, seed=s, split_seed=s)
        for s in range(3)
    ]
    folders += [
        written.run(tmp_path / f"low{s}", top1, seed=s, split_seed=s, alpha=0.5)
        for s, top1 in ((0, 0.68), (1, 0.72))
    ]
    found = groups(*folders)
    reports = {
        "sim0": {"calibration_error": 0.1},
        "sim2": {"calibration_error": 0.2},
    }
    table = report_tables.result(found, reports)
    assert column(table, "run") == ["sim", "low"]
    assert column(table, "top-1, % (runs)") == [
        "80.0 ± 10.0 (3)",
        "70.0 ± 2.8 (2)",
    ]
    # 80 and 70 of 100 images.
    assert column(table, "95 % of the images") == [
        "[71.1, 86.7]",
        "[60.4, 78.1]",
    ]
    assert column(table, "lead of sim, 95 %") == ["", "+5.0 (2)"]
    assert column(table, "worst") == ["70.0", "68.0"]
    assert column(table, "student / EMA") == ["70.0 / 80.0", "60.0 / 70.0"]
    assert column(table, "calibration error, %") == ["15.0", "–"]
    assert column(table, "time") == ["60 s", "60 s"]
    assert column(table, "views/s") == ["1,000", "1,000"]
    table = report_tables.what(found)
    assert column(table, "seeds") == ["0, 1, 2", "0, 1"]
    assert column(table, "labels") == ["20 of 1,400"] * 2
    assert column(table, "algorithm") == ["simmatch, ensemble"] * 2
    table = report_tables.differences(found)
    assert table.rows == [["--alpha", "0.9", "0.5"]]


def test_results_of_other_images_are_not_compared(tmp_path):
    one = written.run(tmp_path / "a")
    other = written.run(tmp_path / "b", dataset="cifar10")
    table = report_tables.result(groups(one, other), {})
    assert not any("lead" in name for name in table.head)


def test_results_on_changed_test_images_are_not_compared(tmp_path):
    def run(name, top1, **changes):
        changes = {"dataset": "folder", "data_dir": "/data/x", **changes}
        return written.run(tmp_path / name, top1, **changes)

    old, new = ({"test/a/0.png": content} for content in ("old", "new"))
    one, same = run("a", 0.7, data=old), run("b", 0.6, data=old, alpha=0.5)
    other, again = run("c", 0.8, data=new, alpha=0.5), run("d", 0.9, data=new)
    found = groups(one, same)
    assert any("lead" in n for n in report_tables.result(found, {}).head)
    assert report_tables.not_compared(found) == []
    found = groups(one, other)
    table = report_tables.result(found, {})
    assert not any("lead" in name for name in table.head)
    assert report_tables.not_compared(found) == [
        "No lead is given: the results are not all of the same images."
    ]
    assert ["data", "1 file", "1 is changed (test/a/0.png)"] in (
        report_tables.differences(found).rows
    )
    # Runs of two seeds on two sets of images have no mean.
    found = groups(one, again)
    assert column(report_tables.result(found, {}), "top-1, % (runs)") == [
        "70.0 (1)",
        "90.0 (1)",
    ]
    assert (
        "d is not put together with a" in report_tables.not_compared(found)[0]
    )


def test_what_is_not_finished(tmp_path):
    found = groups(written.run(tmp_path / "a", None, steps=1200))
    table = report_tables.result(found, {})
    assert table.rows == [["a", *"–––––", "1,200", "–", "–"]]
    assert report_tables.unfinished(found) == [
        "a is not finished: it has reached step 30 of 1,200, and has no result "
        "yet."
    ]
    assert column(report_tables.each_run(found), "steps") == ["30 of 1,200"]


def test_times(tmp_path):
    folder = written.run(tmp_path / "a")
    session = {"first_step": 1, "last_step": 10, "seconds": 10_000.0}
    session["views_per_second"] = 500.0
    later = {**session, "first_step": 21, "last_step": 30, "seconds": 20.0}
    (folder / "timing.json").write_text(json.dumps([session, later]))
    found = groups(folder)
    table = report_tables.sessions(found)
    assert table.rows[0] == ["a", "1 to 10", "2 h 47 min", "0.00", "500"]
    assert table.rows[1] == ["a", "21 to 30", "20 s", "0.50", "500"]
    # Steps 11 to 20 are in none.
    table = report_tables.result(found, {})
    assert column(table, "time") == ["over 2 h 47 min"]
    assert [report_tables.duration(s) for s in (99, 100, 5940, 6000)] == [
        "99 s",
        "2 min",
        "99 min",
        "1 h 40 min",
    ]


def test_confusion_of_a_group(tmp_path):
    folders = [
        written.run(tmp_path / f"sim{seed}", seed=seed) for seed in (0, 1, 2)
    ]
    written.evaluation(folders[0], [[60, 10], [15, 15]])
    written.evaluation(folders[1], [[50, 20], [0, 30]])
    (group,) = groups(*folders)
    reports = {r.name: r.evaluation for r in group.runs if r.evaluation}
    counts = report_tables.confusion(group, reports)
    assert counts == [[110, 30], [15, 45]]
    assert report_tables.pairs(counts, ["cat", "dog"]).rows == [
        ["cat", "dog", "30", "21.4%"],
        ["dog", "cat", "15", "25.0%"],
    ]
    assert report_tables.worst(counts, ["cat", "dog"]).rows == [
        ["dog", "75.0%", "60"],
        ["cat", "78.6%", "140"],
    ]
    assert report_tables.confusion(group, {}) is None
    # One whose classes are others is not added.
    text = (folders[1] / "results.json").read_text()
    (folders[1] / "results.json").write_text(text.replace("dog", "cow"))
    (group,) = groups(*folders)
    assert report_tables.confusion(group, reports) == [[60, 10], [15, 15]]


def test_classes_without_errors_or_images():
    counts = [[3, 0, 0], [0, 0, 0], [1, 0, 3]]
    assert report_tables.worst(counts, "abc").rows == [["c", "75.0%", "4"]]
    assert report_tables.pairs(counts, "abc").rows == [["c", "a", "1", "25.0%"]]


def test_runs_are_paired_by_the_images_that_are_labeled(tmp_path):
    """Not by --split_seed, where a file says which these are."""
    folders = [
        written.run(
            tmp_path / f"sim{seed}",
            0.9,
            split={"labeled": [seed, 7]},
            seed=0,
            split_seed=seed,
        )
        for seed in (0, 3)
    ]
    own = {"alpha": 0.5, "labels": None, "split_file": "a/split.json"}
    folders.append(
        written.run(tmp_path / "low", 0.8, split={"labeled": [3, 7]}, **own)
    )
    first, other, third = report_tables.scores(groups(*folders))
    assert [first.row, other.row, third.row] == ["sim", "sim", "low"]
    assert third.seed == other.seed != first.seed
    seeds = column(report_tables.what(groups(*folders)), "seeds")
    assert seeds == ["0, 0 (split 3)", "0 (labels of split.json)"]
