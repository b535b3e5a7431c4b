"""The scale of the loss in float16, so that small gradients are not lost."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica

# As everybody's: PyTorch's GradScaler, Keras' LossScaleOptimizer.
FIRST, GROWS_AFTER, LARGEST = 2.0**15, 2000, 2.0**24


class LossScale(lazy.Module):
    """Halves when a gradient overflows, doubles when long none did.

    Attributes:
        scale: float32, a power of 2 in [1, LARGEST].
        good: int64, steps without overflow since the last change.
    """

    def __init__(self) -> None:
        """Starts at 2^15."""
        super().__init__(name="loss_scale")
        self.scale = replica.variable(FIRST, "scale", tf.float32)
        self.good = replica.variable(0, "good", tf.int64)

    def above_one(self) -> tf.Tensor:
        """Whether it can be lowered: a bool scalar."""
        return self.scale > 1.0

    def update(self, finite: tf.Tensor) -> None:
        """Ends a step.

        Args:
            finite: Bool scalar: no gradient overflowed.
        """
        good = (self.good + 1) * tf.cast(finite, tf.int64)
        grows = good >= GROWS_AFTER
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self.scale.assign(tf.clip_by_value(self.scale * factor, 1.0, LARGEST))
        self.good.assign(good * tf.cast(~grows, tf.int64))
