"""Diagnostics of a step: figures of the batch, and some of its images.

They are computed in steps that are logged. Other steps pay next to nothing for
them: all of it is in a branch of the graph that is not taken. The letters are
those of `simmatch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from simmatch_tf import config as config_lib
from simmatch_tf.flags import errors
from simmatch_tf.lazy import tf
from simmatch_tf.modules import alignment, memory
from simmatch_tf.ops import propagation, summaries

# Key of a batch: whether its step is logged, a bool scalar. Left out where a
# run logs no diagnostics at all.
LOGGED = "logged"
# Key of a step's metrics: its `Diagnostics`.
DIAGNOSTICS = "diagnostics"

ROWS = 8  # images that are shown
NEIGHBORS = 5  # slots of the memory bank shown beside each
BINS = 20  # of the histogram of confidences
# Images as confident as this should be right, whatever the threshold.
SURE = 0.9
# Largest number of similarities to compute at once.
_SIMILARITIES = 2**22


class Diagnostics(NamedTuple):
    """What is shown of a step.

    Attributes:
        means: Name → mean over this replica's images, of any shape, float32.
            A scalar whose name has a slash is logged under that name.
        rows: Name → [n, ...] of the first n ≤ ROWS unlabeled images: their
            views, "view/weak" and so on, and what is shown beside these.
    """

    means: dict[str, tf.Tensor]
    rows: dict[str, tf.Tensor]


def in_logged_steps(
    batch: dict[str, tf.Tensor], compute: Callable[[], Diagnostics]
) -> dict[str, Diagnostics]:
    """Computes diagnostics if the step is logged.

    Args:
        batch: The step's batch on one replica.
        compute: Computes them, without communication between replicas.

    Returns:
        `DIAGNOSTICS` and its value, zeros in a step that is not logged; empty
        where no step of the run is.

    Raises:
        InputError: `compute` returns something else.
    """
    if LOGGED not in batch:
        return {}

    def checked() -> Diagnostics:
        value = compute()
        if not isinstance(value, Diagnostics):
            raise errors.InputError(
                f"self.diagnose: its function returns {type(value).__name__}: "
                "must return a diagnostics.Diagnostics(means, rows)"
            )
        return value

    # A call is one operation of the graph: where it is not taken, those inside
    # cost nothing.
    function = tf.function(
        checked,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    specs = function.get_concrete_function().structured_outputs

    def zeros() -> Diagnostics:
        return tf.nest.map_structure(
            lambda spec: tf.zeros(spec.shape, spec.dtype), specs
        )

    return {DIAGNOSTICS: tf.cond(batch[LOGGED], function, zeros)}


def pseudo_labels(
    batch: dict[str, tf.Tensor],
    p_w: tf.Tensor,
    p_hat: tf.Tensor,
    mask: tf.Tensor | None,
    align: alignment.DistributionAlignment | None,
    views: Sequence[str] = ("weak", "strong"),
) -> Diagnostics:
    """Computes the diagnostics of a batch's pseudo-labels.

    Args:
        batch: The step's batch.
        p_w: p^w, class probabilities of the weak views [U, L].
        p_hat: p̂, pseudo-labels [U, L].
        mask: [U], 1 where the pseudo-label is used and 0 elsewhere, or the
            weight from 0 to 1 that it is used with; None: all are used, and
            the method has no mask.
        align: The distribution alignment; None: p^w is not aligned.
        views: The unlabeled views to show.

    Returns:
        Means: confidence and entropies by their tags; `confidences` [BINS],
        shares of images by max p̂; `classes` [L], shares by argmax p̂; `used`
        [L], those of them with a used pseudo-label, which sum to the mask rate;
        `predicted` [L], the mean of the alignment; and, where true classes are
        known, shares of all images: `known`, and of these `right`; with a used
        pseudo-label `kept`, `kept_right`; with max p̂ ≥ SURE `sure`,
        `sure_right`. Rows: `view/…`, `p_w`, `p_hat`, `mask`, and `truth`, -1
        where unknown. Without a mask there is no `used`, `kept` and `mask`.
    """
    p_w, p_hat = (tf.cast(x, tf.float32) for x in (p_w, p_hat))
    confidence = tf.reduce_max(p_hat, axis=1)  # [U]
    classes = tf.argmax(p_hat, axis=1, output_type=tf.int32)  # [U]
    means = {
        "pseudo_label/confidence": tf.reduce_mean(confidence),
        "sharpness/p_w": tf.reduce_mean(summaries.entropy(p_w)),
        "sharpness/p_hat": tf.reduce_mean(summaries.entropy(p_hat)),
        "confidences": summaries.histogram(confidence, BINS),
        "classes": summaries.shares(classes, p_hat.shape[1]),
    }
    which = {"sure": tf.cast(confidence >= SURE, tf.float32)}
    rows = {f"view/{view}": batch[f"unlabeled_{view}"] for view in views}
    rows |= {"p_w": p_w, "p_hat": p_hat}
    if mask is not None:
        rows["mask"] = which["kept"] = mask = tf.cast(mask, tf.float32)
        one_hot = tf.one_hot(classes, p_hat.shape[1])  # [U, L]
        means["used"] = tf.reduce_mean(mask[:, None] * one_hot, axis=0)
    if align is not None:
        means["predicted"] = tf.cast(align.mean(), tf.float32)
    if "unlabeled_labels" in batch:
        truth = batch["unlabeled_labels"]  # [U]
        known = tf.cast(truth >= 0, tf.float32)
        right = tf.cast(classes == truth, tf.float32)
        means["known"] = tf.reduce_mean(known)
        means["right"] = tf.reduce_mean(right)
        for name, those in which.items():
            means[name] = tf.reduce_mean(known * those)
            means[f"{name}_right"] = tf.reduce_mean(right * those)
        rows["truth"] = truth
    return Diagnostics(means, {name: x[:ROWS] for name, x in rows.items()})


def slots(bank: memory.MemoryBuffer, step: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns how many slots of a memory bank are filled, and their age.

    Args:
        bank: The memory bank.
        step: Number of steps done.

    Returns:
        Means by their tags; the age is a mean number of steps since they were
        written.
    """
    filled = tf.cast(bank.filled, tf.float32)  # [K]
    ages = tf.cast(tf.cast(step, tf.int64) - bank.written, tf.float32)
    age = tf.math.divide_no_nan(
        tf.reduce_sum(ages * filled), tf.reduce_sum(filled)
    )
    return {"memory/filled": tf.reduce_mean(filled), "memory/age": age}


