"""Matching in one pass over the memory: nothing of size N × K is kept.

The same as `similarity`, `propagation` and `losses.instance_loss` one after
the other, which are its definition. Per image it needs, of all slots, the sums

    S_i = Σ_{k: Q_l[k] = i} e^{z^w·Q_f[k] / t}           [L]  q^agg = S / Σ S
    Σ_k ŵ_k,  Σ_k ŵ_k Q_f[k]          ŵ_k = p^w[Q_l[k]] e^{z^w·Q_f[k] / t}
    Σ_k w_k,  Σ_k w_k Q_f[k]          w_k = e^{z^s·Q_f[k] / t}

whose quotients c^ = Σ ŵ Q_f / Σ ŵ and c^s = Σ w Q_f / Σ w give (slides, L_in)

    H(q̂, q^s) = log Σ_k w_k - z^s·c^ / t,     ∂H/∂z^s = (c^s - c^) / t

`slot_sums` adds them up, block by block.
"""

from __future__ import annotations

import functools
import numbers

from simmatch_tf.lazy import tf
from simmatch_tf.ops import precision, propagation, shapes, slot_sums

# From this temperature on no shift is needed: with unit rows exponents are
# within ±1/t, so sums over any memory are finite, and no term is flushed to 0.
FIXED_SHIFT_FROM = 0.05
# A block's [slots, N] stays in a processor's cache; few slots are one block
# (tools/benchmark_matching.py).
_BLOCK, _WHOLE, _FEW = 655_360, 2_097_152, 8_192


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
        temperature: t > 0, a Python number as all below.
        alpha: α in [0, 1].
        scale: False leaves Eq. 8 out: q̂ is q^w (slides, Table 5).
        valid: [K] bool, slots that take part; default: all.
        present: [L] bool, classes that have such a slot, where that is known;
            default: it is found out.
        block_size: Slots to a block; default: by size, all at once where that
            is small. It moves the result by rounding alone.

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
) -> slot_sums.Partials:
    """The sums over one shard of the memory; see `match` for the arguments.

    Args:
        z_w: See `match`, as for all that is not named here.
        z_s: No gradient goes to it here.
        p_w: Likewise.
        memory: The shard.
        memory_labels: Of its slots.
        num_classes: L.
        temperature: t.
        scale: Whether q̂ has a factor of p^w.
        valid: Of its slots.
        present: Of all shards, the same for each; default: of this one.
        block_size: Slots to a block.

    Returns:
        The sums; their dtype is float32, or float64 where all inputs are.

    Raises:
        ValueError: As in `match`.
    """
    _check(temperature, block_size)
    z_w, z_s, p_w, memory = (
        tf.stop_gradient(x) for x in precision.widen(z_w, z_s, p_w, memory)
    )
    labels = tf.convert_to_tensor(memory_labels)
    if labels.dtype not in (tf.int32, tf.int64):
        raise ValueError(
            f"memory_labels of {labels.dtype.name}: must be int32 or int64"
        )
    labels = tf.cast(labels, tf.int32)
    shapes.check(
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
        shapes.check(memory=(memory, "KD"), valid=(valid, "K"))
    if present is None:
        present = classes_present(labels, num_classes, valid)
    present = tf.cast(tf.convert_to_tensor(present), tf.bool)
    shapes.check(present=(present, (num_classes,)))
    p_scale = relative(p_w, present) if scale else tf.ones_like(p_w)
    table = tf.transpose(p_scale)  # [L, N]
    fixed = temperature >= FIXED_SHIFT_FROM
    block = functools.partial(
        slot_sums.fixed if fixed else slot_sums.running,
        z_w=z_w / temperature,
        z_s=z_s / temperature,
        table=table if fixed else tf.math.log(table),
    )
    size = block_size or _block_size(memory.shape[0], z_w.shape[0])
    sums = slot_sums.zeros(z_w, num_classes, shifted=not fixed)
    sums = slot_sums.over_blocks(block, sums, memory, labels, valid, size)
    if fixed:
        total = tf.reduce_sum(table * sums.class_sums, axis=0)
        sums = sums._replace(target_total=total)
    return sums


def combine(
    sums: slot_sums.Partials,
    z_s: tf.Tensor,
    p_w: tf.Tensor,
    *,
    temperature: float,
    alpha: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """What `match` returns, from the sums over all slots.

    Args:
        sums: Those of several shards are brought to the same shifts
            (`slot_sums.rebase`) and added up.
        z_s: [N, D]; gets the gradient.
        p_w: [N, L].
        temperature: t > 0.
        alpha: α in [0, 1].

    Raises:
        ValueError: A shape does not fit, or a number is out of range.
    """
    dtype = sums.class_sums.dtype
    z_s, p_w = tf.cast(z_s, dtype), tf.stop_gradient(tf.cast(p_w, dtype))
    _check(temperature, None)
    shapes.check(
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
    """Which classes have a valid slot: [L] bool."""
    here = tf.ones_like(labels) if valid is None else valid
    return (
        tf.math.unsorted_segment_max(
            tf.cast(here, tf.int32), labels, num_classes
        )
        > 0
    )


def _check(temperature: float, block_size: int | None) -> None:
    if not isinstance(temperature, numbers.Real) or not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    if block_size is not None and (
        not isinstance(block_size, numbers.Integral) or block_size < 1
    ):
        raise ValueError(
            f"block_size={block_size}: must be a whole number, at least 1"
        )


def relative(p_w: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """p^w over its largest value among the classes present, 0 at the others.

    Only the ratio of products counts in q̂, and so two small factors do not
    underflow to a row of zeros. A row that rules out the class of every slot
    becomes 1: then q̂ is q^w.
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
