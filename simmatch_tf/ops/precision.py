"""In what precision losses and matching are computed."""

from __future__ import annotations

from typing import Any

from simmatch_tf.lazy import tf


def widen(*values: Any) -> list[tf.Tensor]:
    """Turns values into tensors of float32, or float64 where all are that.

    Half precision goes no further than the network: log(softmax) of it is
    0 · -inf, and a sum over many slots is wrong in the second digit.

    Args:
        *values: Tensors or arrays of any dtype.
    """
    tensors = [tf.convert_to_tensor(value) for value in values]
    double = all(tensor.dtype == tf.float64 for tensor in tensors)
    dtype = tf.float64 if double else tf.float32
    return [tf.cast(tensor, dtype) for tensor in tensors]
