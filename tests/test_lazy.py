"""Files that register something, and what they import, leave TensorFlow out."""

import subprocess
import sys

import pytest

_IMPORT_ALL = """
import importlib, pkgutil, sys
from simmatch_tf import config, registry
for name in ("algorithms", "modules", "ops"):
    package = importlib.import_module("simmatch_tf." + name)
    for module in pkgutil.iter_modules(package.__path__):
        # Its class derives from one of Keras'.
        if module.name != "optimizer":
            importlib.import_module(package.__name__ + "." + module.name)
names = set(registry.algorithms.names())
assert names >= {"simmatch", "fixmatch", "supervised"}
config.Config.declared()
assert not {"tensorflow", "keras", "numpy"} & set(sys.modules)
"""


def test_algorithms_are_declared_without_tensorflow():
    command = [sys.executable, "-c", _IMPORT_ALL]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_instances_of_a_module_are_tf_modules():
    tf = pytest.importorskip("tensorflow")
    from simmatch_tf.modules import loss_scale, record

    for kind in (loss_scale.LossScale, record.Record):
        instance = kind()
        assert isinstance(instance, kind) and isinstance(instance, tf.Module)
        assert type(instance).__name__ == kind.__name__
        assert instance.variables
