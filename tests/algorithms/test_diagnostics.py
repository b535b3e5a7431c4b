"""Diagnostics equal NumPy, and computing them changes nothing."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import diagnostics, fixmatch
from simmatch_tf.flags import errors
from tests import reference
from tests.algorithms import test_simmatch as small

TRUTH = np.array([0, -1, 2, 3, 1, 1], np.int32)


def logged(seed=0, log=True):
    return {
        **small.batch(seed),
        "unlabeled_labels": tf.constant(TRUTH),
        diagnostics.LOGGED: tf.constant(log),
    }


def entropy(p):
    p = np.maximum(np.float64(p), 1e-30)
    return -np.sum(p * np.log(p), axis=1).mean()


@pytest.mark.parametrize("targets_from", ["teacher", "student"])
def test_equals_the_equations(targets_from):
    # The EMA's forward does not change with the batch's other images.
    algorithm = small.make(
        targets_from=targets_from, weak_forward="joint", threshold=0.2
    )
    small.fill(algorithm)
    before = np.array(algorithm.memory.features)
    inputs = logged()
    shown = tf.function(algorithm.train_step)(inputs)[diagnostics.DIAGNOSTICS]
    means, rows = tf.nest.map_structure(np.asarray, shown)
    # The rows are the definition of the rest: all six images are shown.
    p_w, p_hat, q_agg = (np.float64(rows[n]) for n in ("p_w", "p_hat", "q_agg"))
    np.testing.assert_allclose(
        p_hat, reference.smooth(p_w, q_agg, algorithm.config.alpha), atol=1e-5
    )
    np.testing.assert_array_equal(rows["view/weak"], inputs["unlabeled_weak"])
    np.testing.assert_array_equal(
        rows["view/strong"], inputs["unlabeled_strong"]
    )
    confidence, label = p_hat.max(axis=1), p_hat.argmax(axis=1)
    known, right = TRUTH >= 0, label == TRUTH
    kept, sure = confidence >= 0.2, confidence >= diagnostics.SURE
    wanted = {
        "pseudo_label/confidence": confidence.mean(),
        "sharpness/p_w": entropy(p_w),
        "sharpness/p_hat": entropy(p_hat),
        "known": known.mean(),
        "right": (known & right).mean(),
        "kept": (known & kept).mean(),
        "kept_right": (known & kept & right).mean(),
        "sure": (known & sure).mean(),
        "sure_right": (known & sure & right).mean(),
        "matching/agreement": (
            p_w.argmax(axis=1) == q_agg.argmax(axis=1)
        ).mean(),
        "memory/filled": 1.0,
        "memory/age": 1.0,  # filled before the first step
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(means[name], value, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        means["classes"], np.bincount(label, minlength=small.L) / small.U
    )
    np.testing.assert_allclose(
        means["used"], np.bincount(label[kept], minlength=small.L) / small.U
    )
    np.testing.assert_allclose(
        means["confidences"],
        np.histogram(confidence, diagnostics.BINS, (0, 1))[0] / small.U,
        atol=1e-6,
    )
    np.testing.assert_allclose(
        means["predicted"], algorithm.align.mean(), atol=1e-6
    )
    # The neighbors are the largest cosines, in order.
    slots, cosines = rows["neighbors"], rows["cosines"]
    assert slots.shape == (small.U, diagnostics.NEIGHBORS)
    assert (np.diff(cosines, axis=1) <= 0).all()
    # q_agg by these: nothing but the memory before the step gives them.
    labels = small.LABELS
    assert np.allclose(np.linalg.norm(before, axis=1), 1, atol=1e-5)
    q = np.exp(cosines / algorithm.config.temperature)
    for row in range(small.U):
        nearest = labels[slots[row]]
        best = np.bincount(nearest, q[row], small.L).argmax()
        assert q_agg[row, best] >= np.sort(q_agg[row])[-2] - 1e-6


def test_entropies_of_instances():
    algorithm = small.make(targets_from="teacher")
    small.fill(algorithm)
    memory = np.array(algorithm.memory.features)
    inputs = logged()
    out = algorithm.teacher.model(inputs["unlabeled_weak"], training=False)
    z_w = np.float64(out["embeddings"])
    p_w = reference.softmax(np.float64(out["logits"]))
    p_w = reference.align(p_w, p_w.mean(axis=0))
    t = algorithm.config.temperature
    q_w = reference.instance_similarity(z_w, memory, t)
    q_hat = reference.scale(q_w, reference.unfold(p_w, small.LABELS))
    shown = algorithm.train_step(inputs)[diagnostics.DIAGNOSTICS]
    means = shown.means
    np.testing.assert_allclose(means["sharpness/q_w"], entropy(q_w), rtol=1e-5)
    np.testing.assert_allclose(
        means["sharpness/q_hat"], entropy(q_hat), rtol=1e-5
    )
    assert abs(entropy(q_hat) - entropy(q_w)) > 2e-5


def test_diagnostics_change_nothing():
    plain, other = small.make(), small.make()
    small.fill(plain)
    small.fill(other)
    step = tf.function(plain.train_step)
    with_them = tf.function(other.train_step)
    for number in range(3):
        without = step(small.batch(number))
        metrics = with_them(logged(number, log=number % 2 == 0))
        shown = metrics.pop(diagnostics.DIAGNOSTICS)
        assert (shown.means["pseudo_label/confidence"] == 0) == (
            number % 2 == 1
        )
        for name, value in without.items():
            assert metrics[name].numpy() == value.numpy(), name
    for a, b in zip(plain.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_any():
    algorithm = small.make()
    assert diagnostics.DIAGNOSTICS not in algorithm.train_step(small.batch())


def test_classes_that_are_not_known():
    algorithm = small.make(fixmatch.FixMatch)
    inputs = logged()
    del inputs["unlabeled_labels"]
    shown = algorithm.train_step(inputs)[diagnostics.DIAGNOSTICS]
    means, rows = tf.nest.map_structure(np.asarray, shown)
    assert "known" not in means and "truth" not in rows
    # FixMatch has no memory, and by default no alignment.
    assert not {"memory/filled", "sharpness/q_w", "predicted"} & set(means)
    assert set(rows) == {
        "view/weak",
        "view/strong",
        "p_w",
        "p_hat",
        "mask",
    }


@pytest.mark.slow
def test_compiled_by_xla():
    algorithm = small.make()
    small.fill(algorithm)
    step = tf.function(algorithm.train_step, jit_compile=True)
    metrics = step(logged())
    means = metrics[diagnostics.DIAGNOSTICS].means
    assert means["pseudo_label/confidence"] > 0.25


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_on_two_replicas(placement, two_replicas):
    with two_replicas.scope():
        algorithm = small.make(memory_placement=placement)
    step = tf.function(
        lambda parts: two_replicas.run(algorithm.train_step, args=(parts,)),
        autograph=False,
    )
    parts = [
        {
            k: v if k == diagnostics.LOGGED else v[half::2]
            for k, v in logged().items()
        }
        for half in (0, 1)
    ]
    inputs = two_replicas.experimental_distribute_values_from_function(
        lambda context: parts[context.replica_id_in_sync_group]
    )
    values = step(inputs)[diagnostics.DIAGNOSTICS]
    for replica in (0, 1):
        own = tf.nest.map_structure(
            lambda x, i=replica: two_replicas.experimental_local_results(x)[i],
            values,
        )
        means, rows = own
        np.testing.assert_array_equal(
            rows["view/weak"], parts[replica]["unlabeled_weak"]
        )
        assert ("sharpness/q_w" in means) == (placement == "replicated")
        assert means["memory/filled"] == 0


def test_what_diagnose_must_be_given():
    class Wrong(fixmatch.FixMatch):
        def train_step(self, batch):
            return self.diagnose(batch, lambda: {"a/b": tf.constant(1.0)})

    algorithm = small.make(Wrong)
    step = tf.function(algorithm.guarded_step, autograph=False)
    with pytest.raises(
        errors.InputError,
        match=r"test_diagnostics.py, line .*returns dict: must return a diag",
    ):
        step(logged())


def test_a_method_without_a_mask_shows_none():
    p = tf.constant([[0.9, 0.1], [0.3, 0.7], [0.6, 0.4]])
    views = {
        f"unlabeled_{name}": tf.zeros([3, 8, 8, 1], tf.uint8)
        for name in ("weak", "weak_2")
    }
    truth = {"unlabeled_labels": tf.constant([0, 0, 1])}
    shown = diagnostics.pseudo_labels(
        views | truth, p, p, None, None, views=("weak", "weak_2")
    )
    assert not {"used", "kept", "kept_right"} & set(shown.means)
    assert set(shown.rows) == {
        "view/weak",
        "view/weak_2",
        "p_w",
        "p_hat",
        "truth",
    }
    np.testing.assert_allclose(shown.means["right"], 1 / 3)
    np.testing.assert_allclose(shown.means["sure_right"], 1 / 3)
