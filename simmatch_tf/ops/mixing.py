"""Mixed images, and batches whose images change places.

References:
    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    https://arxiv.org/abs/1710.09412. Berthelot et al., "MixMatch: A Holistic
    Approach to Semi-Supervised Learning", NeurIPS 2019,
    https://arxiv.org/abs/1905.02249. Code:
    https://github.com/google-research/mixmatch
"""

from __future__ import annotations

from collections.abc import Sequence

from simmatch_tf.lazy import np, tf
from simmatch_tf.ops import tensors


def mix(
    x: tf.Tensor, y: tf.Tensor, permutation: tf.Tensor, share: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each image and its target with another one (MixMatch, Eq. 8 to 11).

    λ' = max(λ, 1 - λ), x'_i = λ'_i x_i + (1 - λ'_i) x_π(i), and y'_i likewise

    Each image keeps the larger share, so x' and y' are nearer to x and y than
    to what is mixed in.

    Args:
        x: Images [N, ...] of any type.
        y: Class probabilities [N, L].
        permutation: π, integers [N] in [0, N), not checked; see
            `sampling.permutation`.
        share: λ [N], from 0 to 1, not checked; see `sampling.beta`.

    Returns:
        x' [N, ...] and y' [N, L], float32, or float64 if x, y and share are.

    Raises:
        ValueError: A shape does not fit.
    """
    x, y, share = tensors.widen(x, y, share)
    permutation = tf.convert_to_tensor(permutation)
    rest = x.shape[1:] if x.shape.rank else ()
    tensors.check(
        x=(x, ("N", *rest)),
        y=(y, "NL"),
        permutation=(permutation, "N"),
        share=(share, "N"),
    )
    share = tf.maximum(share, 1 - share)  # [N], from ½ to 1

    def mixed(value: tf.Tensor) -> tf.Tensor:
        own = tf.reshape(share, [-1, *[1] * (value.shape.rank - 1)])
        return own * value + (1 - own) * tf.gather(value, permutation)

    return mixed(x), mixed(y)


def groups(rows: int, batches: int) -> tf.Tensor:
    """Divides the rows of a batch into groups of adjacent rows.

    Args:
        rows: Number of rows N.
        batches: Number of groups G.

    Returns:
        The group of each row, int32 [N]: 0 … G - 1 in order. Sizes differ by
        at most one row, and the last groups are the larger ones.
    """
    small, larger = divmod(rows, batches)
    sizes = [small + (g >= batches - larger) for g in range(batches)]
    # Not tf.repeat, whose result has no static shape.
    return tf.constant(np.repeat(np.arange(batches), sizes), tf.int32)


def interleave(
    batches: Sequence[tf.Tensor], groups: tf.Tensor
) -> list[tf.Tensor]:
    """Exchanges rows of the first batch with rows of the others.

    Row i of the first batch and row i of batch g_i change places; with g_i = 0
    it stays. Then each batch has rows of the first one, which alone are
    labeled, and BatchNorm sees similar statistics in all of them. A second call
    undoes the first.

    Args:
        batches: Batches b_0, b_1, … of one shape [N, ...] and type.
        groups: g, integers [N] from 0 to the number of batches - 1, not
            checked; see `groups`.

    Returns:
        The batches after the exchange.

    Raises:
        ValueError: The shapes differ, or do not fit `groups`.

    References:
        The authors' code of MixMatch, which the paper does not describe; see
        the module.
    """
    first, *others = map(tf.convert_to_tensor, batches)
    groups = tf.convert_to_tensor(groups)
    for number, other in enumerate(others, 1):
        tensors.check(
            **{"b_0": (first, ("N", *first.shape[1:]))},
            **{f"b_{number}": (other, ("N", *first.shape[1:]))},
            groups=(groups, "N"),
        )
    exchanged, result = first, []
    for number, other in enumerate(others, 1):
        here = groups == number  # [N]
        here = tf.reshape(here, [-1, *[1] * (first.shape.rank - 1)])
        result.append(tf.where(here, first, other))
        exchanged = tf.where(here, other, exchanged)
    return [exchanged, *result]
