"""What may befall a run's folder: each fault has its behaviour."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import registry
from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import network
from simmatch_tf.training import checkpoints, loop
from tests import runs
from tests.distributed import test_strategies
from tests.training import test_loop

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def disk(tmp_path):
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("may not mount a disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder):
    with contextlib.suppress(OSError), open(folder / "filler", "wb") as file:
        while True:
            file.write(bytes(2**16))
            file.flush()


def free(folder):
    (folder / "filler").unlink()


def close(folder):
    """Makes the checkpoints' folder read-only, whoever has files open."""
    path = str(folder / "run" / "checkpoints")
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)


def reopen(folder):
    subprocess.run(["umount", folder / "run" / "checkpoints"], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "mend", "reason"),
    [
        (fill, free, "No space left on device"),
        (close, reopen, "Read-only file system"),
    ],
    ids=["full", "read-only"],
)
def test_a_disk_that_takes_no_checkpoint(
    spoil, mend, reason, disk, finished_run, monkeypatch
):
    evaluate = loop._Run._evaluate

    def hook(self, step):
        evaluate(self, step)
        if step == 3:
            spoil(disk)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_evaluate", hook)
        with pytest.raises(InputError, match=reason) as error:
            runs.fit(disk / "run")
    assert "step 4 cannot be written" in str(error.value)
    assert "it goes on from the last of [2]" in str(error.value)
    assert "{{" not in str(error.value) and "[Op" not in str(error.value)
    kept = sorted(p.name for p in (disk / "run/checkpoints").glob("*.index"))
    assert kept == ["step_00000002.index"]
    mend(disk)
    runs.fit(disk / "run")
    assert runs.began_after(disk / "run") == 2
    test_loop.assert_same_run(finished_run[0], disk / "run", 6)


@pytest.mark.slow
def test_a_disk_that_takes_no_saved_network(
    disk, finished_run, tmp_path, monkeypatch
):
    save = network.save

    def hook(*arguments):
        fill(disk)
        save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(network, "save", hook)
        with pytest.raises(
            InputError, match=r"model.keras: cannot be writ.*No"
        ):
            runs.fit(disk / "run")
    assert not (disk / "run" / "results.json").exists()
    free(disk)
    runs.fit(disk / "run")
    assert runs.began_after(disk / "run") == 6
    test_loop.assert_same_run(finished_run[0], disk / "run", 6)
    assert (disk / "run" / "model.keras").is_file()


