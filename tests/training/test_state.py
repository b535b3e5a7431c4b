"""How a run is put together."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf.algorithms import simmatch
from simmatch_tf.distributed import strategies
from simmatch_tf.training import inputs
from simmatch_tf.training import workdir as workdir_lib
from tests import runs


@pytest.fixture
def config(tmp_path):
    return runs.config(tmp_path, steps=3)


@pytest.fixture
def batches(config, tmp_path):
    source = inputs.make_source(config)
    split = inputs.make_split(config, source, workdir_lib.Workdir(tmp_path))
    return inputs.make_pipeline(config, source, split, simmatch.SimMatch)


@pytest.mark.parametrize("devices", [1, 2])
def test_every_replica_gets_its_share(devices, config, batches, two_replicas):
    strategy = two_replicas if devices == 2 else strategies.one()
    wanted = list(batches.dataset(1, 3).as_numpy_iterator())
    divided = list(inputs.make_batches(strategy, batches, 1, config))
    assert len(divided) == 2
    for one, other in zip(wanted, divided, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            shares = strategy.experimental_local_results(other[name])
            assert len(shares) == devices
            np.testing.assert_array_equal(tf.concat(shares, 0), one[name])


def test_nothing_is_tuned_behind_our_back(batches):
    # The tuner's thread may hold up the end of a run for a minute.
    assert batches.dataset(0, 1).options().autotune.enabled is False


def test_a_checkpoint_that_is_being_written_is_left_alone(
    finished_run, tmp_path
):
    """A run may be looked at while it trains; its own start tidies up."""
    workdir = tmp_path / "run"
    shutil.copytree(finished_run[0], workdir)
    (workdir / "results.json").unlink()  # it goes on
    half = workdir / "checkpoints" / "step_00000007_temp"
    half.mkdir()
    simmatch_tf.load(workdir)
    assert half.is_dir()
    runs.fit(workdir)
    assert not half.exists()
