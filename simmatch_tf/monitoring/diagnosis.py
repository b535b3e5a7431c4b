"""Known problems of a run, how they show in its scalars, and what to change.

A run checks for them while it trains, the report when it is over; both read the
scalars that TensorBoard has. Nothing here imports TensorFlow.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simmatch_tf import config as config_lib

Scalars = Mapping[str, Mapping[int, float]]

RECENT = 5  # number of logged steps that are averaged
# Share of a run in which nothing is reported: the start of any run looks bad.
SETTLED = 0.1
# How the tags of the pseudo-labels' shares begin; the class name follows. They
# are logged of at most this number of classes.
SHARES = "class_share/"
MOST_SHARES = 100
# Share of the pseudo-labels that may lie elsewhere than the prior says.
_DRIFT = 0.2
# Largest number of labeled images of a class over the smallest that is as good
# as equal.
_UNEQUAL = 2
_NAMED = 3  # classes in a finding
# Above it, hardly any pseudo-label of a short run is used.
_HIGH_THRESHOLD = 0.7


@dataclasses.dataclass(frozen=True)
class Finding:
    """A known problem that a run shows.

    Attributes:
        name: Name of the problem.
        says: What is seen, with numbers.
        why: What it does to the run, and where it comes from.
        turn: What to do about it; names flags.
    """

    name: str
    says: str
    why: str
    turn: str


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a run.

    Attributes:
        names: L names.
        labeled: Number of labeled images of each, [L].
        prior: Class shares that pseudo-labels are aligned with [L]; None: equal
            ones.
    """

    names: Sequence[str]
    labeled: Sequence[int]
    prior: Sequence[float] | None = None

    @property
    def aim(self) -> Sequence[float]:
        """The prior, equal shares written out."""
        return self.prior or [1 / len(self.names)] * len(self.names)


def recent_shares(scalars: Scalars) -> dict[str, float]:
    """Returns how often recent pseudo-labels name each class.

    Args:
        scalars: TensorBoard tag → step → value.

    Returns:
        Class → mean share of the last `RECENT` logged steps, or of fewer if
        there are no more; {} if none are logged.
    """
    shares = {}
    for tag, points in scalars.items():
        if tag.startswith(SHARES) and points:
            values = list(points.values())[-RECENT:]
            shares[tag.removeprefix(SHARES)] = sum(values) / len(values)
    return shares


# Name of a problem → its name in texts, as in docs/monitoring.md.
TITLES: Mapping[str, str] = {
    "no_pseudo_labels": "no pseudo-labels",
    "collapse": "collapse",
    "prior_drift": "prior drift",
    "unequal_labels": "unequal labels",
    "confident_but_wrong": "confident but wrong",
    "memory_waits": "matching waits",
    "input_bound": "the input is slow",
    "ema_lags": "the EMA lags",
    "statistics_lag": "BatchNorm's averages lag",
}
# Name of a problem → scalars that a method logs from its first logged step on
# if it logs what the problem is judged by. Others do not depend on the method.
_OF_A_METHOD: Mapping[str, tuple[str, ...]] = {
    "no_pseudo_labels": ("pseudo_label/mask_rate",),
    "collapse": (
        "pseudo_label/balance",
        "pseudo_label/confidence",
        "alignment/divergence",
    ),
    "prior_drift": ("pseudo_label/confidence", "alignment/divergence"),
    "unequal_labels": ("pseudo_label/confidence", "alignment/divergence"),
    "confident_but_wrong": ("pseudo_label/confidence", "pseudo_label/sure"),
    "memory_waits": ("memory/filled",),
    "statistics_lag": (
        "pseudo_label/accuracy_all",
        "pseudo_label/confidence",
    ),
}


