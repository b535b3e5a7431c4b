"""What goes wrong silently, as it shows in a run's figures, and what to turn.

A run looks for these patterns while it goes on, the report when it is over;
both by the scalars that TensorBoard has. Nothing here imports TensorFlow.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from simmatch_tf import config as config_lib

Scalars = Mapping[str, Mapping[int, float]]

RECENT = 5  # logged steps whose mean is looked at
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
    found = _look(config, scalars, step, steps).values()
    return [finding for finding in found if isinstance(finding, Finding)]


def not_judged(
    config: config_lib.Config, scalars: Scalars, *, step: int, steps: int
) -> list[str]:
    """The patterns of which it is not known whether they show; see `find`.

    Values are missing: of short runs, or of runs without summaries.
    """
    found = _look(config, scalars, step, steps)
    return [name for name, finding in found.items() if finding is None]


def _look(
    config: config_lib.Config, scalars: Scalars, step: int, steps: int
) -> dict[str, Finding | bool | None]:
    """Pattern → what `PATTERNS` has of it; at a run's start nothing is."""
    if step < SETTLED * steps:
        return dict.fromkeys(PATTERNS)
    seen = _Seen(config, scalars, step, steps)
    return {name: pattern(seen) for name, pattern in PATTERNS.items()}


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

    def top1(self, network: str, beside: str | None = None) -> float | None:
        """Accuracy of a network at the last evaluation.

        Args:
            network: "student" or "ema".
            beside: A tag; an evaluation from before its recent values is none.
        """
        since = 0
        if beside is not None:
            since = min(list(self.scalars.get(beside, {}))[-RECENT:], default=0)
        for images in ("validation", "test"):
            tag = f"{images}/{network}_top1"
            found = self.last(tag)
            if found is not None:
                return found if max(self.scalars[tag]) >= since else None
        return None

    @property
    def learns_unlabeled(self) -> bool:
        """Whether there are pseudo-labels at all."""
        return hasattr(self.config, "targets_from")


def _no_pseudo_labels(seen: _Seen) -> Finding | bool | None:
    if not seen.learns_unlabeled:
        return False
    rate = seen.recent("pseudo_label/mask_rate")
    if rate is None or rate >= 0.01:
        return None if rate is None else False
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


def _collapse(seen: _Seen) -> Finding | bool | None:
    if not seen.learns_unlabeled:
        return False
    balance = seen.recent("pseudo_label/balance")
    divergence = seen.recent("alignment/divergence")
    what, share = "The pseudo-labels", balance
    if (share is None or share >= 0.5) and divergence is not None:
        what = "Predictions, before they are aligned,"
        share = math.exp(-divergence)
    if share is None or share >= 0.5:
        return None if balance is None else False
    turn = "Lower --learning_rate or --lambda_u, or raise --threshold."
    if not getattr(seen.config, "align", True):
        turn = f"Turn on --align. {turn}"
    return Finding(
        "collapse",
        f"{what} fall on few classes: as unevenly as if only {share:.0%} of "
        "the classes occurred.",
        "A class that is predicted more often is taught more often, until it "
        "takes over. (Where the images really are that uneven, all is well.)",
        turn,
    )


def _confident_but_wrong(seen: _Seen) -> Finding | bool | None:
    if not seen.learns_unlabeled:
        return False
    share = seen.recent("pseudo_label/sure")
    confidence = seen.recent("pseudo_label/confidence")
    network = (
        "student"
        if getattr(seen.config, "targets_from", None) == "teacher"
        else "ema"
    )
    top1 = seen.top1(network, "pseudo_label/confidence")
    if share is not None:
        right = seen.recent("pseudo_label/sure_accuracy")
        if share < 0.1 or (right is not None and right >= 0.5):
            return False
        if right is None:
            return None
        says = (
            f"Of the pseudo-labels that are surer than 0.9 only {right:.0%} "
            f"are right ({share:.0%} of all images have such)."
        )
    elif confidence is not None and top1 is not None:
        if confidence < 0.8 or confidence - top1 < 0.4:
            return False
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


def _memory_waits(seen: _Seen) -> Finding | bool | None:
    if seen.config.algorithm != "simmatch":
        return False
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
        return False
    return Finding(
        "memory_waits",
        says,
        "Until every labeled image was seen once, and "
        "--matching_start_steps are over, the instance loss is 0 and "
        "pseudo-labels are not smoothed: this is FixMatch so far.",
        turn,
    )


def _input_bound(seen: _Seen) -> Finding | bool | None:
    wait = seen.recent("speed/input_wait")
    if wait is None or wait < 0.3:
        return None if wait is None else False
    return Finding(
        "input_bound",
        f"{wait:.0%} of the time is spent waiting for batches.",
        "Images are decoded and their views made more slowly than the device "
        "trains on them.",
        "Raise --parallel_calls where cores are idle; --views_on=device on a "
        "GPU; --data_service has other machines prepare the batches.",
    )


def _ema_lags(seen: _Seen) -> Finding | bool | None:
    student, ema = seen.top1("student"), seen.top1("ema")
    if student is None or ema is None or seen.step < 0.5 * seen.steps:
        return None
    if student - ema < 0.1:
        return False
    momentum, warms_up = seen.config.ema_momentum, seen.config.ema_warmup
    # Of a constant momentum the first weights' share is m^step.
    if warms_up or momentum**seen.step < 0.01:
        why = (
            f"--ema_momentum={momentum:g} forgets within this run, so it is "
            "the student that moves: its weights, or BatchNorm's averages, "
            "change much from step to step."
        )
        turn = "Lower --learning_rate, or train longer."
    else:
        why = (
            f"With --ema_momentum={momentum:g}, {momentum**seen.step:.0%} of "
            f"the average is still the first weights, after {seen.step} steps."
        )
        turn = "Lower --ema_momentum, or turn on --ema_warmup."
    return Finding(
        "ema_lags",
        f"The EMA has a top-1 of {ema:.0%}, the student of {student:.0%}.",
        why,
        turn,
    )


def _statistics_lag(seen: _Seen) -> Finding | bool | None:
    # In training the ensemble's own batches give BatchNorm its statistics.
    if (
        not seen.learns_unlabeled
        or getattr(seen.config, "targets_from", None) == "teacher"
    ):
        return False
    tag = "pseudo_label/accuracy_all"
    training, student = seen.recent(tag), seen.top1("student", tag)
    if training is None or student is None:
        return None
    if training - student < 0.25:
        return False
    return Finding(
        "statistics_lag",
        f"Of all pseudo-labels {training:.0%} are right, but of what the "
        f"student says in evaluation only {student:.0%}.",
        "Pseudo-labels come of BatchNorm's statistics of each batch; in "
        "evaluation it uses running averages, and these lag behind in a short "
        "run.",
        "Lower --batch_norm_momentum: 0.9 for hundreds of steps.",
    )


# Each gives its finding; False, where it does not show; None, where that is
# not known.
PATTERNS: Mapping[str, Callable[[_Seen], Finding | bool | None]] = {
    "no_pseudo_labels": _no_pseudo_labels,
    "collapse": _collapse,
    "confident_but_wrong": _confident_but_wrong,
    "memory_waits": _memory_waits,
    "input_bound": _input_bound,
    "ema_lags": _ema_lags,
    "statistics_lag": _statistics_lag,
}
