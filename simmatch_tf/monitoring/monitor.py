"""All that is watched while a run trains: scalars, speed and warnings."""

import collections
import contextlib
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import terminal
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.data import splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.monitoring import diagnosis, tensorboard_writer

# TensorBoard tag → the two shares whose quotient it is.
_QUOTIENTS = {
    "pseudo_label/accuracy": ("kept_right", "kept"),
    "pseudo_label/accuracy_all": ("right", "known"),
    "pseudo_label/sure": ("sure", "known"),
    "pseudo_label/sure_accuracy": ("sure_right", "sure"),
}
# The balance of classes is shown once there are this many pseudo-labels for
# each class on average.
_LABELS_PER_CLASS = 10


class Monitor:
    """Collects what steps and evaluations give, and writes it to TensorBoard.

    Attributes:
        scalars: All scalars of this session.
        writer: Writes to TensorBoard; nothing, if the run writes none.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: config_lib.Config,
        source: source_lib.Source,
        split: splits.Split,
        algorithm: algorithm_lib.Algorithm,
        *,
        writes: bool,
    ) -> None:
        """Opens the event file.

        Args:
            folder: Folder of the event files.
            config: The run's flags, with durations in steps.
            source: Its dataset.
            split: Its labeled images.
            algorithm: What is trained.
            writes: Whether anything is written.

        Raises:
            InputError: The file cannot be written.
        """
        self._config, self._algorithm = config, algorithm
        unlabeled = 0
        if algorithm.needs_unlabeled:
            unlabeled = config.batch_size * config.unlabeled_ratio
        counts = np.bincount(
            source.train.labels[split.labeled], minlength=source.num_classes
        )
        classes = diagnosis.Classes(
            tuple(map(str, source.class_names)),
            tuple(counts.tolist()),
            algorithm.class_prior,
        )
        self.scalars = Scalars(config, unlabeled, classes)
        self._speed = Speed(config.batch_size + unlabeled)
        self.writer = tensorboard_writer.TensorBoardWriter(
            folder, config, source, split, classes, writes=writes
        )

    def begin(self, step: int) -> None:
        """Writes what the run is, at its start (`step` 0)."""
        if not step:
            self.writer.describe()

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """Leaves the time of the body out of the training speed."""
        return self._speed.paused()

    def log(
        self,
        step: int,
        metrics: Mapping[str, tf.Tensor],
        shown: diagnostics.Diagnostics | None,
        waited: float,
    ) -> dict[str, float]:
        """Keeps and writes the scalars of a step.

        Args:
            step: Steps done.
            metrics: What the last of them returned.
            shown: Diagnostics of the last step, if it was logged with them.
            waited: Seconds spent waiting for batches since the session began.

        Returns:
            TensorBoard tag → value.
        """
        rate = self._algorithm.learning_rate(step - 1)
        values = self.scalars.of_step(metrics, shown.means if shown else None)
        values["learning_rate"] = float(rate)
        looped = self._config.steps_per_loop > 1
        values |= self._speed.measure(step, None if looped else waited)
        self.keep(step, values)
        return values

    def keep(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps and writes scalars: TensorBoard tag → value."""
        self.scalars.keep(step, values)
        self.writer.scalars(step, values)

    def picture(self, step: int, shown: diagnostics.Diagnostics | None) -> None:
        """Writes pictures and histograms of a logged step, and the memory."""
        if shown is None:
            return
        self.writer.histograms(step, shown.means, self.scalars.classes)
        self.writer.picture(step, shown)
        memory = getattr(self._algorithm, "memory", None)
        if memory is not None:
            self.writer.memory(memory)