def is_logged(name: str, scalars: Scalars) -> bool:
    """Returns whether a run's method logs what a problem is judged by.

    True also where that cannot be told, because no step was logged.

    Args:
        name: Name of the problem.
        scalars: TensorBoard tag → step → value.
    """
    tags = _OF_A_METHOD.get(name, ("loss/total",))
    return "loss/total" not in scalars or any(tag in scalars for tag in tags)


def judge(
    config: config_lib.Config,
    scalars: Scalars,
    *,
    step: int,
    steps: int,
    classes: Classes | None = None,
) -> dict[str, Finding | bool | None]:
    """Judges for each known problem whether a run shows it.

    Args:
        config: The run's flags.
        scalars: TensorBoard tag → step → value.
        step: Steps done.
        steps: Length of the run.
        classes: The classes; None where they are not known.

    Returns:
        Name of the problem → the finding; False if the run does not show it;
        None if that cannot be judged: its scalars are missing, as in short
        runs or without --summaries, or the run has only begun.
    """
    if step < SETTLED * steps:
        return dict.fromkeys(PATTERNS)
    run = _Scalars(config, scalars, step, steps, classes)
    return {name: pattern(run) for name, pattern in PATTERNS.items()}


@dataclasses.dataclass(frozen=True)
class _Scalars:
    """A run's flags and scalars, as the patterns read them."""

    config: config_lib.Config
    scalars: Scalars
    step: int
    steps: int
    classes: Classes | None

    def recent(self, tag: str) -> float | None:
        """Returns the mean of the last `RECENT` logged values, None of fewer.

        It is also None if one of them is not finite.
        """
        values = list(self.scalars.get(tag, {}).values())[-RECENT:]
        values = [value for value in values if math.isfinite(value)]
        return sum(values) / RECENT if len(values) == RECENT else None

    def last(self, tag: str) -> float | None:
        """Returns the last value if it is finite, else None."""
        values = list(self.scalars.get(tag, {}).values())
        return values[-1] if values and math.isfinite(values[-1]) else None

    def top1(self, network: str, beside: str | None = None) -> float | None:
        """Returns the top-1 accuracy of a network at the last evaluation.

        Args:
            network: "student" or "ema".
            beside: A tag; an evaluation older than its recent values does not
                count.
        """
        since = 0
        if beside is not None:
            since = min(list(self.scalars.get(beside, {}))[-RECENT:], default=0)
        for images in ("validation", "test"):
            tag = f"{images}/{network}_top1"
            top1 = self.last(tag)
            if top1 is not None:
                return top1 if max(self.scalars[tag]) >= since else None
        return None

    @property
    def has_pseudo_labels(self) -> bool:
        """Whether the method has pseudo-labels with the flag --threshold."""
        return hasattr(self.config, "threshold")

    @property
    def aligns(self) -> bool:
        """Whether predictions are aligned with a prior."""
        return bool(getattr(self.config, "align", False))

    @property
    def teacher_labels(self) -> bool:
        """Whether pseudo-labels come from the EMA teacher."""
        return getattr(self.config, "targets_from", "student") == "teacher"


def _no_pseudo_labels(run: _Scalars) -> Finding | bool | None:
    if not run.has_pseudo_labels:
        return False
    rate = run.recent("pseudo_label/mask_rate")
    if rate is None or rate >= 0.01:
        return None if rate is None else False
    confidence = run.recent("pseudo_label/confidence")
    known = "" if confidence is None else f" (their mean is {confidence:.2f})"
    turn = "Lower --threshold."
    if hasattr(run.config, "alpha"):
        turn += (
            " With few labels an --alpha nearer to 1 also helps: it gives more "
            "weight to the classifier's own confidence."
        )
    return Finding(
        "no_pseudo_labels",
        f"{rate:.1%} of the unlabeled images have a pseudo-label that is used.",
        f"Hardly any confidence reaches --threshold={run.config.threshold:g}"
        f"{known}: the unlabeled images teach the classifier nothing.",
        turn,
    )


