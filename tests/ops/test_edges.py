"""Empty memories, zero rows, NaN in unused slots, shapes that do not fit."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import (
    losses,
    propagation,
    schedules,
    targets,
    thresholds,
)

Z = np.float32([[1, 0], [0, 1]])
MEMORY = np.float32([[1, 0], [0, 1], [-1, 0]])
NONE = np.zeros(3, bool)


def value_and_gradient(function, x):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = function(x)
    return y.numpy(), tape.gradient(y, x).numpy()


def test_no_valid_slot_gives_zeros():
    q, dq = value_and_gradient(
        lambda z: propagation.instance_similarity(z, MEMORY, 0.1, NONE), Z
    )
    assert not q.any() and not dq.any()
    loss, dz = value_and_gradient(
        lambda z: losses.instance_loss(z, MEMORY, np.zeros([2, 3]), 0.1, NONE),
        Z,
    )
    assert loss == 0 and not dz.any()
    assert not propagation.scale(q, np.ones([2, 3])).numpy().any()
    assert not propagation.aggregate(q, [0, 1, 1], 2).numpy().any()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_slots_left_out_may_hold_anything(garbage):
    memory = MEMORY.copy()
    memory[1] = garbage
    valid = np.array([True, False, True])
    q, dq = value_and_gradient(
        lambda z: propagation.instance_similarity(z, memory, 0.1, valid), Z
    )
    np.testing.assert_allclose(q, [[1, 0, 2e-9], [0.5, 0, 0.5]], atol=1e-8)
    assert np.isfinite(dq).all()
    loss, dz = value_and_gradient(
        lambda z: losses.instance_loss(z, memory, q, 0.1, valid), Z
    )
    assert np.isfinite(loss) and np.isfinite(dz).all()
    same = losses.instance_loss(Z, memory, q, 0.1, valid.astype(np.int32))
    assert same == loss


def test_zero_embedding_is_finite():
    loss, dz = value_and_gradient(
        lambda z: losses.instance_loss(z, MEMORY, np.ones([2, 3]) / 3, 0.1),
        np.zeros([2, 2], np.float32),
    )
    np.testing.assert_allclose(loss, np.log(3), rtol=1e-6)
    assert np.isfinite(dz).all()


def test_scale_keeps_a_row_that_p_rules_out():
    q = np.float32([[0.7, 0.3], [0.7, 0.3]])
    p = np.float32([[0.0, 0.0], [0.5, 0.0]])
    scaled, gradient = value_and_gradient(lambda x: propagation.scale(x, p), q)
    np.testing.assert_allclose(scaled, [[0.7, 0.3], [1.0, 0.0]])
    assert np.isfinite(gradient).all()


def test_scale_does_not_underflow():
    q = np.float32([[1 - 1e-30, 1e-30]])
    p = np.float32([[0.0, 1e-20]])
    np.testing.assert_allclose(propagation.scale(q, p), [[0.0, 1.0]])


def test_alpha_one_is_the_identity():
    p = np.float32([[0.2, 0.8]])
    np.testing.assert_array_equal(
        propagation.smooth(p, np.float32([[1, 0]]), 1.0), p
    )


def test_unfold_then_aggregate_gives_p_back():
    p = np.float32([[0.1, 0.2, 0.7]])
    labels = np.repeat(np.arange(3), 4)
    uniform = np.full([1, 12], 1 / 12, np.float32)
    q_hat = propagation.scale(uniform, propagation.unfold(p, labels))
    np.testing.assert_allclose(
        propagation.aggregate(q_hat, labels, 3), p, rtol=1e-6
    )


def test_align_by_hand():
    p = np.float32([[0.5, 0.5, 0.0], [0.2, 0.8, 0.0]])
    np.testing.assert_allclose(
        targets.align(p, [0.25, 0.75, 0.0]),
        [[0.75, 0.25, 0], [3 / 7, 4 / 7, 0]],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: propagation.instance_similarity(Z, MEMORY[:, :1], 0.1),
        lambda: propagation.instance_similarity(Z[0], MEMORY, 0.1),
        lambda: propagation.instance_similarity(Z, MEMORY, 0.1, NONE[:2]),
        lambda: propagation.unfold(Z, [[0, 1]]),
        lambda: propagation.scale(Z, MEMORY),
        lambda: propagation.aggregate(Z, [0, 1, 1], 2),
        lambda: propagation.smooth(Z, MEMORY, 0.5),
        lambda: targets.align(Z, [1.0, 1.0, 1.0]),
        lambda: targets.align(Z, [1.0, 1.0], [1.0, 1.0, 1.0]),
        lambda: losses.supervised_loss(Z, [0, 1, 1]),
        lambda: losses.unsupervised_loss(Z, MEMORY, 0.5),
        lambda: losses.instance_loss(Z, MEMORY, Z, 0.1),
        lambda: targets.sharpen(Z[0], 0.5),
        lambda: losses.weighted_cross_entropy(Z, MEMORY, [1.0, 1.0]),
        lambda: losses.weighted_cross_entropy(Z, Z, [[1.0], [1.0]]),
        lambda: losses.kl_loss(Z, MEMORY),
        lambda: losses.kl_loss(Z, Z, [[1.0], [1.0]]),
        lambda: losses.entropy_loss(Z[0]),
        lambda: thresholds.dash([1.0], 1, 1.27, 0.05),
        lambda: thresholds.dash(1.0, [1], 1.27, 0.05),
        lambda: losses.consistency_loss(Z, MEMORY),
        lambda: losses.consistency_loss(Z, Z[0]),
    ],
)
def test_shapes_that_do_not_fit(call):
    with pytest.raises(ValueError, match="has shape .* is wanted"):
        call()
    with pytest.raises(ValueError, match="has shape .* is wanted"):
        tf.function(call)()  # at trace time


def test_values_out_of_range():
    with pytest.raises(ValueError, match=r"temperature=0: must be above 0"):
        propagation.instance_similarity(Z, MEMORY, 0)
    with pytest.raises(ValueError, match=r"alpha=1.5: must be in \[0, 1\]"):
        propagation.smooth(Z, Z, 1.5)
    with pytest.raises(ValueError, match=r"temperature=0: must be above 0"):
        targets.sharpen(Z, 0)


def test_unknown_sizes_pass_at_trace_time():
    traced = tf.function(
        lambda z: propagation.instance_similarity(z, MEMORY, 0.1),
        input_signature=[tf.TensorSpec([None, None])],
    )
    assert traced(Z).shape == (2, 3)
    unranked = tf.function(
        lambda p: propagation.unfold(p, [0, 1]),
        input_signature=[tf.TensorSpec(None)],
    )
    assert unranked(Z).shape == (2, 2)


def rate(step, shape, warmup=0, steps=100):
    return float(
        schedules.learning_rate(
            step, peak=0.5, steps=steps, warmup_steps=warmup, shape=shape
        )
    )


def test_learning_rate_by_hand():
    assert rate(0, "cosine_7_16") == 0.5
    np.testing.assert_allclose(
        rate(100, "cosine_7_16"), 0.5 * np.cos(7 * np.pi / 16), rtol=1e-5
    )
    np.testing.assert_allclose(rate(50, "half_cosine"), 0.25, rtol=1e-5)
    np.testing.assert_allclose(rate(55, "half_cosine", 10), 0.25, rtol=1e-5)
    assert [rate(s, "constant", 4) for s in range(5)] == [
        0.125,
        0.25,
        0.375,
        0.5,
        0.5,
    ]
    with pytest.raises(ValueError, match="shape='linear': must be"):
        rate(0, "linear")


def test_a_cooldown_by_hand():
    """A warm-up of 4 steps, and a cool-down of 5: S = 20, W = 4, C = 5."""

    def cooled(step, steps=20, cooldown_steps=5):
        return float(
            schedules.learning_rate(
                step, peak=0.5, steps=steps, warmup_steps=4, shape="cooldown",
                cooldown_steps=cooldown_steps,
            )
        )  # fmt: skip

    assert [cooled(s) for s in (0, 1, 2)] == [0.125, 0.25, 0.375]
    assert {cooled(s) for s in range(3, 16)} == {0.5}
    # Step 15 is the first of the last five: peak · (20 - s) / 5.
    wanted = [0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
    np.testing.assert_allclose([cooled(s) for s in range(15, 21)], wanted)
    # Before it, a longer run has the same rates, bit for bit.
    before = [cooled(s) for s in range(15)]
    assert before == [cooled(s, 1000, 300) for s in range(15)]
    with pytest.raises(ValueError, match="cooldown_steps=0: must be >= 1"):
        cooled(0, cooldown_steps=0)


def test_ema_momentum():
    def m(step, warmup):
        return float(schedules.ema_momentum(step, momentum=0.9, warmup=warmup))

    np.testing.assert_allclose(m(0, False), 0.9)
    np.testing.assert_allclose(m(0, True), 0.1)
    np.testing.assert_allclose(m(1000, True), 0.9)


def test_sharpen_by_hand():
    p = np.float32([[0.5, 0.25, 0.25], [0.6, 0.4, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(
        targets.sharpen(p, 0.5),  # squares
        [[2 / 3, 1 / 6, 1 / 6], [9 / 13, 4 / 13, 0], [0, 0, 1]],
        rtol=1e-6,
    )
    np.testing.assert_allclose(targets.sharpen(p, 1), p, rtol=1e-6)
    # A row that does not sum to 1 is as good as one that does.
    np.testing.assert_allclose(
        targets.sharpen(1e-30 * p, 0.5), targets.sharpen(p, 0.5), rtol=1e-5
    )
    np.testing.assert_array_equal(targets.sharpen(0 * p, 0.5), 0 * p)
    assert targets.sharpen(np.float64(p), 0.5).dtype == tf.float64


@pytest.mark.parametrize("temperature", [0.01, 0.4, 1.0, 10.0])
def test_sharpen_has_finite_gradients(temperature):
    p = np.float32(
        [[1, 0, 0], [0.5, 0.5, 0], [1, 1e-38, 1e-45], [0, 0, 0], [1e-45, 0, 0]]
    )
    weights = np.float32([1, 2, 3])
    q, dp = value_and_gradient(
        lambda p: tf.reduce_sum(weights * targets.sharpen(p, temperature), 1),
        p,
    )
    assert np.isfinite(q).all() and np.isfinite(dp).all()
    assert not dp[p == 0].any()
    # A factor of a row changes nothing.
    np.testing.assert_allclose(np.sum(p * dp, axis=1), 0, atol=1e-5)


def test_sharpening_a_softmax_divides_its_logits():
    logits = np.random.default_rng(0).normal(size=[5, 4]) * 30
    np.testing.assert_allclose(
        targets.sharpen(tf.nn.softmax(logits), 0.4),
        tf.nn.softmax(logits / 0.4),
        rtol=1e-9,
    )


def test_losses_against_soft_targets_by_hand():
    # p is (3/4, 1/4) in both rows; t is certain in one and equal in the other.
    logits = np.log(np.float32([[3, 1], [3, 1]]))
    target = np.float32([[1, 0], [0.5, 0.5]])
    entropies = [np.log(4 / 3), 0.5 * np.log(16 / 3)]
    for weight in ([1, 1], [0, 1], [0, 0], [2, 0.5]):
        np.testing.assert_allclose(
            losses.weighted_cross_entropy(logits, target, weight),
            np.dot(weight, entropies) / 2,
            rtol=1e-6,
        )
        divergences = [entropies[0], entropies[1] - np.log(2)]
        np.testing.assert_allclose(
            losses.kl_loss(logits, target, weight),
            np.dot(weight, divergences) / 2,
            rtol=1e-5,
        )
    np.testing.assert_allclose(
        losses.entropy_loss(logits),
        -0.75 * np.log(0.75) - 0.25 * np.log(0.25),
        rtol=1e-6,
    )


def test_losses_of_certain_predictions_are_finite():
    logits = np.float32([[1000, 0, -1000], [0, 0, 0]])
    target = np.float32([[0, 1, 0], [1, 0, 0]])
    for loss, wanted in (
        (lambda x: losses.kl_loss(x, target), (1000 + np.log(3)) / 2),
        (
            lambda x: losses.weighted_cross_entropy(x, target, [1, 1]),
            (1000 + np.log(3)) / 2,
        ),
        (losses.entropy_loss, np.log(3) / 2),
    ):
        value, gradient = value_and_gradient(loss, logits)
        np.testing.assert_allclose(value, wanted, rtol=1e-6)
        assert np.isfinite(gradient).all()


def test_soft_targets_and_weights_carry_no_gradient():
    logits, target = tf.constant(Z), tf.constant(Z)
    weight = tf.ones(2)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([logits, target, weight])
        cross = losses.weighted_cross_entropy(logits, target, weight)
        divergence = losses.kl_loss(logits, target, weight)
    for loss in (cross, divergence):
        assert tape.gradient(loss, [target, weight]) == [None, None]
        assert np.abs(tape.gradient(loss, logits)).max() > 0.1


def test_dash_by_hand():
    assert float(thresholds.dash(0.8, 3, 2, 0.05)) == pytest.approx(0.1)
    assert float(thresholds.dash(0.8, 4, 2, 0.06)) == pytest.approx(0.06)
    assert float(thresholds.dash(0.0, 0, 1.27, 0.05)) == pytest.approx(0.05)
    assert float(thresholds.dash(0.8, 10**6, 1.27, 0.05)) == pytest.approx(0.05)
    value = thresholds.dash(np.float64(0.8), np.float64(1), 1.27, 0.05)
    assert value.dtype == tf.float64
    np.testing.assert_allclose(value, 0.8 / 1.27, rtol=1e-15)
    assert thresholds.dash(0.8, tf.constant(1), 1.27, 0.05).dtype == tf.float32


def test_signal_annealing_by_hand():
    """L = 5, so that η = 0.2 + 0.8 c."""

    def eta(step, shape):
        value = schedules.signal_annealing(
            step, steps=100, shape=shape, num_classes=5, dtype="float64"
        )
        return (float(value) - 0.2) / 0.8

    for shape, wanted in (
        ("linear", [0, 0.2, 1, 1]),
        ("log", [0, 1 - np.exp(-1), 1 - np.exp(-5), 1 - np.exp(-5)]),
        ("exp", [np.exp(-5), np.exp(-4), 1, 1]),
    ):
        np.testing.assert_allclose(
            [eta(step, shape) for step in (0, 20, 100, 300)],
            wanted,
            atol=1e-12,
            err_msg=shape,
        )
    with pytest.raises(ValueError, match="shape='sqrt': must be linear, log"):
        eta(0, "sqrt")
    with pytest.raises(ValueError, match="steps=0: must be above 0"):
        schedules.signal_annealing(0, steps=0, shape="log", num_classes=5)
