"""Fixtures that tests share. TensorFlow is imported by the tests alone."""

import functools
import importlib.abc
import importlib.util
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The same kernels in this process and in those that it starts, commands or not;
# what is served must not depend on its batch.
os.environ.setdefault("SIMMATCH_TF_ONEDNN", "0")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", os.environ["SIMMATCH_TF_ONEDNN"])

import pytest


class _DividedCpu(importlib.abc.MetaPathFinder):
    """Gives TensorFlow two logical CPUs, for two replicas, once imported."""

    def find_spec(self, name, path=None, target=None):
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        spec.loader.exec_module = functools.partial(
            _import_and_divide, spec.loader.exec_module
        )
        return spec


def _import_and_divide(execute, module):
    execute(module)
    cpu = module.config.list_physical_devices("CPU")[0]
    module.config.set_logical_device_configuration(
        cpu, [module.config.LogicalDeviceConfiguration()] * 2
    )


sys.meta_path.insert(0, _DividedCpu())


@pytest.fixture(scope="session")
def two_replicas():
    from simmatch_tf.distributed import strategies

    return strategies.mirrored(("CPU:0", "CPU:1"))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A workdir of a finished small run, not to be written to."""
    from tests import runs

    workdir = tmp_path_factory.mktemp("finished") / "run"
    return workdir, runs.fit(workdir)


@pytest.fixture(scope="session")
def first_weights(tmp_path_factory):
    """A file of weights that nothing was trained on, for --init_from."""
    import numpy as np

    from simmatch_tf import runtime
    from simmatch_tf.networks import network

    path = tmp_path_factory.mktemp("weights") / "first.keras"
    with runtime.seeded(3), runtime.names_apart():
        model = network.build(
            "wrn_10_1",
            image_shape=(8, 8, 1),
            num_classes=None,
            projection_dim=None,
            mean=[0.3],
            std=[0.4],
        )
        random = np.random.default_rng(3)
        for variable in model.variables:  # as if it had seen images
            if "moving" in variable.path:
                variable.assign(random.uniform(0.1, 0.9, variable.shape))
        model.save(path)
    return path


@pytest.fixture(scope="session")
def frozen_run(first_weights, tmp_path_factory):
    """A run with --init_from that was killed before its first step.

    Its baseline is a model, which needs no checkpoint. Not to be written to.
    """
    from simmatch_tf.training import loop
    from tests import runs

    folder = tmp_path_factory.mktemp("frozen")

    def die(*arguments):
        raise RuntimeError("killed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(loop._Run, "_take_steps", die)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(
                folder / "run",
                baselines=True,
                labels=40,
                init_from=str(first_weights),
            )
    return folder / "run"


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
