"""TensorFlow, Keras and NumPy, imported when they are first used.

A file that registers an algorithm, an image source or a backbone is imported
before TensorFlow is, for its flags; so are the files that it imports. They take
`tf`, `keras` and `np` from here and derive what holds variables from `Module`.
Annotations that name `tf.Tensor` need `from __future__ import annotations`.
"""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any


class _LazyModule(types.ModuleType):
    """Stands for a module, and imports it when an attribute is asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.__name__), name)


tf = _LazyModule("tensorflow")
keras = _LazyModule("keras")
np = _LazyModule("numpy")


class Module:
    """Base of classes that hold variables; its instances are tf.Modules.

    The class itself is plain Python, so that it can be defined before
    TensorFlow is imported: an instance is of a subclass that also derives from
    tf.Module, made when the first one is created.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Module:
        """Creates an instance of the class joined with tf.Module."""
        del args, kwargs
        return object.__new__(_joined(cls))


@functools.cache
def _joined(cls: type) -> type:
    """The class with tf.Module as its last base."""
    if issubclass(cls, tf.Module):
        return cls
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return types.new_class(
        cls.__name__, (cls, tf.Module), exec_body=lambda ns: ns.update(names)
    )


class _Follower:
    """Has a module imported right after another one."""

    def __init__(self, name: str, follower: str) -> None:
        self._name, self._follower = name, follower

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Finds the module, and adds to what its import executes."""
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            execute = spec.loader.exec_module

            def both(module: types.ModuleType) -> None:
                execute(module)
                importlib.import_module(self._follower)

            spec.loader.exec_module = both
        return spec


def import_after(name: str, follower: str) -> None:
    """Imports `follower` as soon as the module `name` is imported."""
    if sys.modules.get(name) is not None:
        importlib.import_module(follower)
    elif name not in sys.modules:  # else it is blocked
        sys.meta_path.insert(0, _Follower(name, follower))
