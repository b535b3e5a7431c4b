"""Matching in one pass over the memory: nothing of size N × K is kept.

The same as `similarity`, `propagation` and `losses.instance_loss` one after
the other, which are its definition. Per image it needs, of all slots, the sums

    S_i = Σ_{k: Q_l[k] = i} e^{z^w·Q_f[k] / t}           [L]  q^agg = S / Σ S
    Σ_k ŵ_k,  Σ_k ŵ_k Q_f[k]          ŵ_k = p^w[Q_l[k]] e^{z^w·Q_f[k] / t}
    Σ_k w_k,  Σ_k w_k Q_f[k]          w_k = e^{z^s·Q_f[k] / t}

whose quotients c^ = Σ ŵ Q_f / Σ ŵ and c^s = Σ w Q_f / Σ w give (slides, L_in)

    H(q̂, q^s) = log Σ_k w_k - z^s·c^ / t,     ∂H/∂z^s = (c^s - c^) / t

A block of slots is laid out [slots, N]: then the class of a slot picks a row of
p^w, and adds a row to S.
"""

from typing import NamedTuple

import tensorflow as tf

from simmatch_tf.ops import precision, propagation, shapes

# From this temperature on no shift is needed: with unit rows exponents are
# within ±1/t, so sums over any memory are finite, and no term is flushed to 0.
FIXED_SHIFT_FROM = 0.05
# A block's [slots, N] stays in a processor's cache; few slots are one block
# (tools/benchmark_matching.py).
_BLOCK, _WHOLE, _FEW = 655_360, 2_097_152, 8_192
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
        shifts: [3, N]: that of S, of ŵ and of w. 0 for t ≥ FIXED_SHIFT_FROM.
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
    valid: tf.Tensor | None = None,
    block_size: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Both pseudo-labels and the instance loss (slides, Eq. 3 to 10, L_in).

    Args:
        z_w: Of the weak views, [N, D], unit rows; a target: no gradient.
        z_s: Of the strong views, [N, D], unit rows; the only input that a
            gradient goes to.
        p_w: Aligned class probabilities [N, L]; a target: no gradient.
        memory: Q_f [K, D], unit rows (or zeros), K known statically; no
            gradient.
        memory_labels: Q_l [K], int32 or int64 in [0, L), in any order; not
            checked.
        num_classes: L.
        temperature: t > 0.
        alpha: α in [0, 1].
        valid: [K] bool, slots that take part; default: all.
        block_size: Slots to a block; default: by size, all at once where that
            is small. It moves the result by rounding alone.

    Returns:
        p̂ [N, L] and H(q̂, q^s) of each image [N] (0, with gradient 0, if no
        slot is valid); float32, or float64 where all inputs are.

    Raises:
        ValueError: A shape does not fit, or a number is out of range.
    """
    (z_s,) = precision.widen(z_s)
    parts = partials(
        z_w,
        z_s,
        p_w,
        memory,
        memory_labels,
        num_classes=num_classes,
        temperature=temperature,
        valid=valid,
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
    valid: tf.Tensor | None = None,
    present: tf.Tensor | None = None,
    block_size: int | None = None,
) -> Partials:
    """The sums over one shard of the memory; see `match` for the arguments.

    Args:
        z_w: See `match`, as for all that is not named here.
        z_s: No gradient goes to it here.
        p_w: Likewise.
        memory: The shard.
        memory_labels: Of its slots.
        num_classes: L.
        temperature: t.
        valid: Of its slots.
        present: [L] bool, classes with a valid slot in any shard; default: in
            this one. The same for all shards.
        block_size: Slots to a block.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if block_size is not None and block_size < 1:
        raise ValueError(f"block_size={block_size}: must be at least 1")
    z_w, z_s, p_w, memory = (
        tf.stop_gradient(x) for x in precision.widen(z_w, z_s, p_w, memory)
    )
    labels = tf.cast(tf.convert_to_tensor(memory_labels), tf.int32)
    shapes.check(
        z_w=(z_w, "ND"),
        z_s=(z_s, "ND"),
        p_w=(p_w, ("N", num_classes)),
        memory=(memory, "KD"),
        memory_labels=(labels, "K"),
    )
    slots, n = memory.shape[0], z_w.shape[0]
    if slots is None:
        raise ValueError("memory: its number of slots must be known statically")
    if valid is not None:
        valid = tf.cast(tf.convert_to_tensor(valid), tf.bool)
        shapes.check(memory=(memory, "KD"), valid=(valid, "K"))
    if present is None:
        present = classes_present(labels, num_classes, valid)
    relative = tf.transpose(_relative(p_w, present))  # [L, N]
    fixed = temperature >= FIXED_SHIFT_FROM
    table = relative if fixed else tf.math.log(relative)
    z_w, z_s = z_w / temperature, z_s / temperature

    def add(sums: Partials, start: tf.Tensor | int, size: int) -> Partials:
        q = tf.slice(memory, [start, 0], [size, memory.shape[1]])
        rows = tf.slice(labels, [start], [size])
        keep = None
        if valid is not None:
            keep = tf.slice(valid, [start], [size])[:, None]
            q = tf.where(keep, q, 0.0)  # such a row may hold anything
        block = _fixed if fixed else _running
        return block(sums, q, rows, keep, z_w, z_s, table)

    size = block_size or _block_size(slots, n)
    blocks = slots // size
    sums = _zeros(z_w, num_classes, fixed)
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
    if slots % size:
        sums = add(sums, blocks * size, slots % size)
    if fixed:
        total = tf.reduce_sum(relative * sums.class_sums, axis=0)
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
    """What `match` returns, from the sums over all slots.

    Args:
        sums: Those of several shards are brought to the same shifts (`rebase`)
            and added up.
        z_s: [N, D]; gets the gradient.
        p_w: [N, L].
        temperature: t > 0.
        alpha: α in [0, 1].
    """
    z_s, p_w = precision.widen(z_s, p_w)
    p_w = tf.stop_gradient(p_w)
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
        return tf.slice(x, [start, 0], [count, -1])

    def columns(x: tf.Tensor) -> tf.Tensor:
        return tf.slice(x, [0, start], [-1, count])

    return Partials(
        columns(sums.class_sums),
        tf.slice(sums.target_total, [start], [count]),
        rows(sums.target_context),
        tf.slice(sums.student_total, [start], [count]),
        rows(sums.student_context),
        columns(sums.shifts),
    )


