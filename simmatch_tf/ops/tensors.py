"""Precision and shapes of tensors, as every equation checks them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from simmatch_tf.lazy import tf


def widen(*values: Any) -> list[tf.Tensor]:
    """Converts values to tensors of float32, or float64 if all are float64.

    Half precision is for networks only: log(softmax) of it is 0 · -inf, and a
    sum over many slots is wrong in the second digit.

    Args:
        *values: Tensors or arrays of any dtype.
    """
    tensors = [tf.convert_to_tensor(value) for value in values]
    double = all(tensor.dtype == tf.float64 for tensor in tensors)
    dtype = tf.float64 if double else tf.float32
    return [tf.cast(tensor, dtype) for tensor in tensors]


def check(**tensors: tuple[tf.Tensor, Sequence[str | int]]) -> None:
    """Checks ranks, and that dimensions of one name are equal.

    Args:
        **tensors: Name → (tensor, dimensions). A dimension is a number or a
            letter; the same letter is the same number everywhere. Dimensions
            that are not known statically pass.

    Raises:
        ValueError: A shape does not fit; the message names the tensor, its
            shape and the shape wanted.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, wanted) in tensors.items():
        shape = tensor.shape
        if shape.rank is None:
            continue
        fits = shape.rank == len(wanted)
        for own, want in zip(shape, wanted, strict=False):
            if own is None:
                continue
            if isinstance(want, str):
                want = sizes.setdefault(want, own)
            fits = fits and own == want
        if not fits:
            raise ValueError(
                f"{name} has shape {tuple(shape)}, but "
                f"[{', '.join(map(str, wanted))}] is wanted"
                + (f" with {sizes}" if sizes else "")
            )
