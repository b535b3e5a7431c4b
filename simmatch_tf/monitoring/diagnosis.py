"""Known problems of a run, how they show in its scalars, and what to change.

A run checks for them while it trains, the report when it is over; both read the
scalars that TensorBoard has. Nothing here imports TensorFlow.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf.evaluation import baselines

Scalars = Mapping[str, Mapping[int, float]]

RECENT = 5  # number of logged steps that are averaged
# Share of a run in which nothing is reported: the start of any run looks bad.
SETTLED = 0.1
# How the tags of the pseudo-labels' shares begin; the class name follows. They
# are logged of at most this number of classes.
SHARES = "class_share/"
MOST_SHARES = 100
# The same of those that pass the threshold, as shares of all images.
USED = "class_used/"
# The confidence that a quarter of the pseudo-labels reach.
QUARTILE = "pseudo_label/confidence_quartile"
# Share of the pseudo-labels that may lie elsewhere than the prior says.
_DRIFT = 0.2
# Largest number of labeled images of a class over the smallest that is as good
# as equal.
_UNEQUAL = 2
_NAMED = 3  # classes in a finding
# Above it, hardly any pseudo-label of a short run is used; below the other, a
# pseudo-label may be less likely than all other classes together.
_HIGH_THRESHOLD, _LOW_THRESHOLD = 0.7, 0.5
_STRICT_THRESHOLD = 0.95
# A class is starved with less than this part of its share of the used
# pseudo-labels, where at least so many were to be expected.
_STARVED, _EXPECTED = 0.2, 10
# Gain of accuracy that is worth twice the time.
_WORTH = 0.02


@dataclasses.dataclass(frozen=True)
class Finding:
    """A known problem that a run shows.

    Attributes:
        name: Name of the problem.
        says: What is seen, with numbers.
        why: What it does to the run, and where it comes from.
        turn: What to do about it; names flags with values for this run.
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


def recent_shares(scalars: Scalars, prefix: str = SHARES) -> dict[str, float]:
    """Returns how often recent pseudo-labels name each class.

    Args:
        scalars: TensorBoard tag → step → value.
        prefix: `SHARES`; or `USED`, of those that pass the threshold, as shares
            of all.

    Returns:
        Class → mean share of the last `RECENT` logged steps, or of fewer if
        there are no more; {} if none are logged.
    """
    return _shares(scalars, prefix, RECENT)


# Name of a problem → its name in texts, as in docs/monitoring.md.
TITLES: Mapping[str, str] = {
    "too_short": "too short",
    "no_pseudo_labels": "no pseudo-labels",
    "starved_classes": "classes without pseudo-labels",
    "collapse": "collapse",
    "prior_drift": "prior drift",
    "unlabeled_classes": "classes without labels",
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
    "starved_classes": ("pseudo_label/mask_rate",),
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
    images: int | None = None,
) -> dict[str, Finding | bool | None]:
    """Judges for each known problem whether a run shows it.

    Args:
        config: The run's flags.
        scalars: TensorBoard tag → step → value.
        step: Steps done.
        steps: Length of the run.
        classes: The classes; None where they are not known.
        images: Number of images that the result is measured on; None where it
            is not known.

    Returns:
        Name of the problem → the finding; False if the run does not show it;
        None if that cannot be judged: its scalars are missing, as in short
        runs or without --summaries, or the run has only begun.
    """
    run = _Scalars(config, scalars, step, steps, classes, images)
    if step < SETTLED * steps:  # labels are what they are from the start
        early = dict.fromkeys(PATTERNS)
        at_once = ("unlabeled_classes", "unequal_labels")
        return {**early, **{name: PATTERNS[name](run) for name in at_once}}
    return {name: pattern(run) for name, pattern in PATTERNS.items()}


