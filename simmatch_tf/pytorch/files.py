"""PyTorch's files as NumPy arrays. The only file that imports PyTorch."""

import contextlib
import pathlib
import pickle
import types
from typing import Any

import numpy as np

from simmatch_tf.flags.commandline import InputError


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
    """Reads a PyTorch file; nothing in it is executed.

    Args:
        path: The file.

    Returns:
        What it holds, tensors as NumPy arrays (halves as float32).

    Raises:
        InputError: PyTorch is not installed; the file cannot be read, or holds
            other things than tensors and plain values.
    """
    torch = _torch()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        lines = [x for x in str(error).splitlines() if "Unsupported" in x]
        raise InputError(
            f"{path}: cannot be read safely: it is damaged, or holds more than "
            "tensors and plain values, which could run code"
            + (f" ({lines[0].strip()})" if lines else "")
            + "; save its state_dict alone in PyTorch"
        ) from None
    except Exception as error:  # a damaged file fails in many ways
        text = (str(error).strip().splitlines() or [repr(error)])[0]
        raise InputError(
            f"{path}: cannot be read as a PyTorch file ({text})"
        ) from None

    def convert(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_quantized:
                raise InputError(
                    f"{path}: holds a sparse or quantized tensor, but plain "
                    "ones are wanted"
                )
            value = value.detach().cpu()
            if value.is_floating_point():
                value = value.to(torch.float32)
            return value.numpy()
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [convert(item) for item in value]
        return value

    return convert(content)


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
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, list):
            return [convert(item) for item in value]
        return value

    aside = path.with_name(path.name + ".tmp")
    try:
        torch.save(convert(content), aside)
        aside.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch's own of a full disk
        with contextlib.suppress(OSError):
            aside.unlink()
        text = (str(error).strip().splitlines() or [repr(error)])[0]
        raise InputError(f"{path}: cannot be written ({text})") from None
