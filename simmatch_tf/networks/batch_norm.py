"""BatchNorm of models that are made elsewhere."""

from collections.abc import Iterator

import keras


def adjust(
    model: keras.Model, *, momentum: float | None, synchronized: bool
) -> None:
    """Sets up every BatchNorm in a model.

    Args:
        model: Any; models inside it are looked into.
        momentum: Weight of the old statistics, in [0, 1); None leaves their
            own.
        synchronized: Over all replicas; False leaves their own.
    """
    for layer in _layers(model):
        layer.synchronized = layer.synchronized or synchronized
        if momentum is not None:
            layer.momentum = momentum


def statistics(model: keras.Model) -> list[keras.Variable]:
    """The averaged means and variances in a model."""
    return [
        variable
        for layer in _layers(model)
        for variable in (layer.moving_mean, layer.moving_variance)
    ]


def _layers(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    # Some layers hold others in attributes; only this lists them all.
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            yield layer
