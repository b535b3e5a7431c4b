"""Folders of exported versions and their model cards.

TensorFlow Serving polls a folder of versions and loads the largest number in
it. The model card says what a version is, for programs (JSON) and for people
(Markdown). Nothing here imports TensorFlow.
"""

import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf import io, tables
from simmatch_tf.evaluation import baselines, metrics
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import results, workdir

# The model card's file for programs, in the folder of a version.
CARD = "model_card.json"
_PAGE = "model_card.md"
_UNFINISHED = ".unfinished-"
# What is known of the accuracy of a model.
_FIGURES = (
    "top1",
    "top5",
    "macro_accuracy",
    "calibration_error",
    "scored_on",
    "images",
)


def add(
    output: str | os.PathLike, write: Callable[[pathlib.Path], None]
) -> pathlib.Path:
    """Adds a version: whole, under the next number, or not at all.

    A server that polls `output` only looks at numbers, so it never sees the
    folder before its content is complete.

    Args:
        output: The folder of versions; created if it does not exist.
        write: Fills the folder that it is given.

    Returns:
        The version's folder.

    Raises:
        InputError: The folder cannot be written.
    """
    output = io.expand(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(output)
        folder = pathlib.Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=output))
        try:
            with _opened(folder) as descriptor:
                # Tells other exports that this folder is not abandoned.
                io.lock(descriptor, wait=True)
                write(folder)
                # The server may run as another user.
                mask = os.umask(0)
                os.umask(mask)
                folder.chmod(0o777 & ~mask)
                return _rename(folder, output)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"--output={output}: cannot be written ({error.strerror or error})"
        ) from error


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_abandoned(output: pathlib.Path) -> None:
    """Removes the folders of exports that were killed."""
    for folder in output.glob(_UNFINISHED + "*"):
        with contextlib.suppress(OSError), _opened(folder) as descriptor:
            if io.lock(descriptor):
                shutil.rmtree(folder, ignore_errors=True)


def _rename(folder: pathlib.Path, output: pathlib.Path) -> pathlib.Path:
    """Gives a folder the next free number."""
    while True:
        path = output / str(1 + max(numbers(output), default=0))
        try:
            return folder.rename(path)
        except OSError:
            # Unless another export has just taken the number.
            if not path.exists():
                raise


def numbers(output: pathlib.Path) -> list[int]:
    """Returns the numbers of the versions in a folder, in no order."""
    return [int(p.name) for p in output.iterdir() if p.name.isdecimal()]


def check_model(
    output: str | os.PathLike,
    config: config_lib.Config,
    images: Mapping[str, Any],
) -> None:
    """Checks that a folder of versions does not hold another run's model.

    A server takes the newest version for the same model. Two exports are of
    the same model if their runs have the same workdir, dataset and classes,
    however often it was trained; or if flags and training images are equal,
    wherever the workdirs are.

    Args:
        output: The folder of versions.
        config: The run's flags.
        images: What identifies its training images, see
            `workdir.Workdir.images`.

    Raises:
        InputError: The newest version is of another run.
    """
    output = io.expand(output)
    if not output.is_dir():
        return
    folders = (output / str(n) for n in sorted(numbers(output), reverse=True))
    newest = next((p for p in folders if p.is_dir() and any(p.iterdir())), None)
    if newest is None:
        return
    try:
        card = json.loads((newest / CARD).read_text("utf-8"))
        flags, data = card["flags"], card["data"]
        if _is_same(flags, data, config, images):
            return
        owner = (
            f"is of run {flags['workdir']}, {flags['algorithm']} on "
            f"{flags.get('data_dir') or data['dataset']}, exported "
            f"{card['date']}"
        )
    except (OSError, ValueError, KeyError, TypeError):
        owner = f"was not written by export: {newest.name}/ has no {CARD}"
    name = pathlib.Path(os.path.realpath(config.workdir)).name
    raise InputError(
        f"--output={output}: holds another model (version {newest.name} "
        f"{owner}), and a server would take this one for its next version; "
        f"give each model its own folder, such as {output / name}, or "
        "--replace_model"
    )


