"""Random numbers of a step."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from simmatch_tf.ops import sampling


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 0.75, 1.0, 2.0, 30.0])
def test_beta_has_its_distribution(alpha):
    draws = sampling.beta(tf.constant([3, 4]), [20_000], alpha).numpy()
    wanted = scipy.stats.beta(alpha, alpha)
    np.testing.assert_allclose(draws.mean(), 0.5, atol=5 * wanted.std() / 141)
    np.testing.assert_allclose(draws.var(), wanted.var(), rtol=0.05)
    if alpha >= 0.2:  # below, rounding gives 0 and 1 a probability
        draws = sampling.beta(
            tf.constant([3, 4]), [20_000], alpha, dtype="float64"
        )
        assert scipy.stats.kstest(draws, wanted.cdf).pvalue > 1e-3


def test_beta_of_two_numbers_type_and_shape():
    seed = tf.constant([1, 2])
    draws = sampling.beta(seed, [100, 50], 2.0, 5.0, "float64").numpy()
    assert draws.dtype == np.float64 and draws.shape == (100, 50)
    wanted = scipy.stats.beta(2, 5)
    assert scipy.stats.kstest(draws.ravel(), wanted.cdf).pvalue > 1e-3
    again = sampling.beta(seed, [100, 50], 2.0, 5.0, "float64")
    np.testing.assert_array_equal(again, draws)
    with pytest.raises(ValueError, match="alpha=0, beta=0: must be above 0"):
        sampling.beta(seed, [1], 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_uniform_and_normal_have_their_distribution(dtype):
    for draw, wanted in (
        (sampling.uniform, "uniform"),
        (sampling.normal, "norm"),
    ):
        draws = draw(tf.constant([5, 6]), [20_000], dtype).numpy()
        assert draws.dtype == dtype
        assert scipy.stats.kstest(draws, wanted).pvalue > 1e-3
        assert len(set(draws)) > 19_900


def test_permutation():
    orders = [
        sampling.permutation(tf.constant([0, s]), 9).numpy() for s in range(2)
    ]
    assert (orders[0] != orders[1]).any()
    assert all(sorted(order) == list(range(9)) for order in orders)


@pytest.mark.slow
def test_both_compile_to_stablehlo():
    @tf.function(autograph=False, jit_compile=True)
    def draw(seed):
        return (
            sampling.beta(seed, [40], 0.75),
            sampling.beta(seed, [40], 0.75, dtype="float64"),
            sampling.uniform(seed, [7, 5]),
            sampling.permutation(seed, 4),
        )

    seed = tf.constant([1, 2])
    text = draw.experimental_get_compiler_ir(seed)(stage="stablehlo")
    assert "custom_call" not in text and "tensor<?" not in text
    for compiled, plain in zip(
        draw(seed), draw.python_function(seed), strict=True
    ):
        np.testing.assert_allclose(compiled, plain, rtol=1e-4)
