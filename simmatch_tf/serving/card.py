"""The model card: what an export is, for people and for programs."""

import collections
import datetime
import importlib.metadata
import json
import pathlib
from typing import Any

import simmatch_tf
from simmatch_tf import io
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import loading, versions
from simmatch_tf.training import results, workdir

JSON, MARKDOWN = versions.CARD, "model_card.md"
_PACKAGES = ("tensorflow", "keras", "numpy")


def make(run: loading.Run, folder: workdir.Workdir) -> dict[str, Any]:
    """What is known of a run's classifier.

    Args:
        run: The run.
        folder: Its folder, for the results.
    """
    content, config = run.content, run.config
    network = run.classifier.network
    return {
        "model": {
            "algorithm": config.algorithm,
            "backbone": config.backbone,
            "weights": run.weights,
            "weights_of_record": run.weights_of_record,
            "step": run.step,
            "checkpoint": run.checkpoint,
            "parameters": network.count_params(),
            "input": list(content["image_shape"]),
            "input_dtype": run.classifier.input_dtype,
            "preprocessing": run.classifier.preprocessing.as_dict(),
            "explains": run.classifier.labeled is not None,
        },
        "accuracy": accuracy(run, folder),
        "data": {
            "dataset": config.dataset,
            "class_names": content["class_names"],
            "train_images": content["train_images"],
            "unlabeled_images": content["unlabeled_images"],
            "train_sha256": content.get("train_sha256"),
        },
        "split": {
            "labeled_images": len(content["labels"]),
            "labeled_per_class": _per_class(content),
            "validation_images": len(content["validation"] or ()),
            "split_seed": config.split_seed,
        },
        "flags": {
            name: value
            for name, value in config.values().items()
            if value is not None
        },
        "date": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
        "versions": {
            "simmatch_tf": simmatch_tf.__version__,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
    }


def _per_class(content: dict[str, Any]) -> dict[str, int]:
    """How many labeled images each class has."""
    counts = collections.Counter(content["labels"])
    return {
        str(name): counts[label]
        for label, name in enumerate(content["class_names"])
    }


def accuracy(
    run: loading.Run, folder: workdir.Workdir
) -> dict[str, Any] | None:
    """What was measured of these weights at this step; None: nothing.

    Args:
        run: The run.
        folder: Its folder.

    Returns:
        `top1`, `top5`, `scored_on`, `images`; and `calibration_error`, if
        `evaluate` measured it.
    """
    found = None
    if folder.results.is_file():
        result = results.read(folder.results)
        last = getattr(result, run.weights)["last"]
        if last["step"] == run.step:
            found = {
                "top1": last["top1"],
                "top5": last["top5"],
                "scored_on": result.scored_on,
                "images": result.test_images,
            }
    return evaluated(found, folder.evaluation, run.weights, run.step)


def evaluated(
    found: dict[str, Any] | None, path: pathlib.Path, weights: str, step: int
) -> dict[str, Any] | None:
    """Adds what `evaluate` measured of the same weights on the same images.

    Args:
        found: See `accuracy`.
        path: Of its file, which need not be there. What it measured on images
            that had changed is not taken.
        weights: Name of the weights.
        step: Their step.
    """
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        measured = {
            "top1": report[weights]["top1"],
            "top5": report[weights]["top5"],
            "scored_on": report["scored_on"],
            "images": report["test_images"],
            "calibration_error": report[weights]["calibration_error"],
        }
        same = (
            report["step"] == step
            and "images_changed" not in report
            and all(
                measured[name] == found[name]
                for name in ("scored_on", "images")
                if found is not None
            )
        )
    except (OSError, ValueError, KeyError, TypeError):
        return found
    return {**measured, **(found or {})} if same else found


def write(folder: pathlib.Path, card: dict[str, Any]) -> None:
    """Writes the card's two files.

    Raises:
        InputError: They cannot be written.
    """
    io.write_json(folder / JSON, card)
    path = folder / MARKDOWN
    try:
        path.write_text(markdown(card), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror})"
        ) from None


_ESCAPED = {ord(sign): f"&#{ord(sign)};" for sign in "\\`*_[]<>|&#"}


def _cell(value: Any) -> str:
    """A value in a Markdown table: no sign in it is the table's."""
    if isinstance(value, list | tuple):
        value = " × ".join(str(v) for v in value)
    return " ".join(str(value).split()).translate(_ESCAPED)


def _table(head: tuple[str, ...], rows: list[tuple]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cell(v) for v in row) + " |" for row in rows]
    return [*lines, ""]


def markdown(card: dict[str, Any]) -> str:
    """The card as a page."""
    model, data, split = card["model"], card["data"], card["split"]
    measured = card["accuracy"]
    score = "not measured"
    if measured:
        score = f"top-1 {measured['top1']:.2%}"
        # Of five classes it is always 100 %.
        if len(data["class_names"]) > 5:
            score += f", top-5 {measured['top5']:.2%}"
        score += f" on {measured['images']} {measured['scored_on']} images"
    rows = [
        ("accuracy", score),
        ("algorithm", model["algorithm"]),
        ("backbone", f"{model['backbone']}, {model['parameters']} parameters"),
        ("weights", f"{model['weights']}, step {model['step']}"),
        ("input", f"{_size(model['input'])}, {model['input_dtype']}, 0 to 255"),
        ("dataset", data["dataset"]),
        ("labeled images", split["labeled_images"]),
        ("unlabeled images", data["unlabeled_images"]),
        ("split seed", split["split_seed"]),
        ("exported", card["date"]),
        *((name, version) for name, version in card["versions"].items()),
    ]
    lines = ["# Model card", "", *_table(("", ""), rows)]
    for name, interface in card.get("interface", {}).items():
        lines += [f"## `{name}`", ""]
        fields = [
            (kind, key, spec["dtype"], _size(spec["shape"]))
            for kind in ("inputs", "outputs")
            for key, spec in interface[kind].items()
        ]
        lines += _table(("", "name", "type", "shape"), fields)
    lines += ["## Classes", ""]
    per_class = split["labeled_per_class"].items()
    lines += _table(("class", "labeled images"), list(per_class))
    lines += ["## Flags", ""]
    lines += _table(("flag", "value"), list(card["flags"].items()))
    return "\n".join(lines)


def _size(shape: list[int | None]) -> str:
    return " × ".join("N" if side is None else str(side) for side in shape)
