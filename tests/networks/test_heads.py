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
