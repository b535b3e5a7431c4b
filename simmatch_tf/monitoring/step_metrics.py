"""A run's figures: from what steps give to tags and numbers.

Nothing here imports TensorFlow.
"""

import collections
import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf.monitoring import diagnosis

# Tag → the quotient that it is of two shares.
_QUOTIENTS = {
    "pseudo_label/accuracy": ("kept_right", "kept"),
    "pseudo_label/accuracy_all": ("right", "known"),
    "pseudo_label/sure": ("sure", "known"),
    "pseudo_label/sure_accuracy": ("sure_right", "sure"),
}
# Pseudo-labels of a class, on average, that tell how balanced the classes are.
_A_CLASS = 10


class Figures:
    """All scalars of this session, and what they say.

    Attributes:
        scalars: TensorBoard tag → step → value.
        classes: Share of each class in the last pseudo-labels [L], or None.
    """

    def __init__(self, config: config_lib.Config, unlabeled: int) -> None:
        """Starts with none.

        Args:
            config: The run's, with its durations in steps.
            unlabeled: Unlabeled images a step; 0 without.
        """
        self._config, self._unlabeled = config, unlabeled
        self.scalars: dict[str, dict[int, float]] = {}
        self.classes: np.ndarray | None = None
        self._recent: collections.deque[np.ndarray] | None = None
        self._told: set[str] = set()

    def keep(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps scalars of a step."""
        for tag, value in values.items():
            self.scalars.setdefault(tag, {})[step] = value

    def of_step(
        self, metrics: Mapping[str, Any], means: Mapping[str, Any] | None
    ) -> dict[str, float]:
        """The scalars of a step.

        Args:
            metrics: What the step returned.
            means: Those of its diagnostics, or None.

        Returns:
            Tag → value. What has no value at this step is left out: an
            accuracy of no image.
        """
        values = {name: float(value) for name, value in metrics.items()}
        for name in ("u", "in"):
            if f"loss/{name}" in values:
                weight = getattr(self._config, f"lambda_{name}")
                weighted = weight * values[f"loss/{name}"]
                values[f"loss/weighted_{name}"] = weighted
        means = {name: np.asarray(x) for name, x in (means or {}).items()}
        values |= {
            tag: float(mean)
            for tag, mean in means.items()
            if "/" in tag and not mean.ndim
        }
        for tag, (part, whole) in _QUOTIENTS.items():
            if means.get(whole, 0) > 0:
                values[tag] = float(means[part] / means[whole])
        if "predicted" in means:
            values["alignment/divergence"] = divergence(means["predicted"])
        if "classes" in means and self._add(means["classes"]):
            balance = math.exp(-divergence(self.classes))
            values["pseudo_label/balance"] = balance
        return values

    def _add(self, shares: np.ndarray) -> bool:
        """Adds a step's shares of classes; whether there are enough now."""
        if self._recent is None:
            steps = -(-_A_CLASS * len(shares) // self._unlabeled)
            self._recent = collections.deque(maxlen=steps)
        self._recent.append(shares)
        self.classes = np.mean(self._recent, axis=0)
        return len(self._recent) == self._recent.maxlen

    def findings(self, step: int) -> list[diagnosis.Finding]:
        """Patterns that show by now and were not told yet."""
        config = self._config
        found = diagnosis.find(
            config, self.scalars, step=step, steps=config.steps
        )
        found = [each for each in found if each.name not in self._told]
        self._told |= {each.name for each in found}
        return found


def divergence(p: np.ndarray) -> float:
    """How far a distribution [L] is from uniform: KL(p ‖ 1/L), in nats.

    From 0 (uniform) to log L; exp(-KL) · L is the number of classes that, all
    as likely, would be as uneven.
    """
    p = np.asarray(p, np.float64)
    there = p[p > 0]
    return float(np.sum(there * np.log(there * len(p))))


class Speed:
    """Images a second and the share of time spent waiting, between logs."""

    def __init__(self, images: int) -> None:
        """Starts with the first `measure`: what is before is start-up.

        Args:
            images: Labeled and unlabeled ones of a step.
        """
        self._images = images
        self._step: int | None = None
        self._began = self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what is no training: evaluation, checkpoints."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began

    def measure(self, step: int, waited: float | None) -> dict[str, float]:
        """The speed since the last call, by tag; nothing at the first.

        Args:
            step: Steps done.
            waited: Seconds waited for batches, all in all; None: not known.
        """
        now, values = time.monotonic(), {}
        if self._step is not None and step > self._step:
            seconds = max(now - self._began - self._paused, 1e-9)
            images = self._images * (step - self._step)
            values["speed/images_per_second"] = images / seconds
            if waited is not None:
                share = (waited - self._waited) / seconds
                values["speed/input_wait"] = min(1.0, share)
        self._step, self._began, self._paused = step, now, 0.0
        self._waited = waited or 0.0
        return values
