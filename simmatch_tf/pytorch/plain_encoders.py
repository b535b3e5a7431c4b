"""From PyTorch: an encoder becomes a .keras file, for --init_from."""

import pathlib
from typing import Any

import keras
import numpy as np

from simmatch_tf.data.sources import source
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.networks import network
from simmatch_tf.pytorch import layout, network_layout

# Of the model in the file; its weights are for all sizes.
_SIDE = 224


def convert(content: Any, output: pathlib.Path) -> list[str]:
    """Turns an encoder into a .keras file that --init_from takes.

    Args:
        content: What `files.read` returned.
        output: The file to write.

    Returns:
        Lines that say what was taken.

    Raises:
        InputError: Tensors are missing, unknown or misshapen, or the file
            cannot be written.
    """
    arrays, kind = layout.encoder(content)
    name = network_layout.guess_backbone(
        {n.removeprefix("backbone."): a for n, a in arrays.items()}
    )
    if not name.startswith("resnet"):
        raise InputError(f"is a {name}; an encoder is a ResNet")
    channels = arrays["backbone.conv1.weight"].shape[1]
    mean, std = source.IMAGENET
    if channels != len(mean):
        raise InputError(
            f"conv1.weight is of {channels} channels, but 3 are wanted"
        )
    model = network.build(
        name,
        image_shape=(_SIDE, _SIDE, channels),
        num_classes=_rows(arrays, "fc.weight"),
        projection_dim=_rows(arrays, "head.2.weight"),
        mean=mean,
        std=std,
    )
    network_layout.load(model, arrays)
    _save(model, output)
    heads = [part for part in ("fc", "head") if f"{part}.weight" in arrays
             or f"{part}.0.weight" in arrays]  # fmt: skip
    return [
        f"{kind} encoder: {name}"
        + (f", with {' and '.join(heads)}" if heads else ", no heads"),
        "Images are normalised by ImageNet's mean and deviation",
    ]


def _rows(arrays: dict[str, np.ndarray], name: str) -> int | None:
    return len(arrays[name]) if name in arrays else None


def _save(model: keras.Model, path: pathlib.Path) -> None:
    """Saves, whole or not at all."""
    aside = path.with_name(f"{path.stem}.tmp.keras")
    try:
        model.save(aside)
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({error.strerror})"
        ) from None