def memory_bank(
    bank: memory.MemoryBuffer,
    z_w: tf.Tensor,
    p_w: tf.Tensor,
    step: tf.Tensor,
    config: config_lib.Config,
) -> Diagnostics:
    """Computes the diagnostics of the memory bank, and of a batch in it.

    Args:
        bank: The memory bank. Where it is divided over replicas, what needs
            all embeddings is left out.
        z_w: Embeddings of the weak views [U, D].
        p_w: Their class probabilities [U, L].
        step: Number of steps done.
        config: The run's flags.

    Returns:
        Means by their tags: the share of slots that are filled; their age, the
        mean number of steps since they were written; the mean cosine within
        and between classes; and, for some images of the batch, the entropies
        of q^w and q̂, and in how many p^w and q^agg predict the same class.
        Rows: `q_agg` [n, L], `neighbors` [n, k] slots and their `cosines`.
    """
    means: dict[str, Any] = slots(bank, step)
    if bank.shard:
        return Diagnostics(means, {})
    count, num_classes = bank.features.shape[0], p_w.shape[1]
    few = max(ROWS, min(z_w.shape[0], _SIMILARITIES // count))
    p_w, z_w = p_w[:few], z_w[:few]
    t, labels = config.temperature, bank.labels
    logits, shift = propagation.similarity_logits(
        z_w, bank.features, t, bank.filled
    )  # [n, K]
    q_w = propagation.shares(logits)
    q_hat = q_w
    if config.scale_instances:
        q_hat = propagation.scale(q_w, propagation.unfold(p_w, labels))
    q_agg = propagation.aggregate(q_w, labels, num_classes)  # [n, L]
    same = tf.argmax(q_agg, axis=1) == tf.argmax(p_w, axis=1)
    within, between = summaries.class_similarity(
        bank.features, labels, bank.filled, num_classes
    )
    means |= {
        "memory/similarity_within": within,
        "memory/similarity_between": between,
        "matching/agreement": tf.reduce_mean(tf.cast(same, tf.float32)),
        "sharpness/q_w": tf.reduce_mean(summaries.entropy(q_w)),
        "sharpness/q_hat": tf.reduce_mean(summaries.entropy(q_hat)),
    }
    cosines = tf.cast((logits + shift) * t, tf.float32)[:ROWS]
    cosines, neighbors = tf.math.top_k(cosines, min(NEIGHBORS, count))
    rows = {
        "q_agg": tf.cast(q_agg[:ROWS], tf.float32),
        "neighbors": neighbors,
        "cosines": cosines,
    }
    return Diagnostics(means, rows)
