"""Scale of the loss in float16, so that small gradients do not underflow."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica

# As in PyTorch's GradScaler and Keras' LossScaleOptimizer.
FIRST, GROWS_AFTER, LARGEST = 2.0**15, 2000, 2.0**24


class LossScale(lazy.Module):
    """A scale that halves when a gradient overflows, and grows again.

    It doubles after GROWS_AFTER steps without overflow.

    Attributes:
        scale: A power of 2 in [1, LARGEST], float32.
        good: Number of steps without overflow since the last change, int64.
    """

    def __init__(self) -> None:
        """Starts at FIRST, 2^15."""
        super().__init__(name="loss_scale")
        self.scale = replica.variable(FIRST, "scale", tf.float32)
        self.good = replica.variable(0, "good", tf.int64)

    def above_one(self) -> tf.Tensor:
        """Returns whether the scale can be lowered, a bool scalar."""
        return self.scale > 1.0

    def update(self, finite: tf.Tensor) -> None:
        """Updates the scale after a step.

        Args:
            finite: Whether no gradient overflowed, a bool scalar.
        """
        good = (self.good + 1) * tf.cast(finite, tf.int64)
        grows = good >= GROWS_AFTER
        factor = tf.where(finite, tf.where(grows, 2.0, 1.0), 0.5)
        self.scale.assign(tf.clip_by_value(self.scale * factor, 1.0, LARGEST))
        self.good.assign(good * tf.cast(~grows, tf.int64))