@pytest.mark.slow
def test_a_checkpoint_is_read_back_before_older_ones_go(
    finished_run, tmp_path, monkeypatch
):
    """A disk that says all is well and keeps something else."""
    shutil.copytree(finished_run[0], tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    folder = tmp_path / "run" / "checkpoints"
    for path in folder.glob("step_00000006*"):
        path.unlink()
    write = tf.train.Checkpoint.write

    def lie(self, prefix, *arguments, **words):
        saved_path = write(self, prefix, *arguments, **words)
        data = pathlib.Path(f"{prefix}.data-00000-of-00001")
        content = bytearray(data.read_bytes())
        content[len(content) // 2] ^= 1
        data.write_bytes(bytes(content))
        return saved_path

    monkeypatch.setattr(tf.train.Checkpoint, "write", lie)
    with pytest.raises(InputError, match="step 6 cannot be written"):
        runs.fit(tmp_path / "run", keep=1)
    assert sorted(p.name for p in folder.glob("*.index")) == [
        "step_00000002.index",
        "step_00000004.index",
    ]


def test_a_checkpoint_of_an_older_version(finished_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "FORMAT", 1)
        runs.fit(tmp_path, algorithm="supervised", steps=2)
    (tmp_path / "results.json").unlink()
    with pytest.raises(InputError, match=r"another version .*format is 1"):
        runs.fit(tmp_path, algorithm="supervised", steps=2)


def test_checkpoints_that_are_gone(finished_run, tmp_path, capsys):
    shutil.copytree(finished_run[0], tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    runs.fit(tmp_path / "run")
    assert "checkpoints are gone; it starts anew" in capsys.readouterr().err
    assert runs.began_after(tmp_path / "run") == 0
    test_loop.assert_same_run(finished_run[0], tmp_path / "run", 6)


def test_flags_of_another_version(finished_run, tmp_path):
    shutil.copytree(finished_run[0], tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with open(tmp_path / "run" / "flags.cfg", "a") as file:
        file.write("--not_known_yet=3\n")
    with pytest.raises(InputError, match="not_known_yet.*another version"):
        runs.fit(tmp_path / "run")


@registry.algorithms.register("breaking")
class Breaking(simmatch_tf.Algorithm):
    """From step BREAKS on, the loss is no number for LONG steps."""

    unlabeled_views = ()
    breaks, long = 3, 1

    def train_step(self, batch):
        bad = (self.step >= self.breaks) & (self.step < self.breaks + self.long)
        with tf.GradientTape() as tape:
            out = self.student(batch["labeled_weak"], training=True)
            loss = tf.reduce_mean(out["logits"] ** 2)
            loss *= tf.where(bad, np.nan, 1.0)
        self.minimize(tape, loss)
        return {"loss/total": loss}


@registry.algorithms.register("broken")
class Broken(Breaking):
    long = 99


def fit(workdir, algorithm, **changes):
    changes = {"steps": 20, "log_every": 5, "checkpoint_every": 2, **changes}
    return runs.fit(workdir, algorithm=algorithm, eval_every=20, **changes)


def test_stop_says_step_tensor_and_checkpoint(tmp_path):
    message = r"loss/total is not finite at step 4; last good .* step 2, in"
    with pytest.raises(FloatingPointError, match=message):
        fit(tmp_path, "breaking")
    # What comes next may be tried at once.
    result = fit(tmp_path, "breaking", on_nonfinite="skip")
    assert result.steps == 20 and np.isfinite(result.loss)


def test_skip_goes_on_and_says_so(tmp_path, capsys):
    result = fit(tmp_path, "breaking", on_nonfinite="skip")
    assert np.isfinite(result.loss)
    assert (
        "step 4 was skipped: loss/total is not finite"
        in capsys.readouterr().err
    )


def test_skip_gives_up_after_ten(tmp_path):
    with pytest.raises(FloatingPointError, match=r"\(10 such steps in a row"):
        fit(tmp_path, "broken", on_nonfinite="skip")
    saved = sorted((tmp_path / "checkpoints").glob("*.index"))
    for value in test_loop.tensors(tmp_path, int(saved[-1].stem[-8:])).values():
        value = np.asarray(value)
        if value.dtype.kind == "f" and value.size > 1:
            assert np.isfinite(value).all()


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))
    import local_workers

    started = []

    def start(workdir, **changes):
        processes = local_workers.start(
            2,
            runs.argv(workdir, **{**test_strategies.TEN, **changes}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=lambda index: True,
        )
        started.extend(processes)
        return processes

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(process, beginning):
    for line in process.stderr:
        if line.startswith(beginning):
            return
    raise AssertionError(f"it ended without {beginning!r}")


@pytest.mark.slow
def test_two_workers_sigterm_to_one_and_on_with_another_number(
    workers, tmp_path
):
    """All save, and one process goes on where two were stopped.

    Each of the two has half of the memory, the one all of it.
    """
    chief, other = workers(
        tmp_path / "two",
        log_every=1,
        checkpoint_every=100,
        memory_placement="sharded",
    )
    wait_for(chief, "step 3/10")
    other.send_signal(signal.SIGTERM)
    _, errors = chief.communicate(timeout=60)
    _, other_errors = other.communicate(timeout=60)
    assert (chief.returncode, other.returncode) == (42, 42), errors
    assert "another worker's signal after step" in errors
    assert "SIGTERM after step" in other_errors
    (saved,) = (tmp_path / "two" / "checkpoints").glob("*.index")
    assert 3 <= int(saved.stem[-8:]) < 10
    for name in ("two", "one"):
        runs.fit(tmp_path / name, **test_strategies.TEN)
    assert runs.began_after(tmp_path / "two") == int(saved.stem[-8:])
    test_strategies.assert_near(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_worker_that_dies_is_noticed(workers, tmp_path):
    chief, other = workers(tmp_path, steps=5000, log_every=1)
    wait_for(chief, "step 3/5000")
    other.kill()
    _, errors = chief.communicate(timeout=60)
    assert chief.returncode == 42
    assert "another worker has gone" in errors
    assert "Traceback" not in errors


def test_the_tool_that_starts_workers(tmp_path):
    """A flag that is wrong is each worker's error, and the tool's."""
    process = subprocess.run(
        [
            sys.executable,
            str(TOOLS / "local_workers.py"),
            "--",
            "--labels=7",
            "--steps=1",
            f"--workdir={tmp_path}",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CONFIG": json.dumps({})},
        check=False,
    )
    assert process.returncode == 1
    assert "--labels=7: not divisible" in process.stderr


@pytest.mark.slow
def test_workers_with_other_flags(tmp_path, monkeypatch):
    """Found before they train; nothing is written."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import local_workers

    (port,) = local_workers.free_ports(1)
    hosts = [f"localhost:{port}", f"localhost:{local_workers.free_ports(1)[0]}"]
    processes = []
    for index, rate in enumerate((0.03, 0.04)):
        task = {"type": "worker", "index": index}
        content = {"cluster": {"worker": hosts}, "task": task}
        processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "simmatch_tf.train",
                    *runs.argv(tmp_path / "run", learning_rate=rate),
                ],
                env={**os.environ, "TF_CONFIG": json.dumps(content)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    (_, chief), (_, other) = (p.communicate(timeout=120) for p in processes)
    for process, errors in zip(processes, (chief, other), strict=True):
        assert process.returncode == 1
        assert "--learning_rate=0.04 there and --learning_rate=0.03" in errors
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_a_full_disk_for_tensorboard_does_not_stop_the_run(
    disk, finished_run, tmp_path, monkeypatch, caplog
):
    """Pictures of a run are not the run."""
    evaluate = loop._Run._evaluate

    def hook(self, step):
        evaluate(self, step)
        if step == 3:
            fill(disk)

    (tmp_path / "run").mkdir()
    (disk / "board").mkdir()
    (tmp_path / "run" / "tensorboard").symlink_to(disk / "board")
    monkeypatch.setattr(loop._Run, "_evaluate", hook)
    runs.fit(tmp_path / "run", picture_every=1)
    (said,) = [r.getMessage() for r in caplog.records if "goes on" in r.msg]
    assert "No space left on device" in said and "{{" not in said
    test_loop.assert_same_run(finished_run[0], tmp_path / "run", 6)
