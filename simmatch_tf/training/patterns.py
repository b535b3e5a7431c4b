"""What goes wrong silently, as it shows in a run's figures, and what to turn.

A run looks for these patterns while it goes on, the report when it is over;
both by the scalars that TensorBoard has. Nothing here imports TensorFlow.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from simmatch_tf import config as config_lib

Scalars = Mapping[str, Mapping[int, float]]

RECENT = 10  # logged steps whose mean is looked at
# Before this share of a run nothing is said: a start looks bad in any run.
SETTLED = 0.1


@dataclasses.dataclass(frozen=True)
class Finding:
    """A known pattern that shows.

    Attributes:
        name: Of the pattern.
        says: What is seen, with its figures.
        why: What that does, and where it comes from.
        turn: What to do about it; names flags.
    """

    name: str
    says: str
    why: str
    turn: str


def find(
    config: config_lib.Config, scalars: Scalars, *, step: int, steps: int
) -> list[Finding]:
    """The patterns that show.

    Args:
        config: The run's flags.
        scalars: TensorBoard tag → step → value. What is not there is not
            looked at.
        step: Steps done.
        steps: Length of the run.

    Returns:
        At most one finding of each pattern.
    """
    if step < SETTLED * steps:
        return []
    seen = _Seen(config, scalars, step, steps)
    found = (pattern(seen) for pattern in PATTERNS.values())
    return [finding for finding in found if finding is not None]


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What a pattern is looked for in."""

    config: config_lib.Config
    scalars: Scalars
    step: int
    steps: int

    def recent(self, tag: str) -> float | None:
        """Mean of the last logged values; None of fewer than `RECENT`."""
        values = list(self.scalars.get(tag, {}).values())[-RECENT:]
        values = [value for value in values if math.isfinite(value)]
        return sum(values) / RECENT if len(values) == RECENT else None

    def last(self, tag: str) -> float | None:
        """The last value, which is finite; else None."""
        values = list(self.scalars.get(tag, {}).values())
        return values[-1] if values and math.isfinite(values[-1]) else None

    def top1(self, network: str) -> float | None:
        """Accuracy of a network at the last evaluation."""
        for images in ("validation", "test"):
            found = self.last(f"{images}/{network}_top1")
            if found is not None:
                return found
        return None


def _no_pseudo_labels(seen: _Seen) -> Finding | None:
    rate = seen.recent("pseudo_label/mask_rate")
    if rate is None or rate >= 0.01:
        return None
    confidence = seen.recent("pseudo_label/confidence")
    known = "" if confidence is None else f" (their mean is {confidence:.2f})"
    return Finding(
        "no_pseudo_labels",
        f"{rate:.1%} of the unlabeled images have a pseudo-label that counts.",
        f"Hardly any confidence reaches --threshold={seen.config.threshold:g}"
        f"{known}: the unlabeled images teach the classifier nothing.",
        "Lower --threshold; with few labels, --alpha nearer to 1 lets p^w "
        "alone be confident.",
    )


def _collapse(seen: _Seen) -> Finding | None:
    balance = seen.recent("pseudo_label/balance")
    divergence = seen.recent("alignment/divergence")
    if balance is not None and balance < 0.5:
        what = "The pseudo-labels"
    elif divergence is not None and math.exp(-divergence) < 0.5:
        what, balance = (
            "Predictions, before they are aligned,",
            (math.exp(-divergence)),
        )
    else:
        return None
    turn = "Lower --learning_rate or --lambda_u, or raise --threshold."
    if seen.config.align is False or (
        seen.config.align is None and seen.config.algorithm == "fixmatch"
    ):
        turn = f"Turn on --align. {turn}"
    return Finding(
        "collapse",
        f"{what} fall on few classes: as unevenly as if only {balance:.0%} of "
        "the classes occurred.",
        "A class that is predicted more often is taught more often, until it "
        "takes over. (Where the images really are that uneven, all is well.)",
        turn,
    )