class Scalars:
    """The scalars of a session, and what they tell.

    Attributes:
        values: TensorBoard tag → step → value.
        classes: Share of each class in recent pseudo-labels [L], or None.
    """

    def __init__(
        self,
        config: config_lib.Config,
        unlabeled: int,
        classes: diagnosis.Classes | None = None,
    ) -> None:
        """Starts with no values.

        Args:
            config: The run's flags, with durations in steps.
            unlabeled: Unlabeled images of a step; 0 without.
            classes: The classes; None: their shares are not kept.
        """
        self._config, self._unlabeled = config, unlabeled
        self._classes = classes
        self.values: dict[str, dict[int, float]] = {}
        self.classes: np.ndarray | None = None
        self._recent: collections.deque[tuple] | None = None
        self._told: set[str] = set()

    def keep(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the values of a step: TensorBoard tag → value."""
        for tag, value in values.items():
            self.values.setdefault(tag, {})[step] = value

    def of_step(
        self, metrics: Mapping[str, Any], means: Mapping[str, Any] | None
    ) -> dict[str, float]:
        """Computes the scalars of a step.

        Args:
            metrics: What the step returned.
            means: Means of its diagnostics, if it has any.

        Returns:
            TensorBoard tag → value. What has no value at this step, such as
            an accuracy of no images, is left out.
        """
        values = {name: float(value) for name, value in metrics.items()}
        for tag in [tag for tag in values if tag.startswith("loss/")]:
            name = tag.removeprefix("loss/")
            weight = getattr(self._config, f"lambda_{name}", None)
            if weight is not None:
                # A method whose weight is not constant says it itself.
                values.setdefault(f"loss/weighted_{name}", weight * values[tag])
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
            prior = self._classes and self._classes.prior
            values["alignment/divergence"] = divergence(
                means["predicted"], prior
            )
        if "confidences" in means:
            values[diagnosis.QUARTILE] = quartile(means["confidences"])
        if "classes" in means and self._add(means):
            balance = math.exp(-divergence(self.classes))
            values["pseudo_label/balance"] = balance
            if self._classes and len(self.classes) <= diagnosis.MOST_SHARES:
                for tag, shares in self._recent_shares().items():
                    for name, share in zip(
                        self._classes.names, shares, strict=True
                    ):
                        values[f"{tag}{name}"] = float(share)
        return values

    def _add(self, means: Mapping[str, np.ndarray]) -> bool:
        """Adds a step's shares of classes; returns whether they are enough."""
        shares = means["classes"]
        if self._recent is None:
            labels = _LABELS_PER_CLASS * len(shares)
            self._recent = collections.deque(
                maxlen=-(-labels // self._unlabeled)
            )
        # A method's own diagnostics need not have the second.
        self._recent.append((shares, means.get("used")))
        self.classes = np.mean([shares for shares, _ in self._recent], axis=0)
        return len(self._recent) == self._recent.maxlen

    def _recent_shares(self) -> dict[str, np.ndarray]:
        """Returns how a tag begins → shares of the classes [L]."""
        shares = {diagnosis.SHARES: self.classes}
        used = [used_shares for _, used_shares in self._recent]
        if all(used_shares is not None for used_shares in used):
            shares[diagnosis.USED] = np.mean(used, axis=0)
        return shares

    def imbalance(self) -> str:
        """Returns a line on unequally many labels, "" if a warning says so."""
        if self._classes is None or "unequal_labels" in self._told:
            return ""
        return diagnosis.imbalance(self._classes)

    def findings(
        self,
        step: int,
        config: config_lib.Config | None = None,
        images: int | None = None,
    ) -> list[diagnosis.Finding]:
        """Returns known problems that show by now, each once a session.

        Args:
            step: Steps done.
            config: The run's flags as they were given, for the advice; by
                default those with durations in steps.
            images: Number of images that the result is measured on.
        """
        judged = diagnosis.judge(
            config or self._config,
            self.values,
            step=step,
            steps=self._config.steps,
            classes=self._classes,
            images=images,
        )
        findings = filter(None, judged.values())
        new = [each for each in findings if each.name not in self._told]
        self._told |= {each.name for each in new}
        return new


def quartile(shares: np.ndarray) -> float:
    """Returns the largest edge of a histogram that a quarter lies above.

    Args:
        shares: Shares in equal bins of [0, 1], [bins]; they sum to 1.
    """
    above = np.cumsum(np.asarray(shares, np.float64)[::-1])[::-1]
    return int(np.flatnonzero(above >= 0.25 - 1e-6)[-1]) / len(above)


def divergence(p: np.ndarray, prior: Sequence[float] | None = None) -> float:
    """Returns how far a distribution is from another: KL(p ‖ π), in nats.

    Args:
        p: Probabilities [L].
        prior: π [L], above 0; None: 1 / L, the uniform distribution.

    Returns:
        0 if they are equal, else above 0. From the uniform distribution it is
        at most log L, and exp(-KL) · L is the number of equally likely classes
        that would be as uneven.
    """
    p = np.asarray(p, np.float64)
    ratio = p * len(p) if prior is None else p / np.asarray(prior)
    positive = p > 0
    return float(np.sum(p[positive] * np.log(ratio[positive])))


class Speed:
    """Images a second and the share of time spent waiting for batches."""

    def __init__(self, images: int) -> None:
        """Starts at the first `measure`, so that start-up does not count.

        Args:
            images: Labeled and unlabeled images of a step.
        """
        self._images = images
        self._step: int | None = None
        self._began = self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out the body's time: that of evaluations and checkpoints."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._paused += time.monotonic() - began

    def measure(self, step: int, waited: float | None) -> dict[str, float]:
        """Returns the speed since the last call, by tag; {} at the first.

        Args:
            step: Steps done.
            waited: Seconds waited for batches so far; None if not known.
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


class Profile:
    """Profiles steps START + 1 … START + COUNT of --profile=START:COUNT."""

    def __init__(
        self, flag: str | None, folder: pathlib.Path, done: int = 0
    ) -> None:
        """Reads the flag.

        Args:
            flag: START:COUNT, or None.
            folder: Folder of the event files.
            done: Steps done before; those are not profiled any more.
        """
        self._folder, self._running = str(folder), False
        self._start = self._stop = -1
        if flag is not None:
            start, count = config_lib.profiled_steps(flag)
            self._start, self._stop = start, start + count
            if start < done:
                terminal.warn(
                    f"--profile={flag}: {done} steps are done already; nothing "
                    "is profiled"
                )
                self._start = self._stop = -1

    def until_next(self, step: int) -> int:
        """Returns the number of steps until `at` has something to do."""
        left = [n - step for n in (self._start, self._stop) if n > step]
        return min(left, default=2**62)

    def at(self, step: int) -> None:
        """Starts or stops the profiler, when `step` steps are done."""
        if step == self._start and not self._running:
            tf.profiler.experimental.start(self._folder)
            self._running = True
        elif self._running and step >= self._stop:
            self.close()

    def close(self) -> None:
        """Stops the profiler, which writes its files."""
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
            terminal.say(f"profile written to {self._folder}")
