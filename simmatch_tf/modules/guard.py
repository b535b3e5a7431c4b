"""Steps in which a number is not finite: found on the device, and undone."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import loss_scale, replica

# So many broken steps in a row are no accident.
GIVES_UP_AFTER = 10


class _Notes(threading.local):
    """What a step lays aside to be looked at; no part of the state.

    Replicas are traced in a thread each.
    """

    tensors: dict[str, tf.Tensor] = {}


class Guard(lazy.Module):
    """Looks at what a step computed; the host need not look at each.

    Attributes:
        skips: Whether broken steps are undone, and the run goes on.
        names: Of the tensors that are looked at; known once a step is traced.
        step: int64, the first broken step since `look`, from 1; 0: none.
        place: int64, which tensor was the first of that step; see `names`.
        in_a_row: int64, broken steps up to now; stays once it has reached
            GIVES_UP_AFTER.
        total: int64, all broken steps.
    """

    def __init__(self, *, skips: bool) -> None:
        """Starts with nothing found."""
        super().__init__(name="guard")
        self.skips = skips
        self.names: tuple[str, ...] = ()
        self._notes = _Notes()
        self.step, self.place, self.in_a_row, self.total = (
            replica.variable(0, name, tf.int64)
            for name in ("step", "place", "in_a_row", "total")
        )

    def note(self, tensors: dict[str, tf.Tensor]) -> None:
        """Lays a step's gradients and statistics aside, for `examine`.

        Args:
            tensors: Name → tensor, in the order in which they are computed.
        """
        self._notes.tensors = tensors

    def examine(
        self,
        step: tf.Tensor,
        losses: dict[str, tf.Tensor],
        scale: loss_scale.LossScale | None,
    ) -> tf.Tensor:
        """Looks for a number that is not finite, on all replicas alike.

        Args:
            step: Number of this step, from 1.
            losses: Name → tensor of any shape.
            scale: That of the loss. While it is above 1, what was noted may
                overflow for its sake, which breaks nothing: it is lowered.

        Returns:
            Whether the step must be undone, a bool scalar.
        """
        others, self._notes.tensors = self._notes.tensors, {}
        self.names = (*losses, *others)
        # A sum is finite if and only if all are: one operation a tensor.
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
        """The first broken step since the last look, and its first tensor."""
        step = int(self.step.numpy())
        if not step:
            return None
        name = self.names[int(self.place.numpy())]
        self.step.assign(0)
        return step, name

    def gave_up(self) -> bool:
        """Whether too many steps in a row were broken."""
        return int(self.in_a_row.numpy()) >= GIVES_UP_AFTER


def put_back(
    variables: Sequence[tf.Variable],
    values: Sequence[tf.Tensor],
    undo: tf.Tensor,
) -> None:
    """Gives variables their old values again.

    Args:
        variables: What a step may have changed.
        values: What they were before it.
        undo: Bool scalar: whether to do so.
    """
    for variable, value in zip(variables, values, strict=True):
        variable.assign(tf.where(undo, value, variable))
