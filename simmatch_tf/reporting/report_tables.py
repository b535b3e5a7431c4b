"""The tables of a report. Nothing here imports TensorFlow."""

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from simmatch_tf.reporting import comparison
from simmatch_tf.reporting import runs as runs_lib

NONE = "–"
_WORST = 10  # classes, and pairs of classes, that are listed


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text; all but the first column are to the right.

    Attributes:
        head: Of the columns.
        rows: As wide as the head.
    """

    head: list[str]
    rows: list[list[str]]


# Run → `evaluation.describe` of the weights of record, where it is known.
Reports = Mapping[str, Mapping[str, Any]]


def what(groups: Sequence[runs_lib.Group]) -> Table:
    """What was run."""
    head = "run dataset labels algorithm backbone steps seeds".split()
    rows = []
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
    return Table(head, rows)


def _labels(run: runs_lib.Run) -> str:
    if run.result is not None:
        labels, unlabeled = run.result.labels, run.result.unlabeled
        aside = run.result.validation_labels
    else:
        labels = len(run.split.get("labels", ()))
        unlabeled = run.split.get("unlabeled_images")
        aside = len(run.split.get("validation", ()))
    text = f"{labels:,}" if labels else NONE
    if unlabeled and run.config.algorithm != "supervised":
        text += f" of {unlabeled:,}"
    return text + (f", {aside:,} set aside" if aside else "")


def _algorithm(config: Any) -> str:
    if config.algorithm == "simmatch":
        forms = {"student": "ensemble", "teacher": "teacher"}
        return f"simmatch, {forms[config.targets_from]}"
    return config.algorithm


def _seeds(run: runs_lib.Run) -> str:
    seed, split = run.config.seed, run.config.split_seed
    for name in ("split_file", "labeled_list"):
        if (path := getattr(run.config, name)) is not None:
            return f"{seed} (labels of {os.path.basename(path)})"
    return f"{seed}" if seed == split else f"{seed} (split {split})"


def _count(value: float | None) -> str:
    return NONE if value is None else f"{value:,}"


def scores(groups: Sequence[runs_lib.Group]) -> list[comparison.Score]:
    """The results, paired by the seed and the images that are labeled."""
    pairs: dict[tuple[int, Any], int] = {}
    found = []
    for group in groups:
        for run in group.finished:
            # Where a file says which images are labeled, --split_seed does not.
            labeled = tuple(run.split.get("labeled", ()))
            seeds = run.config.seed, labeled or run.config.split_seed
            found.append(
                comparison.Score(
                    row=group.name,
                    column="",
                    seed=pairs.setdefault(seeds, len(pairs)),
                    top1=run.result.top1,
                    student_top1=run.result.student["last"]["top1"],
                    ema_top1=run.result.ema["last"]["top1"],
                    steps=run.result.steps,
                    seconds=run.seconds or 0.0,
                )
            )
    return found


def comparable(groups: Sequence[runs_lib.Group]) -> bool:
    """Whether the results are of the same images."""
    return runs_lib.same_scored([r for g in groups for r in g.finished])


def result(groups: Sequence[runs_lib.Group], reports: Reports) -> Table:
    """The results: a line a group. What is not known is a dash."""
    found = scores(groups)
    by_group = {
        group.name: [s for s in found if s.row == group.name]
        for group in groups
    }
    head = ["run", "top-1, % (runs)", "95 % of the images", "worst"]
    head += ["student / EMA"]
    head += ["calibration error, %", "steps", "time", "views/s"]
    leads = len(groups) > 1 and comparable(groups)
    if leads:
        head.insert(3, f"lead of {groups[0].name}, 95 %")
    rows = []
    for group in groups:
        own = by_group[group.name]
        line = [group.name, comparison.spread(own), _interval(group)]
        if leads:
            lead = comparison.lead(by_group[groups[0].name], own)
            same = group is groups[0]
            line.append("" if same else comparison.lead_text(lead))
        errors = [
            100 * reports[run.name]["calibration_error"]
            for run in group.finished
            if run.name in reports
        ]
        line += [
            f"{100 * min(s.top1 for s in own):.1f}" if own else NONE,
            _weights(own),
            f"{statistics.mean(errors):.1f}" if errors else NONE,
            _count(group.runs[0].steps),
            _mean_time(group),
            _mean_rate(group),
        ]
        rows.append(line)
    return Table(head, rows)


def _interval(group: runs_lib.Group) -> str:
    """What the number of test images allows, of the runs' mean."""
    found = [run.result for run in group.finished]
    if not found:
        return NONE
    return comparison.wilson_text(
        statistics.mean(result.top1 for result in found),
        # Runs do not make images more: all are scored on the same ones.
        min(result.test_images for result in found),
    )


def _weights(own: Sequence[comparison.Score]) -> str:
    if not own:
        return NONE
    student = statistics.mean(100 * s.student_top1 for s in own)
    ema = statistics.mean(100 * s.ema_top1 for s in own)
    return f"{student:.1f} / {ema:.1f}"


