"""The labeled memory in TensorBoard's projector: points with class and picture.

The files are written anew each time: `memory.bytes` (float32 [n, D]),
`memory.tsv` (class and image), `memory.png` (thumbnails) and the projector's
configuration, which names them.
"""

import io
import pathlib
from collections.abc import Sequence

import numpy as np
import PIL.Image
from google.protobuf import text_format
from tensorboard.plugins import projector

from simmatch_tf.monitoring import pictures

MOST = 2_048  # slots shown
_SIDE = 32


def chosen(filled: np.ndarray) -> np.ndarray:
    """The slots to show: those written, evenly thinned out if many.

    Args:
        filled: bool [K].
    """
    slots = np.flatnonzero(filled)
    if len(slots) <= MOST:
        return slots
    return slots[np.linspace(0, len(slots) - 1, MOST).astype(int)]


def write(
    folder: pathlib.Path,
    features: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
    images: Sequence[np.ndarray] | None,
) -> None:
    """Writes the points.

    Args:
        folder: The event files'.
        features: Of the slots to show, [n, D], n at least 1.
        classes: Of each, [n].
        names: What each image is called, [n].
        images: uint8 [H, W, C] each; None: those there stay.

    Raises:
        OSError: They cannot be written.
    """
    found = projector.ProjectorConfig()
    points = found.embeddings.add()
    points.tensor_name = "memory"
    points.tensor_path = "memory.bytes"
    points.tensor_shape.extend(features.shape)
    points.metadata_path = "memory.tsv"
    points.sprite.image_path = "memory.png"
    points.sprite.single_image_dim.extend([_SIDE, _SIDE])
    rows = ["class\timage"]
    rows += [
        f"{_cell(label)}\t{_cell(name)}"
        for label, name in zip(classes, names, strict=True)
    ]
    contents = {
        "memory.bytes": features.astype("<f4").tobytes(),
        "memory.tsv": ("\n".join(rows) + "\n").encode(errors="replace"),
    }
    if images is not None:
        file = io.BytesIO()
        grid = pictures.sprite(images, _SIDE)
        PIL.Image.fromarray(grid).save(file, "PNG")
        contents["memory.png"] = file.getvalue()
    contents["projector_config.pbtxt"] = text_format.MessageToString(
        found
    ).encode()
    for name, content in contents.items():
        aside = folder / f"{name}.tmp"
        aside.write_bytes(content)
        aside.replace(folder / name)


def _cell(text: str) -> str:
    """A name as a cell of the table: one line, without tabs."""
    return " ".join(str(text).split()) or "-"