@dataclasses.dataclass(frozen=True)
class _Scalars:
    """A run's flags and scalars, as the patterns read them."""

    config: config_lib.Config
    scalars: Scalars
    step: int
    steps: int
    classes: Classes | None
    images: int | None

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
        """Whether the method has a loss on unlabeled images."""
        return hasattr(self.config, "lambda_u")

    @property
    def reaches(self) -> str:
        """What the confidence of a pseudo-label has to reach, for a text."""
        threshold = getattr(self.config, "threshold", None)
        if threshold is None:
            return "the method's threshold"
        return f"--threshold={threshold:g}"

    @property
    def aligns(self) -> bool:
        """Whether predictions are aligned with a prior."""
        return bool(getattr(self.config, "align", False))

    @property
    def teacher_labels(self) -> bool:
        """Whether pseudo-labels come from the EMA teacher."""
        # Without a choice of the network, its BatchNorm tells.
        usual = "teacher" if hasattr(self.config, "teacher_norm") else "student"
        return getattr(self.config, "targets_from", usual) == "teacher"


# --------------------------------------------------------- flags to change --


def extension(config: config_lib.Config, steps: int) -> str | None:
    """Returns the flag that makes a finished run twice as long.

    Args:
        config: Its flags.
        steps: Its length.

    Returns:
        Such as --extend_minutes=20; None of a run that cannot be extended.
    """
    if config.schedule != "cooldown":
        return None
    if config.minutes is None:
        return f"--extend_steps={steps}"
    return f"--extend_minutes={_minutes(config, steps, 1.0)}"


def longer(config: config_lib.Config, steps: int) -> str:
    """Returns how to train twice as long, as a part of a sentence.

    Args:
        config: The run's flags.
        steps: Its length.
    """
    flag = extension(config, steps)
    if flag is not None:
        return f"go on training by the same command with {flag}"
    flag = _length_flag(config, steps, 2.0)
    return f"train longer in another --workdir: {flag}"


def _length_flag(config: config_lib.Config, steps: int, factor: float) -> str:
    """Returns the flag of a run that is some times as long."""
    if config.minutes is not None:
        return f"--minutes={_minutes(config, steps, factor)}"
    if config.epochs is not None:
        return f"--epochs={factor * config.epochs:g}"
    return f"--steps={_rounded(factor * steps)}"


def _minutes(config: config_lib.Config, steps: int, factor: float) -> str:
    """Returns some times the minutes of a run, which may be extended."""
    minutes = factor * config.minutes * steps / (config.measured_steps or steps)
    return f"{round(minutes, 1 if minutes < 10 else None):g}"


def _length(run: _Scalars, factor: float) -> str:
    return _length_flag(run.config, run.steps, factor)


def _sentence(text: str) -> str:
    """Returns a part of a sentence as a whole one; names keep their case."""
    return f"{text[0].upper()}{text[1:]}."


def _lower_threshold(run: _Scalars) -> str | None:
    """Returns the advice of a threshold; None if it is as low as can help.

    It is also None for a method without --threshold.
    """
    now = getattr(run.config, "threshold", 0.0)
    quartile = run.recent(QUARTILE)
    if quartile is not None:
        # The bins of confidences are 0.05 wide.
        value = math.floor(20 * quartile + 1e-6) / 20
        if _LOW_THRESHOLD <= value < now:
            return (
                f"--threshold={value:g} instead of {now:g}: a quarter of the "
                "pseudo-labels reach it"
            )
    steps_down = [_HIGH_THRESHOLD, _LOW_THRESHOLD]
    if quartile is not None and quartile < _HIGH_THRESHOLD:
        del steps_down[0]
    for value in steps_down:
        if value < now:
            return f"--threshold={value:g} instead of {now:g}"
    return None


def _more_labels(classes: Classes, names: Sequence[str]) -> str:
    """Returns the advice to label images of some classes."""
    counts = dict(zip(classes.names, classes.labeled, strict=True))
    parts = [f"{name} (now {counts[name]})" for name in names]
    return f"label more images of {' and '.join(parts)}, such as twice as many"


