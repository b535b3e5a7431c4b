"""The page of `report`: its tables, charts and images, and its figures as PNG.

Tables are rows of text, the head first. Nothing here imports TensorFlow.
"""

import dataclasses
import pathlib
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from simmatch_tf import io, tables
from simmatch_tf.evaluation import metrics
from simmatch_tf.monitoring import diagnosis
from simmatch_tf.reporting import (
    charts,
    comparison,
    figures,
    pages,
    printed_tables,
)
from simmatch_tf.reporting import runs as runs_lib

Table = list[list[str]]
# Run → metrics of its evaluation weights, where they are known.
Reports = Mapping[str, Mapping[str, Any]]

_UNKNOWN = comparison.UNKNOWN
_WORST = 10  # classes, and pairs of classes, that are listed


@dataclasses.dataclass(frozen=True)
class Inspections:
    """What runs predict for their test images.

    Attributes:
        by_run: Run → its predictions, a `serving.scoring.Inspection`.
        shown: The runs whose images the page shows.
        skipped: Run → why it is not in `by_run`.
    """

    by_run: Mapping[str, Any]
    shown: Sequence[str]
    skipped: Mapping[str, str]


def reports(
    groups: Sequence[runs_lib.Group], inspections: Inspections
) -> Reports:
    """Returns each run's metrics: just measured, or from `evaluate`."""
    known = {}
    for group in groups:
        for run in group.measured:
            if run.name in inspections.by_run:
                known[run.name] = inspections.by_run[run.name].report
            elif run.evaluation is not None:
                known[run.name] = run.evaluation
    return known


def page(groups: Sequence[runs_lib.Group], inspections: Inspections) -> str:
    """Returns the page as HTML.

    Args:
        groups: The runs.
        inspections: What they predict for their test images.
    """
    known = reports(groups, inspections)
    runs = [run for group in groups for run in group.runs]
    findings, not_judged = _problems(groups)
    return pages.render(
        "report.html",
        title=", ".join(group.name for group in groups),
        groups=groups,
        colors=[figures.color(i) for i in range(len(groups))],
        overview=overview(groups),
        differences=differences(groups),
        result=result(groups, known),
        baselines=baselines(groups),
        averaged=averaged(groups),
        temperatures=temperatures(groups),
        scored=_scored(groups),
        not_compared=not_compared(groups),
        unfinished=unfinished(groups),
        findings=findings,
        not_judged=not_judged,
        charts=_charts(groups),
        class_shares=class_shares(groups),
        without_scalars=[run.name for run in runs if not run.scalars],
        confusions=_confusions(groups, known),
        images=[
            (name, number, inspections.by_run[name])
            for number, name in enumerate(inspections.shown)
        ],
        left_out=left_out(inspections),
        each_run=each_run(runs),
        versions=_versions(groups),
        flags=[(g.name, g.config.to_flagfile()) for g in groups],
        data_uri=pages.data_uri,
    )


def save_figures(
    groups: Sequence[runs_lib.Group],
    inspections: Inspections,
    folder: pathlib.Path,
) -> list[str]:
    """Writes the figures as PNG files.

    Args:
        groups: The runs.
        inspections: What they predict for their test images.
        folder: The folder for the files; created if it does not exist.

    Returns:
        The names of the files.

    Raises:
        InputError: A file or the folder cannot be written.
    """
    known = reports(groups, inspections)
    names = []
    io.make_folder(folder, f"--figures={folder}")
    for chart in charts.of_groups(groups):
        name = f"{chart.name}.png"
        if figures.save_chart(chart, groups, folder / name):
            names.append(name)
    for group in groups:
        counts = confusion(group, known)
        if counts and len(counts) <= figures.MOST_CLASSES:
            # A name that any system accepts.
            plain = re.sub(r"[^\w.-]+", "_", group.name).strip("._") or "run"
            name = f"confusion_{plain}.png"
            if name in names:
                name = f"confusion_{plain}_{len(names)}.png"
            names.append(name)
            class_names = group.measured[0].result.class_names
            figures.save_confusion(counts, class_names, folder / names[-1])
    return names


# What was run ----------------------------------------------------------------


