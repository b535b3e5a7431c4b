"""One process for all tests: two logical CPUs, and small runs to share."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The same kernels in this process and in those that it starts, commands or not;
# what is served must not depend on its batch.
os.environ.setdefault("SIMMATCH_TF_ONEDNN", "0")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", os.environ["SIMMATCH_TF_ONEDNN"])

import pytest
import tensorflow as tf

from simmatch_tf.distributed import strategies
from tests import runs, small_datasets

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def two_replicas():
    return strategies.mirrored(("CPU:0", "CPU:1"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A workdir of a finished small run, not to be written to."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = runs.fit(workdir)
    return workdir, result


@pytest.fixture(scope="session")
def small_tfds(tmp_path_factory):
    """A TFDS folder with small datasets in place of the real ones."""
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
    """Two pools of threads get into each other's way."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Indices that are kept stay out of the user's folder."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