def classes_present(
    labels: tf.Tensor, num_classes: int, valid: tf.Tensor | None = None
) -> tf.Tensor:
    """Which classes have a valid slot: [L] bool."""
    here = tf.ones_like(labels) if valid is None else valid
    return (
        tf.math.unsorted_segment_max(
            tf.cast(here, tf.int32), labels, num_classes
        )
        > 0
    )


def _relative(p_w: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """p^w over its largest value among the classes present, 0 at the others.

    Only the ratio of products counts in q̂, and so two small factors do not
    underflow to a row of zeros. A row that rules out the class of every slot
    becomes 1: then q̂ is q^w.
    """
    p_w = tf.where(present, p_w, 0.0)
    largest = tf.reduce_max(p_w, axis=1, keepdims=True)
    return tf.where(largest > 0, tf.math.divide_no_nan(p_w, largest), 1.0)


def _block_size(slots: int, n: int | None) -> int:
    if n is None or (slots <= _FEW and slots * n <= _WHOLE):
        return slots
    return min(slots, 2048, max(256, _BLOCK // n // 256 * 256))


def _zeros(z: tf.Tensor, num_classes: int, fixed: bool) -> Partials:
    """Sums over no slot."""
    none, context = tf.zeros_like(z[:, 0]), tf.zeros_like(z)
    shift = none if fixed else none + _NOTHING
    sums = tf.tile(none[None], [num_classes, 1])
    return Partials(sums, none, context, none, context, tf.stack([shift] * 3))


def _fixed(
    sums: Partials,
    q: tf.Tensor,
    labels: tf.Tensor,
    keep: tf.Tensor | None,
    z_w: tf.Tensor,
    z_s: tf.Tensor,
    relative: tf.Tensor,
) -> Partials:
    """Adds a block, without shifts.

    Args:
        sums: So far; `target_total` follows from the class sums at the end.
        q: Slots of the block, k of them, [k, D].
        labels: Their classes [k].
        keep: [k, 1], those that take part.
        z_w: [N, D], over t.
        z_s: Likewise.
        relative: p^w of `_relative`, [L, N].
    """
    e = tf.exp(tf.matmul(q, z_w, transpose_b=True))  # [k, N]
    if keep is not None:
        e = tf.where(keep, e, 0.0)
    class_sums = _add_rows(sums.class_sums, labels, e)
    e = e * tf.gather(relative, labels)
    target_context = sums.target_context + tf.matmul(e, q, transpose_a=True)
    e = tf.exp(tf.matmul(q, z_s, transpose_b=True))
    if keep is not None:
        e = tf.where(keep, e, 0.0)
    return Partials(
        class_sums,
        sums.target_total,
        target_context,
        sums.student_total + tf.reduce_sum(e, axis=0),
        sums.student_context + tf.matmul(e, q, transpose_a=True),
        sums.shifts,
    )


def _running(
    sums: Partials,
    q: tf.Tensor,
    labels: tf.Tensor,
    keep: tf.Tensor | None,
    z_w: tf.Tensor,
    z_s: tf.Tensor,
    log_relative: tf.Tensor,
) -> Partials:
    """Adds a block whose exponents may be of any size; see `_fixed`."""
    logits_w = tf.matmul(q, z_w, transpose_b=True)  # [k, N]
    logits_s = tf.matmul(q, z_s, transpose_b=True)
    if keep is not None:
        logits_w = tf.where(keep, logits_w, -float("inf"))
        logits_s = tf.where(keep, logits_s, -float("inf"))
    logits = [logits_w, logits_w + tf.gather(log_relative, labels), logits_s]
    largest = tf.stack([tf.reduce_max(each, axis=0) for each in logits])
    sums = rebase(sums, tf.maximum(sums.shifts, largest))
    e, target, student = (
        tf.exp(each - shift)
        for each, shift in zip(logits, tf.unstack(sums.shifts), strict=True)
    )
    return Partials(
        _add_rows(sums.class_sums, labels, e),
        sums.target_total + tf.reduce_sum(target, axis=0),
        sums.target_context + tf.matmul(target, q, transpose_a=True),
        sums.student_total + tf.reduce_sum(student, axis=0),
        sums.student_context + tf.matmul(student, q, transpose_a=True),
        sums.shifts,
    )


def _add_rows(sums: tf.Tensor, labels: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Adds rows [k, N] to those of their classes in sums [L, N]."""
    if tf.config.list_logical_devices("GPU"):
        # There a deterministic scatter would go by way of the host.
        return sums + tf.math.unsorted_segment_sum(rows, labels, sums.shape[0])
    return tf.tensor_scatter_nd_add(sums, labels[:, None], rows)
