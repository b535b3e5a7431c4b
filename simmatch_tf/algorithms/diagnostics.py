"""What is seen of a step that is watched: figures, and some images' rows.

A batch with the key `WATCH`, a bool scalar, is watched where that is true; the
step's metrics then have `SEEN`. A step that is not watched pays nothing: all of
it stands in a branch that is not taken. The letters are those of `simmatch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from simmatch_tf import config as config_lib
from simmatch_tf.lazy import tf
from simmatch_tf.modules import alignment, memory
from simmatch_tf.ops import propagation, similarity, summaries

WATCH, SEEN = "watch", "seen"
ROWS = 8
NEIGHBORS = 5
BINS = 20  # of the histogram of confidences
# Images as confident as this are to be right, whatever the threshold.
SURE = 0.9
# Similarities that are looked at; a step's own are never kept.
_SIMILARITIES = 2**22


class Seen(NamedTuple):
    """What is seen of a step.

    Attributes:
        means: Name → means over this replica's images, of any shape: the mean
            over replicas is that of the batch.
        rows: Name → [n, ...] of the first n ≤ ROWS unlabeled images.
    """

    means: dict[str, tf.Tensor]
    rows: dict[str, tf.Tensor]


class Packed(NamedTuple):
    """The same in few tensors: each costs also the steps that see nothing.

    Attributes:
        means: float32 [M].
        views: uint8 [n, H, W, C], of each view.
        numbers: float32 [n, ...], side by side.
        places: int32 [n, ...], likewise.
    """

    means: tf.Tensor
    views: list[tf.Tensor]
    numbers: tf.Tensor
    places: tf.Tensor


class Layout:
    """What stands where in `Packed`: known once a step is traced."""

    def __init__(self) -> None:
        """Knows nothing yet."""
        self._means: list[tuple[str, list[int]]] = []
        self._rows: dict[tf.DType, list[tuple[str, list[int]]]] = {}

    def watch(
        self, batch: dict[str, tf.Tensor], look: Callable[[], Seen]
    ) -> dict[str, Packed]:
        """Looks, if the batch is watched.

        Args:
            batch: Of a step, on one replica.
            look: Computes what is seen. Nothing in it may wait for another
                replica.

        Returns:
            For the step's metrics: `SEEN` and what it is, zeros where it is
            not watched; nothing, where no batch of the run is watched.
        """
        if WATCH not in batch:
            return {}
        # A call is one operation of the graph: where it is not taken, those
        # inside cost nothing.
        packed = tf.function(
            lambda: self._pack(look()),
            autograph=False,
            experimental_attributes={"_noinline": True},
        )
        specs = packed.get_concrete_function().structured_outputs

        def nothing() -> Packed:
            return tf.nest.map_structure(
                lambda spec: tf.zeros(spec.shape, spec.dtype), specs
            )

        return {SEEN: tf.cond(batch[WATCH], packed, nothing)}

    def _pack(self, seen: Seen) -> Packed:
        self._means = [(n, x.shape.as_list()) for n, x in seen.means.items()]
        self._rows = {tf.uint8: [], tf.float32: [], tf.int32: []}
        parts = {dtype: [] for dtype in self._rows}
        for name, x in seen.rows.items():
            self._rows[x.dtype].append((name, x.shape.as_list()))
            parts[x.dtype].append(x)

        def beside(dtype: tf.DType) -> tf.Tensor:
            rows = next(iter(seen.rows.values())).shape[0]
            flat = [tf.reshape(x, [rows, -1]) for x in parts[dtype]]
            return tf.concat([tf.zeros([rows, 0], dtype), *flat], axis=1)

        means = [tf.reshape(x, [-1]) for x in seen.means.values()]
        return Packed(
            tf.concat(means, axis=0),
            parts[tf.uint8],
            beside(tf.float32),
            beside(tf.int32),
        )

    def unpack(self, packed: Packed) -> Seen:
        """What was seen, as NumPy arrays."""
        means, start = {}, 0
        flat = packed.means.numpy()
        for name, shape in self._means:
            size = math.prod(shape)
            means[name] = flat[start : start + size].reshape(shape)
            start += size
        rows = {
            name: view.numpy()
            for (name, _), view in zip(
                self._rows[tf.uint8], packed.views, strict=True
            )
        }
        for dtype, table in (
            (tf.float32, packed.numbers.numpy()),
            (tf.int32, packed.places.numpy()),
        ):
            start = 0
            for name, shape in self._rows[dtype]:
                size = math.prod(shape[1:])
                columns = table[:, start : start + size]
                rows[name] = columns.reshape(shape)
                start += size
        return Seen(means, rows)


def pseudo_labels(
    batch: dict[str, tf.Tensor],
    p_w: tf.Tensor,
    p_hat: tf.Tensor,
    mask: tf.Tensor,
    align: alignment.DistributionAlignment | None,
) -> Seen:
    """What is seen of a batch's pseudo-labels.

    Args:
        batch: The step's.
        p_w: [U, L].
        p_hat: [U, L].
        mask: [U], 1 where the pseudo-label counts.
        align: The alignment's window; None: p_w is not aligned.

    Returns:
        Means: `confidence`; `confidences` [BINS], shares by max p̂; `classes`
        [L], shares by argmax p̂; entropies `p_w`, `p_hat`; `predicted` [L], the
        alignment's mean; and where true classes are known shares of all
        images: `known`, of these `right`; with a label that counts `kept`,
        `kept_right`; with max p̂ ≥ SURE `sure`, `sure_right`.
    """
    p_w, p_hat, mask = (tf.cast(x, tf.float32) for x in (p_w, p_hat, mask))
    confidence = tf.reduce_max(p_hat, axis=1)  # [U]
    classes = tf.argmax(p_hat, axis=1, output_type=tf.int32)  # [U]
    means = {
        "confidence": tf.reduce_mean(confidence),
        "confidences": summaries.histogram(confidence, BINS),
        "classes": summaries.shares(classes, p_hat.shape[1]),
        "p_w": tf.reduce_mean(summaries.entropy(p_w)),
        "p_hat": tf.reduce_mean(summaries.entropy(p_hat)),
    }
    if align is not None:
        means["predicted"] = tf.cast(align.mean(), tf.float32)
    rows = {
        "weak": batch["unlabeled_weak"],
        "strong": batch["unlabeled_strong"],
        "p_w": p_w,
        "p_hat": p_hat,
    }
    if "unlabeled_labels" in batch:
        truth = batch["unlabeled_labels"]  # [U]
        known = tf.cast(truth >= 0, tf.float32)
        right = tf.cast(classes == truth, tf.float32)
        sure = tf.cast(confidence >= SURE, tf.float32)
        for name, which in (("", 1.0), ("kept", mask), ("sure", sure)):
            means[name or "known"] = tf.reduce_mean(known * which)
            name = f"{name}_right" if name else "right"
            means[name] = tf.reduce_mean(right * which)
        rows["truth"] = truth
    return Seen(means, {name: x[:ROWS] for name, x in rows.items()})


def labeled_memory(
    store: memory.MemoryBuffer,
    z_w: tf.Tensor,
    p_w: tf.Tensor,
    step: tf.Tensor,
    config: config_lib.Config,
) -> Seen:
    """What is seen of the memory, and of a batch in it.

    Args:
        store: The memory. Of one that is divided over replicas, embeddings are
            not at hand here, and all that needs them is left out.
        z_w: [U, D].
        p_w: [U, L].
        step: Steps done by now.
        config: The run's.

    Returns:
        Means: `filled`, the share of slots written; `age`, steps since they
        were written last; `within`, `between` of `class_similarity`; of some
        images of the batch the entropies `q_w`, `q_hat`, and `agreement`, for
        how many p^w and q^agg name the same class. Rows: `q_agg` [n, L],
        `neighbors` [n, k] slots and `cosines` [n, k].
    """
    filled = store.filled  # [K]
    there = tf.cast(filled, tf.float32)
    ages = tf.cast(tf.cast(step, tf.int64) - store.written, tf.float32)
    age = tf.math.divide_no_nan(
        tf.reduce_sum(ages * there), tf.reduce_sum(there)
    )
    means: dict[str, Any] = {"filled": tf.reduce_mean(there), "age": age}
    if store.shard:
        return Seen(means, {})
    slots, num_classes = store.features.shape[0], p_w.shape[1]
    few = max(ROWS, min(z_w.shape[0], _SIMILARITIES // slots))
    p_w, z_w = p_w[:few], z_w[:few]
    t, labels = config.temperature, store.labels
    logits, shift = similarity.similarity_logits(
        z_w, store.features, t, filled
    )  # [n, K]
    q_w = similarity.shares(logits)
    q_hat = q_w
    if config.scale_instances:
        q_hat = propagation.scale(q_w, propagation.unfold(p_w, labels))
    q_agg = propagation.aggregate(q_w, labels, num_classes)  # [n, L]
    same = tf.argmax(q_agg, axis=1) == tf.argmax(p_w, axis=1)
    means["agreement"] = tf.reduce_mean(tf.cast(same, tf.float32))
    means["q_w"] = tf.reduce_mean(summaries.entropy(q_w))
    means["q_hat"] = tf.reduce_mean(summaries.entropy(q_hat))
    means["within"], means["between"] = summaries.class_similarity(
        store.features, labels, filled, num_classes
    )
    cosines = tf.cast((logits + shift) * t, tf.float32)[:ROWS]
    cosines, places = tf.math.top_k(cosines, min(NEIGHBORS, slots))
    rows = {
        "q_agg": tf.cast(q_agg[:ROWS], tf.float32),
        "neighbors": places,
        "cosines": cosines,
    }
    return Seen(means, rows)
