"""Mixed images.

References:
    Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018,
    https://arxiv.org/abs/1710.09412.
"""

from __future__ import annotations

from simmatch_tf.lazy import tf
from simmatch_tf.ops import tensors


def mixup(
    x: tf.Tensor, y: tf.Tensor, lam: tf.Tensor, permutation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes each image and its target with another image of the batch.

    x̃_i = λ_i x_i + (1 - λ_i) x_π(i), and ỹ_i likewise.

    Args:
        x: Images [N, H, W, C], of a floating-point type.
        y: Class probabilities [N, L], of a floating-point type.
        lam: λ [N], from 0 to 1; not checked. MixMatch takes max(λ, 1 - λ).
        permutation: π, integers [N]; see `sampling.permutation`.

    Returns:
        x̃ [N, H, W, C] and ỹ [N, L], of the types of x and y.

    Raises:
        ValueError: A shape does not fit, or x or y has integers.
    """
    x, y, lam = map(tf.convert_to_tensor, (x, y, lam))
    permutation = tf.convert_to_tensor(permutation)
    tensors.check(
        x=(x, "NHWC"),
        y=(y, "NL"),
        lam=(lam, "N"),
        permutation=(permutation, "N"),
    )
    for name, value in (("x", x), ("y", y)):
        if not value.dtype.is_floating:
            raise ValueError(
                f"{name} is {value.dtype.name}: λ would be rounded to 0 or 1; "
                f"cast it first, as in tf.cast({name}, self.dtype)"
            )

    def mix(value: tf.Tensor) -> tf.Tensor:
        ones = [1] * (value.shape.rank - 1)
        weight = tf.reshape(tf.cast(lam, value.dtype), [-1, *ones])
        return weight * value + (1 - weight) * tf.gather(value, permutation)

    return mix(x), mix(y)
