"""One step of each form against the equations, and its order."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import simmatch, supervised
from simmatch_tf.networks import network
from tests import reference

L, K, B, U = 4, 8, 4, 6
LABELS = np.repeat(np.arange(L), 2)
CONFIG = config_lib.Config(
    dataset="custom",
    labels=K,
    steps=20,
    warmup_steps=0,
    projection_dim=8,
    batch_size=B,
    threshold=0.3,
    lambda_u=2.0,
    lambda_in=3.0,
    da_window=4,
    ema_momentum=0.9,
)


def small_backbone(shape):
    images = keras.Input(shape)
    x = keras.layers.Conv2D(6, 3, use_bias=False)(images)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))


def make(kind=simmatch.SimMatch, seed=0, **changes):
    keras.utils.set_random_seed(seed)
    names = [e.pattern for e in registry.algorithms if e.value is kind]
    if names:
        changes["algorithm"] = names[0]
    config = dataclasses.replace(CONFIG, **changes)

    def make_network(heads, any_size):
        assert not any_size
        return network.build(
            small_backbone,
            image_shape=(8, 8, 1),
            num_classes=L,
            projection_dim=8 if kind.needs_embeddings else None,
            mean=[0.5],
            std=[0.3],
            heads=heads,
        )

    return kind(config, make_network, num_classes=L, slot_labels=LABELS)


def batch(seed=0, slots=(0, 3, 4, 7)):
    rng = np.random.default_rng(seed)

    def images(count):
        x = rng.integers(0, 256, [count, 8, 8, 1]).astype(np.uint8)
        return tf.constant(x)

    slots = np.array(slots)
    return {
        "labeled_weak": images(B),
        "labels": tf.constant(LABELS[slots], tf.int32),
        "slots": tf.constant(slots, tf.int64),
        "unlabeled_weak": images(U),
        "unlabeled_strong": images(U),
    }


def fill(algorithm, seed=5):
    z = np.random.default_rng(seed).normal(size=[K, 8])
    algorithm.memory.update(np.arange(K), z)


def expected(algorithm, inputs, ready):
    """Algorithm 1 in NumPy float64, from the networks' own outputs."""
    c, form = algorithm.config, algorithm.config.targets_from
    x_l, x_w, x_s = (
        inputs[k]
        for k in ("labeled_weak", "unlabeled_weak", "unlabeled_strong")
    )
    if form == "teacher":
        out = algorithm.teacher.model(tf.concat([x_l, x_w], 0))
        logits_w, z_w = out["logits"][B:], out["embeddings"][B:]
        z_l = out["embeddings"][:B]
        # A copy runs the training forward: it moves BatchNorm's statistics.
        out = algorithm.student(tf.concat([x_l, x_s], 0), training=True)
    elif c.weak_forward == "separate":
        out = algorithm.student(x_w, training=True)
        logits_w, z_w = out["logits"], out["embeddings"]
        out = algorithm.student(tf.concat([x_l, x_s], 0), training=True)
        z_l = out["embeddings"][:B]
    else:
        out = algorithm.student(tf.concat([x_l, x_s, x_w], 0), training=True)
        logits_w, z_w = out["logits"][B + U :], out["embeddings"][B + U :]
        z_l = out["embeddings"][:B]
    logits_l, logits_s = out["logits"][:B], out["logits"][B : B + U]
    z_s = out["embeddings"][B : B + U]

    p_w = reference.softmax(np.float64(logits_w))
    if c.align is not False:
        p_w = reference.align(p_w, p_w.mean(axis=0))  # the first batch
    memory = np.array(algorithm.memory.features)
    q_w = reference.instance_similarity(z_w, memory, c.temperature)
    q_hat = q_w
    if c.scale_instances:
        q_hat = reference.scale(q_w, reference.unfold(p_w, LABELS))
    p_hat = p_w
    if ready and c.smooth_classes:
        q_agg = reference.aggregate(q_w, LABELS, L)
        p_hat = reference.smooth(p_w, q_agg, c.alpha)
    loss_s = reference.supervised_loss(logits_l, inputs["labels"].numpy())
    loss_u, mask = reference.unsupervised_loss(logits_s, p_hat, c.threshold)
    loss_in = reference.instance_loss(z_s, memory, q_hat, c.temperature)
    loss_in = loss_in if ready else 0.0
    return {
        "loss/s": loss_s,
        "loss/u": loss_u,
        "loss/in": loss_in,
        "loss/total": loss_s + c.lambda_u * loss_u + c.lambda_in * loss_in,
        "pseudo_label/mask_rate": mask.mean(),
        "memory/norm": np.mean(np.linalg.norm(written(algorithm, z_l), axis=1)),
    }, np.array(z_l)