def _other_labels(run: _Scalars) -> str:
    """Returns the advice to have more, or other, labels."""
    config, now = run.config, sum(run.classes.labeled) if run.classes else 0
    if config.labels is not None:
        return (
            f"--labels={2 * config.labels}, or other images of as many "
            f"labels: --split_seed={config.split_seed + 1}"
        )
    more = f", such as {now} more: {2 * now} in all" if now else ""
    return f"look through the labels for wrong ones, and label more{more}"


def _less_confident(config: config_lib.Config) -> str:
    """Returns the flags that make wrong pseudo-labels count less."""
    flags = [f"--lambda_u={config.lambda_u / 2:g}"]
    if getattr(config, "threshold", 1.0) < _STRICT_THRESHOLD:
        flags.insert(0, f"--threshold={_STRICT_THRESHOLD:g}")
    if config.weight_decay:
        decay = f"--weight_decay={2 * config.weight_decay:g}"
        flags.append(f"{decay}, which keeps confidences low")
    return " or ".join(flags)


def _faster(momentum: float | None) -> float:
    """Returns a momentum of BatchNorm's averages that forgets sooner."""
    if momentum is None or momentum > 0.9:
        return 0.9
    return max(0.0, 1 - 2 * (1 - momentum))


# ---------------------------------------------------------------- patterns --


