"""The commands as a user runs them: real processes, real signals."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

from tests import runs
from tests.training import test_loop

pytestmark = pytest.mark.slow
ROOT = pathlib.Path(__file__).resolve().parents[2]


def start(workdir, *words, command="train", **changes):
    arguments = words
    if command == "train":
        arguments = [*runs.argv(workdir, **changes), *words]
    return subprocess.Popen(
        [sys.executable, "-m", f"simmatch_tf.{command}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def wait_for_step(process, step):
    """Reads the log until a step of at least `step` is in it."""
    for line in process.stderr:
        if line.startswith("step ") and "/" in line:
            if int(line.split()[1].split("/")[0]) >= step:
                return
    raise AssertionError("the process ended before that step")


def kill(process):
    process.kill()
    process.communicate()


def finish(process):
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    return out


LONG = {"steps": 60, "checkpoint_every": 5, "eval_every": 20, "log_every": 1}


def test_sigkill_at_a_random_step_and_resume(tmp_path):
    finish(start(tmp_path / "whole", **LONG))
    step = random.randrange(6, 50)
    process = start(tmp_path / "killed", **LONG)
    wait_for_step(process, step)
    kill(process)
    assert not (tmp_path / "killed" / "results.json").exists()
    out = finish(start(tmp_path / "killed", **LONG))
    assert runs.began_after(tmp_path / "killed") >= 5
    test_loop.assert_same_run(tmp_path / "whole", tmp_path / "killed", 60)
    assert "top-1" in out and "ema *" in out


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGINT],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number):
    process = start(tmp_path, **{**LONG, "checkpoint_every": 1000})
    wait_for_step(process, 3)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 42
    assert "Traceback" not in errors
    assert f"{number.name} after step" in errors and "start it again" in errors
    (index,) = (tmp_path / "checkpoints").glob("*.index")
    assert 3 <= int(index.stem.split("_")[1]) < 60


def test_two_runs_in_one_workdir(tmp_path):
    process = start(tmp_path, **LONG)
    wait_for_step(process, 1)
    second = start(tmp_path, **LONG)
    _, errors = second.communicate(timeout=60)
    assert second.returncode == 1
    assert f"in use by a live run (process {process.pid})" in errors
    kill(process)


def test_evaluate_and_a_second_start(finished_run, tmp_path):
    workdir, result = finished_run
    output = tmp_path / "report.json"
    out = finish(
        start(
            workdir,
            f"--workdir={workdir}",
            f"--output={output}",
            command="evaluate",
        )
    )
    report = json.loads(output.read_text())
    for name in ("student", "ema"):
        scores = report[name]
        assert scores["top1"] == getattr(result, name)["last"]["top1"]
        assert sum(map(sum, scores["confusion"])) == 397
        right = sum(scores["confusion"][i][i] for i in range(10))
        assert right / 397 == pytest.approx(scores["top1"])
        assert len(scores["per_class"]) == 10
        assert 0 <= scores["calibration_error"] <= 1
    assert "calibration error" in out and "Confusion matrix of ema" in out
    out = finish(start(workdir))  # finished: prints its table again
    assert "top-1" in out


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    process = start(tmp_path / "file" / "run")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "cannot be written (Not a directory)" in errors


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_workdir_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    process = start(tmp_path / "run")
    _, errors = process.communicate(timeout=60)
    assert "cannot be written (Permission denied)" in errors


def test_evaluate_into_a_folder_that_is_not_there(finished_run, tmp_path):
    words = [f"--workdir={finished_run[0]}", f"--output={tmp_path}/no/x.json"]
    process = start(tmp_path, *words, command="evaluate")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no/x.json: must be a file in a folder that exists" in errors
    assert "Traceback" not in errors


def test_evaluate_without_a_run(tmp_path):
    process = start(tmp_path, f"--workdir={tmp_path}", command="evaluate")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "no run here" in errors
