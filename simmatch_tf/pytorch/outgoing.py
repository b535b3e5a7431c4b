"""To PyTorch: a run as a SimMatch checkpoint."""

import json
import pathlib
from typing import Any

import keras
import numpy as np

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.networks import network
from simmatch_tf.pytorch import layout, network_layout
from simmatch_tf.training import state, workdir


def run(path: pathlib.Path) -> dict[str, Any]:
    """The last checkpoint of a run, as `files.write` takes it.

    Args:
        path: The run's folder.

    Returns:
        What an import of that file would read again, bit for bit.

    Raises:
        InputError: There is no run or no checkpoint; its backbone or its
            algorithm has no form in PyTorch.
    """
    folder = workdir.Workdir(path)
    config = folder.read_config()
    if config.algorithm != "simmatch":
        raise InputError(
            f"--workdir={path}: a run of --algorithm={config.algorithm} has no "
            "memory and no projection head, so it is no SimMatch checkpoint"
        )
    algorithm, _, step = state.restore(folder.path)
    origin = _origin(folder, algorithm.student, step)
    networks = dict(
        zip(
            layout.NETWORKS,
            (algorithm.student, algorithm.teacher.model),
            strict=True,
        )
    )
    arrays = {name: network_layout.export(m) for name, m in networks.items()}
    passed = step - origin["step"]
    found = layout.Checkpoint(
        networks=arrays,
        counters={
            name: {
                counter: count + passed
                for counter, count in origin["counters"].get(name, {}).items()
            }
            for name in networks
        },
        buffers=_buffers(algorithm),
        velocities=_velocities(algorithm),
        epoch=origin["epoch"],
        step=step,
        statistics=_statistics(algorithm.student),
        prefix=origin["prefix"],
    )
    return layout.compose(found, hyperparameters=_hyperparameters(algorithm))


def _origin(
    folder: workdir.Workdir, student: keras.Model, step: int
) -> dict[str, Any]:
    """Where an imported run comes from; of our own, what PyTorch would have."""
    if not folder.imported.is_file():
        counters = {
            f"{name}.{layout.COUNTER}": 0
            for name in network_layout.batch_norms(student)
        }
        return {
            "step": 0,
            "epoch": None,
            "prefix": "module.",
            "counters": dict.fromkeys(layout.NETWORKS, counters),
        }
    try:
        origin = json.loads(folder.imported.read_text("utf-8"))
        if step != origin["step"]:
            origin["epoch"] = None  # of the imported state only
        origin["counters"], origin["prefix"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder.imported}: cannot be read ({error!r}); import anew"
        ) from None
    return origin


def _buffers(algorithm: algorithm_lib.Algorithm) -> dict[str, np.ndarray]:
    """Memory and alignment window, of an algorithm that has them."""
    if not hasattr(algorithm, "memory"):
        return {}
    window = algorithm.align.window.numpy()
    pointer = int(algorithm.align.written.numpy()) % len(window)
    return {
        "bank": np.ascontiguousarray(algorithm.memory.features.numpy().T),
        "labels": algorithm.memory.labels.numpy().astype(np.int64),
        "DA_queue": window,
        "DA_ptr": np.array([pointer], np.int64),
    }


def _velocities(
    algorithm: algorithm_lib.Algorithm,
) -> dict[str, np.ndarray] | None:
    """SGD's momentum buffers; None while all are 0, as before a step."""
    tensors = network_layout.tensors(algorithm.student)
    found = {}
    for name in layout.trained(tensors):
        velocity = algorithm.optimizer.velocity(tensors[name].variable)
        array = keras.ops.convert_to_numpy(velocity)
        found[name] = tensors[name].to_torch(array)
    if not any(array.any() for array in found.values()):
        return None
    return found


def _hyperparameters(
    algorithm: algorithm_lib.Algorithm,
) -> list[dict[str, Any]]:
    """The groups of torch.optim.SGD, without their parameters."""
    config = algorithm.config
    rate = float(algorithm.learning_rate(algorithm.step))
    decays = [config.weight_decay]
    if config.weight_decay_on == "kernels":
        decays.append(0.0)
    return [
        {
            "lr": rate,
            "momentum": config.momentum,
            "dampening": 0.0,
            "weight_decay": decay,
            "nesterov": True,
            "maximize": False,
            "foreach": None,
            "differentiable": False,
            "fused": None,
        }
        for decay in decays
    ]


def _statistics(model: keras.Model) -> tuple[list[float], list[float]]:
    """The mean and the deviation that images are normalised by."""
    layer = network.parts(model)["normalize"]
    return tuple(
        keras.ops.convert_to_numpy(v).tolist() for v in (layer.mean, layer.std)
    )
