"""Matching in one pass over the memory bank, block by block.

The result equals that of `propagation` and `losses.instance_loss`, one after
the other, which are its definition. For each image it needs these sums over
all slots

    S_i = Σ_{k: Q_l[k] = i} e^{z^w·Q_f[k] / t}           [L]  q^agg = S / Σ S
    Σ_k ŵ_k,  Σ_k ŵ_k Q_f[k]          ŵ_k = p^w[Q_l[k]] e^{z^w·Q_f[k] / t}
    Σ_k w_k,  Σ_k w_k Q_f[k]          w_k = e^{z^s·Q_f[k] / t}

whose quotients c^ = Σ ŵ Q_f / Σ ŵ and c^s = Σ w Q_f / Σ w give (slides, L_in)

    H(q̂, q^s) = log Σ_k w_k - z^s·c^ / t,     ∂H/∂z^s = (c^s - c^) / t

Slots are added block by block. A block is laid out [slots, N]: then the class
of a slot picks a row of p^w, and adds a row to the class sums. Nothing of size
N × K is kept for the gradient; where the memory bank is more than one block
(see `_block_size`), nothing of that size is computed at once. The letters are
those of `algorithms.simmatch`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from simmatch_tf.lazy import tf
from simmatch_tf.ops import propagation, tensors

# From this temperature on no shift is needed: with unit rows exponents are
# within ±1/t, so sums over any memory are finite, and no term is flushed to 0.
FIXED_SHIFT_FROM = 0.05
# A block's [slots, N] stays in a processor's cache; few slots are one block
# (tools/benchmarks/benchmark_matching.py).
_BLOCK, _WHOLE, _FEW = 655_360, 2_097_152, 8_192
# A shift before the first block; -inf - -inf would be NaN.
_NOTHING = -1e30


class Partials(NamedTuple):
    """Sums over the slots of one shard of the memory bank.

    In each exponential the sum's shift is subtracted from the exponent.

    Attributes:
        class_sums: S [L, N].
        target_total: Σ ŵ [N].
        target_context: Σ ŵ Q_f [N, D].
        student_total: Σ w [N].
        student_context: Σ w Q_f [N, D].
        shifts: Shifts of S, of ŵ and of w, [3, N]; 0 where none is needed.
    """

    class_sums: tf.Tensor
    target_total: tf.Tensor
    target_context: tf.Tensor
    student_total: tf.Tensor
    student_context: tf.Tensor
    shifts: tf.Tensor


def match(
    z_w: tf.Tensor,
    z_s: tf.Tensor,
    p_w: tf.Tensor,
    memory: tf.Tensor,
    memory_labels: tf.Tensor,
    *,
    num_classes: int,
    temperature: float,
    alpha: float,
    scale: bool = True,
    valid: tf.Tensor | None = None,
    present: tf.Tensor | None = None,
    block_size: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes class pseudo-labels and instance losses (Eq. 3 to 10, L_in).

    Args:
        z_w: Of the weak views, [N, D], unit rows; a target: no gradient.
        z_s: Of the strong views, [N, D], unit rows; the only input that a
            gradient goes to.
        p_w: Aligned class probabilities [N, L]; a target: no gradient.
        memory: Q_f [K, D], unit rows (or zeros), K known statically; no
            gradient.
        memory_labels: Q_l [K], int32 or int64 in [0, L), in any order; not
            checked.
        num_classes: Number of classes L.
        temperature: t > 0, a Python number.
        alpha: α in [0, 1], a Python number.
        scale: False leaves Eq. 8 out: q̂ is q^w (Table 5).
        valid: [K] bool, slots that take part; default: all.
        present: Which classes have a valid slot, [L] bool; default: computed.
        block_size: Slots in a block; default: chosen by size. It changes the
            result by rounding only.

    Returns:
        p̂ [N, L] and H(q̂, q^s) of each image [N] (0, with gradient 0, if no
        slot is valid); float32, or float64 where all inputs are. There is no
        second derivative.

    Raises:
        ValueError: A shape does not fit, or a number is out of range.
    """
    parts = partials(
        z_w,
        z_s,
        p_w,
        memory,
        memory_labels,
        num_classes=num_classes,
        temperature=temperature,
        scale=scale,
        valid=valid,
        present=present,
        block_size=block_size,
    )
    return combine(parts, z_s, p_w, temperature=temperature, alpha=alpha)


