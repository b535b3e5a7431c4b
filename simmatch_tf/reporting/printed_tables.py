"""The tables that commands print at their end. Nothing here imports TensorFlow.

What commands write to files is in `transfer_table`, `comparison` and the pages.
"""

import os
import pathlib
import shlex
import textwrap
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf import io, tables
from simmatch_tf.data import answers, labels_csv
from simmatch_tf.evaluation import metrics
from simmatch_tf.flags import flagfiles
from simmatch_tf.flags.errors import InputError
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.reporting import comparison
from simmatch_tf.training import results
from simmatch_tf.training import workdir as workdir_lib

TOP = 5  # of top-5
_WIDTH = 79
_MANY = 100  # classes beyond which `evaluate` prints the worst alone
_WORST = 20
_WIDE = 15  # classes beyond which a confusion matrix is not printed
_LARGEST = 20  # classes that `predict` prints at most


def result(outcome: results.Result, config: config_lib.Config) -> str:
    """Returns the tables that end a run: its result, and its baselines.

    Args:
        outcome: The result.
        config: The run's flags, for advice.
    """
    title = (
        f"{outcome.algorithm} on {outcome.dataset}: {outcome.labels} labels"
        + f" ({config.draw})" * (config.draw != "stratified")
        + f", {outcome.steps} steps, seed {outcome.seed}, split seed "
        f"{outcome.split_seed}"
    )
    if outcome.top1 is None:
        return title + _unmeasured(outcome)
    head = ["weights", "top-1", "95 %", "top-5", "macro", "best top-1"]
    rows = [[*head, "at step"]]
    for name in ("student", "ema"):
        last = getattr(outcome, name)["last"]
        best = getattr(outcome, name)["best"]
        rows.append(
            [
                name + " *" * (name == outcome.weights_of_record),
                tables.percent(last["top1"]),
                comparison.wilson_text(last["top1"], outcome.test_images),
                tables.percent(last["top5"]),
                tables.percent(last.get("macro_accuracy")),
                tables.percent(best["top1"]),
                str(best["step"]),
            ]
        )
    if not shows_top5(len(outcome.class_names)):
        rows = [row[:3] + row[4:] for row in rows]
    chosen_on = outcome.student["best"]["chosen_on"]
    return (
        f"{title}\n\n{tables.plain(rows)}\n\n"
        f"* The result: last checkpoint, on {outcome.test_images} "
        f"{outcome.scored_on} images.\n"
        f"  95 %: Wilson's interval for this number of images.\n"
        f"  Macro: the mean of the classes' accuracies.\n"
        f"  The best step is chosen on the {chosen_on} images."
        + _baselines(outcome, config)
    )


def _baselines(outcome: results.Result, config: config_lib.Config) -> str:
    """Returns the table of the baselines, and what it says of the model."""
    lead = outcome.lead
    if lead is None:
        return ""
    finding = diagnosis.not_ahead(
        config,
        lead,
        steps=outcome.steps,
        labels=outcome.labels + outcome.validation_labels,
        usable=usable_baseline(workdir_lib.Workdir(config.workdir)),
    )
    if finding is None:
        text = (
            "The model is ahead of the best baseline by "
            f"{100 * lead['top1']:.1f} points, 95 % interval "
            f"{comparison.interval_text(lead['interval'])} on the same "
            f"{lead['images']} images."
        )
    else:
        text = f"{finding.says} {finding.why} {finding.turn}"
    return f"\n\n{_baseline_table(outcome)}\n\n{_filled(text)}"


def usable_baseline(folder: workdir_lib.Workdir) -> str | None:
    """Returns a command that predicts with a run's baseline.

    Args:
        folder: The run's folder.

    Returns:
        None if no baseline of the run is kept as a model.
    """
    if not folder.baseline.is_file():
        return None
    run = shlex.quote(str(folder.path))
    return f"predict --model={run} --weights={workdir_lib.BASELINE}"