def _confident_but_wrong(seen: _Seen) -> Finding | None:
    share = seen.recent("pseudo_label/sure")
    right = seen.recent("pseudo_label/sure_accuracy")
    confidence = seen.recent("pseudo_label/confidence")
    network = "student" if seen.config.memory == "teacher" else "ema"
    top1 = seen.top1(network)
    if share is not None and right is not None:
        if share < 0.1 or right >= 0.5:
            return None
        says = (
            f"Of the pseudo-labels that are surer than 0.9 only {right:.0%} "
            f"are right ({share:.0%} of all images have such)."
        )
    elif confidence is not None and top1 is not None:
        if confidence < 0.8 or confidence - top1 < 0.4:
            return None
        says = (
            f"Pseudo-labels have a mean confidence of {confidence:.2f}, but "
            f"the classifier is right on {top1:.0%} of the images it is "
            "scored on."
        )
    else:
        return None
    return Finding(
        "confident_but_wrong",
        says,
        "What is confident is taught as true, so such errors confirm "
        "themselves; often a class has no typical image among its labeled "
        "ones.",
        "Add labels, or look at which are drawn (--split_seed, "
        "--labeled_list); raise --threshold, lower --lambda_u, or raise "
        "--weight_decay, which keeps confidences low.",
    )


def _memory_waits(seen: _Seen) -> Finding | None:
    filled = seen.last("memory/filled")
    start = seen.config.matching_start_steps
    if filled is None or seen.step < 0.25 * seen.steps:
        return None
    if filled < 1:
        says = (
            f"{filled:.0%} of the memory's slots are written after "
            f"{seen.step} of {seen.steps} steps."
        )
        turn = "Raise --batch_size or --steps."
    elif seen.step < start:
        says = f"Matching waits for step {start} of {seen.steps}."
        turn = "Lower --matching_start_steps."
    else:
        return None
    return Finding(
        "memory_waits",
        says,
        "Until every labeled image was seen once, and "
        "--matching_start_steps are over, the instance loss is 0 and "
        "pseudo-labels are not smoothed: this is FixMatch so far.",
        turn,
    )


def _input_bound(seen: _Seen) -> Finding | None:
    wait = seen.recent("speed/input_wait")
    if wait is None or wait < 0.3:
        return None
    return Finding(
        "input_bound",
        f"{wait:.0%} of the time is spent waiting for batches.",
        "Images are decoded and their views made more slowly than the device "
        "trains on them.",
        "Raise --parallel_calls where cores are idle; --views_on=device on a "
        "GPU; --data_service has other machines prepare the batches.",
    )


def _ema_lags(seen: _Seen) -> Finding | None:
    student, ema = seen.top1("student"), seen.top1("ema")
    if student is None or ema is None or seen.step < 0.5 * seen.steps:
        return None
    if student - ema < 0.1:
        return None
    return Finding(
        "ema_lags",
        f"The EMA has a top-1 of {ema:.0%}, the student of {student:.0%}.",
        f"--ema_momentum={seen.config.ema_momentum:g} averages over about "
        f"{1 / max(1 - seen.config.ema_momentum, 1e-9):,.0f} steps, of a run "
        f"of {seen.steps}: the average still has much of the first weights.",
        "Lower --ema_momentum, or turn on --ema_warmup.",
    )


def _statistics_lag(seen: _Seen) -> Finding | None:
    # In training the ensemble's own batches give BatchNorm its statistics.
    if seen.config.memory == "teacher":
        return None
    training = seen.recent("pseudo_label/accuracy_all")
    student = seen.top1("student")
    if training is None or student is None or training - student < 0.25:
        return None
    return Finding(
        "statistics_lag",
        f"In training the student is right on {training:.0%} of the unlabeled "
        f"images, in evaluation on {student:.0%}.",
        "In evaluation BatchNorm uses running averages, and these lag behind "
        "in a short run.",
        "Lower --batch_norm_momentum: 0.9 for hundreds of steps.",
    )


PATTERNS: Mapping[str, Callable[[_Seen], Finding | None]] = {
    "no_pseudo_labels": _no_pseudo_labels,
    "collapse": _collapse,
    "confident_but_wrong": _confident_but_wrong,
    "memory_waits": _memory_waits,
    "input_bound": _input_bound,
    "ema_lags": _ema_lags,
    "statistics_lag": _statistics_lag,
}
