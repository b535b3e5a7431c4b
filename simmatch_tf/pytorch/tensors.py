"""The variables of a network as PyTorch's tensors: their names and axes.

A ResNet has torchvision's names (`layer1.0.conv1.weight`); a WRN, which
torchvision does not have, is named in the same way. A whole network has
`backbone.`, `fc.` (the classifier), and `head.0.`, `head.2.` (the projection
head). Nothing here imports PyTorch: the arrays are NumPy's.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import batch_norm, network
from simmatch_tf.networks.backbones import resnet

_LISTED = 12  # names in a message
_BATCH_NORMS = (
    batch_norm.BatchNormalization,
    keras.layers.BatchNormalization,
)


class Tensor(NamedTuple):
    """One of PyTorch's tensors and the Keras variable that it becomes.

    Attributes:
        variable: The variable of the network.
        axes: The variable's axes in PyTorch's order.
    """

    variable: keras.Variable
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape in PyTorch."""
        return tuple(self.variable.shape[axis] for axis in self.axes)

    def to_keras(self, array: np.ndarray) -> np.ndarray:
        """Returns PyTorch's array in Keras' order of axes."""
        return np.transpose(array, np.argsort(self.axes))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Returns Keras' array in PyTorch's order of axes."""
        return np.ascontiguousarray(np.transpose(array, self.axes))


def tensors(model: keras.Model) -> dict[str, Tensor]:
    """Returns the tensors of a network by PyTorch's names, in its order.

    Args:
        model: A network of `network.build` on a WRN or a ResNet.

    Raises:
        InputError: It has a layer without a counterpart in PyTorch.
    """
    parts = network.parts(model)
    layers = {
        "backbone." + layer.name.replace("_", "."): layer
        for layer in _in_torch_order(parts["backbone"])
    }
    if "feature_norm" in parts:
        layers["norm"] = parts["feature_norm"].get_layer("feature_norm")
    if "classifier" in parts:
        layers["fc"] = parts["classifier"].get_layer("logits")
    if "projection_head" in parts:
        head = parts["projection_head"]
        layers["head.0"] = head.get_layer("hidden")
        layers["head.2"] = head.get_layer("embedding")
    return {
        f"{name}.{leaf}": tensor
        for name, layer in layers.items()
        for leaf, tensor in _of_layer(layer).items()
    }


def batch_norms(model: keras.Model) -> list[str]:
    """Returns the names of a network's BatchNorms, such as `backbone.bn1`."""
    end = ".running_mean"
    return [n.removesuffix(end) for n in tensors(model) if n.endswith(end)]


def _in_torch_order(backbone: keras.Model) -> list[keras.layers.Layer]:
    """Layers with weights; those of a block's shortcut come last."""
    layers = [
        layer for layer in getattr(backbone, "layers", ()) if layer.weights
    ]
    blocks: dict[str, int] = {}

    def place(layer: keras.layers.Layer) -> tuple[int, bool]:
        match = re.fullmatch(r"([a-z]+\d+_\d+)_(\w+)", layer.name)
        block, inner = match.groups() if match else (layer.name, "")
        beside = inner.startswith(("downsample", "shortcut"))
        return blocks.setdefault(block, len(blocks)), beside

    return sorted(layers, key=place)


def _of_layer(layer: keras.layers.Layer) -> dict[str, Tensor]:
    """The tensors of a layer by the last part of PyTorch's names."""
    if type(layer) is keras.layers.Conv2D and not layer.use_bias:
        return {"weight": Tensor(layer.kernel, (3, 2, 0, 1))}
    if type(layer) is keras.layers.Dense:
        return {
            "weight": Tensor(layer.kernel, (1, 0)),
            "bias": Tensor(layer.bias, (0,)),
        }
    if type(layer) in _BATCH_NORMS:
        return {
            "weight": Tensor(layer.gamma, (0,)),
            "bias": Tensor(layer.beta, (0,)),
            "running_mean": Tensor(layer.moving_mean, (0,)),
            "running_var": Tensor(layer.moving_variance, (0,)),
        }
    raise InputError(
        f"layer {layer.name!r} has no counterpart in PyTorch's layout, which "
        "is that of wrn_DEPTH_WIDTH and resnetDEPTH"
    )


def load(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Assigns PyTorch's arrays to a network.

    Args:
        model: See `tensors`.
        arrays: All arrays by name, without BatchNorm's counters.

    Raises:
        InputError: Some are missing, unknown or of another shape; the message
            lists them, and the network is left as it was.
    """
    wanted = tensors(model)
    check(
        {name: tensor.shape for name, tensor in wanted.items()},
        {name: array.shape for name, array in arrays.items()},
    )
    for name, tensor in wanted.items():
        tensor.variable.assign(tensor.to_keras(arrays[name]))


def export(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns a network's arrays by PyTorch's names; see `tensors`."""
    return {
        name: tensor.to_torch(keras.ops.convert_to_numpy(tensor.variable))
        for name, tensor in tensors(model).items()
    }


def check(
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    title: str = "",
) -> None:
    """Checks that two sets of names and shapes are equal.

    Args:
        wanted: Name → shape.
        given: Name → shape.
        title: Beginning of the message.

    Raises:
        InputError: They differ; the message lists the differences.
    """
    both = wanted.keys() & given.keys()
    misshapen = [
        f"{name} {list(given[name])} for {list(wanted[name])}"
        for name in wanted
        if name in both and tuple(given[name]) != tuple(wanted[name])
    ]
    lists = {
        "missing": [n for n in wanted if n not in both],
        "unknown": [n for n in given if n not in both],
        "of another shape": misshapen,
    }
    if any(lists.values()):
        raise InputError(
            title
            + "; ".join(
                f"{kind} ({len(names)}): {_some(names)}"
                for kind, names in lists.items()
                if names
            )
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _LISTED
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(names[:_LISTED]) + more


def guess_backbone(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the --backbone whose arrays these are.

    Args:
        arrays: Arrays by names without prefix: `conv1.weight`, `layer1.0.…`.

    Raises:
        InputError: They are those of another backbone.
    """
    blocks = {}
    for name in arrays:
        if match := re.match(r"(layer|group)(\d+)\.(\d+)\.", name):
            key = match[1], int(match[2])
            blocks[key] = max(blocks.get(key, 0), int(match[3]) + 1)
    counts = tuple(blocks[key] for key in sorted(blocks))
    kinds = {kind for kind, _ in blocks}
    if kinds == {"layer"} and "conv1.weight" in arrays:
        plan = counts, "layer1.0.conv3.weight" in arrays
        for depth, known in resnet.DEPTHS.items():
            width, rest = divmod(len(arrays["conv1.weight"]), 64)
            if plan == known and width and not rest:
                return f"resnet{depth}" + (f"x{width}" if width > 1 else "")
    if kinds == {"group"} and len(counts) == 3 and len(set(counts)) == 1:
        kernel = arrays.get("group1.0.conv1.weight")
        if kernel is not None and len(kernel) % 16 == 0:
            return f"wrn_{6 * counts[0] + 4}_{len(kernel) // 16}"
    raise InputError(
        "its tensors are those of no backbone that is known here (ResNet-18, "
        f"-34, -50, -101, WRN): {_some(arrays)}"
    )