def partials(
    z_w: tf.Tensor,
    z_s: tf.Tensor,
    p_w: tf.Tensor,
    memory: tf.Tensor,
    memory_labels: tf.Tensor,
    *,
    num_classes: int,
    temperature: float,
    scale: bool = True,
    valid: tf.Tensor | None = None,
    present: tf.Tensor | None = None,
    block_size: int | None = None,
) -> Partials:
    """Computes the sums over one shard of the memory bank.

    Args:
        z_w: See `match`, also for what is not said here.
        z_s: See `match`; no gradient goes to it here.
        p_w: See `match`.
        memory: Embeddings of the shard.
        memory_labels: Classes of its slots.
        num_classes: Number of classes L.
        temperature: t.
        scale: Whether q̂ has a factor of p^w.
        valid: Which of its slots take part.
        present: Which classes have a valid slot in any shard; default: in
            this one.
        block_size: Slots in a block.

    Returns:
        The sums; their dtype is float32, or float64 where all inputs are.

    Raises:
        ValueError: As in `match`.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    z_w, z_s, p_w, memory = (
        tf.stop_gradient(x) for x in tensors.widen(z_w, z_s, p_w, memory)
    )
    labels = tf.convert_to_tensor(memory_labels)
    if labels.dtype not in (tf.int32, tf.int64):
        raise ValueError(
            f"memory_labels of {labels.dtype.name}: must be int32 or int64"
        )
    labels = tf.cast(labels, tf.int32)
    tensors.check(
        z_w=(z_w, "ND"),
        z_s=(z_s, "ND"),
        p_w=(p_w, ("N", num_classes)),
        memory=(memory, "KD"),
        memory_labels=(labels, "K"),
    )
    if memory.shape.rank is None or not memory.shape[0]:
        raise ValueError(
            f"memory has shape {memory.shape}: at least one slot is "
            "wanted, and their number known statically"
        )
    if valid is not None:
        valid = tf.cast(tf.convert_to_tensor(valid), tf.bool)
        tensors.check(memory=(memory, "KD"), valid=(valid, "K"))
    if present is None:
        present = classes_present(labels, num_classes, valid)
    present = tf.cast(tf.convert_to_tensor(present), tf.bool)
    tensors.check(present=(present, (num_classes,)))
    p_scale = relative(p_w, present) if scale else tf.ones_like(p_w)
    table = tf.transpose(p_scale)  # [L, N]
    unshifted = temperature >= FIXED_SHIFT_FROM
    block = functools.partial(
        _add_unshifted if unshifted else _add_shifted,
        z_w=z_w / temperature,
        z_s=z_s / temperature,
        table=table if unshifted else tf.math.log(table),
    )
    size = block_size or _block_size(memory.shape[0], z_w.shape[0])
    sums = _zeros(z_w, num_classes, shifted=not unshifted)
    sums = _over_blocks(block, sums, memory, labels, valid, size)
    if unshifted:
        total = tf.reduce_sum(table * sums.class_sums, axis=0)
        sums = sums._replace(target_total=total)
    return sums


def combine(
    sums: Partials,
    z_s: tf.Tensor,
    p_w: tf.Tensor,
    *,
    temperature: float,
    alpha: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the result of `match` from the sums over all slots.

    Args:
        sums: The sums. Those of several shards must have been brought to the
            same shifts (`rebase`) and added.
        z_s: [N, D]; gets the gradient.
        p_w: [N, L].
        temperature: t > 0.
        alpha: α in [0, 1].

    Raises:
        ValueError: A shape does not fit, or a number is out of range.
    """
    dtype = sums.class_sums.dtype
    z_s, p_w = tf.cast(z_s, dtype), tf.stop_gradient(tf.cast(p_w, dtype))
    tensors.check(
        context=(sums.student_context, "ND"),
        class_sums=(sums.class_sums, "LN"),
        z_s=(z_s, "ND"),
        p_w=(p_w, "NL"),
    )
    divide = tf.math.divide_no_nan
    q_agg = divide(sums.class_sums, tf.reduce_sum(sums.class_sums, axis=0))
    p_hat = propagation.smooth(p_w, tf.transpose(q_agg), alpha)  # [N, L]

    target = divide(sums.target_context, sums.target_total[:, None])  # [N, D]
    student = divide(sums.student_context, sums.student_total[:, None])
    any_slot = sums.student_total > 0  # [N]
    total = tf.where(any_slot, sums.student_total, 1.0)
    log_sum = tf.where(any_slot, tf.math.log(total) + sums.shifts[2], 0.0)
    slope = (student - target) / temperature  # [N, D]

    @tf.custom_gradient
    def loss(z):
        match = tf.reduce_sum(z * target, axis=1) / temperature  # [N]
        return log_sum - match, lambda upstream: upstream[:, None] * slope

    return p_hat, loss(z_s)


