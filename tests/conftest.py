"""Fixtures that tests share. TensorFlow is imported by the tests alone."""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The same kernels in this process and in those that it starts, commands or not;
# what is served must not depend on its batch.
os.environ.setdefault("SIMMATCH_TF_ONEDNN", "0")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", os.environ["SIMMATCH_TF_ONEDNN"])

import pytest


def pytest_collection_finish():
    """Divides the CPU in two before a test makes TensorFlow use it."""
    if "tensorflow" in sys.modules:
        divide_cpu()


def divide_cpu():
    """Gives TensorFlow two logical CPUs, so that it can have two replicas."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    if tf.config.get_logical_device_configuration(cpu) is None:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * 2
        )


@pytest.fixture(scope="session")
def two_replicas():
    divide_cpu()
    from simmatch_tf.distributed import strategies

    return strategies.mirrored(("CPU:0", "CPU:1"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A workdir of a finished small run, not to be written to."""
    divide_cpu()
    from tests import runs

    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, runs.fit(workdir)


@pytest.fixture(scope="session")
def small_tfds(tmp_path_factory):
    """A TFDS folder with small datasets in place of the real ones."""
    from tests import small_datasets

    folder = tmp_path_factory.mktemp("tfds")
    for name in small_datasets.KINDS:
        many = small_datasets.KINDS[name][3] > 10
        per_class = 2 if many else 4
        if name.startswith("imagenet2012_subset"):
            per_class = 1  # the first image of each class
        small_datasets.prepare(folder, name, per_class)
    return str(folder)


@pytest.fixture
def one_torch_thread():
    """Keeps PyTorch's threads out of TensorFlow's way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keeps the tests' caches out of the user's folder."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
