"""The scalars that a report draws, and curves of them.

Letters are those of SimMatch (Zheng et al., CVPR 2022,
https://arxiv.org/abs/2203.06915), whose Figure 4 is the chart "pseudo_labels".
Nothing here imports TensorFlow.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from simmatch_tf.monitoring import diagnosis
from simmatch_tf.reporting import runs as runs_lib

# Stands for the tag of the accuracy of the evaluation weights.
RECORD = "the weights of record"
# Scalars that serve the search for known problems alone.
_NOT_DRAWN = {
    "pseudo_label/sure",
    "pseudo_label/sure_accuracy",
    diagnosis.QUARTILE,
}
# How tags of values begin that are in a table, not in a curve.
_IN_TABLES = (diagnosis.SHARES, diagnosis.USED)
_POINTS = 50  # that a curve keeps, roughly, when noise is averaged


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: Text above it.
        unit: Unit of the values; those in "%" are logged in [0, 1].
        lines: Tags to draw, each with its name in the legend.
        caption: A sentence on it, for the caption of its chart.
    """

    title: str
    unit: str
    lines: dict[str, str]
    caption: str = ""

    @property
    def scale(self) -> float:
        """Factor from the logged values to the unit."""
        return 100.0 if self.unit == "%" else 1.0


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure of panels that belong together.

    Attributes:
        name: Name of its file, without the suffix.
        title: Its heading.
        caption: What it shows, beside the captions of its panels.
        panels: In order.
        noisy: Whether it shows values of single batches, which are averaged
            over neighboring steps.
        expanded: Whether the page shows it at once, not folded.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    noisy: bool = True
    expanded: bool = False