def classes_present(
    labels: tf.Tensor, num_classes: int, valid: tf.Tensor | None = None
) -> tf.Tensor:
    """Returns which classes have a valid slot, [L] bool."""
    here = tf.ones_like(labels) if valid is None else valid
    return (
        tf.math.unsorted_segment_max(
            tf.cast(here, tf.int32), labels, num_classes
        )
        > 0
    )


def relative(p_w: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """Divides p^w by its largest value among the classes present.

    Other classes become 0. Only ratios of products matter in q̂, and this way
    two small factors do not underflow to a row of zeros. A row that is 0 for
    the class of every slot becomes 1: then q̂ is q^w.

    Args:
        p_w: p^w [N, L].
        present: Which classes have a valid slot, [L] bool.

    Returns:
        [N, L].
    """
    p_w = tf.where(present, p_w, 0.0)
    largest = tf.reduce_max(p_w, axis=1, keepdims=True)
    return tf.where(largest > 0, tf.math.divide_no_nan(p_w, largest), 1.0)


def _block_size(slots: int, n: int | None) -> int:
    if n is None:
        return min(slots, 2048)
    if slots <= _FEW and slots * n <= _WHOLE:
        return slots
    return min(slots, 2048, max(256, _BLOCK // max(n, 1) // 256 * 256))


def rebase(sums: Partials, shifts: tf.Tensor) -> Partials:
    """Changes the shifts of sums, so that several shards' can be added.

    Args:
        sums: The sums of one shard.
        shifts: The largest shifts of all shards, [3, N].
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
    """Returns the sums of `count` images from the one at `start` on."""

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


def _over_blocks(
    block: Callable[..., Partials],
    sums: Partials,
    memory: tf.Tensor,
    labels: tf.Tensor,
    valid: tf.Tensor | None,
    size: int,
) -> Partials:
    """Adds all slots to the sums, `size` slots at a time."""

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


def _zeros(z: tf.Tensor, num_classes: int, shifted: bool) -> Partials:
    """Returns sums over no slots."""
    none, context = tf.zeros_like(z[:, 0]), tf.zeros_like(z)
    shift = none + _NOTHING if shifted else none
    sums = tf.tile(none[None], [num_classes, 1])
    return Partials(sums, none, context, none, context, tf.stack([shift] * 3))


def _add_unshifted(
    sums: Partials,
    q: tf.Tensor,
    labels: tf.Tensor,
    keep: tf.Tensor | None,
    z_w: tf.Tensor,
    z_s: tf.Tensor,
    table: tf.Tensor,
) -> Partials:
    """Adds a block of slots to the sums, without shifts.

    Args:
        sums: The sums so far. `target_total` is computed from the class sums
            at the end.
        q: Embeddings of the block's k slots [k, D].
        labels: Their classes [k].
        keep: Which of them take part [k, 1]; None for all.
        z_w: z^w / t [N, D].
        z_s: z^s / t [N, D].
        table: p^w of `relative`, transposed [L, N].
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


def _add_shifted(
    sums: Partials,
    q: tf.Tensor,
    labels: tf.Tensor,
    keep: tf.Tensor | None,
    z_w: tf.Tensor,
    z_s: tf.Tensor,
    table: tf.Tensor,
) -> Partials:
    """Adds a block whose exponents may be of any size; see `_add_unshifted`.

    Here `table` is the logarithm of p^w.
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