def _mean_time(group: runs_lib.Group) -> str:
    known = [run for run in group.finished if run.seconds is not None]
    if not known:
        return NONE
    text = duration(statistics.mean(run.seconds for run in known))
    return text if all(run.timed for run in known) else f"over {text}"


def _mean_rate(group: runs_lib.Group) -> str:
    rates = [r.views_per_second for r in group.runs if r.views_per_second]
    return f"{statistics.mean(rates):,.0f}" if rates else NONE


def duration(seconds: float) -> str:
    """Seconds as a person says them: 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def not_compared(groups: Sequence[runs_lib.Group]) -> list[str]:
    """What keeps results from being put together or compared: sentences."""
    said = runs_lib.of_other_data(groups)
    if sum(bool(group.finished) for group in groups) > 1 and not comparable(
        groups
    ):
        said.append(
            "No lead is given: the results are not all of the same images."
        )
    return said


def unfinished(groups: Sequence[runs_lib.Group]) -> list[str]:
    """A sentence for each run that has no result yet."""
    return [
        f"{run.name} is not finished: it has reached step {run.reached:,}"
        + (f" of {run.steps:,}" if run.steps else "")
        + ", and has no result yet."
        for group in groups
        for run in group.runs
        if run.result is None
    ]


def each_run(groups: Sequence[runs_lib.Group]) -> Table:
    """A line a run."""
    head = ["run", "folder", "seed", "split seed", "top-1, %", "best top-1, %"]
    head += ["steps", "time"]
    rows = []
    for group in groups:
        for run in group.runs:
            top1 = best = NONE
            if run.result is not None:
                own = getattr(run.result, run.record)["best"]
                top1 = f"{100 * run.result.top1:.2f}"
                best = f"{100 * own['top1']:.2f} at {own['step']:,}"
            rows.append(
                [
                    run.name,
                    str(run.folder.path),
                    str(run.config.seed),
                    str(run.config.split_seed),
                    top1,
                    best,
                    f"{run.reached:,} of {_count(run.steps)}",
                    NONE if run.seconds is None else duration(run.seconds),
                ]
            )
    return Table(head, rows)


def differences(groups: Sequence[runs_lib.Group]) -> Table | None:
    """The flags and data in which groups differ; None of one group."""
    if len(groups) < 2:
        return None
    rows = [
        [f"--{name}", *map(_value, values)]
        for name, values in runs_lib.differences(groups).items()
    ]
    data = runs_lib.data_differences(groups)
    if data is not None:
        rows.append(["data", *data])
    return Table(["flag", *(group.name for group in groups)], rows)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return NONE if value is None else str(value)


def sessions(groups: Sequence[runs_lib.Group]) -> Table:
    """When runs ran, and how fast: a line a start that came to its end."""
    head = ["run", "steps", "time", "steps/s", "views/s"]
    rows = []
    for group in groups:
        for run in group.runs:
            for each in run.sessions:
                first, last = each["first_step"], each["last_step"]
                steps = last - first + 1
                rows.append(
                    [
                        run.name,
                        f"{first:,} to {last:,}",
                        duration(each["seconds"]),
                        f"{steps / max(each['seconds'], 1e-9):.2f}",
                        f"{each['views_per_second']:,.0f}",
                    ]
                )
    return Table(head, rows)


def versions(groups: Sequence[runs_lib.Group]) -> str:
    """The packages of the finished runs."""
    found: dict[str, dict[str, None]] = {}
    for group in groups:
        for run in group.finished:
            for name, version in run.result.versions.items():
                found.setdefault(name, {})[version] = None
    return ", ".join(f"{k} {' or '.join(v)}" for k, v in found.items())


def confusion(
    group: runs_lib.Group, reports: Reports
) -> list[list[int]] | None:
    """Counts [true class][predicted], of all finished runs of a group.

    Runs whose images have other classes than the first's are left out.
    """
    found = [
        reports[run.name]["confusion"]
        for run in group.finished
        if run.name in reports
        and run.result.class_names == group.finished[0].result.class_names
    ]
    if not found:
        return None
    return [
        [sum(counts) for counts in zip(*rows, strict=True)]
        for rows in zip(*found, strict=True)
    ]


def pairs(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """The classes that are most often taken for another."""
    found = [
        (count, sum(row), names[true], names[taken])
        for true, row in enumerate(counts)
        for taken, count in enumerate(row)
        if count and true != taken
    ]
    found.sort(key=lambda each: -each[0])
    return Table(
        ["true class", "taken for", "images", "of the class"],
        [
            [true, taken, f"{count:,}", f"{count / total:.1%}"]
            for count, total, true, taken in found[:_WORST]
        ],
    )


def worst(counts: Sequence[Sequence[int]], names: Sequence[str]) -> Table:
    """The classes with the least accuracy, of those that have errors."""
    found = [
        (row[label] / sum(row), sum(row), names[label])
        for label, row in enumerate(counts)
        if sum(row) > row[label]
    ]
    found.sort(key=lambda each: each[0])
    return Table(
        ["class", "right", "images"],
        [
            [name, f"{right:.1%}", f"{total:,}"]
            for right, total, name in found[:_WORST]
        ],
    )