def written(algorithm, z_l, slots=(0, 3, 4, 7)):
    """m Q_f[i] + (1 - m) z^l of the batch's slots."""
    filled = algorithm.memory.filled.numpy()[list(slots)]
    m = algorithm.memory.momentum * filled[:, None]
    old = np.array(algorithm.memory.features)[list(slots)]
    return m * old + (1 - m) * np.array(z_l)


@pytest.mark.parametrize(
    "changes",
    [
        {"targets_from": "teacher"},
        {"targets_from": "student"},
        {"targets_from": "student", "weak_forward": "separate"},
        {"targets_from": "student", "scale_instances": False},
        {"targets_from": "teacher", "smooth_classes": False},
        {"targets_from": "student", "align": False, "temperature": 0.04},
        {
            "targets_from": "teacher",
            "scale_instances": False,
            "smooth_classes": False,
            "temperature": 0.04,
        },
    ],
    ids=lambda changes: "-".join(f"{k}={v}" for k, v in changes.items()),
)
@pytest.mark.parametrize("ready", [False, True])
def test_losses_equal_the_equations(changes, ready):
    inputs, form = batch(), changes["targets_from"]
    ours, theirs = make(**changes), make(**changes)
    if ready:
        fill(ours)
        fill(theirs)
    else:
        # Not full yet: no instance loss, no smoothing. One slot is missing.
        rows = np.random.default_rng(1).normal(size=[K - 1, 8])
        ours.memory.update(np.arange(K - 1), rows)
        theirs.memory.update(np.arange(K - 1), rows)
    wanted, z_l = expected(theirs, inputs, ready)
    before = np.array(ours.memory.features)
    metrics = tf.function(ours.train_step)(inputs)
    assert set(metrics) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(
            metrics[name], value, rtol=2e-4, err_msg=name
        )
    np.testing.assert_allclose(ours.record.loss, wanted["loss/total"], 2e-4)
    # The memory is written after it was read, with this step's z^l.
    slots = inputs["slots"].numpy()
    m = 0.0 if form == "teacher" else 0.7
    m = np.where(np.linalg.norm(before[slots], axis=1) > 0, m, 0)[:, None]
    new = m * before[slots] + (1 - m) * z_l
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    np.testing.assert_allclose(ours.memory.features.numpy()[slots], new, 2e-4)
    rest = np.setdiff1d(np.arange(K), slots)
    np.testing.assert_array_equal(
        ours.memory.features.numpy()[rest], before[rest]
    )
    aligns = changes.get("align", True)
    assert int(ours.step) == 1 and int(ours.align.written) == int(aligns)


@pytest.mark.parametrize("form", ["teacher", "student"])
def test_matching_waits_for_its_step(form):
    algorithm = make(targets_from=form, matching_start_steps=2)
    fill(algorithm)
    losses = [float(algorithm.train_step(batch())["loss/in"]) for _ in range(4)]
    assert losses[:2] == [0.0, 0.0] and min(losses[2:]) > 0


def test_ema_follows_the_student_after_the_optimizer():
    algorithm = make()
    start = [np.array(v) for v in algorithm.student.variables]
    algorithm.train_step(batch())
    pairs = zip(
        start,
        algorithm.student.variables,
        algorithm.teacher.model.variables,
        strict=True,
    )
    for old, new, ema in pairs:
        np.testing.assert_allclose(
            ema, 0.9 * old + 0.1 * np.array(new), rtol=1e-4, atol=1e-6
        )


def test_which_weights_are_evaluated():
    assert make(targets_from="teacher").evaluated_weights == "student"
    assert make(targets_from="student").evaluated_weights == "ema"
    assert make(supervised.Supervised).evaluated_weights == "ema"


