"""BatchNorm by a fused kernel, and the settings of every BatchNorm."""

from collections.abc import Iterator

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("simmatch_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer, computed by one kernel in place of its ten operations.

    The kernel reads half precision directly and computes in float32. Keras'
    own operations are used if statistics are averaged over replicas or are in
    double precision.
    """

    def call(
        self,
        inputs: keras.KerasTensor,
        training: bool | None = None,
        mask: keras.KerasTensor | None = None,
    ) -> keras.KerasTensor:
        """Normalizes [N, H, W, C], in training by the batch's statistics."""
        batch = bool(training) and self.trainable
        if (
            len(inputs.shape) != 4
            or self.axis not in (-1, 3)
            or self.gamma is None
            or self.beta is None
            # Only some versions of Keras have it.
            or getattr(self, "renorm", False)
            or not tf.as_dtype(inputs.dtype).is_floating
            # In stateless_call, tensors replace the variables.
            or not isinstance(self.moving_mean.value, tf.Variable)
            or self.moving_mean.dtype != "float32"
            or mask is not None
            or (batch and self.synchronized)
        ):
            return super().call(inputs, training=training, mask=mask)
        moving = self.moving_mean.value, self.moving_variance.value
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, tf.float32),
            offset=tf.cast(self.beta, tf.float32),
            mean=[] if batch else moving[0],
            variance=[] if batch else moving[1],
            epsilon=self.epsilon,
            is_training=batch,
        )
        if batch:
            # Differs: the published runs average unbiased variances, as the
            # kernel returns them. This averages biased ones, as Keras does,
            # which computes for several devices: they must agree with one.
            count = tf.cast(tf.size(inputs) / inputs.shape[-1], variance.dtype)
            variance *= (count - 1.0) / count
            for variable, value in zip(moving, (mean, variance), strict=True):
                variable.assign(
                    variable * self.momentum + value * (1.0 - self.momentum)
                )
        return outputs


def adjust(
    model: keras.Model,
    *,
    momentum: float | None,
    synchronized: bool,
    frozen: bool = False,
) -> None:
    """Changes the settings of every BatchNorm in a model.

    Args:
        model: Any Keras model; models inside it are changed as well.
        momentum: Weight of the old statistics, in [0, 1); None changes none.
        synchronized: Whether statistics are averaged over all replicas; False
            changes none.
        frozen: Whether they use their averages in training, too, and keep
            these and their weights; False changes none.
    """
    for layer in layers(model):
        if frozen:
            layer.trainable = False
        layer.synchronized = layer.synchronized or synchronized
        if momentum is not None:
            layer.momentum = momentum


def statistics(model: keras.Model) -> list[keras.Variable]:
    """Returns the averaged means and variances in a model."""
    return [
        variable
        for layer in layers(model)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def layers(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    """Yields the BatchNorm layers of a model and of models inside it."""
    # Some layers hold others in attributes; only this lists them all.
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