def _collapse(run: _Scalars) -> Finding | bool | None:
    if not run.has_pseudo_labels:
        return False
    if run.aligns and run.classes is not None and run.classes.prior:
        return False  # few classes may be most of the images: see _prior_drift
    balance = run.recent("pseudo_label/balance")
    divergence = run.recent("alignment/divergence")
    subject, share = "The pseudo-labels", balance
    if (share is None or share >= 0.5) and divergence is not None:
        subject = "Predictions, before distribution alignment,"
        share = math.exp(-divergence)
    if share is None or share >= 0.5:
        return None if balance is None else False
    turn = "Lower --learning_rate or --lambda_u, or raise --threshold."
    if not getattr(run.config, "align", True):
        turn = f"Turn on --align. {turn}"
    return Finding(
        "collapse",
        f"{subject} fall on few classes, as unevenly as if only {share:.0%} of "
        "the classes occurred.",
        "A class that is predicted more often is taught more often, until it "
        "displaces the others. (If the images really are that unevenly "
        "distributed, nothing is wrong, and --class_prior=labeled tells "
        "alignment so.)",
        turn,
    )


def _prior_drift(run: _Scalars) -> Finding | bool | None:
    if not run.aligns:
        return False
    if run.classes is not None and len(run.classes.names) > MOST_SHARES:
        return False
    if run.classes is None or len(run.scalars.get(_first_share(run), ())) < (
        RECENT
    ):
        return None
    names, aim = run.classes.names, run.classes.aim
    shares = recent_shares(run.scalars)
    gaps = {
        name: shares.get(name, 0.0) - share
        for name, share in zip(names, aim, strict=True)
    }
    moved = sum(map(abs, gaps.values())) / 2
    # Collapse onto few classes has a finding of its own.
    if moved < _DRIFT or _collapse(run):
        return False
    farthest = sorted(gaps, key=lambda name: -abs(gaps[name]))[:_NAMED]
    by_name = dict(zip(names, aim, strict=True))
    values = ", ".join(
        f"{name} {shares.get(name, 0.0):.0%} instead of {by_name[name]:.0%}"
        for name in farthest
    )
    lacking = [name for name in farthest if gaps[name] < 0]
    turn = (
        "If the prior is not how frequent the classes are among the unlabeled "
        "images, give it: --class_prior="
    )
    turn += "labeled" if run.classes.prior is None else "uniform"
    turn += ", or a file of shares. Else label more images of "
    turn += f"{' and '.join(lacking)}."
    return Finding(
        "prior_drift",
        f"The pseudo-labels have drifted from the prior, by {moved:.0%} of the "
        f"images: {values}.",
        "Alignment divides by how often each class is predicted, so that "
        "pseudo-labels have the shares of --class_prior="
        f"{getattr(run.config, 'class_prior', 'uniform')}. Where they still "
        "lie elsewhere, the images disagree: either they have other shares, or "
        "the classifier takes one class for another.",
        turn,
    )


def _first_share(run: _Scalars) -> str:
    """Returns the tag of the first class's share."""
    return f"{SHARES}{run.classes.names[0]}"


def _unequal_labels(run: _Scalars) -> Finding | bool | None:
    if not run.aligns or run.classes is None:
        return None if run.aligns else False
    names, labeled = run.classes.names, run.classes.labeled
    fewest, most = min(labeled), max(labeled)
    if run.classes.prior is not None or most < _UNEQUAL * fewest:
        return False
    return Finding(
        "unequal_labels",
        f"Classes have from {fewest} ({names[labeled.index(fewest)]}) to "
        f"{most} ({names[labeled.index(most)]}) labeled images, but "
        "distribution alignment aims at equal shares.",
        "If the unlabeled images are as unequal, alignment takes pseudo-labels "
        "from the frequent classes and gives them to the rare ones.",
        "--class_prior=labeled, if the labeled images are a sample of all; or "
        "--class_prior=FILE with the shares that you expect.",
    )


