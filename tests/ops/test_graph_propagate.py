"""SimMatchV2's propagation: by hand, against a solver, and what it refuses."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import simmatch_v2
from simmatch_tf.ops import losses, propagation
from tests import reference

N, K, D, L = 5, 20, 6, 4
MOST = simmatch_v2.SimMatchV2.HyperParameters.declared()[
    "simmatch_v2.alpha"
].high


def unit(rng, rows):
    x = rng.normal(size=[rows, D])
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def inputs(seed=0):
    """p, z, bank and bank_labels."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(L), N)
    p[0] = np.eye(L)[1]
    return p, unit(rng, N), unit(rng, K), rng.integers(0, L, K)


def propagate(given, neighbors=7, t=0.1, alpha=0.1, dtype=np.float64):
    p, z, bank, labels = given
    return propagation.graph_propagate(
        *(x.astype(dtype) for x in (p, z, bank)),
        labels,
        L,
        neighbors,
        t,
        alpha,
    )


def matrices(given, neighbors, t, dtype):
    """A of each image."""
    _, z, bank, _ = given
    nodes = np.stack([np.vstack([row, bank[:neighbors]]) for row in z])
    logits = nodes @ np.swapaxes(nodes, 1, 2) / t
    logits[:, range(neighbors + 1), range(neighbors + 1)] = -np.inf
    return tf.nn.softmax(tf.constant(logits, dtype)).numpy()


