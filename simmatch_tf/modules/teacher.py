"""The EMA teacher: an exponential moving average of a network.

Its BatchNorm has two forms. With EMAN, the statistics are averaged as the
weights are, and the teacher runs in inference mode. Otherwise, as in the
published ImageNet runs, the teacher runs in training mode and has statistics
of its own. If each replica uses the statistics of its own images, images are
then shuffled over the replicas first, as published; with statistics of the
whole batch a shuffle would change nothing.

References:
    Cai et al., "Exponential Moving Average Normalization for Self-supervised
    and Semi-supervised Learning", CVPR 2021, https://arxiv.org/abs/2101.08482.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from simmatch_tf import lazy
from simmatch_tf.lazy import keras, tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import schedules


class Teacher(lazy.Module):
    """Averages the weights of a network, and its BatchNorm statistics.

    Attributes:
        model: The averaged network.
        eman: Whether its statistics are averages of the student's.
        shuffles: Whether images are shuffled over the replicas, without EMAN.
    """

    def __init__(
        self,
        model: keras.Model,
        student: keras.Model,
        *,
        momentum: float = 0.999,
        warmup: bool = False,
        start: tuple[float | None, int] = (None, 0),
        eman: bool = True,
        shuffles: bool = False,
    ) -> None:
        """Starts `model` as a copy of `student`.

        Args:
            model: A network of the student's architecture; overwritten.
            student: The network to follow.
            momentum: Weight of the old value, in [0, 1].
            warmup: See `schedules.ema_momentum`.
            start: Likewise.
            eman: Average the student's statistics; see the module.
            shuffles: Shuffle images over the replicas; see the module.
        """
        super().__init__(name="teacher")
        self.model, self.eman, self.shuffles = model, eman, shuffles
        self._momentum = functools.partial(
            schedules.ema_momentum,
            momentum=momentum,
            warmup=warmup,
            start=start,
        )
        self.copy(student)

    def copy(self, student: keras.Model) -> None:
        """Copies the student."""
        for own, other in _pairs(self.model.variables, student.variables):
            own.assign(other)

    def __call__(
        self, images: tf.Tensor, seed: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Runs the teacher in a training step.

        Args:
            images: This replica's images [N, H, W, C].
            seed: Seed of this step's shuffle, int [2].

        Returns:
            The network's outputs by name.
        """
        if self.eman:
            return self.model(images, training=False)
        if not self.shuffles:
            return self.model(images, training=True)
        images, back = replica.shuffle(images, seed)
        out = self.model(images, training=True)
        return {name: back(value) for name, value in out.items()}

    def update(self, student: keras.Model, step: tf.Tensor) -> None:
        """Updates the average: F_t ← m F_t + (1 - m) F_s.

        Args:
            student: The network after this step's optimizer update.
            step: Number of the step, from 0.
        """
        m = self._momentum(step)
        if self.eman:
            pairs = _pairs(self.model.variables, student.variables)
        else:
            pairs = _pairs(
                self.model.trainable_variables, student.trainable_variables
            )
        for variable, value in pairs:
            if not variable.dtype.is_floating:
                variable.assign(value)  # counters have no average
                continue
            rest = tf.cast(1.0 - m, variable.dtype)
            # Equal values stay equal to the last bit in this form.
            variable.assign_add(rest * (value - variable))


def _pairs(
    own: Sequence[keras.Variable], others: Sequence[keras.Variable]
) -> Sequence[tuple[tf.Variable, tf.Variable]]:
    return [(a.value, b.value) for a, b in zip(own, others, strict=True)]