def _no_pseudo_labels(run: _Scalars) -> Finding | bool | None:
    if not run.has_pseudo_labels:
        return False
    rate = run.recent("pseudo_label/mask_rate")
    if rate is None or rate >= 0.01:
        return None if rate is None else False
    confidence = run.recent("pseudo_label/confidence")
    known = "" if confidence is None else f" (their mean is {confidence:.2f})"
    turn = _sentence(
        _lower_threshold(run)
        or f"Train longer, in another --workdir: {_length(run, 2)}"
    )
    # Not a method's own alpha, whose flag has another name.
    alpha = run.config.values().get("alpha", 1.0)
    if alpha < 1:
        turn += (
            f" With few labels --alpha={(1 + alpha) / 2:g} also helps: it "
            "gives more weight to the classifier's own confidence."
        )
    return Finding(
        "no_pseudo_labels",
        f"{rate:.1%} of the unlabeled images have a pseudo-label that is used.",
        f"Hardly any confidence reaches {run.reaches}{known}: the unlabeled "
        "images teach the classifier nothing.",
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
    config = run.config
    turn = (
        f"--learning_rate={config.learning_rate / 2:g} instead of "
        f"{config.learning_rate:g}, or --lambda_u={config.lambda_u / 2:g} "
        f"instead of {config.lambda_u:g}"
    )
    if getattr(config, "threshold", 1.0) < _STRICT_THRESHOLD:
        turn += f", or --threshold={_STRICT_THRESHOLD:g}"
    turn = f"{turn}."
    if not getattr(config, "align", True):
        turn = f"Turn on --align. Else {turn}"
    return Finding(
        "collapse",
        f"{subject} fall on few classes, as unevenly as if only {share:.0%} of "
        "the classes occurred.",
        "A class that is predicted more often is taught more often, until it "
        "displaces the others. (If the images really are that unevenly "
        "distributed, nothing is wrong"
        + (
            ", and --class_prior=labeled tells alignment so.)"
            if hasattr(config, "class_prior")
            else ".)"
        ),
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
    turn += ", or a file of shares. Else "
    turn += f"{_more_labels(run.classes, lacking)}."
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


def imbalance(classes: Classes) -> str:
    """Returns a line on classes that differ much in their labels, else "".

    Args:
        classes: The classes.
    """
    names, labeled = classes.names, classes.labeled
    fewest, most = min(labeled), max(labeled)
    if not fewest or most < _UNEQUAL * fewest:
        return ""  # of the former, `judge` has a finding
    return (
        f"classes have from {fewest} ({names[labeled.index(fewest)]}) to "
        f"{most} ({names[labeled.index(most)]}) labeled images: read the macro "
        "accuracy beside top-1, which counts each class once"
    )


def _unlabeled_classes(run: _Scalars) -> Finding | bool | None:
    """Finds classes that cannot be learned."""
    if run.classes is None:
        return None
    names = [
        name
        for name, count in zip(
            run.classes.names, run.classes.labeled, strict=True
        )
        if not count
    ]
    if not names:
        return False
    shown = ", ".join(names[:_NAMED]) + ", …" * (len(names) > _NAMED)
    return Finding(
        "unlabeled_classes",
        f"No labeled image is of {len(names)} of the "
        f"{len(run.classes.names)} classes ({shown}).",
        "They are not learned, and images of theirs count as errors"
        + "; alignment gives them pseudo-labels of other classes' images"
        * bool(run.aligns and run.classes.prior is None)
        + ".",
        "More --labels, --draw=stratified, or a label for each of them.",
    )


def _unequal_labels(run: _Scalars) -> Finding | bool | None:
    if not run.aligns or run.classes is None:
        return None if run.aligns else False
    names, labeled = run.classes.names, run.classes.labeled
    fewest, most = min(labeled), max(labeled)
    if run.classes.prior is not None or most < _UNEQUAL * fewest:
        return False
    if not fewest:  # another pattern says so
        return False
    return Finding(
        "unequal_labels",
        f"Classes have from {fewest} ({names[labeled.index(fewest)]}) to "
        f"{most} ({names[labeled.index(most)]}) labeled images, but "
        "distribution alignment aims at equal shares.",
        "If the unlabeled images are as unequal, alignment takes pseudo-labels "
        "from the frequent classes and gives them to the rare ones.",
        "--class_prior=labeled, if the labeled images are a sample of all; or "
        "--class_prior=FILE with the shares that you expect. Read the macro "
        "accuracy beside top-1: it counts each class once.",
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
        f"{_sentence(_other_labels(run))} Else {_less_confident(run.config)}.",
    )


def _memory_waits(run: _Scalars) -> Finding | bool | None:
    if not hasattr(run.config, "matching_start_steps"):
        return False
    filled = run.last("memory/filled")
    start, size = run.config.matching_start_steps, run.config.batch_size
    if filled is None or run.step < 0.25 * run.steps:
        return None
    if filled < 1:
        says = (
            f"{filled:.0%} of the memory bank's slots are written after "
            f"{run.step} of {run.steps} steps."
        )
        # A pass over the labeled images is to take a tenth of the run.
        slots = sum(run.classes.labeled) if run.classes else 0
        batch = max(math.ceil(10 * slots / run.steps), 2 * size)
        factor = max(10 * slots / size / run.steps, 2.0)
        turn = (
            f"In another --workdir: {_length(run, factor)}, or --batch_size="
            f"{batch} instead of {size}."
        )
    elif run.step < start:
        says = f"Instance matching starts at step {start} of {run.steps}."
        turn = f"--matching_start_steps={run.steps // 10} or less."
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
        f"--parallel_calls={2 * run.config.parallel_calls} instead of "
        f"{run.config.parallel_calls} if CPU cores are idle; "
        "--views_on=device on a GPU; with --data_service=grpc://HOST:PORT "
        "other machines prepare the batches.",
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
        rate = run.config.learning_rate
        turn = (
            f"--learning_rate={rate / 2:g} instead of {rate:g}, or train "
            f"longer in another --workdir: {_length(run, 2)}."
        )
    else:
        why = (
            f"With --ema_momentum={momentum:g}, {momentum**run.step:.0%} of "
            f"the average is still the first weights, after {run.step} steps."
        )
        # A tenth of the run forgets 99 % of what was before.
        lower = min(max(0.01 ** (10 / run.steps), 0.5), momentum)
        turn = f"--ema_momentum={lower:.2g}, or turn on --ema_warmup."
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
        f"--batch_norm_momentum={_faster(run.config.batch_norm_momentum):g} "
        "for a run of hundreds of steps.",
    )


# --------------------------------------------------------------- too short --

# Points of a trend: more values are averaged in so many groups, because those
# near each other in time err together; fewer than the least tell nothing.
_MOST_POINTS, _LEAST_POINTS = 8, 4
# Two-sided 95 % quantiles of Student's t, by degrees of freedom.
_T = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447}
# Share of the variance of accuracies on the same images that is of the images,
# and so the same at each evaluation; where two networks disagree on fewer than
# a quarter of the images, as at 50 %, it is more.
_SHARED_VARIANCE = 0.5
# Cosines are judged up to where the rate has fallen to half its peak.
_HALF_RATE = {"cosine_7_16": 16 / 21, "half_cosine": 0.5}


