"""Detects steps with numbers that are not finite."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import loss_scale, replica

# So many broken steps in a row will not end by themselves.
GIVES_UP_AFTER = 10


class Guard(lazy.Module):
    """Examines the numbers of each step on the device.

    The host asks for the result now and then, by `look`.

    Attributes:
        skips: Whether broken steps are undone and the run continues.
        names: Names of the tensors that are examined; known once a step is
            traced.
        step: The first broken step since the last `look`, counted from 1; 0
            for none. int64.
        place: Index in `names` of that step's first tensor that is not
            finite, int64.
        in_a_row: Number of consecutive broken steps up to now, int64; it stays
            once it has reached GIVES_UP_AFTER.
        total: Number of all broken steps, int64.
    """

    def __init__(self, *, skips: bool) -> None:
        """Starts with no broken step."""
        super().__init__(name="guard")
        self.skips = skips
        self.names: tuple[str, ...] = ()
        self.step, self.place, self.in_a_row, self.total = (
            replica.variable(0, name, tf.int64)
            for name in ("step", "place", "in_a_row", "total")
        )

    def examine(
        self,
        step: tf.Tensor,
        losses: dict[str, tf.Tensor],
        others: dict[str, tf.Tensor],
        scale: loss_scale.LossScale | None,
    ) -> tf.Tensor:
        """Searches the step's tensors for numbers that are not finite.

        The result is the same on all replicas.

        Args:
            step: Number of this step, from 1.
            losses: Name → tensor of any shape.
            others: Likewise the step's gradients and statistics, in the order
                in which they are computed.
            scale: The loss scale, or None. While it is above 1, gradients and
                statistics may overflow because of it; the step is then not
                broken, the scale is lowered.

        Returns:
            Whether the step must be undone, a bool scalar.
        """
        self.names = (*losses, *others)
        # A sum is finite only if all its terms are: one operation a tensor.
        sums = [tf.reduce_sum(x) for x in (*losses.values(), *others.values())]
        sums = tf.stack([tf.cast(x, tf.float32) for x in sums])
        wrong = tf.cast(~tf.math.is_finite(sums), tf.float32)
        wrong = replica.mean(wrong) > 0  # [n], the same everywhere
        any_wrong = tf.reduce_any(wrong)
        overflow = tf.constant(False)
        if scale is not None:
            loss_wrong = tf.reduce_any(wrong[: len(losses)])
            overflow = any_wrong & ~loss_wrong & scale.above_one()
            scale.update(~any_wrong)
        broken = any_wrong & ~overflow
        first = broken & (self.step == 0)
        place = tf.argmax(wrong)
        self.step.assign(tf.where(first, step, self.step))
        self.place.assign(tf.where(first, place, self.place))
        row = (self.in_a_row + 1) * tf.cast(broken, tf.int64)
        gave_up = self.in_a_row >= GIVES_UP_AFTER
        self.in_a_row.assign(tf.where(gave_up, self.in_a_row, row))
        self.total.assign_add(tf.cast(broken, tf.int64))
        return overflow | broken if self.skips else overflow

    def look(self) -> tuple[int, str] | None:
        """Returns the first broken step since the last call, and its tensor."""
        step = int(self.step.numpy())
        if not step:
            return None
        name = self.names[int(self.place.numpy())]
        self.step.assign(0)
        return step, name

    def gave_up(self) -> bool:
        """Returns whether too many steps in a row were broken."""
        return int(self.in_a_row.numpy()) >= GIVES_UP_AFTER
