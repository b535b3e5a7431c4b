"""How a batch is divided: by replicas, whatever devices these are."""

import pathlib
import pickle
import subprocess
import types

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import simmatch
from simmatch_tf.data import pipeline
from simmatch_tf.distributed import strategies
from simmatch_tf.serving import scoring
from simmatch_tf.training import inputs, results
from simmatch_tf.training import workdir as workdir_lib
from tests import recording, runs
from tests.data.test_service import address  # noqa: F401
from tests.distributed import test_strategies

ROOT = pathlib.Path(__file__).resolve().parents[2]
# A batch that two and three workers can divide.
FIFTY = {
    **test_strategies.TEN,
    "batch_size": 12,
    "steps": 50,
    "checkpoint_every": 50,
    "eval_every": 50,
    "log_every": 10,
}


def one_cpu(number, workers):
    """What `iterate` asks of a strategy, for one of several workers.

    It stands in for MultiWorkerMirroredStrategy on a machine without GPUs,
    which begins once all its workers have met.
    """
    device = f"/job:worker/replica:0/task:{number}/device:CPU:0"
    context = tf.distribute.experimental.ValueContext(number, workers)
    return types.SimpleNamespace(
        extended=types.SimpleNamespace(worker_devices=(device,)),
        num_replicas_in_sync=workers,
        experimental_distribute_values_from_function=lambda f: f(context),
        experimental_local_results=lambda value: (value,),
    )


@pytest.fixture(params=["one", "two devices", "copied", 2, 3])
def processes(request, two_replicas, monkeypatch):
    """Strategies, one for each process of a run."""
    if request.param == "copied":
        # As where each device is a GPU.
        monkeypatch.setattr(strategies, "_are_copied_to", lambda _: True)
    if isinstance(request.param, int):
        return [one_cpu(i, request.param) for i in range(request.param)]
    return [strategies.one() if request.param == "one" else two_replicas]


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    config = runs.config(folder, batch_size=12, steps=4)
    source = inputs.make_source(config)
    split = inputs.make_split(config, source, workdir_lib.Workdir(folder))
    return inputs.make_pipeline(config, source, split, simmatch.SimMatch)


def shares(strategy, elements):
    """Step → a structure of arrays for each replica of one process."""
    return [
        [
            tf.nest.map_structure(
                lambda x, i=i: strategy.experimental_local_results(x)[
                    i
                ].numpy(),
                element,
            )
            for i in range(len(strategy.extended.worker_devices))
        ]
        for element in elements
    ]


def assert_divided(processes, wanted):
    """The shares of all replicas, side by side, are the batches wanted.

    So no two replicas have the same part of a batch, and none is missing.

    Args:
        processes: Of each the shares, step by step, replica by replica.
        wanted: The batches of one device.
    """
    assert {len(steps) for steps in processes} == {len(wanted)}
    for batch, *parts in zip(wanted, *processes, strict=True):
        parts = [share for process in parts for share in process]
        joined = tf.nest.map_structure(lambda *x: np.concatenate(x), *parts)
        tf.nest.map_structure(np.testing.assert_array_equal, joined, batch)


def read_training(processes, batches, folder, **changes):
    config = runs.config(folder, batch_size=12, steps=4, **changes)
    return [
        shares(strategy, inputs.make_batches(strategy, batches, 1, config))
        for strategy in processes
    ]


def test_training(processes, batches, tmp_path):
    shares_of_processes = read_training(processes, batches, tmp_path)
    assert_divided(
        shares_of_processes, list(batches.dataset(1, 4).as_numpy_iterator())
    )


@pytest.mark.slow
def test_training_by_the_data_service(processes, batches, address, tmp_path):  # noqa: F811
    shares_of_processes = read_training(
        processes, batches, tmp_path, data_service=address
    )
    assert_divided(
        shares_of_processes, list(batches.dataset(1, 4).as_numpy_iterator())
    )