def overview(groups: Sequence[runs_lib.Group]) -> Table:
    """Returns one line per group: its data, method and seeds."""
    rows = ["run dataset labels algorithm backbone steps seeds".split()]
    for group in groups:
        config, run = group.config, group.runs[0]
        rows.append(
            [
                group.name,
                config.dataset,
                _labels(run),
                _algorithm(config),
                config.backbone,
                _count(run.steps),
                ", ".join(map(_seeds, group.runs)),
            ]
        )
    return rows


def _labels(run: runs_lib.Run) -> str:
    if run.result is not None:
        labels, unlabeled = run.result.labels, run.result.unlabeled
        aside = run.result.validation_labels
    else:
        labels = len(run.split.get("labels", ()))
        unlabeled = run.split.get("unlabeled_images")
        aside = len(run.split.get("validation", ()))
    text = f"{labels:,}" if labels else _UNKNOWN
    if run.config.draw != "stratified":
        text += f" {run.config.draw}"
    if unlabeled and run.algorithm.unlabeled_views:
        text += f" of {unlabeled:,}"
    return text + (f", {aside:,} set aside" if aside else "")


def _algorithm(config: Any) -> str:
    if config.algorithm != "simmatch":
        return config.algorithm
    teacher = config.targets_from == "teacher"
    return f"simmatch, {'teacher' if teacher else 'ensemble'}"


def _seeds(run: runs_lib.Run) -> str:
    seed, split = run.config.seed, run.config.split_seed
    return f"{seed}" if seed == split else f"{seed} (split {split})"


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,}"


def differences(groups: Sequence[runs_lib.Group]) -> Table | None:
    """Returns the flags in which groups differ; None of one group."""
    if len(groups) < 2:
        return None
    rows = [["flag", *(group.name for group in groups)]]
    for name, values in runs_lib.differences(groups).items():
        rows.append([f"--{name}", *map(_value, values)])
    return rows


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _UNKNOWN if value is None else str(value)


# Results ---------------------------------------------------------------------


def scores(groups: Sequence[runs_lib.Group]) -> list[comparison.Score]:
    """Returns the results, paired by seed and by the images labeled."""
    pairs: dict[tuple[int, Any], int] = {}
    scores = []
    for group in groups:
        for run in group.measured:
            # Where a file says which images are labeled, --split_seed does not.
            labeled = tuple(run.split.get("labeled", ()))
            seeds = run.config.seed, labeled or run.config.split_seed
            scores.append(
                comparison.Score(
                    row=group.name,
                    column="",
                    seed=pairs.setdefault(seeds, len(pairs)),
                    top1=run.result.top1,
                    student_top1=run.result.student["last"]["top1"],
                    ema_top1=run.result.ema["last"]["top1"],
                    steps=run.result.steps,
                    seconds=run.seconds or 0.0,
                    macro_accuracy=run.result.macro_accuracy,
                    test_images=run.result.test_images,
                    baseline=run.result.best_baseline,
                )
            )
    return scores


def _comparable(groups: Sequence[runs_lib.Group]) -> bool:
    return runs_lib.same_scored([r for g in groups for r in g.measured])


def result(groups: Sequence[runs_lib.Group], known: Reports) -> Table:
    """Returns one line per group; a dash stands for what is not known."""
    leads = len(groups) > 1 and _comparable(groups)
    compared = comparison.Comparison(
        title="",
        places=tuple((group.name, "") for group in groups),
        reference=groups[0].name if leads else None,
        curves=False,
        scores=tuple(scores(groups)),
    )
    head = ["run", "top-1, % (runs)", "95 % of the images", "macro, %", "worst"]
    head += ["student / EMA", "calibration error, %", "steps", "time"]
    rows = [[*head, "views/s"]]
    if leads:
        rows[0].insert(3, f"lead of {groups[0].name}, 95 %")
    if compared.has_baselines:
        rows[0].insert(3, "best baseline, % (runs)")
    for group in groups:
        own = compared.at(group.name, "")
        line = [group.name, comparison.spread(own), _interval(group)]
        if compared.has_baselines:
            line.append(comparison.spread(own, "baseline"))
        if leads:
            lead = compared.lead(group.name, "")
            first = group is groups[0]
            line.append("" if first else str(lead or _UNKNOWN))
        rates = [r.views_per_second for r in group.runs if r.views_per_second]
        errors = [100 * error for error in _calibration_errors(group, known)]
        line += [
            comparison.macro(own),
            comparison.worst(own),
            comparison.networks(own),
            f"{statistics.mean(errors):.1f}" if errors else _UNKNOWN,
            _count(group.runs[0].steps),
            _mean_time(group),
            f"{statistics.mean(rates):,.0f}" if rates else _UNKNOWN,
        ]
        rows.append(line)
    return rows


