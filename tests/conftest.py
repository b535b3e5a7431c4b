"""One process for all tests: two logical CPUs, and small runs to share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
import tensorflow as tf

from tests import runs

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def two_replicas():
    # One for all tests: two of them in one process number their collective
    # operations alike, and TensorFlow takes the second's for the first's.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A workdir of a finished small run, not to be written to."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = runs.fit(workdir)
    return workdir, result