def _is_same(
    flags: dict[str, Any],
    data: dict[str, Any],
    config: config_lib.Config,
    images: Mapping[str, Any],
) -> bool:
    """Whether a model card's flags and data are of a run; see `check_model`."""
    train_sha256 = images.get("train_sha256")
    if os.path.realpath(config.workdir) == os.path.realpath(flags["workdir"]):
        names = images.get("class_names", data["class_names"])
        # Another folder of images may have come to this workdir, whose default
        # is named after it; a folder that was moved has the same images.
        moved = flags.get("data_dir") != config.data_dir
        return (
            data["dataset"] == config.dataset
            and list(map(io.nfc, names))
            == list(map(io.nfc, data["class_names"]))
            and not (moved and data["train_sha256"] != train_sha256)
        )
    then = config_lib.Config.from_recorded(flags).values()
    return data["train_sha256"] == train_sha256 and all(
        then.get(name) == value
        for name, value in config.values().items()
        if not config.fields()[name].operational
    )


def accuracy(
    folder: workdir.Workdir, weights: str, step: int
) -> dict[str, Any] | None:
    """Returns the measured accuracy of a run's weights at a step.

    Args:
        folder: The run's folder.
        weights: "student", "ema" or "baseline".
        step: Training steps done.

    Returns:
        `top1` and `top5` in [0, 1], `scored_on`, `images`; also
        `macro_accuracy` and `calibration_error` in [0, 1], unless the run is of
        an older version. Of a baseline that was measured by cross-validation
        on the labels there is no `top5` and no `macro_accuracy`. None: nothing
        was measured.
    """
    if weights == workdir.BASELINE:
        kept = baselines.read_kept(folder.baselines) or {}
        return {key: kept[key] for key in _FIGURES if key in kept} or None
    if measured := evaluated(folder.evaluation, weights, step):
        return measured
    if not folder.results.is_file():
        return None
    result = results.read(folder.results)
    last = getattr(result, weights)["last"]
    if last["step"] != step or last["top1"] is None:
        return None
    measured = {
        "top1": last["top1"],
        "top5": last["top5"],
        "scored_on": result.scored_on,
        "images": result.test_images,
    }
    calibrated = getattr(result, weights).get("calibration", {})
    for key, values in (
        ("macro_accuracy", last),
        ("calibration_error", calibrated),
    ):
        if key in values:
            measured[key] = values[key]
    return measured


def calibration(
    folder: workdir.Workdir, weights: str, step: int
) -> dict[str, Any] | None:
    """Returns how the confidences of a run's weights are calibrated.

    Args:
        folder: The run's folder.
        weights: "student", "ema" or "baseline".
        step: Training steps done.

    Returns:
        `temperature`, which logits are divided by; `images`, the number of
        images that it was fitted on, and `fitted_on`, "validation", "test" or
        `baselines.HELD_OUT`. None: they are not calibrated.

    Raises:
        InputError: The run's result cannot be read.
    """
    if weights == workdir.BASELINE:
        kept = baselines.read_kept(folder.baselines) or {}
        if not kept.get("temperature"):
            return None
        return {
            "temperature": kept["temperature"],
            "fitted_on": kept["fitted_on"],
            "images": kept["fitted_images"],
        }
    if not folder.results.is_file():
        return None
    network = getattr(results.read(folder.results), weights)
    calibrated = network.get("calibration", {})
    if network["last"]["step"] != step or not calibrated.get("temperature"):
        return None
    return {
        "temperature": calibrated["temperature"],
        "fitted_on": calibrated.get("fitted_on", "validation"),
        "images": calibrated["images"],
    }


def confidences(
    calibration: Mapping[str, Any] | None, measured: Mapping[str, Any] | None
) -> str:
    """Says whether confidences are calibrated, and how far off they are.

    Args:
        calibration: See `calibration`.
        measured: See `accuracy`.
    """
    text = "not calibrated"
    if calibration is not None:
        scored_on = (measured or {}).get("scored_on", "")
        on = metrics.describe_fit(
            calibration["fitted_on"], calibration["images"], scored_on
        )
        text = f"calibrated {on}"
    error = (measured or {}).get("calibration_error")
    if error is None:
        return f"{text}; how far off they are was not measured"
    return (
        f"{text}; they are off by {error:.1%} on average: the calibration "
        f"error of {measured['images']:,} {measured['scored_on']} images"
    )


