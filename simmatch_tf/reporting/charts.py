"""Which scalars a report shows, and how. Nothing here imports TensorFlow."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from simmatch_tf.reporting import runs as runs_lib

# In the place of a tag: accuracy of whichever weights are the run's result.
RECORD = "the weights of record"
_POINTS = 50  # that are left of a curve between which noise is averaged


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Above it.
        unit: Of the values.
        lines: What is drawn: tag → what it is called beside others.
        scale: What values are multiplied by.
    """

    title: str
    unit: str
    lines: dict[str, str]
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure: panels that belong together.

    Attributes:
        name: Of its file.
        title: Its heading.
        says: What is to be seen in it.
        panels: In order.
        noisy: Whether values of single batches are in it, which are averaged.
        shown: Whether a page has it in sight at once.
    """

    name: str
    title: str
    says: str
    panels: tuple[Panel, ...]
    noisy: bool = True
    shown: bool = False


def _percent(title: str, **tags: str) -> Panel:
    lines = {tag.replace("__", "/"): name for tag, name in tags.items()}
    return Panel(title, "%", lines, 100.0)


CHARTS = (
    Chart(
        "accuracy",
        "Accuracy",
        "Top-1 accuracy at each evaluation, not averaged over steps.",
        (
            _percent(
                "test images",
                test__student_top1="student",
                test__ema_top1="EMA",
            ),
            _percent(
                "images set aside for validation",
                validation__student_top1="student",
                validation__ema_top1="EMA",
            ),
        ),
        noisy=False,
        shown=True,
    ),
    Chart(
        "pseudo_labels",
        "Pseudo-labels",
        "(a) How many of the pseudo-labels above the threshold name the right "
        "class, (b) how many of all, (c) what the weights of record come to on "
        "the images that the result is of (the slides' Figure 4). The true "
        "classes of the unlabeled images serve (a) and (b) alone.",
        (
            _percent(
                "(a) right, above the threshold",
                pseudo_label__accuracy="",
            ),
            _percent("(b) right, of all p̂", pseudo_label__accuracy_all=""),
            Panel("(c) top-1, weights of record", "%", {RECORD: ""}, 100.0),
        ),
        shown=True,
    ),
    Chart(
        "mask_rate",
        "How many pseudo-labels count",
        "The share of unlabeled images whose pseudo-label is at least as "
        "confident as the threshold; how confident they are; how evenly they "
        "spread over the classes (100 %: each as often).",
        (
            _percent("above the threshold", pseudo_label__mask_rate=""),
            Panel("mean confidence", "", {"pseudo_label/confidence": ""}),
            _percent("balance of the classes", pseudo_label__balance=""),
        ),
        shown=True,
    ),
    Chart(
        "losses",
        "Losses",
        "Of single batches. Weighted losses are what the total is the sum of.",
        (
            Panel("total", "loss", {"loss/total": ""}),
            Panel("labeled images", "loss", {"loss/s": ""}),
            Panel(
                "pseudo-labels",
                "loss",
                {"loss/u": "L_u", "loss/weighted_u": "weighted"},
            ),
            Panel(
                "instances",
                "loss",
                {"loss/in": "L_in", "loss/weighted_in": "weighted"},
            ),
        ),
    ),
    Chart(
        "sharpness",
        "Sharpness and agreement",
        "Entropies: the lower, the sharper. Agreement: p^w and q^agg name the "
        "same class. Alignment: how far the mean prediction is from uniform.",
        (
            Panel(
                "class pseudo-labels",
                "entropy, nats",
                {"sharpness/p_w": "p^w", "sharpness/p_hat": "p̂"},
            ),
            Panel(
                "instance pseudo-labels",
                "entropy, nats",
                {"sharpness/q_w": "q^w", "sharpness/q_hat": "q̂"},
            ),
            _percent("agreement of p^w and q^agg", matching__agreement=""),
            Panel(
                "alignment",
                "KL from uniform, nats",
                {"alignment/divergence": ""},
            ),
        ),
    ),
    Chart(
        "memory",
        "Memory of labeled images",
        "How much of it is written; how many steps ago; how long an embedding "
        "is before it is normalised (1: it stays as it is); how similar "
        "embeddings are within a class and between classes.",
        (
            _percent("slots written", memory__filled=""),
            Panel("age of the embeddings", "steps", {"memory/age": ""}),
            Panel("norm before normalisation", "", {"memory/norm": ""}),
            Panel(
                "similarity",
                "cosine",
                {
                    "memory/similarity_within": "within a class",
                    "memory/similarity_between": "between classes",
                },
            ),
        ),
    ),
    Chart(
        "learning_rate",
        "Learning rate",
        "Of each step that is logged, and the factor of the loss in half "
        "precision.",
        (
            Panel("learning rate", "", {"learning_rate": ""}),
            Panel("loss scale", "", {"loss_scale": ""}),
        ),
        noisy=False,
    ),
    Chart(
        "speed",
        "Speed",
        "Images a second, and the share of time in which the step waits for "
        "them.",
        (
            Panel("images a second", "", {"speed/images_per_second": ""}),
            _percent("waiting for input", speed__input_wait=""),
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values over steps, in order; those that are not finite are NaN."""

    steps: list[int]
    values: list[float]


def is_noisy(tag: str) -> bool:
    """Whether a scalar is of single batches; accuracy is of a whole set."""
    return tag != RECORD and not tag.startswith(("test/", "validation/"))


def curve(run: runs_lib.Run, tag: str, scale: float = 1.0) -> Curve | None:
    """A scalar of a run; None if not one of its values is finite."""
    points = run.scalars.get(run.record_tag if tag == RECORD else tag, {})
    values = [
        scale * value if math.isfinite(value) else math.nan
        for value in points.values()
    ]
    if all(math.isnan(value) for value in values):
        return None
    return Curve(list(points), values)


def window(chart: Chart, groups: Sequence[runs_lib.Group]) -> int:
    """Over how many logged steps a chart's curves are averaged; odd."""
    if not chart.noisy:
        return 1
    lengths = [
        len(run.scalars.get(tag, ()))
        for group in groups
        for run in group.runs
        for panel in chart.panels
        for tag in panel.lines
        if is_noisy(tag)
    ]
    return 2 * (max(lengths, default=0) // (2 * _POINTS)) + 1


def smooth(found: Curve, width: int) -> Curve:
    """The running mean of a curve over `width` points around each.

    What is not finite is left out of the means, and stays a gap.
    """
    values = np.array(found.values)
    gaps = np.isnan(values)
    ones = np.ones(width)

    def near(of: np.ndarray) -> np.ndarray:
        """Sums over the neighbourhood of each; no sum is of far values."""
        return np.convolve(of, ones)[width // 2 :][: len(of)]

    sums, counts = near(np.where(gaps, 0.0, values)), near(~gaps * 1.0)
    means = np.where(gaps, np.nan, sums / np.maximum(counts, 1.0))
    return Curve(found.steps, means.tolist())


def mean(curves: Sequence[Curve]) -> Curve | None:
    """The mean of several, at the steps that all have; None if none are."""
    by_step = [
        dict(zip(each.steps, each.values, strict=True)) for each in curves
    ]
    steps = sorted(set.intersection(*map(set, by_step)))
    if not steps:
        return None
    return Curve(
        steps,
        [math.fsum(each[s] for each in by_step) / len(curves) for s in steps],
    )
