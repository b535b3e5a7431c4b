"""The command: a grid that is run, stopped, gone on with, and shown."""

import json
import os
import pathlib
import signal
import stat
import subprocess
import sys
import time

import pytest

from simmatch_tf import command_flags, experiment
from simmatch_tf.commandline import InputError
from simmatch_tf.experiments import finished, grid, plan
from tests import runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = sys.executable


def flags(*words):
    return command_flags.ExperimentConfig.from_argv(["experiment", *words])


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
def test_a_grid(tmp_path, capfd):
    """Two methods: one fails, is mended and gone on with."""
    methods = {
        "Supervised": "--algorithm=supervised",
        "SimMatch": "--init_from=" + str(tmp_path / "weights.keras"),
    }
    path = write_plan(tmp_path, methods)
    words = [str(path), f"--workdir={tmp_path / 'out'}", "--jobs=2"]
    with pytest.raises(InputError, match="weights.keras: no such file"):
        experiment.main(flags(*words))
    # Nothing was run: what is wrong is said before the first.
    assert not (tmp_path / "out").exists()
    (tmp_path / "weights.keras").write_text("no weights")
    assert experiment.main(flags(*words, "--seeds=0")) == 1
    out, err = capfd.readouterr()
    assert "failed: SimMatch, seed 0: error: " in err and ".log)" in err
    assert "Supervised, seed 0: " in out and "% top-1" in out
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
    found = json.loads(files[0].read_text())
    assert found["steps"] == 4 and found["at_once"] == 2
    assert 0 < found["top1"] <= 1 and found["seconds"] > 0
    capfd.readouterr()
    assert experiment.main(flags(*words, "--dry_run")) is None
    assert "0 runs left, 0.0 hours" in capfd.readouterr().out


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """In the place of Python: a script that notes how it was called."""
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
    monkeypatch.setattr(grid.sys, "executable", str(path))
    return tmp_path


def cells(tmp_path):
    path = write_plan(tmp_path, {"SimMatch": "", "A": "--alpha=0.5"})
    return plan.read(str(path)).cells()


def test_gpus_are_divided_and_failures_told(stub):
    these = cells(stub)
    failed = grid.run(
        these,
        finished.Store(stub / "finished"),
        stub / "runs",
        jobs=2,
        gpus=["0", "1", "2"],
        done=lambda *_: pytest.fail("none is done"),
    )
    assert list(failed) and set(failed) == set(these)
    assert all(why.startswith("why it failed (") for why in failed.values())
    assert set((stub / "gpus").read_text().split()) == {"0,2", "1"}
    assert not (stub / "finished").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_has_all_save(stub, number):
    (stub / "wait").touch()
    path = write_plan(stub, {"SimMatch": "", "A": "--alpha=0.5"})
    code = (
        "import sys; from simmatch_tf import experiment, command_flags\n"
        f"sys.executable = {str(stub / 'python')!r}\n"
        "sys.exit(experiment.main("
        "command_flags.ExperimentConfig.from_argv(sys.argv)))"
    )
    process = subprocess.Popen(
        [PYTHON, "-c", code,
         str(path), f"--workdir={stub / 'out'}", "--jobs=2"],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        gpus = stub / "gpus"
        if gpus.is_file() and len(gpus.read_text().splitlines()) == 2:
            break
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 42
    assert f"{signal.Signals(number).name}: 2 runs have saved" in err
    assert (stub / "saved").read_text() == "saved\nsaved\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no plan is named: experiment PLAN.cfg"),
        (["a.cfg", "--jobs=0"], "--jobs=0: must be"),
        (["a.cfg", "--seeds=a"], "--seeds=a: must be numbers from 0"),
        (["a.cfg", "--gpus=0", "--jobs=2"], "each run needs a GPU of its own"),
        (["a.cfg", "--results= "], "--results= : must be a folder"),
        (["a.cfg", f"--workdir={__file__}"], "must be a folder"),
    ],
)
def test_bad_flags(words, message):
    with pytest.raises(InputError, match=message):
        flags(*words)


def test_seeds_are_the_plan_s(tmp_path):
    path = write_plan(tmp_path, {"SimMatch": ""})
    with pytest.raises(InputError, match="--seeds: the plan has 0, 1, not 7"):
        experiment.main(flags(str(path), "--seeds=0,7"))


def test_a_page_without_a_place(tmp_path):
    path = write_plan(tmp_path, {"SimMatch": ""})
    page = tmp_path / "page.md"
    page.write_text("no place")
    with pytest.raises(InputError, match="page.md: must have the lines <!--"):
        experiment.main(flags(str(path), f"--page={page}"))
    with pytest.raises(InputError, match="--page=none.md: no such file"):
        experiment.main(flags(str(path), "--page=none.md"))
