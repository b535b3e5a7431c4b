"""PyTorch's files: SimMatch checkpoints and encoders, as NumPy arrays.

A SimMatch checkpoint is a dict whose `state_dict` has

    module.main.backbone.…, module.main.fc.…, module.main.head.0.…, .head.2.…
    module.ema.…          the same of the EMA teacher
    module.bank           [D, K] embeddings, module.labels [K] their classes
    module.DA_queue       [W, L] the window of the distribution alignment,
                          module.DA_ptr [1] the row that is written next

and optionally an `optimizer` (SGD's state), an `epoch` (passes done), a `step`,
and the images' `mean` and `std`. The only module that imports PyTorch, and
only to read or write a file. Nothing here imports TensorFlow.

References:
    https://github.com/mingkai-zheng/SimMatch
"""

import dataclasses
import pathlib
import pickle
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simmatch_tf import io
from simmatch_tf.flags.errors import InputError

# PyTorch counts batches in every BatchNorm; Keras does not.
COUNTER = "num_batches_tracked"
NETWORKS = ("main", "ema")
_STATISTICS = ("running_mean", "running_var", COUNTER)


def _torch() -> types.ModuleType:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            "PyTorch is needed to read and write its files: pip install "
            f"'simmatch_tf[pytorch]' ({error})"
        ) from None
    return torch


def read(path: pathlib.Path) -> Any:
    """Reads a PyTorch file without executing anything in it.

    Args:
        path: The file.

    Returns:
        Its content, with tensors as NumPy arrays (all floats as float32).

    Raises:
        InputError: PyTorch is not installed; the file cannot be read, or holds
            anything but tensors and plain values.
    """
    torch = _torch()

    def convert(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        floating = value.is_floating_point()
        return (value.float() if floating else value).detach().numpy()

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        return _convert_each(content, convert)
    except pickle.UnpicklingError as error:
        lines = [x for x in str(error).splitlines() if "Unsupported" in x]
        raise InputError(
            f"{path}: cannot be read safely: it is damaged, or holds more than "
            "tensors and plain values, which could run code"
            + (f" ({lines[0].strip()})" if lines else "")
            + "; save its state_dict alone in PyTorch"
        ) from None
    except Exception as error:  # a damaged file fails in many ways
        raise InputError(
            f"{path}: cannot be read as a PyTorch file ({_first_line(error)})"
        ) from None


def write(path: pathlib.Path, content: Any) -> None:
    """Writes a PyTorch file, whole or not at all.

    Args:
        path: The file.
        content: Plain values, dicts, lists, and NumPy arrays, which become
            tensors.

    Raises:
        InputError: PyTorch is not installed, or the file cannot be written.
    """
    torch = _torch()

    def convert(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value, order="C"))
        return value

    try:
        with io.replacing(path) as temporary:
            torch.save(_convert_each(content, convert), temporary)
    except (OSError, RuntimeError) as error:  # PyTorch's own of a full disk
        raise InputError(
            f"{path}: cannot be written ({_first_line(error)})"
        ) from None


def _convert_each(content: Any, convert: Callable[[Any], Any]) -> Any:
    """Converts all values in nested dicts and lists."""
    if isinstance(content, dict):
        return {k: _convert_each(v, convert) for k, v in content.items()}
    if isinstance(content, list | tuple):
        return [_convert_each(value, convert) for value in content]
    return convert(content)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [repr(error)])[0]


@dataclasses.dataclass
class Checkpoint:
    """A SimMatch checkpoint.

    Attributes:
        networks: "main" and "ema" → name → array, without counters.
        counters: "main" and "ema" → name → batches that a BatchNorm counted.
        buffers: "bank", "labels", "DA_queue", "DA_ptr" → array, as far as the
            file has them.
        unknown: Names of other tensors.
        velocities: Name → momentum buffer of SGD; None if they are unknown.
        epoch: Passes over the unlabeled images, or None.
        step: Training steps, or None.
        statistics: The images' mean and standard deviation, or None.
        prefix: Beginning of every name, "module." or "".
    """

    networks: dict[str, dict[str, np.ndarray]]
    counters: dict[str, dict[str, int]]
    buffers: dict[str, np.ndarray]
    unknown: list[str] = dataclasses.field(default_factory=list)
    velocities: dict[str, np.ndarray] | None = None
    epoch: int | None = None
    step: int | None = None
    statistics: tuple[list[float], list[float]] | None = None
    prefix: str = "module."


def _state_dict(content: Any) -> Mapping[str, np.ndarray]:
    """Returns the names and arrays in a file."""
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, np.ndarray)
        for k, v in content.items()
    ):
        raise InputError("has no state_dict, a dict of names and tensors")
    if not content:
        raise InputError("its state_dict is empty")
    for name, array in content.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{name}: has values that are NaN or infinite")
    return content


def is_simmatch(content: Any) -> bool:
    """Returns whether a file holds a SimMatch checkpoint, not an encoder.

    Raises:
        InputError: It holds no state_dict.
    """
    names = _state_dict(content)
    return any(re.match(r"(module\.)?(main|ema)\.", name) for name in names)


