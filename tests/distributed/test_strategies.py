"""Runs on several devices: the same as on one."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf.distributed import strategies
from simmatch_tf.flags.errors import InputError
from simmatch_tf.modules import shard
from tests import runs

TEN = {
    "steps": 10,
    "checkpoint_every": 5,
    "eval_every": 10,
    "threshold": 0.2,
    # In float32 an activation that is nearly 0 may fall on either side of
    # LeakyReLU's corner, and the two runs part:
    # tools/benchmarks/compare_devices.py.
    "precision": "float64",
}
NEAR = 1e-9


def tensors(workdir, step):
    reader = tf.train.load_checkpoint(
        str(workdir / "checkpoints" / f"step_{step:08d}")
    )
    return {
        name: np.asarray(reader.get_tensor(name))
        for name in reader.get_variable_to_shape_map()
        if "OBJECT_GRAPH" not in name
    }


def assert_near(one, other, *, step=10, bound=NEAR, least=0.0):
    a, b = tensors(one, step), tensors(other, step)
    assert a.keys() == b.keys()
    for name, value in a.items():
        if value.dtype.kind == "f":
            gap = np.linalg.norm(np.ravel(value - b[name]).astype(float))
            size = np.linalg.norm(np.ravel(b[name]).astype(float))
            assert gap <= bound * max(size, least), (name, gap, size)
        else:
            np.testing.assert_array_equal(value, b[name], err_msg=name)


def command(workdir, **changes):
    words = runs.argv(workdir, **{**TEN, **changes})
    process = subprocess.run(
        [sys.executable, "-m", "simmatch_tf.train", *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(
    scope="module",
    params=[pytest.param("teacher", marks=pytest.mark.slow), "student"],
)
def alone(request, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("one") / "run"
    runs.fit(workdir, targets_from=request.param, **TEN)
    return request.param, workdir


@pytest.mark.slow
def test_two_replicas_and_back(alone, tmp_path):
    memory, one = alone
    two = tmp_path / "run"
    placement = {"teacher": "sharded", "student": "replicated"}[memory]
    runs.fit(
        two, targets_from=memory, devices=2, memory_placement=placement, **TEN
    )
    assert_near(one, two)
    # Half of the way by two, the rest by one.
    for path in (two / "checkpoints").glob("step_00000010*"):
        path.unlink()
    (two / "results.json").unlink()
    resumed = runs.fit(two, targets_from=memory, devices=1, **TEN)
    assert resumed.steps == 10
    assert runs.began_after(two) == 5
    assert_near(one, two)


@pytest.mark.slow
def test_into_shards_and_on(alone, tmp_path, monkeypatch):
    """From the checkpoint of one device to half of the memory on each."""
    memory, one = alone
    two = tmp_path / "run"
    shutil.copytree(one, two)
    for path in (two / "checkpoints").glob("step_00000010*"):
        path.unlink()
    (two / "results.json").unlink()
    seen = []
    real = shard.Shard.spread
    monkeypatch.setattr(
        shard.Shard,
        "spread",
        lambda self, whole: seen.append(self.size) or real(self, whole),
    )
    runs.fit(
        two, targets_from=memory, devices=2, memory_placement="sharded", **TEN
    )
    assert set(seen) == {10}  # of 20 slots
    assert runs.began_after(two) == 5
    assert_near(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("alone", ["student"], indirect=True)
def test_four_replicas_by_the_command(alone, tmp_path):
    memory, one = alone
    result = command(
        tmp_path / "run",
        targets_from=memory,
        devices=4,
        memory_placement="sharded",
    )
    assert_near(one, tmp_path / "run")
    alone_result = json.loads((one / "results.json").read_text())
    # An image at the border of two classes may go either way.
    assert abs(result["top1"] - alone_result["top1"]) <= 2 / 397


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 3}, "batch_size=8: is not divisible by 3 devices"),
        ({"devices": 16}, "is not divisible by 16 devices"),
        ({"strategy": "one", "devices": 2}, "strategy=one and --devices=2"),
        ({"jit_compile": True, "devices": 2}, "jit_compile with 2 devices"),
        ({"tpu": "x", "strategy": "one"}, "--tpu=x and --strategy=one"),
        (
            {"teacher_norm": "shuffle"},
            "is for --targets_from=teacher; ",
        ),
        ({"data_service": "h:1"}, "--data_service=h:1: must be grpc://"),
    ],
)
def test_what_is_refused_at_once(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        runs.config(tmp_path, **changes)


def test_more_devices_than_there_are(tmp_path):
    with pytest.raises(InputError, match="--devices=4: there are 2 CPUs"):
        simmatch_tf.fit(runs.config(tmp_path / "run", devices=4))
    assert not (tmp_path / "run").exists()


def test_other_devices_in_the_same_process(two_replicas):
    assert strategies.mirrored(("CPU:0", "CPU:1")) is two_replicas
    with pytest.raises(InputError, match="start another process"):
        strategies.mirrored(("CPU:0", "CPU:1", "CPU:2"))


def test_auto_is_one_device_without_gpus(tmp_path, capsys):
    config = runs.config(tmp_path)
    assert config.strategy == "auto"
    assert strategies.make(config).num_replicas_in_sync == 1
    mirrored = dataclasses.replace(config, strategy="mirrored")
    assert strategies.make(mirrored).num_replicas_in_sync == 2
    assert capsys.readouterr().err == "training on CPU:0, CPU:1\n"


@pytest.mark.parametrize(
    ("precision", "flags", "warns"),
    [
        ("mixed_bfloat16", "fma avx2", True),
        ("mixed_bfloat16", "avx2 avx512_bf16", False),
        ("mixed_float16", "avx2 avx512_bf16", True),
        ("float32", "fma avx2", False),
    ],
)
def test_a_precision_that_the_cpu_lacks(
    precision, flags, warns, tmp_path, capsys
):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    strategies._warn_of_precision(precision, tmp_path / "cpuinfo")
    assert ("many times as long" in capsys.readouterr().err) == warns
    strategies._warn_of_precision(precision, tmp_path / "nowhere")
