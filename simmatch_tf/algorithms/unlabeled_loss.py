"""Weight of the loss on unlabeled images: its flags, and its ramp.

References:
    Laine and Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR
    2017, https://arxiv.org/abs/1610.02242. Berthelot et al., "MixMatch: A
    Holistic Approach to Semi-Supervised Learning", NeurIPS 2019,
    https://arxiv.org/abs/1905.02249, ramps linearly.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from simmatch_tf.flags import commandline, errors
from simmatch_tf.flags.commandline import flag, rare
from simmatch_tf.ops import schedules

if TYPE_CHECKING:
    from simmatch_tf import config as config_lib
    from simmatch_tf.algorithms import algorithm
    from simmatch_tf.lazy import tf


@dataclasses.dataclass(frozen=True)
class Weight(commandline.HyperParameters):
    """Flag of every method that has one loss on unlabeled images."""

    prefix = ""

    lambda_u: float = flag(
        1.0, "Weight of the loss on unlabeled images.", low=0, high=1e6
    )


@dataclasses.dataclass(frozen=True)
class RampedWeight(Weight):
    """Flags of methods whose weight grows from 0 at the start.

    Attributes:
        ramp_share: Share of the run's steps that --ramp_steps is by default.
    """

    prefix = ""
    ramp_share: ClassVar[float] = 0.4

    ramp_steps: int | None = rare(
        None,
        "Steps in which the weight of the loss on unlabeled images grows "
        "linearly to --lambda_u; 0 for none. Default: the published share of "
        "the run's steps.",
        low=0,
    )

    def check_run(self, config: config_lib.Config) -> None:
        """Checks that the ramp's length is known where the run's is not."""
        super().check_run(config)
        if self.ramp_steps is None:
            check_length_known(config, "ramp_steps", 500)

    def notes(self, steps: int) -> list[str]:
        """Says so if the ramp does not end before the run."""
        if self.ramp_steps is None or self.ramp_steps < steps:
            return []
        return [
            f"--ramp_steps={self.ramp_steps}: the weight of the loss on "
            "unlabeled images reaches "
            f"{self.lambda_u * steps / self.ramp_steps:.2g}, not --lambda_u="
            f"{self.lambda_u:g}, in the {steps} steps of this run"
        ]

    def ramp(self, method: algorithm.Algorithm) -> tf.Tensor:
        """Returns r(k) = min(1, k / k₀) of a method's step, in [0, 1]."""
        steps = self.ramp_steps
        if steps is None:
            steps = self.ramp_share * method.config.steps
        return schedules.ramp(method.step, steps=steps, dtype=method.dtype)


def check_length_known(
    config: config_lib.Config, name: str, example: int
) -> None:
    """Refuses a flag's default that depends on the length of the run.

    Args:
        config: The run's flags.
        name: The flag, which was left out.
        example: A value to name.

    Raises:
        InputError: --schedule=cooldown, with which a run can be extended.
    """
    if config.schedule == "cooldown":
        raise errors.InputError(
            f"--{name} is missing: its default depends on the length of the "
            "run, on which no step of --schedule=cooldown may depend; give "
            f"--{name}={example}, or another --schedule"
        )