def _confident_but_wrong(run: _Scalars) -> Finding | bool | None:
    if not run.has_pseudo_labels:
        return False
    share = run.recent("pseudo_label/sure")
    confidence = run.recent("pseudo_label/confidence")
    network = "student" if run.teacher_labels else "ema"
    top1 = run.top1(network, "pseudo_label/confidence")
    if share is not None:
        right = run.recent("pseudo_label/sure_accuracy")
        if share < 0.1 or (right is not None and right >= 0.5):
            return False
        if right is None:
            return None
        says = (
            f"Of the pseudo-labels with a confidence above 0.9 only "
            f"{right:.0%} are right ({share:.0%} of all images have such)."
        )
    elif confidence is not None and top1 is not None:
        if confidence < 0.8 or confidence - top1 < 0.4:
            return False
        says = (
            f"Pseudo-labels have a mean confidence of {confidence:.2f}, but "
            f"the classifier is right on {top1:.0%} of the evaluated images."
        )
    else:
        return None
    return Finding(
        "confident_but_wrong",
        says,
        "Confident predictions are taught as if they were true, so such errors "
        "confirm themselves. Often a class has no typical image among its "
        "labeled ones.",
        "Add labels, or check which images are labeled (--split_seed, "
        "--labeled_list); raise --threshold, lower --lambda_u, or raise "
        "--weight_decay, which keeps confidences low.",
    )


def _memory_waits(run: _Scalars) -> Finding | bool | None:
    if not hasattr(run.config, "matching_start_steps"):
        return False
    filled = run.last("memory/filled")
    start = run.config.matching_start_steps
    if filled is None or run.step < 0.25 * run.steps:
        return None
    if filled < 1:
        says = (
            f"{filled:.0%} of the memory bank's slots are written after "
            f"{run.step} of {run.steps} steps."
        )
        turn = "Raise --batch_size or --steps."
    elif run.step < start:
        says = f"Instance matching starts at step {start} of {run.steps}."
        turn = "Lower --matching_start_steps."
    else:
        return False
    return Finding(
        "memory_waits",
        says,
        "Until every labeled image has been seen once, and "
        "--matching_start_steps are over, the instance loss is 0 and "
        "pseudo-labels are not smoothed: so far this is FixMatch.",
        turn,
    )


def _input_bound(run: _Scalars) -> Finding | bool | None:
    wait = run.recent("speed/input_wait")
    if wait is None or wait < 0.3:
        return None if wait is None else False
    return Finding(
        "input_bound",
        f"{wait:.0%} of the time is spent waiting for batches.",
        "Decoding images and making their views takes longer than training on "
        "them.",
        "Raise --parallel_calls if CPU cores are idle; use --views_on=device "
        "on a GPU; with --data_service other machines prepare the batches.",
    )


def _ema_lags(run: _Scalars) -> Finding | bool | None:
    student, ema = run.top1("student"), run.top1("ema")
    if student is None or ema is None or run.step < 0.5 * run.steps:
        return None
    if student - ema < 0.1:
        return False
    momentum, warms_up = run.config.ema_momentum, run.config.ema_warmup
    # With a constant momentum m the share of the first weights is m^step.
    if warms_up or momentum**run.step < 0.01:
        why = (
            f"--ema_momentum={momentum:g} forgets the first weights within "
            "this run, so the cause is the student: its weights, or the "
            "averages of BatchNorm, change much from step to step."
        )
        turn = "Lower --learning_rate, or train longer."
    else:
        why = (
            f"With --ema_momentum={momentum:g}, {momentum**run.step:.0%} of "
            f"the average is still the first weights, after {run.step} steps."
        )
        turn = "Lower --ema_momentum, or turn on --ema_warmup."
    return Finding(
        "ema_lags",
        f"The EMA has a top-1 of {ema:.0%}, the student one of {student:.0%}.",
        why,
        turn,
    )


