"""Our networks in PyTorch's layout: names and axes of their arrays.

A ResNet has torchvision's names (`layer1.0.conv1.weight`); a WRN, which has
none of its own there, the same way of naming. A whole network has `backbone.`,
`fc.` (the classifier), and `head.0.`, `head.2.` (the projection head). Nothing
here imports PyTorch: the arrays are NumPy's.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import keras
import numpy as np

from simmatch_tf.flags.commandline import InputError
from simmatch_tf.networks import batch_norm, network
from simmatch_tf.networks.backbones import resnet

_SHOWN = 12  # names in a message
_BATCH_NORMS = (
    batch_norm.BatchNormalization,
    keras.layers.BatchNormalization,
)


class Tensor(NamedTuple):
    """One of PyTorch's tensors and the Keras variable that holds it.

    Attributes:
        variable: Of the network.
        axes: The variable's axes in PyTorch's order.
    """

    variable: keras.Variable
    axes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """PyTorch's shape."""
        return tuple(self.variable.shape[axis] for axis in self.axes)

    def to_keras(self, array: np.ndarray) -> np.ndarray:
        """PyTorch's array in Keras' order of axes."""
        return np.transpose(array, np.argsort(self.axes))

    def to_torch(self, array: np.ndarray) -> np.ndarray:
        """Keras' array in PyTorch's order of axes."""
        return np.ascontiguousarray(np.transpose(array, self.axes))


def tensors(model: keras.Model) -> dict[str, Tensor]:
    """The tensors of a network by PyTorch's names, in PyTorch's order.

    Args:
        model: A network of `network.build` on a WRN or a ResNet.

    Raises:
        InputError: It has a layer that has no name in PyTorch.
    """
    parts = network.parts(model)
    found = {}
    for layer in _in_torch_order(parts["backbone"]):
        _add(found, "backbone." + layer.name.replace("_", "."), layer)
    if "classifier" in parts:
        _add(found, "fc", parts["classifier"].get_layer("logits"))
    if "projection_head" in parts:
        head = parts["projection_head"]
        _add(found, "head.0", head.get_layer("hidden"))
        _add(found, "head.2", head.get_layer("embedding"))
    return found


def batch_norms(model: keras.Model) -> list[str]:
    """Names of a network's BatchNorms, `backbone.bn1` and so on."""
    end = ".running_mean"
    return [n.removesuffix(end) for n in tensors(model) if n.endswith(end)]


def _in_torch_order(backbone: keras.Model) -> list[keras.layers.Layer]:
    """Layers with weights; of a block the shortcut's come last."""
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


def _add(
    found: dict[str, Tensor], name: str, layer: keras.layers.Layer
) -> None:
    """Adds a layer's tensors."""
    if type(layer) is keras.layers.Conv2D and not layer.use_bias:
        found[f"{name}.weight"] = Tensor(layer.kernel, (3, 2, 0, 1))
    elif type(layer) is keras.layers.Dense:
        found[f"{name}.weight"] = Tensor(layer.kernel, (1, 0))
        found[f"{name}.bias"] = Tensor(layer.bias, (0,))
    elif type(layer) in _BATCH_NORMS:
        for theirs, variable in (
            ("weight", layer.gamma),
            ("bias", layer.beta),
            ("running_mean", layer.moving_mean),
            ("running_var", layer.moving_variance),
        ):
            found[f"{name}.{theirs}"] = Tensor(variable, (0,))
    else:
        raise InputError(
            f"layer {layer.name!r} has no counterpart in PyTorch's layout, "
            "which is that of wrn_DEPTH_WIDTH and resnetDEPTH"
        )


def load(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes PyTorch's arrays into a network.

    Args:
        model: See `tensors`.
        arrays: By name, all of them, but no BatchNorm's counter.

    Raises:
        InputError: Some are missing, unknown or of another shape; it lists
            them, and the network is as it was.
    """
    wanted = tensors(model)
    check(
        {name: tensor.shape for name, tensor in wanted.items()},
        {name: array.shape for name, array in arrays.items()},
    )
    for name, tensor in wanted.items():
        tensor.variable.assign(tensor.to_keras(arrays[name]))


def export(model: keras.Model) -> dict[str, np.ndarray]:
    """A network's arrays by PyTorch's names, without BatchNorm's counters."""
    return {
        name: tensor.to_torch(keras.ops.convert_to_numpy(tensor.variable))
        for name, tensor in tensors(model).items()
    }


def check(
    wanted: Mapping[str, tuple[int, ...]],
    given: Mapping[str, tuple[int, ...]],
    what: str = "",
) -> None:
    """Checks that two sets of names and shapes are one.

    Args:
        wanted: Name → shape.
        given: Likewise.
        what: The beginning of the message.

    Raises:
        InputError: They are not; it lists what differs.
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
            what
            + "; ".join(
                f"{title} ({len(names)}): {_some(names)}"
                for title, names in lists.items()
                if names
            )
        )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = len(names) - _SHOWN
    more = f" and {rest} more" if rest > 0 else ""
    return ", ".join(names[:_SHOWN]) + more


def guess_backbone(arrays: Mapping[str, np.ndarray]) -> str:
    """The name of the backbone whose arrays these are.

    Args:
        arrays: By names without a prefix: `conv1.weight`, `layer1.0.…`.

    Raises:
        InputError: They are of no backbone of ours.
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
