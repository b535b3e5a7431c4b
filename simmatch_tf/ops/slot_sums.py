"""Sums over the slots of a memory, block by block: what `matching` is made of.

A block of slots is laid out [slots, N]: then the class of a slot picks a row of
p^w, and adds a row to the class sums.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from simmatch_tf.lazy import tf

# A shift before anything was seen; -inf - -inf would be NaN.
_NOTHING = -1e30


class Partials(NamedTuple):
    """Sums over the slots of one shard of the memory.

    Each exponent is taken less its shift.

    Attributes:
        class_sums: S [L, N].
        target_total: Σ ŵ [N].
        target_context: Σ ŵ Q_f [N, D].
        student_total: Σ w [N].
        student_context: Σ w Q_f [N, D].
        shifts: [3, N]: that of S, of ŵ and of w. 0 where none is needed.
    """

    class_sums: tf.Tensor
    target_total: tf.Tensor
    target_context: tf.Tensor
    student_total: tf.Tensor
    student_context: tf.Tensor
    shifts: tf.Tensor


def rebase(sums: Partials, shifts: tf.Tensor) -> Partials:
    """The same sums with other shifts, so that several can be added up.

    Args:
        sums: Of one shard.
        shifts: [3, N], the largest of all shards.
    """
    w, target, student = tf.unstack(tf.exp(sums.shifts - shifts))  # [N] each
    return Partials(
        sums.class_sums * w,
        sums.target_total * target,
        sums.target_context * target[:, None],
        sums.student_total * student,
        sums.student_context * student[:, None],
        shifts,
    )


def images(sums: Partials, start: tf.Tensor, count: int) -> Partials:
    """The sums of some of the images: `count` from the one at `start` on."""

    def rows(x: tf.Tensor) -> tf.Tensor:
        return tf.slice(x, [start, 0], [count, x.shape[1]])

    def columns(x: tf.Tensor) -> tf.Tensor:
        return tf.slice(x, [0, start], [x.shape[0], count])

    return Partials(
        columns(sums.class_sums),
        tf.slice(sums.target_total, [start], [count]),
        rows(sums.target_context),
        tf.slice(sums.student_total, [start], [count]),
        rows(sums.student_context),
        columns(sums.shifts),
    )


def over_blocks(
    block: Callable[..., Partials],
    sums: Partials,
    memory: tf.Tensor,
    labels: tf.Tensor,
    valid: tf.Tensor | None,
    size: int,
) -> Partials:
    """Adds all slots to the sums, `size` of them at a time."""

    def add(sums: Partials, start: tf.Tensor | int, size: int) -> Partials:
        q = tf.slice(memory, [start, 0], [size, memory.shape[1]])
        rows = tf.slice(labels, [start], [size])
        keep = None
        if valid is not None:
            keep = tf.slice(valid, [start], [size])[:, None]
            q = tf.where(keep, q, 0.0)  # such a row may hold anything
        return block(sums, q, rows, keep)

    blocks, rest = divmod(memory.shape[0], size)
    if blocks == 1:
        sums = add(sums, 0, size)
    elif blocks:
        _, sums = tf.while_loop(
            lambda number, _: number < blocks,
            lambda number, sums: (number + 1, add(sums, number * size, size)),
            (0, sums),
            # Products of one block beside exponentials of another.
            parallel_iterations=4,
        )
    return add(sums, blocks * size, rest) if rest else sums


def zeros(z: tf.Tensor, num_classes: int, shifted: bool) -> Partials:
    """Sums over no slot."""
    none, context = tf.zeros_like(z[:, 0]), tf.zeros_like(z)
    shift = none + _NOTHING if shifted else none
    sums = tf.tile(none[None], [num_classes, 1])
    return Partials(sums, none, context, none, context, tf.stack([shift] * 3))


def fixed(
    sums: Partials,
    q: tf.Tensor,
    labels: tf.Tensor,
    keep: tf.Tensor | None,
    z_w: tf.Tensor,
    z_s: tf.Tensor,
    table: tf.Tensor,
) -> Partials:
    """Adds a block, without shifts.

    Args:
        sums: So far; `target_total` follows from the class sums at the end.
        q: Slots of the block, k of them, [k, D].
        labels: Their classes [k].
        keep: [k, 1], those that take part.
        z_w: [N, D], over t.
        z_s: Likewise.
        table: p^w of `matching.relative`, [L, N].
    """
    e = tf.exp(tf.matmul(q, z_w, transpose_b=True))  # [k, N]
    if keep is not None:
        e = tf.where(keep, e, 0.0)
    classes = tf.math.unsorted_segment_sum(e, labels, table.shape[0])  # [L, N]
    e = e * tf.gather(table, labels)
    target_context = sums.target_context + tf.matmul(e, q, transpose_a=True)
    e = tf.exp(tf.matmul(q, z_s, transpose_b=True))
    if keep is not None:
        e = tf.where(keep, e, 0.0)
    return Partials(
        sums.class_sums + classes,
        sums.target_total,
        target_context,
        sums.student_total + tf.reduce_sum(e, axis=0),
        sums.student_context + tf.matmul(e, q, transpose_a=True),
        sums.shifts,
    )


def running(
    sums: Partials,
    q: tf.Tensor,
    labels: tf.Tensor,
    keep: tf.Tensor | None,
    z_w: tf.Tensor,
    z_s: tf.Tensor,
    table: tf.Tensor,
) -> Partials:
    """Adds a block whose exponents may be of any size; see `fixed`.

    Here `table` is the logarithm.
    """
    logits_w = tf.matmul(q, z_w, transpose_b=True)  # [k, N]
    logits_s = tf.matmul(q, z_s, transpose_b=True)
    if keep is not None:
        logits_w = tf.where(keep, logits_w, -float("inf"))
        logits_s = tf.where(keep, logits_s, -float("inf"))
    logits = [logits_w, logits_w + tf.gather(table, labels), logits_s]
    largest = tf.stack([tf.reduce_max(each, axis=0) for each in logits])
    sums = rebase(sums, tf.maximum(sums.shifts, largest))
    e, target, student = (
        tf.exp(each - shift)
        for each, shift in zip(logits, tf.unstack(sums.shifts), strict=True)
    )
    classes = tf.math.unsorted_segment_sum(e, labels, table.shape[0])  # [L, N]
    return Partials(
        sums.class_sums + classes,
        sums.target_total + tf.reduce_sum(target, axis=0),
        sums.target_context + tf.matmul(target, q, transpose_a=True),
        sums.student_total + tf.reduce_sum(student, axis=0),
        sums.student_context + tf.matmul(student, q, transpose_a=True),
        sums.shifts,
    )
