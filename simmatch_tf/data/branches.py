"""Branches of a graph that are seldom taken, and then may cost more."""

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

_Function = TypeVar("_Function", bound=Callable)


def seldom(function: _Function) -> _Function:
    """Keeps a function a call in the graph, for a branch of `tf.cond`.

    In graphs, the operations of the branch that is not taken are visited all
    the same, one by one; beside the decoding of a small image that is most of
    the time. A call is one operation.

    Args:
        function: Takes and returns tensors; without side effects.
    """
    return tf.function(
        function,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
