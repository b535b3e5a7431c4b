"""How long the rest of a run takes, and how many steps fit into its minutes.

Nothing here imports TensorFlow.
"""

import dataclasses
import math
import time

from simmatch_tf import config as config_lib
from simmatch_tf import registry
from simmatch_tf.flags.errors import InputError

# Evaluations of a run of --minutes, and their largest share of its time.
_EVALUATIONS, _EVALUATION_SHARE = 8, 0.1
# A power failure costs at most about this much of a run of --minutes, unless
# checkpoints would take more than this share of its time.
_CHECKPOINT_SECONDS, _CHECKPOINT_SHARE = 600, 0.05
# What is kept free for the end of the process, and for steps that become
# slower: seconds, and a share of the rest.
_RESERVE_SECONDS, _RESERVE_SHARE = 2.0, 0.01
# A run of fewer steps learns little; no smaller images are proposed than these.
_FEW_STEPS, _LEAST_SIDE = 300, 32
# Greatest share of the time that is between steps.
_BETWEEN_SHARE = _EVALUATION_SHARE + _CHECKPOINT_SHARE


@dataclasses.dataclass(frozen=True)
class Costs:
    """Seconds that each part of a run takes on this machine.

    Attributes:
        step: One training step.
        log: What a logged step takes in addition.
        evaluation: One evaluation of all networks.
        checkpoint: Writing one checkpoint.
        picture: Pictures and histograms of one step.
    """

    step: float
    log: float = 0.0
    evaluation: float = 0.0
    checkpoint: float = 0.0
    picture: float = 0.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """The length of a run of --minutes.

    Attributes:
        steps: Number of steps in all.
        eval_every: Steps between evaluations.
        checkpoint_every: Steps between checkpoints.
    """

    steps: int
    eval_every: int
    checkpoint_every: int


def seconds(costs: Costs, config: config_lib.Config, start: int) -> float:
    """Returns how long the steps after `start` take, with all between them.

    Args:
        costs: What each part takes.
        config: The run's flags, with durations in steps.
        start: Steps done.
    """
    steps = config.steps

    def times(every: int | None) -> int:
        if every is None or start >= steps:
            return 0
        return steps // every - start // every + bool(steps % every)

    cooldown = config.cooldown_steps()
    before_cooldown = bool(cooldown) and start < steps - cooldown
    return (
        (steps - start) * costs.step
        + times(config.log_every) * costs.log
        + times(config.eval_every) * costs.evaluation
        + (times(config.checkpoint_every) + before_cooldown) * costs.checkpoint
        + times(config.picture_every) * costs.picture
    )


