"""What a run costs, as text. Nothing here imports TensorFlow."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simmatch_tf import tables

if TYPE_CHECKING:  # it imports TensorFlow
    from simmatch_tf.networks import cost
    from simmatch_tf.training import description

_WIDTH = 80
_BACKWARD = 2  # times the forward pass
_PREFIXES = "kMGTP"
_OWNERS = {
    "weights": "weights, BatchNorm's statistics",
    "optimizer": "optimizer: velocities",
}


def table(run: "description.Description") -> str:
    """Writes a description for the terminal.

    Args:
        run: Of `training.description.describe`.

    Returns:
        Several tables of text, as wide as 80 columns for our own networks.
    """
    return "\n\n".join(
        (
            _fill(_head(run)),
            _layers(run),
            _parts(run),
            _step(run),
            _memory(run),
            _fill(
                "Beside this, training needs room for the gradients, as large "
                "as the trainable weights, and for activations, which grow "
                "with the batch."
            ),
        )
    )


def _fill(text: str) -> str:
    return textwrap.fill(text, _WIDTH)


def _size(shape: Sequence[int | None]) -> str:
    return "×".join("?" if side is None else str(side) for side in shape)


def _rounded(number: float) -> str:
    """Three digits and a prefix: 8187281408 → "8.19 G"."""
    power = 0
    while power < len(_PREFIXES) and float(f"{number:.3g}") >= 1000:
        number, power = number / 1000, power + 1
    digits = f"{number:#.3g}".rstrip(".") if power else str(number)
    return f"{digits} {_PREFIXES[power - 1] if power else ''}"


def _more(rows: "Sequence[cost.Row]") -> str:
    return "+" if any(row.uncounted for row in rows) else ""


def _head(run: "description.Description") -> str:
    form = f" ({run.form} form)" if run.form else ""
    return (
        f"{run.algorithm}{form} on {run.dataset}: backbone {run.backbone}, "
        f"images {_size(run.image_shape)}, {run.num_classes:,} classes, "
        f"{run.slots:,} labeled images"
    )


def _layers(run: "description.Description") -> str:
    lines = [["layer", "output", "parameters", "MFLOPs"]]
    for row in run.rows:
        lines.append(
            [
                row.name,
                _size(row.output_shape),
                f"{row.parameters:,}",
                f"{row.flops / 1e6:,.1f}" + _more([row]),
            ]
        )
    text = tables.plain(lines) + "\n\n"
    text += _fill(
        "MFLOPs: of one image, forward. Convolutions and matrix products "
        "only; a multiply-add counts as two."
    )
    uncounted = sorted({kind for row in run.rows for kind in row.uncounted})
    if uncounted:
        text += "\n" + _fill(
            "+ and more: the work of some operations cannot be told before "
            f"they run ({', '.join(uncounted)})."
        )
    return text


def _parts(run: "description.Description") -> str:
    """Sums: the encoder; with the classifier; with the projection head."""
    names = {
        "backbone": "encoder (backbone)",
        "classifier": "at test time: encoder, classifier",
        "projection_head": "all: with projection head",
    }
    lines = [["sums", "parameters", "", "FLOPs an image"]]
    parts = []
    for part, name in names.items():
        parts.append(part)
        rows = [row for row in run.rows if row.part in parts]
        if part not in {row.part for row in rows}:
            continue
        parameters = sum(row.parameters for row in rows)
        flops = _rounded(sum(row.flops for row in rows)).strip()
        lines.append(
            [
                name,
                f"{parameters:,}",
                f"({parameters / 1e6:.1f} M)",
                flops + _more(rows),
            ]
        )
    return tables.plain(lines)


def _step(run: "description.Description") -> str:
    """The work of a training step, and the rule it comes by."""
    batch = f"B = {run.batch_size:,}"
    if run.unlabeled_batch:
        batch += f", μB = {run.unlabeled_batch:,}"
    if run.student_views is None:
        return _fill(
            f"A training step ({batch}): its work is known to its algorithm "
            "alone."
        )
    student, others = run.student_views, run.forward_views
    passes = (1 + _BACKWARD) * student + others
    flops = passes * sum(row.flops for row in run.rows)
    text = (
        f"A training step ({batch}): {_rounded(flops)}FLOPs{_more(run.rows)} "
        "on all devices. "
        f"That is {passes:,} × forward: {1 + _BACKWARD} × {student:,} views "
        "of the student (forward, and backward as twice that)"
    )
    if others:
        whose = "of the teacher" if run.form == "teacher" else "of weak views"
        text += f", 1 × {others:,} {whose}"
    return _fill(text + ".")


def _memory(run: "description.Description") -> str:
    lines = [["memory", "MiB"]]
    for each in run.memory:
        name = _OWNERS.get(each.name, each.name)
        if each.shape is not None:
            name += " [" + ", ".join(map(str, each.shape)) + "]"
        lines.append([name, _mebibytes(each.bytes)])
    total = sum(each.bytes for each in run.memory)
    lines += [
        ["sum, as in a checkpoint on disk", _mebibytes(total)],
        [f"the {run.keep} checkpoints kept", _mebibytes(run.keep * total)],
    ]
    return tables.plain(lines)


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.2f}"