def _unmeasured(outcome: results.Result) -> str:
    """Returns the lines on a run without images to measure its result on."""
    unknown = (
        "How accurate this model is was not measured: there are no test "
        "images, and no labeled images were set aside. Another run with "
        "--validation_fraction=0.2, or with test images, measures it."
    )
    if not outcome.baselines:
        return f"\n\n{_filled(unknown)}"
    best = max(outcome.baselines, key=lambda each: each["top1"])
    text = (
        f"The best baseline reaches {100 * best['top1']:.1f} %, 95 % interval "
        f"{comparison.interval_text(best['interval'])}, by cross-validation: "
        "each labeled image is predicted by a classifier of labeled images of "
        "other folds. 95 %: Wilson's interval for this number of predictions. "
        "This is not the accuracy of the model, but what it should exceed."
    )
    return (
        f"\n\n{_filled(unknown)}\n\n{_baseline_table(outcome)}\n\n"
        f"{_filled(text)}"
    )


def _baseline_table(outcome: results.Result) -> str:
    """Returns the table with one line for each baseline."""
    rows = [["baseline, of the same labels", "top-1", "95 %"]]
    rows += [
        [
            each["name"],
            tables.percent(each["top1"]),
            comparison.interval_text(each["interval"]),
        ]
        for each in outcome.baselines
    ]
    return tables.plain(rows)


def _filled(text: str) -> str:
    """Breaks a text into lines; no flag is cut."""
    return textwrap.fill(
        text, _WIDTH, break_long_words=False, break_on_hyphens=False
    )


def shows_top5(classes: int) -> bool:
    """Whether top-5 means anything: of five classes it is always 100 %."""
    return classes > TOP


def next_steps(
    workdir: pathlib.Path, config: config_lib.Config, result: results.Result
) -> str:
    """Returns what a finished run has written, and commands that use it.

    Args:
        workdir: Its folder.
        config: Its flags.
        result: Its result.
    """
    run = shlex.quote(str(workdir))
    # A folder of its own: an export folder holds versions of one model only.
    exports = shlex.quote(f"exports/{workdir.absolute().name or 'run'}")
    events = (workdir / "tensorboard").is_dir()
    module = "  python -m simmatch_tf."
    lines = [
        f"In {workdir}: {'tensorboard/, ' * events}checkpoints/, "
        "results.json. Next:",
        f"{module}report {run} --output=report.html",
        *[f"{module}evaluate --workdir={run}"] * (result.top1 is not None),
        f"{module}export --workdir={run} --output={exports}",
        *_next_round(run, config),
    ]
    extension = diagnosis.extension(config, result.steps)
    if extension is not None:
        flagfile = shlex.quote(str(workdir / flagfiles.OF_RUN))
        lines.append(f"{module}train --flagfile={flagfile} {extension}")
    if events:
        lines.insert(2, f"  tensorboard --logdir={run}")
    return "\n".join(lines)


def _next_round(run: str, config: config_lib.Config) -> list[str]:
    """Returns the command that labels more images with the run's guesses.

    Args:
        run: The run's folder, quoted.
        config: Its flags.
    """
    labels = config.labels_from
    if labels is None or not labels_csv.are_answers(labels):
        return []
    try:
        images = answers.read(io.expand(labels)).images
    except InputError:  # of a finished run they may be gone
        return []
    if not os.path.isdir(images):  # it was moved
        images = config.data_dir
    return [
        f"  python -m simmatch_tf.label --images={shlex.quote(images)} "
        f"--labels={shlex.quote(labels)} --model={run}"
    ]


