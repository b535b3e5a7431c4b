"""The optimizer against the published update written out in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import optimizer


@pytest.mark.parametrize("decay_on", ["kernels", "all"])
def test_nesterov_with_l2_under_a_changing_rate(decay_on):
    rng = np.random.default_rng(0)
    w = rng.normal(size=[3, 2]).astype(np.float32)
    b = rng.normal(size=[2]).astype(np.float32)
    variables = [keras.Variable(w), keras.Variable(b)]
    sgd = optimizer.Sgd(
        optimizer.Schedule(
            lambda step: 0.1 / (1.0 + tf.cast(step, tf.float32))
        ),
        momentum=0.9,
        decay=0.01,
        decay_on=decay_on,
    )
    sgd.build(variables)
    values, velocities = [w, b], [np.zeros_like(w), np.zeros_like(b)]
    for step in range(5):
        gradients = [rng.normal(size=v.shape) for v in values]
        sgd.apply([tf.constant(g, tf.float32) for g in gradients], variables)
        for i, g in enumerate(gradients):
            if decay_on == "all" or values[i].ndim > 1:
                g = g + 0.01 * values[i]
            velocities[i] = 0.9 * velocities[i] + g
            rate = 0.1 / (1 + step)
            values[i] = values[i] - rate * (g + 0.9 * velocities[i])
    for variable, value in zip(variables, values, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-5)
    for velocity, value in zip(sgd.velocities, velocities, strict=True):
        np.testing.assert_allclose(velocity, value, rtol=1e-5)


def test_differs_from_keras_sgd_under_a_changing_rate():
    # Trap: Keras keeps -rate · g in its velocity.
    rates = keras.optimizers.schedules.PiecewiseConstantDecay([0], [1.0, 0.1])
    ours, theirs = keras.Variable([1.0]), keras.Variable([1.0])
    sgd = optimizer.Sgd(rates, momentum=0.9)
    keras_sgd = keras.optimizers.SGD(rates, momentum=0.9, nesterov=True)
    sgd.build([ours])
    for _ in range(2):
        sgd.apply([tf.ones([1])], [ours])
        keras_sgd.apply([tf.ones([1])], [theirs])
    assert abs(float(ours[0]) - float(theirs[0])) > 0.1


def test_a_factor_is_that_of_the_rate():
    """Velocities are those of the gradient; only the step is shorter."""
    weights = [keras.Variable([1.0], name=name) for name in ("slow", "fast")]
    sgd = optimizer.Sgd(0.1, momentum=0.9, decay=0.5, decay_on="all")
    sgd.build(weights, {weights[0].path: 0.25})
    sgd.apply([tf.ones([1])] * 2, weights)
    # g = 1 + 0.5, v = g, w = 1 - rate (g + 0.9 v).
    np.testing.assert_allclose(weights[1], [1 - 0.1 * 1.9 * 1.5], rtol=1e-6)
    np.testing.assert_allclose(weights[0], [1 - 0.025 * 1.9 * 1.5], rtol=1e-6)
    np.testing.assert_array_equal(*sgd.velocities)


def test_adam_decays_after_its_step():
    rng = np.random.default_rng(0)
    values = [rng.normal(size=[3, 2]), rng.normal(size=[2])]
    variables = [
        keras.Variable(v, dtype="float64", name=name)
        for v, name in zip(values, ("kernel", "bias"), strict=True)
    ]
    adam = optimizer.Adam(
        optimizer.Schedule(
            lambda step: 0.1 / (1.0 + tf.cast(step, tf.float32))
        ),
        decay=0.5,
    )
    adam.build(variables, {variables[1].path: 0.25})
    moments = [[np.zeros_like(v)] * 2 for v in values]
    for step in range(5):
        gradients = [rng.normal(size=v.shape) for v in values]
        adam.apply([tf.constant(g) for g in gradients], variables)
        for i, g in enumerate(gradients):
            m, v = moments[i]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            moments[i] = [m, v]
            rate = 0.1 / (1 + step) * (1, 0.25)[i]
            m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            values[i] = values[i] - rate * m / (np.sqrt(v) + 1e-8)
            if i == 0:  # biases have no decay
                values[i] = values[i] * (1 - rate * 0.5)
    for variable, value in zip(variables, values, strict=True):
        np.testing.assert_allclose(variable, value, rtol=1e-4)