CHARTS = (
    Chart(
        "accuracy",
        "Accuracy",
        "Top-1 accuracy at each evaluation, not averaged over steps.",
        (
            Panel(
                "test images",
                "%",
                {"test/student_top1": "student", "test/ema_top1": "EMA"},
            ),
            Panel(
                "images set aside for validation",
                "%",
                {
                    "validation/student_top1": "student",
                    "validation/ema_top1": "EMA",
                },
            ),
        ),
        noisy=False,
        expanded=True,
    ),
    Chart(
        "pseudo_labels",
        "Pseudo-labels",
        "Accuracies, as in Figure 4 of the SimMatch paper. The true classes of "
        "the unlabeled images serve those of pseudo-labels alone.",
        (
            Panel(
                "right, above the threshold",
                "%",
                {"pseudo_label/accuracy": ""},
                "Above the threshold: of the pseudo-labels that count.",
            ),
            Panel("right, of all p̂", "%", {"pseudo_label/accuracy_all": ""}),
            Panel(
                "top-1, evaluation weights",
                "%",
                {RECORD: ""},
                "Top-1: on the images that the result is measured on.",
            ),
        ),
        expanded=True,
    ),
    Chart(
        "mask_rate",
        "Confidence of pseudo-labels, and how many count",
        "",
        (
            Panel(
                "mask rate",
                "%",
                {"pseudo_label/mask_rate": ""},
                "Mask rate: the share of unlabeled images whose pseudo-label "
                "is at least as confident as the threshold.",
            ),
            Panel(
                "mean confidence",
                "",
                {"pseudo_label/confidence": ""},
                "Confidence: the mean of all pseudo-labels.",
            ),
            Panel(
                "balance of the classes",
                "%",
                {"pseudo_label/balance": ""},
                "Balance: how evenly they spread over the classes (100 %: each "
                "class equally often).",
            ),
        ),
        expanded=True,
    ),
    Chart(
        "losses",
        "Losses",
        "Losses of single batches. The total is the sum of the weighted "
        "losses.",
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
            Panel(
                "graph",
                "loss",
                {"loss/c": "L_c", "loss/weighted_c": "weighted"},
            ),
        ),
    ),
    Chart(
        "sharpness",
        "Sharpness and agreement",
        "Entropy: the lower, the sharper. Agreement: the share of images for "
        "which p^w and q^agg name the same class. Alignment: divergence of "
        "the mean prediction from the shares that it aims at.",
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
            Panel(
                "agreement of p^w and q^agg", "%", {"matching/agreement": ""}
            ),
            Panel(
                "alignment",
                "KL from the prior, nats",
                {"alignment/divergence": ""},
            ),
        ),
    ),
    Chart(
        "memory",
        "Memory bank of labeled images",
        "The share of its slots that has been written. The age of its "
        "embeddings in steps. The norm of an embedding before it is "
        "normalized (1: normalizing changes nothing). The similarity of "
        "embeddings within a class and between classes.",
        (
            Panel("slots written", "%", {"memory/filled": ""}),
            Panel("age of the embeddings", "steps", {"memory/age": ""}),
            Panel("norm before normalization", "", {"memory/norm": ""}),
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
        "Learning rate of each logged step, and the factor of the loss in "
        "half precision.",
        (
            Panel("learning rate", "", {"learning_rate": ""}),
            Panel("loss scale", "", {"loss_scale": ""}),
        ),
        noisy=False,
    ),
    Chart(
        "speed",
        "Speed",
        "Images per second, and the share of time in which the step waits "
        "for them.",
        (
            Panel("images per second", "", {"speed/images_per_second": ""}),
            Panel("waiting for input", "%", {"speed/input_wait": ""}),
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values over steps, in order; those that are not finite are NaN."""

    steps: list[int]
    values: list[float]


def of_groups(groups: Sequence[runs_lib.Group]) -> tuple[Chart, ...]:
    """Returns all charts, with one for the scalars that no other draws.

    Such scalars are logged by algorithms that are defined elsewhere.
    """
    drawn = {t for chart in CHARTS for p in chart.panels for t in p.lines}
    tags = {tag for g in groups for run in g.runs for tag in run.scalars}
    others = sorted(
        tag
        for tag in tags - drawn - _NOT_DRAWN
        if not tag.startswith(_IN_TABLES)
    )
    chart = Chart(
        "others",
        "Other scalars",
        "Scalars that this method logs beside those above.",
        tuple(Panel(tag, "", {tag: ""}) for tag in others),
    )
    return (*CHARTS, chart)


def is_noisy(tag: str) -> bool:
    """Whether a scalar is of single batches; accuracies are of whole sets."""
    return tag != RECORD and not tag.startswith(("test/", "validation/"))


def curve(run: runs_lib.Run, tag: str, scale: float = 1.0) -> Curve | None:
    """Returns the curve of a scalar, or None if no value is finite."""
    points = run.scalars.get(run.record_tag if tag == RECORD else tag, {})
    values = [
        scale * value if math.isfinite(value) else math.nan
        for value in points.values()
    ]
    if all(map(math.isnan, values)):
        return None
    return Curve(list(points), values)


def window(chart: Chart, groups: Sequence[runs_lib.Group]) -> int:
    """Returns over how many logged steps to average a chart's curves.

    The number is odd and grows with the longest curve; 1 means no averaging.
    """
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


def smooth(raw: Curve, width: int) -> Curve:
    """Returns the running mean over `width` points around each point.

    Values that are not finite have no part in the means, and stay gaps.
    """
    values = np.array(raw.values)
    gaps = np.isnan(values)

    def sums(of: np.ndarray) -> np.ndarray:
        """Sums over neighborhoods alone: no far value can cancel in them."""
        return np.convolve(of, np.ones(width))[width // 2 :][: len(of)]

    totals, counts = sums(np.where(gaps, 0.0, values)), sums(~gaps * 1.0)
    means = np.where(gaps, np.nan, totals / np.maximum(counts, 1.0))
    return Curve(raw.steps, means.tolist())


def mean(curves: Sequence[Curve]) -> Curve | None:
    """Returns the mean at the steps that all curves have, or None."""
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