@dataclasses.dataclass(frozen=True)
class Trend:
    """How values change at the end, per natural logarithm of the step.

    Learning slows down: twice the steps bring about as much as the doubling
    before did, or less.

    Attributes:
        first: The first step that it is of.
        last: The last one.
        slope: Slope of the last half of the points.
        half: Half of its 95 % interval.
        before: Slope of the first half of the points.
    """

    first: float
    last: float
    slope: float
    half: float
    before: float

    @property
    def low(self) -> float:
        """Lower end of the slope's interval."""
        return self.slope - self.half

    def gain(self) -> float:
        """Returns what twice the steps would bring if it goes on like this.

        A slope that has become smaller becomes smaller by as much again.
        """
        slowing = 1.0
        if self.before * self.slope > 0:
            slowing = min(1.0, self.slope / self.before)
        return self.slope * slowing * math.log(2)


def trend(
    points: Mapping[int, float], until: float, *, deviation: float = 0.0
) -> Trend | None:
    """Fits lines to values over the logarithm of the step.

    Args:
        points: Step → value.
        until: The last step that counts. Those before a quarter of it do not.
        deviation: Standard deviation that values have at least, ≥ 0; what
            they scatter around one line through all of them may be more.

    Returns:
        The trend; None of fewer than four values.
    """
    known = [
        (math.log(step), value)
        for step, value in sorted(points.items())
        if until / 4 <= step <= until and step and math.isfinite(value)
    ]
    count = min(len(known), _MOST_POINTS)
    if count < _LEAST_POINTS:
        return None
    ends = [len(known) * number // count for number in range(count + 1)]
    groups = [known[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)]
    steps, values = (
        [sum(point[axis] for point in group) / len(group) for group in groups]
        for axis in (0, 1)
    )
    _, _, residuals = _line(steps, values)
    half = max(3, -(-count // 2))
    slope, spread, _ = _line(steps[-half:], values[-half:])
    before, _, _ = _line(steps[:half], values[:half])
    scatter = _T[count - 2] * math.sqrt(residuals / (count - 2))
    return Trend(
        math.exp(steps[-half]),
        math.exp(steps[-1]),
        slope,
        max(scatter, 1.96 * deviation) / math.sqrt(spread),
        before,
    )


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Fits a line by least squares.

    Returns:
        Its slope; the sum of the squared distances of x from their mean; and
        that of y from the line.
    """
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * b for a, b in zip(x, y, strict=True)) / spread
    residuals = sum(
        (b - mean_y - slope * (a - mean_x)) ** 2
        for a, b in zip(x, y, strict=True)
    )
    return slope, spread, residuals


def _too_short(run: _Scalars) -> Finding | bool | None:
    """Judges a run at its end by its evaluations, else by its labels' loss.

    A falling learning rate raises the accuracy whether or not a longer run
    would be better, so only evaluations before it count. A rising mask rate
    does not count: the additional pseudo-labels may be wrong.
    """
    if run.step < run.steps:
        return None
    until = run.steps * _HALF_RATE.get(run.config.schedule, 1.0)
    when = "at the end"
    if run.config.schedule == "cooldown":
        until = run.steps - run.config.cooldown_steps(run.steps)
        when = "when the learning rate began to fall"
    elif until < run.steps:
        when = "when the learning rate had fallen to half"
    network = "student" if run.teacher_labels else "ema"
    for images in ("test", "validation"):
        points = run.scalars.get(f"{images}/{network}_top1", {})
        if points:
            break
    if points and run.images:
        deviation = math.sqrt(
            max(_variance(value) for value in points.values())
            * (1 - _SHARED_VARIANCE)
            / run.images
        )
        rise = trend(points, until, deviation=deviation)
        if rise is not None:
            end = max(step for step in points if step <= until)
            result = points[max(points)]
            # The falling rate may have brought most of what was left.
            gain = min(rise.gain(), (1 - result) / 2)
            if result < points[end] or rise.low <= 0 or gain < _WORTH:
                return False
            return _is_too_short(
                run,
                f"The {images} top-1 was still rising {when}, by "
                f"{_per_time(run, rise, 100, ' points')}",
                f"Learning slows down: if it goes on like this, a run of twice "
                f"the length gains about {100 * gain:.0f} points.",
            )
    return _labels_not_learned(run, until, when)


def _variance(share: float) -> float:
    return share * (1 - share)


def _labels_not_learned(
    run: _Scalars, until: float, when: str
) -> Finding | bool | None:
    """Judges a run of few evaluations by the loss of its labeled images."""
    points = run.scalars.get("loss/s", {})
    fall = trend(points, until)
    if fall is None or run.classes is None:
        return None
    chance = math.log(len(run.classes.names))
    last = run.recent("loss/s")
    if (
        last is None
        or last < chance / 2
        or fall.slope + fall.half >= 0
        or -fall.gain() < last / 10
    ):
        return None  # of the accuracy nothing is known
    return _is_too_short(
        run,
        f"The loss on the labeled images is {last:.2f} (guessing gives "
        f"{chance:.2f}), and was still falling {when}, by "
        f"{_per_time(run, fall, -1)}",
        "Not even the labels are learned yet, and few evaluations tell more.",
    )


def _per_time(
    run: _Scalars, change: Trend, scale: float, noun: str = ""
) -> str:
    """Writes the slope at the last step, and its interval, with its unit.

    Args:
        run: The run.
        change: A trend of its values.
        scale: What one of its units is written as.
        noun: Name of what is written.
    """
    per = 10 ** min(3, int(math.log10(run.steps)))
    unit, steps = f"per {per:,} steps", float(per)
    if run.config.minutes is not None:
        unit, known = "a minute", run.config.measured_steps or run.steps
        steps = known / run.config.minutes
    low, middle, high = (
        f"{value:.{0 if abs(value) >= 10 else 1}f}"
        for value in sorted(
            steps * scale / change.last * (change.slope + side * change.half)
            for side in (-1, 0, 1)
        )
    )
    return f"{middle}{noun} {unit} (95 % interval [{low}, {high}])"


def _is_too_short(run: _Scalars, says: str, why: str) -> Finding:
    return Finding(
        "too_short",
        f"{says}.",
        why,
        _sentence(longer(run.config, run.steps)),
    )


# --------------------------------------------------------- starved classes --


def _starved_classes(run: _Scalars) -> Finding | bool | None:
    """Judges the shares of the classes in the last quarter of the run.

    A class counts as starved only if so many of its pseudo-labels were to be
    expected that their lack is not chance. Rare classes may go unmentioned.
    """
    if not run.has_pseudo_labels:
        return False
    if run.classes is not None and len(run.classes.names) > MOST_SHARES:
        return False
    # Easy classes have the first pseudo-labels of any run.
    if run.classes is None or run.step < 0.5 * run.steps:
        return None
    names = run.classes.names
    logged = len(run.scalars.get(f"{USED}{names[0]}", ()))
    if logged < RECENT:
        return None
    count = max(RECENT, logged // 4)
    used, all_shares = (
        _shares(run.scalars, tag, count) for tag in (USED, SHARES)
    )
    rate = sum(used.values())
    # `class_prior` is None without alignment, too.
    aim = run.classes.aim
    if not run.aligns:
        aim = [n / sum(run.classes.labeled) for n in run.classes.labeled]
    by_name = dict(zip(names, aim, strict=True))
    images = count * run.config.batch_size * run.config.unlabeled_ratio
    starved = [
        name
        for name in names
        if images * rate * by_name[name] >= _EXPECTED
        and used[name] < _STARVED * rate * by_name[name]
    ]
    # These have findings of their own.
    if not starved or _collapse(run) or _no_pseudo_labels(run):
        return False
    starved.sort(key=lambda name: used[name] / by_name[name])
    values = ", ".join(
        f"{name} {used[name] / rate:.1%} instead of {by_name[name]:.1%}"
        for name in starved[:_NAMED]
    )
    if len(starved) > _NAMED:
        values += f", and {len(starved) - _NAMED} more"
    unsure = [
        name
        for name in starved
        if all_shares.get(name, 0.0) >= _STARVED * by_name[name]
    ]
    return Finding(
        "starved_classes",
        f"{len(starved)} of {len(names)} classes have hardly any pseudo-labels "
        f"that are used: {values}.",
        "Unlabeled images of these classes teach nothing, or are taught as "
        "other classes."
        if not unsure
        else "Images of "
        f"{_some(unsure)} are recognized, but not with the confidence of "
        f"{run.reaches}.",
        _feed(run, starved, unsure),
    )


def _shares(scalars: Scalars, prefix: str, count: int) -> dict[str, float]:
    """Returns class → mean of its last logged shares."""
    shares = {}
    for tag, points in scalars.items():
        if tag.startswith(prefix) and points:
            values = list(points.values())[-count:]
            shares[tag.removeprefix(prefix)] = sum(values) / len(values)
    return shares


def _some(names: Sequence[str]) -> str:
    """Names a few classes, and counts the others."""
    more = len(names) - _NAMED
    listed = ", ".join(names[:_NAMED])
    return f"{listed} and {more} more classes" if more > 0 else listed


def _feed(run: _Scalars, starved: Sequence[str], unsure: Sequence[str]) -> str:
    """Returns what gives starved classes pseudo-labels."""
    turn = []
    if unsure and (lower := _lower_threshold(run)):
        turn.append(lower)
    turn.append(_more_labels(run.classes, starved[:_NAMED]))
    if run.aligns:
        prior = "--class_prior=FILE"
        labeled = run.classes.labeled
        if run.classes.prior is None and max(labeled) > min(labeled):
            prior = f"--class_prior=labeled or {prior}"
        turn.append(
            "if the classes really are that rare among the unlabeled images, "
            f"nothing is wrong, and {prior} says so"
        )
    return _sentence("; or ".join(turn))


# See `judge` for what they return.
PATTERNS: Mapping[str, Callable[[_Scalars], Finding | bool | None]] = {
    "too_short": _too_short,
    "no_pseudo_labels": _no_pseudo_labels,
    "starved_classes": _starved_classes,
    "collapse": _collapse,
    "prior_drift": _prior_drift,
    "unlabeled_classes": _unlabeled_classes,
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
    usable: str | None = None,
) -> Finding | None:
    """Returns a finding if a model is not ahead of the best baseline.

    It is ahead if the 95 % interval of its lead, image by image, is above 0.

    Args:
        config: The run's flags.
        lead: As in results.json; None where nothing was measured.
        steps: Length of the run.
        labels: Number of its labeled images.
        usable: A command that predicts with the baseline on the first weights,
            where that is kept as a model.
    """
    if lead is None or lead["interval"][0] > 0:
        return None
    low, high = (100 * end for end in lead["interval"])
    points, images = 100 * lead["top1"], lead["images"]
    turn = [longer(config, steps)]
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
    if high < 0 and lead["over"] == baselines.LABELS_ALONE:
        why = (
            "The unlabeled images do harm here, or had no time to help: the "
            "run in labels_alone/ of this run's folder is the better model."
        )
    elif high < 0:
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
    if usable and baselines.FIRST_WEIGHTS in lead["over"]:
        which = "That baseline"
        if baselines.KEPT not in lead["over"]:
            which = f"The {baselines.KEPT} on the same features"
        why += f" {which} is a model that can be used: {usable}."
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
