"""Checks of shapes, made when a function is traced."""

from __future__ import annotations

from collections.abc import Sequence

from simmatch_tf.lazy import tf


def check(**tensors: tuple[tf.Tensor, Sequence[str | int]]) -> None:
    """Checks ranks, and that sizes of one name are equal.

    Args:
        **tensors: Name → (tensor, sizes); a size is a number or a letter, and
            the same letter is the same size everywhere. Sizes that are not
            known statically pass.

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
