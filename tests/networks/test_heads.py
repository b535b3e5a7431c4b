"""Heads and their initializers."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.networks import heads


def test_projection_of_zero_has_a_finite_gradient():
    head = heads.projection_head(4, 3, "glorot_normal")
    x = tf.zeros([2, 4])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(head(x))
    assert np.isfinite(tape.gradient(y, x)).all()
    assert np.isfinite(y)


def test_a_resnets_heads_are_uniform_within_the_root_of_fan_in():
    keras.utils.set_random_seed(0)
    for initializer, bound in (("fan_in_uniform", 0.1), ("glorot_normal", 0)):
        dense = heads.classifier(100, 400, initializer).get_layer("logits")
        bias, kernel = (np.asarray(v.value) for v in (dense.bias, dense.kernel))
        assert np.abs(bias).max() <= bound
        if bound:
            assert np.abs(kernel).max() <= bound
            for values in (bias, kernel):  # a uniform one's deviation
                assert values.std() == pytest.approx(bound / 3**0.5, rel=0.1)
            assert bias.min() < -0.09 and bias.max() > 0.09
    with pytest.raises(ValueError, match="initializer 'zeros': must be"):
        heads.classifier(4, 2, "zeros")


def standardized_by_hand(x, mean, deviation, kernel, bias, most):
    x = np.clip((x - mean) / deviation, -most, most)
    return x @ kernel + bias


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_linear_classifier_of_standardized_features(precision, tmp_path):
    random = np.random.default_rng(0)
    # Small deviations beside the means, which half precision would lose.
    mean, kernel = random.normal(100, 1, 6), random.normal(size=[6, 3])
    deviation, bias = random.uniform(0.1, 0.2, 6), random.normal(size=3)
    x = (mean + deviation * random.normal(0, 4, [50, 6])).astype(np.float32)
    wanted = standardized_by_hand(x, mean, deviation, kernel, bias, 5.0)
    keras.config.set_dtype_policy(precision)
    try:
        layer = heads.StandardizedLinear(3, 5.0, name="classifier")
        inputs = keras.Input([6], dtype="float32")
        model = keras.Model(inputs, layer(inputs))
    finally:
        keras.config.set_dtype_policy("float32")
    layer.set_weights([mean, deviation, kernel, bias])
    assert not layer.trainable_variables
    model.save(tmp_path / "a.keras")
    for each in (model, keras.models.load_model(tmp_path / "a.keras")):
        logits = each(x)
        assert logits.dtype == tf.float32
        np.testing.assert_allclose(logits, wanted, atol=1e-3)
    # The layer cuts off: without, or elsewhere, the logits are others.
    for most in (4.5, np.inf):
        other = standardized_by_hand(x, mean, deviation, kernel, bias, most)
        assert np.abs(other - wanted).max() > 0.1