def parse(content: Any) -> Checkpoint:
    """Sorts the tensors of a SimMatch checkpoint, without checking shapes.

    Args:
        content: The content of the file, from `read`.

    Raises:
        InputError: It holds no state_dict.
    """
    arrays = _state_dict(content)
    prefix = "module." if any(n.startswith("module.") for n in arrays) else ""
    checkpoint = Checkpoint(
        networks={name: {} for name in NETWORKS},
        counters={name: {} for name in NETWORKS},
        buffers={},
        prefix=prefix,
    )
    for name, array in arrays.items():
        network, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            checkpoint.unknown.append(name)
        elif not rest and network in ("bank", "labels", "DA_queue", "DA_ptr"):
            checkpoint.buffers[network] = array
        elif network not in NETWORKS or not rest:
            checkpoint.unknown.append(name)
        elif rest.endswith(f".{COUNTER}") and array.size == 1:
            checkpoint.counters[network][rest] = int(array.reshape(()))
        else:
            checkpoint.networks[network][rest] = array
    for key in ("epoch", "step"):
        if isinstance(content.get(key), int):
            setattr(checkpoint, key, content[key])
    mean, std = content.get("mean"), content.get("std")
    if isinstance(mean, list) and isinstance(std, list):
        checkpoint.statistics = mean, std
    if isinstance(content.get("optimizer"), dict):
        checkpoint.velocities = _velocities(
            content["optimizer"], checkpoint.networks["main"]
        )
    return checkpoint


def trained(names: Iterable[str]) -> list[str]:
    """Returns the names that an optimizer trains, in their order."""
    return [n for n in names if n.rpartition(".")[2] not in _STATISTICS]


def groups(arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Returns the trained names: kernels, and vectors (biases, BatchNorm)."""
    names = trained(arrays)
    return [
        [name for name in names if arrays[name].ndim > 1],
        [name for name in names if arrays[name].ndim <= 1],
    ]


def _velocities(
    optimizer: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """Returns SGD's momentum buffers by name; None if names cannot be told.

    PyTorch numbers the parameters through all groups. A single group is in the
    network's order, perhaps followed by the teacher's parameters, which are
    never trained; two groups are in the order of `groups`.
    """
    try:
        sizes = [len(group["params"]) for group in optimizer["param_groups"]]
        numbers = sum((g["params"] for g in optimizer["param_groups"]), [])
        state = optimizer["state"]
        buffers = {
            n: state[n]["momentum_buffer"] for n in numbers if n in state
        }
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    names = trained(arrays)
    if len(sizes) > 1:
        in_groups = groups(arrays)
        if sizes != [len(group) for group in in_groups]:
            return None
        names = sum(in_groups, [])
    velocities = {
        name: buffers[number]
        for name, number in zip(names, numbers, strict=False)
        if isinstance(buffers.get(number), np.ndarray)
    }
    if not velocities or len(velocities) != len(buffers):
        return None
    return velocities


def compose(
    checkpoint: Checkpoint, *, hyperparameters: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Returns the content of a file, for `write`; `parse` is its inverse.

    Args:
        checkpoint: The checkpoint.
        hyperparameters: Those of each of SGD's groups: one group of all
            parameters, or two (see `groups`).
    """
    main = checkpoint.networks["main"]
    arrays = dict(checkpoint.buffers)
    for network, tensors in checkpoint.networks.items():
        counters = checkpoint.counters.get(network, {})
        for name, array in tensors.items():
            arrays[f"{network}.{name}"] = array
            layer, _, kind = name.rpartition(".")
            counter = f"{layer}.{COUNTER}"
            if kind == "running_var" and counter in counters:
                arrays[f"{network}.{counter}"] = np.array(
                    counters[counter], np.int64
                )
    content = {
        "state_dict": {checkpoint.prefix + n: a for n, a in arrays.items()}
    }
    for key in ("epoch", "step"):
        if getattr(checkpoint, key) is not None:
            content[key] = getattr(checkpoint, key)
    if checkpoint.statistics is not None:
        content["mean"], content["std"] = checkpoint.statistics
    if checkpoint.velocities is not None:
        parts = [trained(main)] if len(hyperparameters) == 1 else groups(main)
        names = sum(parts, [])
        numbers = {name: number for number, name in enumerate(names)}
        content["optimizer"] = {
            "state": {
                numbers[name]: {"momentum_buffer": buffer}
                for name, buffer in checkpoint.velocities.items()
            },
            "param_groups": [
                {**values, "params": [numbers[name] for name in part]}
                for values, part in zip(hyperparameters, parts, strict=True)
            ],
        }
    return content


def encoder(content: Any) -> tuple[dict[str, np.ndarray], str]:
    """Returns the arrays of an encoder by the names of `tensors`.

    The `fc` of a torchvision ResNet is a classifier. Of a MoCo checkpoint the
    query encoder is taken, whose `fc.0` and `fc.2` (v2) are a projection head.

    Args:
        content: The content of the file, from `read`.

    Returns:
        The arrays, without BatchNorm's counters, and the kind of the file:
        "ResNet" or "MoCo".

    Raises:
        InputError: It holds no state_dict.
    """
    arrays = _state_dict(content)
    kind, prefix = "ResNet", ""
    for start in ("module.encoder_q.", "encoder_q."):
        if any(name.startswith(start) for name in arrays):
            kind, prefix = "MoCo", start
    if not prefix and all(name.startswith("module.") for name in arrays):
        prefix = "module."
    heads = {"fc.0": "head.0", "fc.2": "head.2", "fc": "fc"}
    renamed = {}
    for name, array in arrays.items():
        if not name.startswith(prefix) or name.endswith(COUNTER):
            continue
        layer, _, leaf = name.removeprefix(prefix).rpartition(".")
        renamed[f"{heads.get(layer, f'backbone.{layer}')}.{leaf}"] = array
    if kind == "MoCo" and "fc.weight" in renamed:  # v1 has another head
        del renamed["fc.weight"]
        renamed.pop("fc.bias", None)
    return renamed, kind
