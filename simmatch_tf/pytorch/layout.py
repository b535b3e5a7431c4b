"""What stands in PyTorch's files: SimMatch checkpoints and plain encoders.

A SimMatch checkpoint is a dict whose `state_dict` has

    module.main.backbone.…, module.main.fc.…, module.main.head.0.…, .head.2.…
    module.ema.…          the same of the EMA teacher
    module.bank           [D, K] embeddings, module.labels [K] their classes
    module.DA_queue       [W, L] the alignment's window, module.DA_ptr [1] the
                          row that is written next

and perhaps an `optimizer` (SGD's state), an `epoch` (passes done), a `step`,
and the images' `mean` and `std`. Nothing here imports PyTorch or TensorFlow.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from simmatch_tf.flags.commandline import InputError

# PyTorch counts batches in every BatchNorm; Keras does not.
COUNTER = "num_batches_tracked"
NETWORKS = ("main", "ema")
_STATISTICS = ("running_mean", "running_var", COUNTER)


@dataclasses.dataclass
class Checkpoint:
    """A SimMatch checkpoint.

    Attributes:
        networks: "main" and "ema" → name → array, without counters.
        counters: "main" and "ema" → name → batches that a BatchNorm counted.
        buffers: "bank", "labels", "DA_queue", "DA_ptr" → array, as far as the
            file has them.
        unknown: Names that are none of these.
        velocities: Name → momentum buffer of SGD, or None.
        epoch: Passes over the unlabeled images, or None.
        step: Steps, or None.
        statistics: The images' mean and standard deviation, or None.
        prefix: Before every name: "module." or "".
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
    """The names and arrays in a file."""
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(
        isinstance(k, str) and isinstance(v, np.ndarray)
        for k, v in content.items()
    ):
        raise InputError("holds no dict of names and tensors (state_dict)")
    if not content:
        raise InputError("its state_dict is empty")
    for name, array in content.items():
        _check_values(name, array)
    return content


def _check_values(name: str, array: np.ndarray) -> None:
    """Refuses what no network that was trained has."""
    leaf = name.rpartition(".")[2]
    if leaf in ("labels", "DA_ptr") and array.dtype.kind not in "iu":
        raise InputError(f"{name}: is {array.dtype}, but integers are wanted")
    if leaf == "labels" and not array.size:
        raise InputError(f"{name}: is empty; the memory has no slot")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError(f"{name}: has values that are NaN or infinite")
    if leaf == "running_var" and array.size and array.min() < 0:
        raise InputError(f"{name}: has the variance {array.min():.3g}")


def is_simmatch(content: Any) -> bool:
    """Whether a file holds a SimMatch checkpoint; else it is an encoder.

    Raises:
        InputError: It holds no state_dict.
    """
    names = _state_dict(content)
    return any(re.match(r"(module\.)?(main|ema)\.", name) for name in names)


def parse(content: Any) -> Checkpoint:
    """Sorts out a SimMatch checkpoint. Nothing is checked but its form.

    Args:
        content: What `files.read` returned.

    Raises:
        InputError: It holds no state_dict.
    """
    arrays = _state_dict(content)
    prefix = "module." if any(n.startswith("module.") for n in arrays) else ""
    found = Checkpoint(
        networks={name: {} for name in NETWORKS},
        counters={name: {} for name in NETWORKS},
        buffers={},
        prefix=prefix,
    )
    for name, array in arrays.items():
        network, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            found.unknown.append(name)
        elif not rest and network in ("bank", "labels", "DA_queue", "DA_ptr"):
            found.buffers[network] = array
        elif network not in NETWORKS or not rest:
            found.unknown.append(name)
        elif rest.endswith(f".{COUNTER}") and array.size == 1:
            found.counters[network][rest] = int(array.reshape(()))
        else:
            found.networks[network][rest] = array
    for key in ("epoch", "step"):
        if isinstance(content.get(key), int):
            setattr(found, key, content[key])
    mean, std = content.get("mean"), content.get("std")
    if isinstance(mean, list) and isinstance(std, list):
        found.statistics = _statistics(mean, std)
    if isinstance(content.get("optimizer"), dict):
        found.velocities = _velocities(
            content["optimizer"], found.networks["main"]
        )
    return found


def _statistics(
    mean: list[Any], std: list[Any]
) -> tuple[list[float], list[float]]:
    numbers = all(isinstance(x, int | float) for x in (*mean, *std))
    if (
        not numbers
        or len(mean) != len(std)
        or len(mean) not in (1, 3)
        or not np.isfinite([*mean, *std]).all()
        or min(std) <= 0
    ):
        raise InputError(
            f"mean {mean} and std {std}: must be 1 or 3 finite numbers each, "
            "std above 0"
        )
    return mean, std


def trained(names: Iterable[str]) -> list[str]:
    """Those of a network's names that an optimizer trains, in their order."""
    return [n for n in names if n.rpartition(".")[2] not in _STATISTICS]


def groups(arrays: Mapping[str, np.ndarray]) -> list[list[str]]:
    """A network's trained names: kernels; vectors (biases, BatchNorm)."""
    names = trained(arrays)
    return [
        [name for name in names if arrays[name].ndim > 1],
        [name for name in names if arrays[name].ndim <= 1],
    ]


def _velocities(
    optimizer: dict[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """SGD's momentum buffers by name; None where it cannot be told whose.

    PyTorch numbers the parameters through all groups: of one group in the
    network's order, where those of the teacher may follow, which are never
    trained; of two in that of `groups`.
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
    found = {
        name: buffers[number]
        for name, number in zip(names, numbers, strict=False)
        if isinstance(buffers.get(number), np.ndarray)
    }
    return found if len(found) == len(buffers) and found else None


def compose(
    checkpoint: Checkpoint, *, hyperparameters: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What `files.write` writes of a checkpoint; `parse` reads it again.

    Args:
        checkpoint: What to write.
        hyperparameters: Of SGD's groups: of one (all parameters), or of two
            (see `groups`).
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
    """The arrays of an encoder by the names of `torch_layout`.

    A torchvision ResNet's `fc` is a classifier; of a MoCo checkpoint the query
    encoder is taken, whose `fc.0` and `fc.2` (v2) are a projection head.

    Args:
        content: What `files.read` returned.

    Returns:
        The arrays, without BatchNorm's counters; and what kind of file it is.

    Raises:
        InputError: It holds no state_dict, or no encoder.
    """
    arrays = _state_dict(content)
    kind, prefix = "ResNet", ""
    for start in ("module.encoder_q.", "encoder_q."):
        if any(name.startswith(start) for name in arrays):
            kind, prefix = "MoCo", start
    if not prefix and all(name.startswith("module.") for name in arrays):
        prefix = "module."
    heads = {"fc.0": "head.0", "fc.2": "head.2", "fc": "fc"}
    found = {}
    for name, array in arrays.items():
        if not name.startswith(prefix) or name.endswith(COUNTER):
            continue
        layer, _, leaf = name.removeprefix(prefix).rpartition(".")
        found[f"{heads.get(layer, f'backbone.{layer}')}.{leaf}"] = array
    if kind == "MoCo" and "fc.weight" in found:  # v1: no head of ours
        del found["fc.weight"]
        found.pop("fc.bias", None)
    return found, kind
