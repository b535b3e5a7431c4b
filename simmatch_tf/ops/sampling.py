"""Random numbers of a step: functions of a seed, as XLA compiles them.

A seed is int32 [2], such as `Algorithm.seed` gives. Equal seeds give equal
numbers, with --jit_compile up to rounding; tf.random.stateless_uniform and its
like give others there.

References:
    Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables", ACM
    Transactions on Mathematical Software 26(3), 2000,
    https://doi.org/10.1145/358407.358414.
"""

from __future__ import annotations

from collections.abc import Sequence

from simmatch_tf.lazy import np, tf

# A proposal is refused with a probability of at most 0.05, all of them with
# one below 1e-10: then the mode of the proposals is taken.
_PROPOSALS = 8


def uniform(
    seed: tf.Tensor, shape: Sequence[int], dtype: tf.DType | str = "float32"
) -> tf.Tensor:
    """Draws uniform numbers.

    Args:
        seed: int32 [2].
        shape: Shape of the result.
        dtype: "float32" or "float64".

    Returns:
        Numbers in [0, 1) of this shape.
    """
    # Of its integers alone, XLA and TensorFlow draw the same.
    double = tf.as_dtype(dtype) == tf.float64
    integers, digits = (tf.int64, 53) if double else (tf.int32, 24)
    bits = tf.random.stateless_uniform(
        shape, seed, minval=None, maxval=None, dtype=integers, alg="philox"
    )
    bits = tf.bitwise.bitwise_and(bits, tf.constant(2**digits - 1, integers))
    return tf.cast(bits, dtype) / 2**digits


def normal(
    seed: tf.Tensor, shape: Sequence[int], dtype: tf.DType | str = "float32"
) -> tf.Tensor:
    """Draws from the standard normal distribution.

    Args:
        seed: int32 [2].
        shape: Shape of the result.
        dtype: "float32" or "float64".

    Returns:
        Numbers of this shape, √(-2 log u) cos(2 π v) of two uniform numbers.
    """
    u, v = tf.unstack(uniform(seed, [2, *shape], dtype))
    return tf.sqrt(-2 * tf.math.log1p(-u)) * tf.cos(2 * np.pi * v)


def beta(
    seed: tf.Tensor,
    shape: Sequence[int],
    alpha: float,
    beta: float | None = None,
    dtype: tf.DType | str = "float32",
) -> tf.Tensor:
    """Draws from Beta(α, β), as G_α / (G_α + G_β) of two gamma variables.

    tf.random.stateless_gamma is not used, because XLA cannot compile it.

    Args:
        seed: int32 [2].
        shape: Shape of the result.
        alpha: α, above 0.
        beta: β, above 0; default: α.
        dtype: "float32" or "float64".

    Returns:
        Numbers from 0 to 1 of this shape.

    Raises:
        ValueError: α or β is not above 0.
    """
    beta = alpha if beta is None else beta
    if alpha <= 0 or beta <= 0:
        raise ValueError(f"alpha={alpha}, beta={beta}: must be above 0")
    one, other = tf.unstack(tf.random.split(seed, 2, alg="philox"))
    # In logarithms: where α is small, both variables may be too small.
    difference = _log_gamma(one, shape, alpha, dtype) - _log_gamma(
        other, shape, beta, dtype
    )
    return tf.sigmoid(difference)


def permutation(seed: tf.Tensor, count: int) -> tf.Tensor:
    """Draws a permutation.

    Args:
        seed: int32 [2].
        count: Number n of elements.

    Returns:
        0 … n - 1 in random order, int32 [n].
    """
    return tf.argsort(uniform(seed, [count]))


def _log_gamma(
    seed: tf.Tensor, shape: Sequence[int], alpha: float, dtype: tf.DType | str
) -> tf.Tensor:
    """Draws log G of G from Gamma(α, 1), as log G' U^(1/α), G' of α + 1.

    G' = d v with v = (1 + c x)³, where x is normal, d = α + 2/3 and
    c = 1 / √(9 d); it is accepted if log u < x²/2 + d - d v + d log v.
    """
    seeds = tf.unstack(tf.random.split(seed, 3, alg="philox"))
    shape = list(shape)
    x = normal(seeds[0], [_PROPOSALS, *shape], dtype)
    u = 1 - uniform(seeds[1], [_PROPOSALS, *shape], dtype)  # above 0
    last = 1 - uniform(seeds[2], shape, dtype)
    d = alpha + 2 / 3
    root = 1 + x / (9 * d) ** 0.5
    log_v = 3 * tf.math.log(tf.where(root > 0, root, 1))
    bound = x**2 / 2 + d - d * tf.exp(log_v) + d * log_v
    accepted = (root > 0) & (tf.math.log(u) < bound)
    chosen = tf.zeros(shape, dtype)  # log v of the mode
    for number in reversed(range(_PROPOSALS)):
        chosen = tf.where(accepted[number], log_v[number], chosen)
    return chosen + tf.math.log(tf.cast(d, dtype)) + tf.math.log(last) / alpha