def _calibration_errors(group: runs_lib.Group, known: Reports) -> list[float]:
    """Returns the calibration errors of a group's runs, where known."""
    errors = []
    for run in group.measured:
        report = known.get(run.name) or getattr(run.result, run.record).get(
            "calibration", {}
        )
        if "calibration_error" in report:
            errors.append(report["calibration_error"])
    return errors


def temperatures(groups: Sequence[runs_lib.Group]) -> list[str]:
    """Says what the temperatures of runs were fitted on, each set once."""
    fitted: dict[str, list[str]] = {}
    for run in (run for group in groups for run in group.measured):
        network = getattr(run.result, run.record)
        calibration = network.get("calibration", {})
        if calibration.get("temperature"):
            on = metrics.describe_fit(
                calibration.get("fitted_on", "validation"),
                calibration["images"],
                run.result.scored_on,
            )
            fitted.setdefault(on, []).append(run.name)
    return [f"{on} ({', '.join(names)})" for on, names in fitted.items()]


def baselines(groups: Sequence[runs_lib.Group]) -> Table | None:
    """Returns a line a run and baseline; None if no run has any."""
    head = ["run", "baseline", "top-1, %", "95 % of the images"]
    rows = [[*head, "lead of the run, 95 %"]]
    for group in groups:
        for run in group.finished:
            lead = run.result.lead
            for each in run.result.baselines:
                text = ""
                if lead and each["name"] == lead["over"]:
                    interval = comparison.interval_text(lead["interval"], "+")
                    text = f"{100 * lead['top1']:+.1f} {interval}"
                rows.append(
                    [
                        run.name,
                        each["name"],
                        f"{100 * each['top1']:.1f}",
                        comparison.interval_text(each["interval"]),
                        text,
                    ]
                )
    return rows if len(rows) > 1 else None


def averaged(groups: Sequence[runs_lib.Group]) -> Table | None:
    """Returns a line a run and kind of copies; None if no run has any.

    They are those of `evaluate`.
    """
    rows = [["run", "mean of", "top-1, %", "top-5, %", "result, top-1, %"]]
    for run in (run for group in groups for run in group.measured):
        copies = (run.evaluation or {}).get("averaged", {})
        for title, accuracy in copies.items():
            figures = accuracy["top1"], accuracy["top5"], run.evaluation["top1"]
            row = [run.name, title, *(f"{100 * x:.1f}" for x in figures)]
            rows.append(row)
    return rows if len(rows) > 1 else None


def _interval(group: runs_lib.Group) -> str:
    """Returns the interval of the runs' mean for this number of images."""
    results = [run.result for run in group.measured]
    if not results:
        return _UNKNOWN
    return comparison.wilson_text(
        statistics.mean(result.top1 for result in results),
        # All runs are scored on the same images: more runs are not more.
        min(result.test_images for result in results),
    )


def _mean_time(group: runs_lib.Group) -> str:
    timed = [run for run in group.finished if run.seconds is not None]
    if not timed:
        return _UNKNOWN
    text = tables.duration(statistics.mean(run.seconds for run in timed))
    return text if all(run.timed for run in timed) else f"over {text}"


def _scored(groups: Sequence[runs_lib.Group]) -> str:
    """Names the images that the results are measured on."""
    sets = {
        f"{run.result.test_images:,} {run.result.scored_on} images of "
        f"{run.config.dataset}"
        for group in groups
        for run in group.measured
    }
    return "; ".join(sorted(sets))


def not_compared(groups: Sequence[runs_lib.Group]) -> list[str]:
    """Returns sentences on why results are not grouped or compared."""
    sentences = runs_lib.separated_by_data(groups)
    finished = sum(bool(group.measured) for group in groups)
    if finished > 1 and not _comparable(groups):
        sentences.append(
            "No lead is given: the results are not all of the same images."
        )
    return sentences


def unfinished(groups: Sequence[runs_lib.Group]) -> list[str]:
    """Returns a sentence for each run that has no accuracy."""
    return [
        f"{run.name} is not finished: it has reached step {run.reached:,}"
        + (f" of {run.steps:,}" if run.steps else "")
        + ", and has no result yet."
        for group in groups
        for run in group.runs
        if run.result is None
    ] + [
        f"The accuracy of {run.name} is not known: it has neither test images "
        "nor labeled images set aside."
        for group in groups
        for run in group.finished
        if run not in group.measured
    ]


