"""The EMA teacher: a slowly moving copy of a network."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from simmatch_tf.ops import schedules


class Teacher(tf.Module):
    """Averages weights and BatchNorm statistics alike (EMAN).

    Attributes:
        model: The copy. Run it in inference mode.
    """

    def __init__(
        self,
        model: keras.Model,
        student: keras.Model,
        *,
        momentum: float = 0.999,
        warmup: bool = False,
    ) -> None:
        """Starts `model` as a copy of `student`.

        Args:
            model: A network of the student's architecture; overwritten.
            student: The network to follow.
            momentum: Weight of the old value, in [0, 1].
            warmup: See `schedules.ema_momentum`.

        Raises:
            ValueError: The two networks do not have the same variables, or
                `momentum` is out of range.
        """
        super().__init__(name="teacher")
        if not 0 <= momentum <= 1:
            raise ValueError(f"momentum={momentum}: must be in [0, 1]")
        own = [tuple(v.shape) for v in model.variables]
        others = [tuple(v.shape) for v in student.variables]
        if own != others:
            raise ValueError(
                f"the teacher's variables have shapes {own}, the student's "
                f"{others}: they must be equal"
            )
        self.model = model
        self._momentum, self._warmup = momentum, warmup
        self.copy(student)

    def copy(self, student: keras.Model) -> None:
        """Makes the copy equal to the student."""
        for variable, value in _pairs(self.model, student):
            variable.assign(value)

    def update(self, student: keras.Model, step: tf.Tensor) -> None:
        """Moves the copy: F_t ← m F_t + (1 - m) F_s.

        Args:
            student: The network after this step's optimizer update.
            step: Number of the step, from 0.
        """
        m = schedules.ema_momentum(
            step, momentum=self._momentum, warmup=self._warmup
        )
        for variable, value in _pairs(self.model, student):
            if not variable.dtype.is_floating:
                variable.assign(value)  # counters have no average
                continue
            rest = tf.cast(1.0 - m, variable.dtype)
            # Equal values stay equal to the last bit in this form.
            variable.assign_add(rest * (value - variable))


def _pairs(
    model: keras.Model, student: keras.Model
) -> Sequence[tuple[tf.Variable, tf.Variable]]:
    return [
        (a.value, b.value)
        for a, b in zip(model.variables, student.variables, strict=True)
    ]
