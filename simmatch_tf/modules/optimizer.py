"""The optimizers of the published runs."""

from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf


class Sgd(keras.optimizers.Optimizer):
    """SGD with Nesterov momentum, and L2 regularization in the gradient.

    g ← gradient + weight_decay · w
    v ← momentum · v + g
    w ← w - rate · (g + momentum · v)

    Keras' own SGD has -rate · g in its velocity, and its `weight_decay` is
    decoupled: under a changing rate it is a different optimizer.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        *,
        momentum: float = 0.9,
        decay: float = 0.0,
        decay_on: str = "kernels",
    ) -> None:
        """Makes the optimizer; `build` makes its velocities.

        Args:
            learning_rate: Learning rate, or its schedule.
            momentum: Weight of the old velocity, in [0, 1).
            decay: L2 coefficient, ≥ 0.
            decay_on: Weights to regularize: "kernels" of dense layers and
                convolutions, or "all", with biases and BatchNorm's weights.
        """
        super().__init__(learning_rate=learning_rate, name="sgd")
        self.momentum, self.decay, self.decay_on = momentum, decay, decay_on
        self._factors: list[float] = []
        self.velocities: list[keras.Variable] = []

    def build(
        self,
        variables: Sequence[keras.Variable],
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """Makes one velocity for each variable.

        Args:
            variables: All that will be trained.
            factors: Path of a variable → factor of its learning rate, where
                that is not 1.
        """
        if self.built:
            return
        super().build(variables)
        factors = factors or {}
        self._factors = [factors.get(v.path, 1.0) for v in variables]
        self.velocities = self.add_optimizer_variables(variables, "velocity")

    def velocity(self, variable: keras.Variable) -> keras.Variable:
        """Returns the velocity of a variable."""
        return self.velocities[self._get_variable_index(variable)]

    def update_step(
        self,
        gradient: tf.Tensor,
        variable: keras.Variable,
        learning_rate: tf.Tensor,
    ) -> None:
        """Updates one variable and its velocity by one fused operation."""
        w, v = (
            x.value if isinstance(x, keras.Variable) else x
            for x in (variable, self.velocity(variable))
        )
        g = tf.cast(gradient, w.dtype)
        rate = tf.cast(learning_rate, w.dtype)
        factor = self._factors[self._get_variable_index(variable)]
        if factor != 1:
            rate *= factor
        # Vectors are biases and BatchNorm's scale and offset.
        if self.decay and (self.decay_on == "all" or len(w.shape) > 1):
            g = g + self.decay * w
        tf.raw_ops.ResourceApplyMomentum(
            var=w.handle,
            accum=v.handle,
            lr=rate,
            grad=g,
            momentum=tf.constant(self.momentum, w.dtype),
            use_nesterov=True,
        )


class Adam(keras.optimizers.Adam):
    """Adam with decoupled weight decay.

    w ← w - rate · m̂ / (√v̂ + 1e-8), then w ← w (1 - rate · weight_decay), as in
    the published code of MixMatch and ReMixMatch. m̂ and v̂ are Adam's moments
    with β₁ 0.9 and β₂ 0.999, corrected for their start.

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015,
        https://arxiv.org/abs/1412.6980. Loshchilov and Hutter, "Decoupled
        Weight Decay Regularization", ICLR 2019,
        https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
        *,
        decay: float = 0.0,
        decay_on: str = "kernels",
    ) -> None:
        """Makes the optimizer; `build` makes its moments.

        Args:
            learning_rate: Learning rate, or its schedule.
            decay: Decay coefficient, ≥ 0.
            decay_on: As for `Sgd`.
        """
        super().__init__(learning_rate=learning_rate, epsilon=1e-8, name="adam")
        self.decay, self.decay_on = decay, decay_on
        self._factors: list[float] = []

    def build(
        self,
        variables: Sequence[keras.Variable],
        factors: Mapping[str, float] | None = None,
    ) -> None:
        """Makes the moments of each variable; as for `Sgd`."""
        if self.built:
            return
        super().build(variables)
        factors = factors or {}
        self._factors = [factors.get(v.path, 1.0) for v in variables]

    def update_step(
        self,
        gradient: tf.Tensor,
        variable: keras.Variable,
        learning_rate: tf.Tensor,
    ) -> None:
        """Updates one variable and its moments."""
        factor = self._factors[self._get_variable_index(variable)]
        rate = tf.cast(learning_rate, variable.dtype) * factor
        super().update_step(gradient, variable, rate)
        w = variable.value if isinstance(variable, keras.Variable) else variable
        if self.decay and (self.decay_on == "all" or len(w.shape) > 1):
            w.assign_sub(rate * self.decay * w)


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A Keras schedule made from a function of the step."""

    def __init__(self, function: Callable[[tf.Tensor], tf.Tensor]) -> None:
        """Wraps `function`: step → rate."""
        self._function = function

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate of a step."""
        return self._function(step)
