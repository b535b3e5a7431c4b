"""The command: a plan is run, interrupted, resumed, and shown."""

import dataclasses
import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest

from simmatch_tf import experiment
from simmatch_tf.data.sources import folder
from simmatch_tf.experiments import plan, runner, summary
from simmatch_tf.experiments import store as store_lib
from simmatch_tf.flags.errors import InputError
from tests import runs
from tests.experiments import test_store

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = sys.executable


def flags(*words):
    return experiment.ExperimentConfig.from_argv(["experiment", *words])


def write_plan(folder, methods, **changes):
    base = " ".join(runs.argv("x", **{"steps": 4, **changes})[:-1])
    base = " ".join(w for w in base.split() if not w.startswith("--workdir"))
    path = folder / "small.cfg"
    lines = "\n".join(f"{name} = {words}" for name, words in methods.items())
    path.write_text(
        f"[plan]\ntitle = Small\nbase = {base}\nseeds = 0 1\n"
        f"reference = SimMatch\n[method]\n{lines}\n"
    )
    return path


@pytest.mark.slow
def test_a_plan(tmp_path, capfd):
    """Two methods: one fails, is repaired and resumed."""
    methods = {
        "FixMatch": "--algorithm=fixmatch",
        "SimMatch": "--init_from=" + str(tmp_path / "weights.keras"),
    }
    path = write_plan(tmp_path, methods)
    words = [str(path), f"--workdir={tmp_path / 'out'}", "--jobs=2"]
    with pytest.raises(InputError, match="weights.keras: no such file"):
        experiment.main(flags(*words))
    # Nothing was run: errors are reported before the first run.
    assert not (tmp_path / "out").exists()
    (tmp_path / "weights.keras").write_text("no weights")
    assert experiment.main(flags(*words, "--seeds=0")) == 1
    out, err = capfd.readouterr()
    assert "failed: SimMatch, seed 0: error: " in err and ".log)" in err
    assert "FixMatch, seed 0: " in out and "% top-1" in out
    assert "(1 of 4 runs)" in out
    methods["SimMatch"] = ""
    write_plan(tmp_path, methods)
    page = tmp_path / "page.md"
    page.write_text("<!-- small -->\n<!-- /small -->\n")
    began = time.time()
    assert experiment.main(flags(*words, f"--page={page}")) is None
    folder = tmp_path / "out"
    table = (folder / "table.md").read_text()
    assert table.count("(2)") == 3  # two means, one lead
    assert table.strip() in page.read_text()
    assert len((folder / "runs.csv").read_text().splitlines()) == 5
    files = sorted((folder / "finished").iterdir())
    assert len(files) == 4
    # The first was not run again.
    assert sum(file.stat().st_mtime < began for file in files) == 1
    record = json.loads(files[0].read_text())
    assert record["steps"] == 4 and record["at_once"] == 2
    assert 0 < record["top1"] <= 1 and record["seconds"] > 0
    capfd.readouterr()
    assert experiment.main(flags(*words, "--dry_run")) is None
    assert "\n0 runs left.\n" in capfd.readouterr().out


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Replaces Python by a script that records how it was called."""
    path = tmp_path / "python"
    path.write_text(
        "#!/bin/sh\n"
        f'echo "$CUDA_VISIBLE_DEVICES" >> {tmp_path}/gpus\n'
        f"trap 'echo saved >> {tmp_path}/saved; exit 42' TERM\n"
        "echo begun; echo why it failed\n"
        f"test -e {tmp_path}/wait && while :; do sleep 0.05; done\n"
        "exit 3\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(runner.sys, "executable", str(path))
    return tmp_path


def cells(tmp_path):
    path = write_plan(tmp_path, {"SimMatch": "", "A": "--alpha=0.5"})
    return plan.read(str(path)).cells()


def test_gpus_are_divided_and_failures_reported(stub):
    planned_cells = cells(stub)
    with runner.claim(stub / "out") as lock:
        failed = runner.run(
            planned_cells,
            store_lib.Store(stub / "finished"),
            stub / "runs",
            jobs=2,
            gpus=[0, 1, 2],
            lock=lock,
            done=lambda *_: pytest.fail("none is done"),
        )
    assert list(failed) and set(failed) == set(planned_cells)
    assert all(why.startswith("why it failed (") for why in failed.values())
    assert set((stub / "gpus").read_text().split()) == {"0,2", "1"}
    assert not (stub / "finished").exists()


@pytest.fixture
def experimenting(stub):
    """Starts an experiment of two runs that wait for SIGTERM."""
    (stub / "wait").touch()
    path = write_plan(stub, {"SimMatch": "", "A": "--alpha=0.5"})
    code = (
        # The tests may run under nohup, which ignores it.
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "import sys; from simmatch_tf import experiment\n"
        f"sys.executable = {str(stub / 'python')!r}\n"
        "sys.exit(experiment.main("
        "experiment.ExperimentConfig.from_argv(sys.argv)))"
    )
    process = subprocess.Popen(
        [PYTHON, "-c", code,
         str(path), f"--workdir={stub / 'out'}", "--jobs=2"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: len(lines(stub / "gpus")) == 2)
    yield process
    process.kill()
    process.communicate()


def lines(path):
    return path.read_text().splitlines() if path.is_file() else []


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_makes_all_runs_save(stub, experimenting, number):
    os.kill(experimenting.pid, number)
    _, err = experimenting.communicate(timeout=60)
    assert experimenting.returncode == 42
    name = signal.Signals(number).name
    assert f"{name}: its runs save, and it stops as soon as it can" in err
    assert f"{name}: 2 of 2 runs have saved their state" in err
    assert lines(stub / "saved") == ["saved", "saved"]
    # The table of finished runs is written all the same.
    assert (stub / "out" / "table.md").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP])
def test_runs_save_when_the_experiment_dies(stub, experimenting, number):
    os.kill(experimenting.pid, number)
    experimenting.wait()
    wait_for(lambda: lines(stub / "saved") == ["saved", "saved"])


def test_a_live_experiment_is_not_disturbed(stub, experimenting):
    path = stub / "small.cfg"
    with pytest.raises(
        InputError, match=f"in use by a live .* .process {experimenting.pid}."
    ):
        experiment.main(flags(str(path), f"--workdir={stub / 'out'}"))
    assert not (stub / "out" / "table.md").exists()
    # Its table can be written.
    words = [str(path), f"--workdir={stub / 'out'}", "--only_tables"]
    assert experiment.main(flags(*words)) is None
    assert (stub / "out" / "table.md").exists()
    assert experimenting.poll() is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_signal_that_killed_a_run_is_reported(stub, experimenting):
    children = pathlib.Path(
        f"/proc/{experimenting.pid}/task/{experimenting.pid}/children"
    )
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    # The runs of the other seed fail by themselves.
    (stub / "wait").unlink()
    _, err = experimenting.communicate(timeout=60)
    assert experimenting.returncode == 1
    assert err.count("killed by SIGKILL (out of memory?) (") == 2
    assert err.count("failed: ") == 4


def test_only_tables(stub, capsys):
    path = write_plan(stub, {"SimMatch": "", "A": "--alpha=0.5"})
    words = [str(path), f"--workdir={stub / 'out'}", "--only_tables"]
    assert experiment.main(flags(*words)) is None
    assert "(0 of 4 runs" in capsys.readouterr().out
    assert not (stub / "gpus").exists()


def test_a_full_store_stops_no_run(stub, monkeypatch):
    """All runs are trained, and each reports that it is not kept."""
    (stub / "python").write_text("#!/bin/sh\nexit 0\n")

    def add(*_):
        raise InputError("x.json: cannot be written (No space left on device)")

    monkeypatch.setattr(store_lib.Store, "add", add)
    planned_cells = cells(stub)
    with runner.claim(stub / "out") as lock:
        failed = runner.run(
            planned_cells, store_lib.Store(stub / "finished"), stub / "runs",
            jobs=1, gpus=[], lock=lock, done=lambda *_: None,
        )  # fmt: skip
    assert set(failed) == set(planned_cells)
    assert all("No space left" in why for why in failed.values())


def test_runs_without_images_to_score_on(tmp_path):
    photos = tmp_path / "photos"
    for name in ("labeled/a/1.png", "labeled/b/1.png", "unlabeled/1.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"image")
    path = tmp_path / "folder.cfg"
    text = (
        "[plan]\ntitle = x\nseeds = 0\n"
        f"base = --dataset=folder --data_dir={photos} --steps=4\n"
        "[threshold]\n0.5 = --threshold=0.5\n0.7 = --threshold=0.7\n"
    )
    path.write_text(text)
    words = str(path), f"--workdir={tmp_path / 'out'}", "--jobs=1"
    with pytest.raises(InputError, match="has no test images.* such as 0.2"):
        experiment.main(flags(*words))
    assert not (tmp_path / "out").exists()
    config = plan.read(str(path)).cells()[0].config
    assert not folder.can_score(config)
    set_aside = dataclasses.replace(config, validation_fraction=0.5)
    assert folder.can_score(set_aside)
    for name in ("a", "b"):
        (photos / "test" / name).mkdir(parents=True)
        (photos / "test" / name / "2.png").write_bytes(b"image")
    assert folder.can_score(config)


def test_dry_run(tmp_path):
    """2 of 8 runs are finished; one run has two places in the figure."""
    figure_plan = plan.read("configs/plans/slides_figure5.cfg")
    cells, store = figure_plan.cells(), store_lib.Store(tmp_path)
    text = summary.left(figure_plan, cells, store)
    assert text.endswith(
        "\n8 runs left; the time of 8 is not known until one has finished."
    )
    for cell, seconds in zip(cells[:2], (3600.0, 7200.0), strict=True):
        test_store.write(store, cell.config, seconds=seconds)
    lines = summary.left(figure_plan, cells, store).split("\n")
    assert lines[4].split()[-4:] == ["1", "0", "3,600", "0.0"]
    assert lines[6].endswith("  not known   not known")
    assert lines[-1] == (
        "6 runs left; the time of 6 is not known until one has finished."
    )


def test_dry_run_of_minutes(tmp_path):
    """Their time is known before one has finished."""
    path = tmp_path / "minutes.cfg"
    path.write_text(
        "[plan]\ntitle = x\nseeds = 0 1 2\n"
        "base = --flagfile=configs/digits_40.cfg --minutes=30\n"
        "[alpha]\n1 = --alpha=1\n0 = --alpha=0\n"
    )
    read = plan.read(str(path))
    text = summary.left(read, read.cells(), store_lib.Store(tmp_path / "no"))
    assert text.endswith("\n6 runs left; 6 of them take 3.0 hours in all.")


def test_dry_run_of_several_seeds(tmp_path):
    plan_path = "configs/plans/slides_table1_fashion_mnist.cfg"
    cells = plan.read(plan_path).cells()
    store = store_lib.Store(tmp_path)
    test_store.write(store, cells[0].config, seconds=3600.0)
    same = [
        cell
        for cell in cells
        if cell.title(seed=False) == cells[0].title(seed=False)
    ]
    known, unknown = len(same) - 1, len(cells) - len(same)
    text = summary.left(plan.read(plan_path), cells, store)
    assert text.endswith(
        f"\n{known + unknown} runs left; {known} of them take {known:.1f} "
        f"hours in all; the time of {unknown} is not known until one has "
        "finished."
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--plan is missing: name a plan's file"),
        (["a.cfg", "--jobs=0"], "--jobs=0: must be"),
        (["a.cfg", "--seeds=a"], "--seeds=a: must be numbers from 0"),
        (["a.cfg", "--seeds=1,1"], "--seeds=1,1: one of them is twice"),
        (["a.cfg", "--gpus=0,0"], "--gpus=0,0: one of them is twice"),
        (["a.cfg", "--gpus=0", "--jobs=2"], "each run needs GPUs of its own"),
        (["a.cfg", "--gpus=0,1,2", "--jobs=2"], "and all as many"),
        (["a.cfg", "--dry_run", "--only_tables"], "one of them"),
        (["a.cfg", "--results= "], "--results= : must be a folder"),
        (["a.cfg", f"--workdir={__file__}"], "must be a folder"),
    ],
)
def test_bad_flags(words, message):
    with pytest.raises(InputError, match=message):
        flags(*words)


def test_seeds_that_the_plan_does_not_have(tmp_path):
    path = write_plan(tmp_path, {"SimMatch": ""})
    with pytest.raises(InputError, match="--seeds: the plan has 0, 1, not 7"):
        experiment.main(flags(str(path), "--seeds=0,7"))


def test_a_page_without_a_place(tmp_path):
    path = write_plan(tmp_path, {"SimMatch": ""})
    page = tmp_path / "page.md"
    page.write_text("no place")
    with pytest.raises(InputError, match="page.md: must have the lines <!--"):
        experiment.main(flags(str(path), f"--page={page}"))
    with pytest.raises(InputError, match="--page=none.md: cannot be read"):
        experiment.main(flags(str(path), "--page=none.md"))