def test_the_teacher_form_writes_without_momentum():
    assert make(targets_from="teacher").memory.momentum == 0.0
    assert make(targets_from="student").memory.momentum == 0.7


@pytest.mark.parametrize("form", ["teacher", "student"])
def test_one_trace_and_it_learns(form):
    algorithm = make(targets_from=form, learning_rate=0.05)
    step = tf.function(algorithm.train_step)
    inputs = batch()
    losses = [float(step(inputs)["loss/s"]) for _ in range(25)]
    assert step.experimental_get_tracing_count() == 1
    assert losses[-1] < 0.85 * losses[0]
    assert all(np.isfinite(np.array(v)).all() for v in algorithm.variables)


@pytest.mark.parametrize("form", ["teacher", "student"])
def test_saved_and_restored_whole(form, tmp_path):
    one, other = make(targets_from=form), make(targets_from=form, seed=1)
    for seed in range(3):
        one.train_step(batch(seed))
    path = tf.train.Checkpoint(algorithm=one).write(str(tmp_path / "x"))
    tf.train.Checkpoint(algorithm=other).read(path).assert_consumed()
    for algorithm in (one, other):
        algorithm.train_step(batch(9))
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(
        one.optimizer.velocities[0], other.optimizer.velocities[0]
    )


def test_supervised_uses_labeled_images_alone():
    algorithm = make(supervised.Supervised)
    inputs = {k: batch()[k] for k in ("labeled_weak", "labels", "slots")}
    metrics = algorithm.train_step(inputs)
    logits = make(supervised.Supervised).student(
        inputs["labeled_weak"], training=True
    )["logits"]
    wanted = reference.supervised_loss(logits, inputs["labels"].numpy())
    np.testing.assert_allclose(metrics["loss/total"], wanted, rtol=1e-4)


def test_labels_beyond_the_classes():
    keras.utils.set_random_seed(0)
    with pytest.raises(ValueError, match=r"labels from 0 to 3: must be in \[0"):
        simmatch.SimMatch(CONFIG, None, num_classes=3, slot_labels=LABELS)


def test_the_base_has_no_step():
    with pytest.raises(TypeError, match="Algorithm has no train_step"):
        make(algorithm_lib.Algorithm).train_step(batch())


def on_two(strategy, algorithm, inputs, steps, *, guarded=False):
    def share(context):
        number = context.replica_id_in_sync_group
        return {k: tf.split(v, 2)[number] for k, v in inputs.items()}

    shares = strategy.experimental_distribute_values_from_function(share)
    taken = algorithm.guarded_step if guarded else algorithm.train_step
    step = tf.function(
        lambda b: strategy.run(taken, args=(b,)),
        autograph=False,
    )
    for _ in range(steps):
        step(shares)


@pytest.mark.slow
@pytest.mark.parametrize("teacher_norm", ["eman", "shuffle"])
def test_local_statistics_stay_the_same_on_all(teacher_norm, two_replicas):
    with two_replicas.scope():
        several = make(
            targets_from="teacher",
            batch_norm="local",
            teacher_norm=teacher_norm,
        )
    on_two(two_replicas, several, batch(), 3)
    for model in several.networks().values():
        moved = False
        for variable in model.variables:
            one, other = two_replicas.experimental_local_results(variable.value)
            np.testing.assert_array_equal(one, other)
            moved |= "moving" in variable.path and np.array(one).min() != 1.0
        assert moved


def test_shuffled_teacher_on_one_device_is_batch_statistics():
    """With one device the shuffle changes nothing; the statistics do."""
    eman, own = (
        make(targets_from="teacher", teacher_norm=norm)
        for norm in ("eman", "shuffle")
    )
    inputs = batch()
    x = tf.concat([inputs["labeled_weak"], inputs["unlabeled_weak"]], 0)
    wanted = make(targets_from="teacher").teacher.model(x, training=True)
    for algorithm in (eman, own):
        algorithm.train_step(inputs)
    slots = inputs["slots"].numpy()
    np.testing.assert_allclose(
        own.memory.features.numpy()[slots], wanted["embeddings"][:B], rtol=1e-4
    )
    assert (own.memory.features.numpy() != eman.memory.features.numpy()).any()
