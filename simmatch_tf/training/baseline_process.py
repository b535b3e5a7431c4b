"""The baselines of a run, measured by a process of their own while it trains.

The run reads the images, `evaluation.baselines` measures in a process of lower
priority, and writes baselines.json into the run's folder. Runs on the same
images, labels and first weights share what one of them has measured, through
the cache folder. A run never fails because of its baselines.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf import signals, terminal
from simmatch_tf.data import cache, fingerprint, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.evaluation import baselines, evaluator, metrics
from simmatch_tf.training import workdir as workdir_lib

# How long a run that has ended waits for its baselines.
PATIENCE_SECONDS = 300
_POLL_SECONDS = 0.1
_BATCH_SIZE = 256  # images that are read at once


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What results.json says of the baselines.

    Attributes:
        baselines: {"name", "top1", "interval"} of each.
        lead: What the model is ahead of the best of them: {"over", "images",
            "top1", "interval"}; None where there is none.
    """

    baselines: list[dict[str, Any]]
    lead: dict[str, Any] | None


class Baselines:
    """The baselines of a run: known already, or measured by a process.

    All methods but `choice` are for the chief.

    Attributes:
        choice: The images that they learn from and are scored on.
        left_out: Why there are to be none; None if there are to be some.
        measured: The baselines; None until they are known.
        failure: Why they could not be measured, once that is known.
    """

    def __init__(
        self,
        config: config_lib.Config,
        folder: workdir_lib.Workdir,
        source: source_lib.Source,
        split: splits.Split,
        scored: tuple[
            str | None, source_lib.Images | source_lib.Encoded, np.ndarray
        ],
    ) -> None:
        """Names the images; nothing is read or started.

        Args:
            config: The run's flags.
            folder: Its folder.
            source: Its images.
            split: Which of them are labeled.
            scored: Those that its result is measured on, if there are any; see
                `inputs.scored_images`.
        """
        self._config, self._folder = config, folder
        self._source, self._split, self._scored = source, split, scored
        self._process: subprocess.Popen | None = None
        self._errors: IO[bytes] | None = None
        self._told = False
        self.measured: list[baselines.Baseline] | None = None
        self.failure: str | None = None
        self.left_out = baselines.left_out(
            self._labels, source.num_classes, len(scored[2])
        )

    @property
    def running(self) -> bool:
        """Whether their process ran when it was last asked."""
        return self._process is not None

    @property
    def _labels(self) -> np.ndarray:
        return self._source.train.labels[self._split.labeled]

    @functools.cached_property
    def choice(self) -> baselines.Choice:
        """The images that baselines learn from and are scored on."""
        return baselines.choose(self._labels, len(self._scored[2]))

    @property
    def labeled(self) -> np.ndarray:
        """Indices of the training images that they learn from."""
        return self._split.labeled[self.choice.labeled]

    @property
    def scored(self) -> np.ndarray:
        """Indices of the images that they are scored on."""
        return self._scored[2][self.choice.scored]

    @property
    def sets(self) -> tuple[tuple[Any, np.ndarray], ...]:
        """Images and indices of what they learn from and are scored on.

        In cross-validation that is one set.
        """
        learned = self._source.train, self.labeled
        if self._scored[0] is None:
            return (learned,)
        return learned, (self._scored[1], self.scored)

    @functools.cached_property
    def _key(self) -> str:
        """A digest of all that they are computed from; no image is read."""
        config, (name, images, indices) = self._config, self._scored
        first_weights = None
        if config.init_from:
            try:
                files = fingerprint.read(self._folder.data).files
            except (OSError, ValueError):  # an imported run
                files = {}
            first_weights = (
                files.get("--init_from", (0, 0, None))[2],
                config.backbone,
                config.precision,
            )
        arrays = (self._split.labeled, self._labels)
        arrays += (indices, images.labels[indices])
        return baselines.key(
            self._source.identity(),
            self._source.image_shape,
            config.eval_resize,
            name,
            *(
                hashlib.sha256(np.asarray(a, "<i8").tobytes()).hexdigest()
                for a in arrays
            ),
            first_weights,
            *map(importlib.metadata.version, ("scikit-image", "scikit-learn")),
        )

    @functools.cached_property
    def _cache(self) -> Any:
        """Path of the file that other runs share, or None."""
        return cache.path(f"baselines-{self._key}.json")

    # ---------------------------------------------------------- beginning --
    def expected(self) -> bool:
        """Returns whether they are to be measured, as far as is known.

        It is asked before the run begins. With first weights, only a run that
        has begun knows whether another one has measured the same.
        """
        if not self._config.baselines or self.left_out is not None:
            return False
        if self._config.init_from or self._cache is None:
            return True
        return not self._cache.is_file()

    def missing(self) -> bool:
        """Returns whether they are to be measured: not left out, not known."""
        if not self._config.baselines or self.left_out is not None:
            return False
        path = self._folder.baselines
        self.measured = baselines.read(path, self._key)
        if self.measured is None and self._cache is not None:
            self.measured = baselines.read(self._cache, self._key)
            if self.measured is not None:
                baselines.write(path, self._key, self.measured)
        return self.measured is None

    def start(self, features: Sequence[np.ndarray] | None = None) -> None:
        """Reads the images and starts the process.

        Args:
            features: What the first weights make of the images of each of
                `sets`: float32 [K, D] and [n, D].

        Raises:
            InputError: An image cannot be read.
        """
        arrays = {"remark": np.array(self.choice.remark)}
        with signals.at_once("the images for the baselines"):
            for number, (images, indices) in enumerate(self.sets):
                prefix = "scored_" * number
                arrays[f"{prefix}images"] = self.pixels(images, indices)
                arrays[f"{prefix}labels"] = images.labels[indices]
                if features is not None:
                    arrays[f"{prefix}features"] = features[number]
        command = [
            *(sys.executable, "-P", "-W", "ignore"),
            *("-m", "simmatch_tf.evaluation.baselines"),
            f"--output={self._folder.baselines.absolute()}",
            f"--key={self._key}",
            f"--parent={os.getpid()}",
        ]
        if self._cache is not None:
            command.append(f"--cache={self._cache.absolute()}")
        # The modules that this process has, wherever it has them from.
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        try:
            # Without a name: it is gone when both processes are.
            with tempfile.TemporaryFile(dir=self._folder.path) as file:
                np.savez(file, **arrays)
                file.seek(0)
                self._errors = tempfile.TemporaryFile(dir=self._folder.path)
                self._process = subprocess.Popen(
                    command,
                    stdin=file,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    env={**os.environ, "PYTHONPATH": paths},
                    # Ctrl-C is for the run, which stops it.
                    start_new_session=True,
                )
        except (OSError, TypeError) as error:
            self.failure = f"their process cannot be started ({error})"

    def pixels(
        self, images: source_lib.Images | source_lib.Encoded, indices: Any
    ) -> np.ndarray:
        """Reads images as the baselines see them.

        Args:
            images: The images to choose from.
            indices: Which of them, [n], n ≥ 1.

        Returns:
            uint8 [n, H, W, C], of the part of an image that is evaluated.

        Raises:
            InputError: An image cannot be read.
        """
        if not images.encoded:
            return images.images[indices]
        resize = self._config.eval_resize
        if resize is not None:
            side = self._source.image_shape[0]
            resize = round(baselines.SIDE * resize / side)
        batches = evaluator.outputs(
            lambda batch: batch,
            images,
            indices,
            batch_size=_BATCH_SIZE,
            side=baselines.SIDE,
            resize=resize,
            parallel_calls=self._config.parallel_calls,
            when="for the baselines",
        )
        return np.concatenate(list(batches))

    # ------------------------------------------------------------- ending --
    def poll(self) -> None:
        """Reads what the process has measured, if it has ended."""
        if self._process is None or self._process.poll() is None:
            return
        status, self._process = self._process.returncode, None
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        self._errors.close()
        path = self._folder.baselines
        if status < 0:
            self.failure = f"their process was {signals.killed_by(-status)}"
        elif status:
            lines = text.splitlines() or [f"it ended with status {status}"]
            self.failure = f"their process failed: {lines[-1]}"
        elif (measured := baselines.read(path, self._key)) is not None:
            self.measured = measured
        else:
            self.failure = f"{path} is damaged or missing"

    def news(self) -> str | None:
        """Returns a line on the baselines, once, when they are known."""
        self.poll()
        if self._told or self.measured is None:
            return None
        self._told = True
        figures = ", ".join(f"{b.name} {b.top1:.2%}" for b in self.measured)
        name = self._scored[0]
        if name is None:
            count = len(self.measured[0].right)
            return f"baselines by cross-validation on {count} labels: {figures}"
        return f"baselines on {len(self.scored)} {name} images: {figures}"

    def wait(self, request: signals.Request) -> None:
        """Waits for the process, if it has not ended yet.

        Args:
            request: The signals that come.

        Raises:
            Interrupted: A signal came. They are measured when the run is
                started again.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        self.poll()
        if self._process is not None:
            terminal.say("waiting for the baselines")
        while self._process is not None:
            if request.signal:
                raise signals.Interrupted(
                    f"{request.signal} while waiting for the baselines; all "
                    f"steps are saved in {self._folder.path}: start it again "
                    "to go on, or with --nobaselines to end without them"
                )
            if time.monotonic() > end:
                self.close()
                self.failure = (
                    f"they were not ready {PATIENCE_SECONDS} s after the last "
                    "step"
                )
                break
            time.sleep(_POLL_SECONDS)
            self.poll()
        if self.failure is not None:
            terminal.warn(
                f"there are no baselines beside the result, because "
                f"{self.failure}; the result itself is whole"
            )

    def close(self) -> None:
        """Ends the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._errors is not None:
            self._errors.close()

    def outcome(self, right: Sequence[bool] | None) -> Outcome:
        """Returns what results.json says.

        Args:
            right: Whether the model is right, for each image that the result
                is measured on; None: there are no such images.
        """
        entries = [each.summary() for each in self.measured or ()]
        if not entries or right is None:
            return Outcome(entries, None)
        best = max(self.measured, key=lambda each: each.top1)
        own = np.asarray(right)[self.choice.scored]
        lead, interval = metrics.lead(own, best.right)
        return Outcome(
            entries,
            {
                "over": best.name,
                "images": len(own),
                "top1": lead,
                "interval": list(interval),
            },
        )