# Fewer images than replicas, a last batch in part, and several whole ones.
@pytest.mark.parametrize("many", [1, 2, 10, 24])
def test_evaluation(many, processes, batches):
    test, order = batches.source.test, np.arange(many)[::-1]

    def dataset(context):
        return pipeline.evaluation_dataset(
            test, order, min(6, many), side=8, context=context
        )

    shares_of_processes = [
        shares(strategy, strategies.iterate(strategy, dataset))
        for strategy in processes
    ]
    steps = [
        np.concatenate([x for parts in step for x in parts])
        for step in zip(*shares_of_processes, strict=True)
    ]
    np.testing.assert_array_equal(
        np.concatenate(steps)[:many], test.images[order]
    )


@pytest.mark.parametrize("planted", ["the whole batch", "the same share"])
def test_a_wrong_share_is_noticed(planted, batches, tmp_path, monkeypatch):
    count = {"the whole batch": 1, "the same share": 2}[planted]
    context = tf.distribute.InputContext(count, 0, count)
    monkeypatch.setattr(strategies, "_only_context", lambda _: context)
    workers = [one_cpu(number, 2) for number in range(2)]
    with pytest.raises(AssertionError):
        test_training(workers, batches, tmp_path)
    with pytest.raises(AssertionError):
        test_evaluation(10, workers, batches)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one device, and what it read."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    with recording.reads() as record:
        runs.fit(workdir, **FIFTY)
    return workdir, record


def assert_as_alone(alone, workdir, records):
    """A run on several devices is that of one.

    Args:
        alone: See the fixture.
        workdir: Of the other run.
        records: What each of its processes read.
    """
    # ----------------------------------------------------- what was read --
    one, read = alone
    whole = [share for (share,) in read["training"]]
    assert len(whole) == 50
    assert_divided([record["training"] for record in records], whole)
    evaluated = [
        np.concatenate([x for parts in step for x in parts])
        for step in zip(*(r["evaluation"] for r in records), strict=True)
    ]
    images = np.concatenate([share for (share,) in read["evaluation"]])
    np.testing.assert_array_equal(np.concatenate(evaluated)[:397], images[:397])
    # ---------------------------------------------------- what was shown --
    chief = records[0]
    for rows, others in zip(read["rows"], chief["rows"], strict=True):
        for name in ("view/weak", "view/strong", "truth"):
            many = len(others[name])
            np.testing.assert_array_equal(others[name], rows[name][:many])
    for record in records:
        for means, others in zip(read["means"], record["means"], strict=True):
            assert others.keys() <= means.keys()
            for name, value in others.items():
                np.testing.assert_allclose(
                    value, means[name], rtol=1e-5, atol=1e-6, err_msg=name
                )
    # ----------------------------------------------------- what is kept --
    test_strategies.assert_near(one, workdir, step=50)
    result = results.read(workdir / "results.json")
    folder = workdir_lib.Workdir(workdir)
    scores = scoring.of_run(folder, folder.read_config(), batch_size=256)
    for name, logits in scores.logits.items():
        top1 = np.mean(logits.argmax(1) == scores.labels)
        assert getattr(result, name)["last"]["top1"] == pytest.approx(top1)
    assert result.top1 == results.read(one / "results.json").top1


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_two_devices_are_one(placement, alone, tmp_path):
    with recording.reads() as record:
        runs.fit(tmp_path, devices=2, memory_placement=placement, **FIFTY)
    assert_as_alone(alone, tmp_path, [record])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "placement", "words"),
    [
        (2, "replicated", []),
        # As where each worker has a GPU.
        (2, "sharded", ["--copied"]),
        (3, "sharded", []),
    ],
)
def test_workers_are_one(
    workers, placement, words, alone, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import local_workers

    workdir = tmp_path / "run"
    flags = runs.argv(workdir, memory_placement=placement, **FIFTY)
    started = local_workers.start(
        workers,
        [str(tmp_path), *words, *flags],
        module="tests.recording",
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=lambda index: True,
    )
    try:
        for process in started:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    finally:
        for process in started:
            process.kill()
            process.communicate()
    records = [
        pickle.loads((tmp_path / f"worker_{number}").read_bytes())
        for number in range(workers)
    ]
    assert_as_alone(alone, workdir, records)