def evaluated(
    evaluation: pathlib.Path, weights: str, step: int
) -> dict[str, Any] | None:
    """Returns what `evaluate` measured of weights at a step; see `accuracy`.

    Args:
        evaluation: The file that `evaluate` writes; it need not exist.
        weights: As in the report, such as "ema".
        step: Training steps done.

    Returns:
        None if the file is of other weights, or of images that have changed.
    """
    try:
        report = json.loads(evaluation.read_text(encoding="utf-8"))
        if report["step"] != step or "images_changed" in report:
            return None
        measured = {
            "top1": report[weights]["top1"],
            "top5": report[weights]["top5"],
            "scored_on": report["scored_on"],
            "images": report["test_images"],
            "calibration_error": report[weights]["calibration_error"],
        }
        if "macro_accuracy" in report[weights]:
            measured["macro_accuracy"] = report[weights]["macro_accuracy"]
        return measured
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_card(folder: pathlib.Path, card: dict[str, Any]) -> None:
    """Writes a model card as JSON and as Markdown.

    Args:
        folder: The version's folder.
        card: See `exporting`.

    Raises:
        InputError: A file cannot be written.
    """
    io.write_json(folder / CARD, card)
    io.write_text(folder / _PAGE, _markdown(card))


def _markdown(card: dict[str, Any]) -> str:
    """The card as a page."""
    model, data, split = card["model"], card["data"], card["split"]
    measured = card["accuracy"]
    score = "not measured"
    if measured:
        score = f"top-1 {measured['top1']:.2%}"
        # Of five classes or fewer, top-5 is always 100 %.
        if len(data["class_names"]) > 5 and "top5" in measured:
            score += f", top-5 {measured['top5']:.2%}"
        if "macro_accuracy" in measured:
            score += f", macro {measured['macro_accuracy']:.2%}"
        score += f" on {measured['images']} {measured['scored_on']} images"
        low, high = metrics.wilson(measured["top1"], measured["images"])
        score += f" (95 % interval of top-1: {low:.1%} to {high:.1%})"
    calibrated = card.get("calibration")
    rows = [
        ("accuracy", score),
        ("confidences", confidences(calibrated, measured)),
        (
            "temperature",
            f"{calibrated['temperature']:.3g}" if calibrated else "none",
        ),
        ("algorithm", model["algorithm"]),
        ("backbone", f"{model['backbone']}, {model['parameters']} parameters"),
        ("weights", f"{model['weights']}, step {model['step']}"),
        ("input", f"{_text(model['input'])}, {model['input_dtype']}, 0 to 255"),
        ("dataset", data["dataset"]),
        ("labeled images", split["labeled_images"]),
        ("unlabeled images", data["unlabeled_images"]),
        ("split seed", split["split_seed"]),
        ("exported", card["date"]),
        *card["versions"].items(),
    ]
    parts = ["# Model card", _table([("", ""), *rows])]
    for name, interface in card.get("interface", {}).items():
        fields = [
            (kind, key, spec["dtype"], spec["shape"])
            for kind in ("inputs", "outputs")
            for key, spec in interface[kind].items()
        ]
        head = ("", "name", "type", "shape")
        parts += [f"## `{name}`", _table([head, *fields])]
    per_class = split["labeled_per_class"].items()
    parts += ["## Classes", _table([("class", "labeled images"), *per_class])]
    parts += ["## Flags", _table([("flag", "value"), *card["flags"].items()])]
    return "\n\n".join(parts) + "\n"


def _table(rows: list[tuple]) -> str:
    return tables.markdown([[*map(_text, row)] for row in rows])


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " × ".join("N" if side is None else str(side) for side in value)
    return str(value)