def _statistics_lag(run: _Scalars) -> Finding | bool | None:
    # The student labels by the BatchNorm statistics of each batch.
    if run.teacher_labels or not run.has_pseudo_labels:
        return False
    tag = "pseudo_label/accuracy_all"
    training, student = run.recent(tag), run.top1("student", tag)
    if training is None or student is None:
        return None
    if training - student < 0.25:
        return False
    return Finding(
        "statistics_lag",
        f"Of all pseudo-labels {training:.0%} are right, but only "
        f"{student:.0%} of the student's predictions in evaluation.",
        "Pseudo-labels are computed with BatchNorm's statistics of each batch, "
        "evaluation with running averages, which lag behind in a short run.",
        "Lower --batch_norm_momentum: 0.9 for hundreds of steps.",
    )


# See `judge` for what they return.
PATTERNS: Mapping[str, Callable[[_Scalars], Finding | bool | None]] = {
    "no_pseudo_labels": _no_pseudo_labels,
    "collapse": _collapse,
    "prior_drift": _prior_drift,
    "unequal_labels": _unequal_labels,
    "confident_but_wrong": _confident_but_wrong,
    "memory_waits": _memory_waits,
    "input_bound": _input_bound,
    "ema_lags": _ema_lags,
    "statistics_lag": _statistics_lag,
}


# ---------------------------------------------------------------- baselines --


def not_ahead(
    config: config_lib.Config,
    lead: Mapping[str, Any] | None,
    *,
    steps: int,
    labels: int,
) -> Finding | None:
    """Returns a finding if a model is not ahead of the best baseline.

    It is ahead if the 95 % interval of its lead, image by image, is above 0.

    Args:
        config: The run's flags.
        lead: As in results.json; None where nothing was measured.
        steps: Length of the run.
        labels: Number of its labeled images.
    """
    if lead is None or lead["interval"][0] > 0:
        return None
    low, high = (100 * end for end in lead["interval"])
    points, images = 100 * lead["top1"], lead["images"]
    if config.schedule == "cooldown":
        longer = f"--extend_steps={steps}"
        if config.minutes is not None:
            longer = f"--extend_minutes={config.minutes:g}"
        turn = [f"go on training with {longer}"]
    else:
        longer = f"--steps={2 * steps}"
        if config.minutes is not None:
            longer = f"--minutes={2 * config.minutes:g}"
        elif config.epochs is not None:
            longer = f"--epochs={2 * config.epochs:g}"
        turn = [f"train longer in another --workdir: {longer}"]
    if getattr(config, "threshold", 0.0) > _HIGH_THRESHOLD:
        turn.append(
            "use more of the pseudo-labels, which in a short run are seldom "
            f"sure: --threshold={_HIGH_THRESHOLD:g} instead of "
            f"{config.threshold:g}"
        )
    if config.algorithm == "supervised":
        turn.append("use the unlabeled images: --algorithm=simmatch")
    turn.append(
        f"label more images, such as {labels} more: {2 * labels} in all"
    )
    if high < 0:
        why = (
            "In seconds, scikit-learn learns more from the same labels: this "
            "model is not worth using yet."
        )
    else:
        why = f"That may be chance: {images} images do not tell the two apart."
        if 0 < points < 100:
            # The width of the interval falls with the root of their number.
            enough = images * ((high - low) / 2 / points) ** 2
            turn.append(
                f"or, to tell whether a lead of {points:.1f} points is real, "
                f"score on about {_rounded(enough)} images"
            )
    return Finding(
        "not_ahead_of_baseline",
        f"The model is not ahead of the best baseline, {lead['over']}: its "
        f"lead is {points:+.1f} points, 95 % interval [{low:+.1f}, "
        f"{high:+.1f}] on the same {images} images.",
        why,
        f"To change that: {'; '.join(turn)}.",
    )


def _rounded(number: float) -> int:
    """Returns a number of two digits and zeros that is not below another."""
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return math.ceil(number / unit) * unit