def each_run(runs: Sequence[runs_lib.Run]) -> Table:
    """Returns one line per run."""
    head = [
        "run",
        "folder",
        "seed",
        "split seed",
        "top-1, %",
        "95 %",
        "macro, %",
    ]
    rows = [[*head, "best top-1, %", "steps", "time"]]
    for run in runs:
        top1 = interval = macro = best = _UNKNOWN
        if run.result is not None and run.result.top1 is not None:
            own = getattr(run.result, run.record)["best"]
            top1 = f"{100 * run.result.top1:.2f}"
            interval = comparison.wilson_text(
                run.result.top1, run.result.test_images
            )
            if run.result.macro_accuracy is not None:
                macro = f"{100 * run.result.macro_accuracy:.2f}"
            best = f"{100 * own['top1']:.2f} at {own['step']:,}"
        rows.append(
            [
                run.name,
                str(run.folder.path),
                str(run.config.seed),
                str(run.config.split_seed),
                top1,
                interval,
                macro,
                best,
                f"{run.reached:,} of {_count(run.steps)}",
                _UNKNOWN
                if run.seconds is None
                else tables.duration(run.seconds),
            ]
        )
    return rows


def _versions(groups: Sequence[runs_lib.Group]) -> str:
    """Lists the package versions of the finished runs."""
    versions: dict[str, dict[str, None]] = {}
    for group in groups:
        for run in group.finished:
            for name, version in run.result.versions.items():
                versions.setdefault(name, {})[version] = None
    return ", ".join(f"{k} {' or '.join(v)}" for k, v in versions.items())


# Training --------------------------------------------------------------------