def evaluation(report: dict[str, Any]) -> str:
    """Returns the table of `evaluate`: a run's networks side by side."""
    names = [name for name in workdir_lib.WEIGHTS if name in report]
    record = report["weights_of_record"]
    images = report["test_images"]
    class_names = [str(name) for name in report["class_names"]]

    def values(key: str) -> list[str]:
        return [tables.percent(report[name].get(key)) for name in names]

    rows = [["", *(name + " *" * (name == record) for name in names)]]
    rows[0].append("95 % of *")
    rows.append(["top-1", *values("top1"), ""])
    rows.append(
        [
            "95 % interval (Wilson)",
            *(comparison.wilson_text(report[n]["top1"], images) for n in names),
            "",
        ]
    )
    figures = {"top5": "top-5", "macro_accuracy": "macro-averaged accuracy"}
    figures |= {
        "calibration_error": "calibration error",
        "uncalibrated_error": "without the temperature",
    }
    if not shows_top5(len(class_names)):
        del figures["top5"]
    for key, title in figures.items():
        if any(key in report[name] for name in names):
            rows.append([title, *values(key), ""])
    for title in report[record].get("averaged", {}):
        top1 = [
            tables.percent(
                report[n].get("averaged", {}).get(title, {}).get("top1")
            )
            for n in names
        ]
        rows.append([f"top-1, mean of {title}", *top1, ""])
    labels = range(len(class_names))
    if len(labels) > _MANY:  # evaluation.json has them all
        top1 = report[record]["per_class"]
        labels = sorted(
            (label for label in labels if top1[label] is not None),
            key=top1.__getitem__,
        )[:_WORST]
    for label in labels:
        top1 = [tables.percent(report[n]["per_class"][label]) for n in names]
        count = sum(report[record]["confusion"][label])
        interval = "-"
        if count:
            share = report[record]["per_class"][label]
            interval = comparison.wilson_text(share, count)
        rows.append([f"class {class_names[label]}", *top1, interval])
    text = (
        f"Step {report['step']}, {images} {report['scored_on']} images, "
        f"* evaluation weights\n\n{tables.plain(rows)}"
    )
    text += _temperature(report[record], report["scored_on"])
    if len(class_names) <= _WIDE:
        rows = [["true \\ predicted", *class_names]]
        for name, counts in zip(
            class_names, report[record]["confusion"], strict=True
        ):
            rows.append([name, *(str(count or ".") for count in counts)])
        text += f"\n\nConfusion matrix of {record}:\n\n{tables.plain(rows)}"
    return text


def _temperature(figures: dict[str, Any], scored_on: str) -> str:
    """Returns a line on what a network's temperature was fitted on, or ""."""
    if "fitted_on" not in figures:
        return ""
    on = metrics.describe_fit(
        figures["fitted_on"], figures["fitted_images"], scored_on
    )
    return f"\n\nThe temperature was fitted {on}."


def predictions(review: Any, output: pathlib.Path, note: str = "") -> str:
    """Returns the table of `predict`: how many images each class has.

    Args:
        review: A `serving.prediction_file.Summary`.
        output: The file that was written.
        note: What is known of the confidences beyond their values.
    """
    classes = sorted(
        (item for item in review.per_class.items() if item[1]),
        key=lambda item: -item[1],
    )
    others = classes[_LARGEST:]
    if others:
        count = sum(count for _, count in others)
        classes[_LARGEST:] = [(f"{len(others)} others", count)]
    read = max(1, review.images - review.unreadable)
    rows = [["class", "images", "share"]]
    rows += [
        [str(name), f"{count:,}", f"{count / read:.1%}"]
        for name, count in classes
    ]
    text = tables.plain(rows) + "\n"
    for name, reason in review.reasons:
        text += f"\nunreadable: {io.one_line(name)}: {reason}"
    if review.unreadable > len(review.reasons):
        text += f"\n… and {review.unreadable - len(review.reasons)} more"
    if review.unreadable:
        text += "\n"
    return (
        f"{text}\n{review.images:,} images, {review.unreadable:,} of them "
        f"unreadable.\n{note and note + chr(10)}Written to {output}."
    )