def test_by_hand():
    """One neighbor: A swaps the two nodes."""
    p_hat = propagation.graph_propagate(
        [[1.0, 0.0]],
        [[1.0, 0.0]],
        [[0.0, 1.0], [0.6, 0.8]],
        [0, 1],
        2,
        1,
        1,
        0.5,
    )
    # (1 - α) (I - αA)⁻¹ has the first row (1, α) / (1 + α).
    np.testing.assert_allclose(p_hat, [[2 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize("neighbors", [1, 7, 128])
@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, MOST])
def test_as_a_dense_solver_has_it(alpha, neighbors):
    """In the whole range of the flag."""
    given = inputs()
    wanted = reference.graph_propagate(*given, L, neighbors, 0.1, alpha)
    for dtype, tolerance in ((np.float32, 1e-6), (np.float64, 1e-14)):
        p_hat = propagate(given, neighbors, alpha=alpha, dtype=dtype)
        assert p_hat.dtype == dtype and p_hat.shape == (N, L)
        np.testing.assert_allclose(p_hat, wanted, atol=tolerance)
        np.testing.assert_allclose(
            np.sum(p_hat, axis=1), 1, atol=10 * tolerance
        )
    assert alpha == 0 or np.abs(wanted - given[0]).max() > alpha / 9


@pytest.mark.parametrize("t", [0.005, 10.0])
def test_extreme_temperatures(t):
    given = inputs()
    wanted = reference.graph_propagate(*given, L, 9, t, 0.5)
    np.testing.assert_allclose(propagate(given, 9, t, 0.5), wanted, atol=1e-13)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_it_is_the_power_series(alpha):
    """(1 - α) Σ αᵏ Aᵏ, with more terms than float64 tells apart."""
    a = matrices(inputs(), 12, 0.1, "float64")
    row, power = np.zeros([N, 13]), np.eye(13)[[0] * N]
    for k in range(200):
        row += (1 - alpha) * alpha**k * power
        power = np.einsum("ni,nij->nj", power, a)
    for dtype, tolerance in (("float32", 1e-5), ("float64", 1e-14)):
        v = propagation.walk(a.astype(dtype), alpha)
        np.testing.assert_allclose(v, row, atol=tolerance)


@pytest.mark.parametrize("alpha", [0.1, 0.5, MOST])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_error_is_the_probability_of_longer_walks(alpha, dtype):
    count = propagation.iterations(alpha, tf.as_dtype(dtype))
    epsilon = np.finfo(dtype).eps
    assert alpha ** (count + 1) <= epsilon * (1 + 1e-9) < alpha**count
    a = matrices(inputs(), 12, 0.1, "float64")
    wanted = np.linalg.solve(
        np.swapaxes(np.eye(13) - alpha * a, 1, 2),
        np.tile((1 - alpha) * np.eye(13)[:, :1], [N, 1, 1]),
    )[..., 0]
    v = propagation.walk(a.astype(dtype), alpha)
    error = np.abs(v - wanted).sum(axis=1).max()
    # And what is rounded in a sum that alpha contracts.
    assert error <= 4 * epsilon / (1 - alpha)


def test_equal_labels_are_what_they_are():
    """Whatever the graph, p̂ of one class alone is that class."""
    p, z, bank, _ = inputs()
    p = np.tile(np.eye(L)[2], [N, 1])
    p_hat = propagate((p, z, bank, np.full(K, 2)), alpha=0.9)
    np.testing.assert_allclose(p_hat, p, atol=1e-14)


def test_gradients_are_finite_and_none_goes_to_the_bank():
    given = inputs()
    x = [tf.constant(value) for value in given[:3]]
    weights = np.random.default_rng(9).normal(size=[N, L])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(
            weights * propagation.graph_propagate(*x, given[3], L, 7, 0.1, 0.5)
        )
    p, z, bank = tape.gradient(y, x)
    assert bank is None

    def value(place):
        def of(moved):
            arguments = list(given)
            arguments[place] = moved
            return np.sum(
                weights * reference.graph_propagate(*arguments, L, 7, 0.1, 0.5)
            )

        return of

    for place, gradient in ((0, p), (1, z)):
        wanted = reference.gradient(value(place), given[place])
        np.testing.assert_allclose(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_compiled_and_eager_are_the_same():
    given = inputs()
    call = tf.function(
        lambda: propagate(given, alpha=0.5), autograph=False, jit_compile=True
    )
    np.testing.assert_allclose(call(), propagate(given, alpha=0.5), atol=1e-14)


def test_rows_that_are_equally_similar_come_in_their_order():
    cosines, places = propagation.nearest([[1.0, 0.0]], [[0.0, 1.0]] * 4, 3)
    assert places.numpy().tolist() == [[0, 1, 2]]
    assert cosines.numpy().tolist() == [[0, 0, 0]]
    _, places = propagation.nearest(
        [[1.0, 0.0]], [[1.0, 0.0]] * 4, 2, [False, True, False, True]
    )
    assert places.numpy().tolist() == [[1, 3]]


def test_what_is_refused():
    p, z, bank, labels = inputs()
    for alpha in (-0.1, 1.0):
        with pytest.raises(ValueError, match=r"alpha=.*: must be in \[0, 1\)"):
            propagate((p, z, bank, labels), alpha=alpha)
    with pytest.raises(ValueError, match="temperature=0: must be above 0"):
        propagate((p, z, bank, labels), t=0)
    with pytest.raises(ValueError, match="count=0: must be at least 1"):
        propagate((p, z, bank, labels), neighbors=0)
    for wrong in (
        (p[:, :2], z, bank, labels),
        (p[:2], z, bank, labels),
        (p, z[:, :2], bank, labels),
        (p, z, bank, labels[:3]),
    ):
        with pytest.raises(ValueError, match="has shape"):
            propagate(wrong)
    with pytest.raises(ValueError, match=r"a has shape .*: must be \[..., n"):
        propagation.walk(np.ones([2, 3]), 0.1)


def test_mixture_loss():
    p = np.array([[0.25, 0.75], [0.0, 1.0]])
    target = np.array([[0.5, 0.5], [0.1, 0.9]])
    x = tf.constant(p)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = losses.mixture_loss(x, target)
    wanted = -(0.5 * np.log(0.25 * 0.75) + 0.1 * np.log(1e-12)) / 2
    np.testing.assert_allclose(loss, wanted, rtol=1e-12)
    np.testing.assert_allclose(
        tape.gradient(loss, x), [[-1, -1 / 3], [0, -0.45]], rtol=1e-12
    )
    with pytest.raises(ValueError, match="has shape"):
        losses.mixture_loss(p, target[:1])