def _problems(
    groups: Sequence[runs_lib.Group],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Looks for known problems.

    Returns:
        Each finding, once per group, with all runs that have it; and sentences
        on what could not be judged, for each run.
    """
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    not_judged = []
    for group in groups:
        for run in group.runs:
            # A live run of unknown length is judged as if at its end.
            steps = run.steps or run.reached
            judged = diagnosis.judge(
                run.config,
                run.scalars,
                step=run.reached,
                steps=steps,
                classes=run.classes,
                images=run.result and run.result.test_images,
            )
            if run.result is not None:
                behind = diagnosis.not_ahead(
                    run.config,
                    run.result.lead,
                    steps=run.result.steps,
                    labels=run.result.labels + run.result.validation_labels,
                    usable=printed_tables.usable_baseline(run.folder),
                )
                # Each run has a lead of its own.
                judged[f"not_ahead/{run.name}"] = behind or False
            for name, finding in judged.items():
                if finding:
                    entry = {"finding": finding, "runs": []}
                    entry = entries.setdefault((group.name, name), entry)
                    entry["runs"].append(run.name)
            unknown = [name for name in judged if judged[name] is None]
            logged = [n for n in unknown if diagnosis.is_logged(n, run.scalars)]
            others = [name for name in unknown if name not in logged]
            for says, names in (
                ("has too few values to tell", logged),
                (
                    "was not checked for what is not logged by this method",
                    others,
                ),
            ):
                titles = ", ".join(diagnosis.TITLES[name] for name in names)
                not_judged += [f"{run.name} {says}: {titles}."] if names else []
    return [*entries.values()], not_judged


def class_shares(
    groups: Sequence[runs_lib.Group],
) -> list[tuple[str, Table]]:
    """Returns for each group how often its pseudo-labels name each class.

    Returns:
        The group's name, and a line a class: labeled images; share of these;
        share that alignment aims at; share of the last pseudo-labels, and of
        those that pass the threshold, in the mean of the runs. Groups whose
        runs logged no shares are left out.
    """
    listed = []
    for group in groups:
        classes = group.runs[0].classes
        runs = [diagnosis.recent_shares(run.scalars) for run in group.runs]
        runs = [shares for shares in runs if shares]
        if classes is None or not runs:
            continue
        aligns = getattr(group.config, "align", False)
        rows = [["class", "labeled images", "their share", "prior"]]
        rows[0] += ["pseudo-labels", "used ones"]
        used = [
            {name: share / max(sum(shares.values()), 1e-9)}
            for run in group.runs
            for shares in [diagnosis.recent_shares(run.scalars, diagnosis.USED)]
            for name, share in shares.items()
        ]
        for number, name in enumerate(classes.names):
            labeled = classes.labeled[number]
            known, passing = (
                [shares[name] for shares in each if name in shares]
                for each in (runs, used)
            )
            rows.append(
                [
                    name,
                    f"{labeled:,}",
                    f"{labeled / sum(classes.labeled):.1%}",
                    f"{classes.aim[number]:.1%}" if aligns else _UNKNOWN,
                    f"{statistics.mean(known):.1%}" if known else _UNKNOWN,
                    f"{statistics.mean(passing):.1%}" if passing else _UNKNOWN,
                ]
            )
        listed.append((group.name, rows))
    return listed


def _charts(groups: Sequence[runs_lib.Group]) -> list[dict[str, Any]]:
    """Draws the charts that have values."""
    drawn = []
    for chart in charts.of_groups(groups):
        width = charts.window(chart, groups)
        panels = figures.present(chart, groups)
        pictures = [
            (
                pages.data_uri(
                    figures.panel_svg(panel, groups, width), "svg+xml"
                ),
                f"{panel.title}, over steps",
            )
            for panel in panels
        ]
        if not pictures:
            continue
        sentences = [chart.caption, *(panel.caption for panel in panels)]
        drawn.append(
            {
                "chart": chart,
                "caption": " ".join(filter(None, sentences)),
                "pictures": pictures,
                "width": width,
            }
        )
    return drawn


# Errors ----------------------------------------------------------------------


def _confusions(
    groups: Sequence[runs_lib.Group], known: Reports
) -> list[dict[str, Any]]:
    """Returns what each group confuses, where it is known."""
    confusions = []
    for group in groups:
        counts = confusion(group, known)
        if counts is None:
            continue
        names = group.measured[0].result.class_names
        runs = sum(run.name in known for run in group.measured)
        picture = None
        if len(names) <= figures.MOST_CLASSES:
            picture = pages.data_uri(
                figures.confusion_svg(counts, names), "svg+xml"
            )
        confusions.append(
            {
                "name": group.name,
                "runs": runs,
                "picture": picture,
                "pairs": pairs(counts, names),
                "worst": worst(counts, names, runs),
            }
        )
    return confusions


def confusion(group: runs_lib.Group, known: Reports) -> list[list[int]] | None:
    """Sums counts [true class][predicted] over a group's finished runs.

    Runs with other classes than the first are left out.
    """
    matrices = [
        known[run.name]["confusion"]
        for run in group.measured
        if run.name in known
        and run.result.class_names == group.measured[0].result.class_names
    ]
    if not matrices:
        return None
    return [
        [sum(counts) for counts in zip(*rows, strict=True)]
        for rows in zip(*matrices, strict=True)
    ]


def pairs(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """Returns the pairs of classes that are most often confused."""
    errors = [
        (count, sum(row), names[true], names[predicted])
        for true, row in enumerate(counts)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    errors.sort(key=lambda each: -each[0])
    rows = [["true class", "taken for", "images", "of the class"]]
    for count, total, true, predicted in errors[:_WORST]:
        rows.append([true, predicted, f"{count:,}", f"{count / total:.1%}"])
    return rows


def worst(
    counts: Sequence[Sequence[int]], names: Sequence[str], runs: int = 1
) -> Table:
    """Returns the classes of least accuracy, of those that have errors.

    Args:
        counts: [true class][predicted class], summed over the runs.
        names: Names of the classes.
        runs: Number of runs. They are scored on the same images, which are
            not more for the interval.
    """
    errors = [
        (row[label] / sum(row), sum(row), names[label])
        for label, row in enumerate(counts)
        if sum(row) > row[label]
    ]
    errors.sort(key=lambda each: each[0])
    rows = [["class", "right", "95 %", "images"]]
    for share, total, name in errors[:_WORST]:
        interval = comparison.wilson_text(share, total // runs)
        rows.append([name, f"{share:.1%}", interval, f"{total:,}"])
    return rows


def left_out(inspections: Inspections) -> list[str]:
    """Returns a sentence for each run whose images the page cannot show."""
    return [
        f"{name}: no test images are shown: {reason}"
        for name, reason in inspections.skipped.items()
    ]