def plan(
    config: config_lib.Config,
    costs: Costs,
    left: float,
    *,
    unlabeled_images: int,
    start: int = 0,
) -> Plan | None:
    """Plans a run that takes no longer than the time that is left.

    Args:
        config: The run's flags.
        costs: What each part takes.
        left: Seconds from now to the end of the process.
        unlabeled_images: Size of the unlabeled set; see
            `Config.with_durations`.
        start: Steps that are done before.

    Returns:
        The longest such run; None if not even one step fits.

    Raises:
        InputError: The steps do not go together with other flags.
    """
    # Closing writes the weights once more, and reads them back.
    left -= _RESERVE_SECONDS + 2 * costs.checkpoint
    left *= 1 - _RESERVE_SHARE
    shares = (
        (_EVALUATIONS, _EVALUATION_SHARE, costs.evaluation),
        (
            max(_EVALUATIONS, left / _CHECKPOINT_SECONDS),
            _CHECKPOINT_SHARE,
            costs.checkpoint,
        ),
    )
    evaluations, checkpoints = (
        max(1, int(min(most, share * left / max(cost, 1e-9))))
        for most, share, cost in shares
    )

    def planned(more: int) -> Plan:
        steps = start + more
        return Plan(
            steps,
            config.eval_every or -(-steps // evaluations),
            config.checkpoint_every or -(-steps // checkpoints),
        )

    fits, too_many = 0, int(max(left, 0.0) / costs.step) + 1
    while too_many - fits > 1:
        more = (fits + too_many) // 2
        resolved = _resolved(config, planned(more))
        if seconds(costs, resolved, start) <= left:
            fits = more
        else:
            too_many = more
    if not fits:
        return None
    with_length(config, planned(fits)).with_durations(unlabeled_images)
    return planned(fits)


def _resolved(config: config_lib.Config, planned: Plan) -> config_lib.Config:
    """Returns flags of the planned length, whose warm-up is left out."""
    return dataclasses.replace(
        config.with_steps(planned.steps),
        eval_every=planned.eval_every,
        checkpoint_every=planned.checkpoint_every,
    ).with_durations(1)


def with_length(config: config_lib.Config, planned: Plan) -> config_lib.Config:
    """Returns the flags with the planned length of the run.

    Raises:
        InputError: The steps do not go together with other flags.
    """
    name = "measured_steps"
    if config.extend_minutes is not None:
        name = "extended_steps"
    return dataclasses.replace(
        config,
        **{name: planned.steps},
        eval_every=planned.eval_every,
        checkpoint_every=planned.checkpoint_every,
    )


def few_steps(
    config: config_lib.Config, planned: Plan, side: int, step: float
) -> str | None:
    """Says that a planned run is too short to learn much, and what would help.

    Args:
        config: The run's flags.
        planned: Its plan.
        side: Side of its images in pixels.
        step: Seconds of a step.

    Returns:
        None for a run of enough steps.
    """
    if planned.steps >= _FEW_STEPS:
        return None
    flag, value = minutes(config)
    # Of the rest, only evaluations and checkpoints grow with the steps.
    more = (_FEW_STEPS - planned.steps) * step * (1 + _BETWEEN_SHARE)
    enough = math.ceil(value + more / 60)
    least, multiple = (
        registry.networks.fact(config.backbone, name, 1)
        for name in ("min_side", "side_step")
    )
    half = side // 2 // multiple * multiple
    smaller = ""
    if half >= max(least, _LEAST_SIDE):
        smaller = f"--image_size={half}, whose steps take about a quarter; "
    return (
        f"{planned.steps} steps are few to learn from. More fit with {smaller}"
        f"a smaller --backbone than {config.backbone}; or {flag}={enough:g} "
        f"for about {_FEW_STEPS} steps"
    )


def minutes(config: config_lib.Config) -> tuple[str, float | None]:
    """Returns the flag that gives this session minutes, and its value."""
    if config.extend_minutes is not None:
        return "--extend_minutes", config.extend_minutes
    return "--minutes", config.minutes


def too_short(
    config: config_lib.Config, costs: Costs, around: float, steps: int
) -> InputError:
    """Returns the error of minutes that have no room for the least run.

    Args:
        config: The run's flags.
        costs: What each part takes.
        around: Seconds of all that comes before the first step.
        steps: Steps of the least run: 1, or of an extension those by which it
            becomes longer than the run.
    """
    flag, value = minutes(config)
    around += _RESERVE_SECONDS + costs.evaluation + 3 * costs.checkpoint
    needed = (around + steps * costs.step) * (1 + 2 * _RESERVE_SHARE)
    least = max(math.ceil(needed / 6) / 10, value + 0.1)
    what = "no time for a step"
    if config.extend_minutes is not None:
        what = (
            f"no time for the {steps} steps from before the cool-down by which "
            "the run would become longer"
        )
    return InputError(
        f"{flag}={value:g}: the start, the compilation, an evaluation and the "
        f"end of this run take {around:.0f} s here, a step {costs.step:.3g} s, "
        f"which leaves {what}: give at least {flag}={least:.1f}"
    )


def written(left: float) -> str:
    """Returns a duration, and the time of day when it is over."""
    now = time.time()
    end = time.localtime(now + left)
    text = time.strftime("%H:%M:%S", end)
    if end[:3] != time.localtime(now)[:3]:
        text = time.strftime("%Y-%m-%d %H:%M", end)
    return f"{_length(left)}, at about {text}"


def _length(seconds: float) -> str:
    """Writes a duration in the two largest units."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    total = round(seconds / 60)
    return f"{total // 60} h {total % 60:02} min"
