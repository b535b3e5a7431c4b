"""The baselines of a run, measured by a process of their own.

The run reads the images, `evaluation.baselines` measures in a process of lower
priority, and writes baselines.json into the run's folder. Runs on the same
images, labels and first weights share what one of them has measured, through
the cache folder. A run never fails because of its baselines.

The process works while the run trains. With --init_from the run waits for it
before its first step instead: a classifier on the first weights is a model that
can be used, and is kept as baseline.keras.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import IO, Any

import keras
import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf import signals, terminal
from simmatch_tf.data import cache, fingerprint, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.evaluation import baselines, metrics, pixels
from simmatch_tf.flags import errors
from simmatch_tf.networks import network
from simmatch_tf.training import workdir as workdir_lib

# How long a run waits for its baselines, before its first step or at its end.
PATIENCE_SECONDS = 300
_POLL_SECONDS = 0.1


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
        first_weights: Whether those on the features of the first weights are
            among them.
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
        # Those of a run are those of its extension.
        self._home = folder.extends or folder
        self._output = self._home.baselines
        self._source, self._split, self._scored = source, split, scored
        self._process: subprocess.Popen | None = None
        self._errors: IO[bytes] | None = None
        self._told = self._warned = False
        self.first_weights = config.init_from is not None
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
        if self.first_weights:
            first_weights = (
                self._digest_of_weights(),
                config.backbone,
                config.precision,
                dataclasses.asdict(config.network),
                self._source.num_classes,
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

    def _digest_of_weights(self) -> str | None:
        """Returns what tells the weights of --init_from from others."""
        if self._folder.resumed():  # they may be gone, or have changed
            try:
                files = fingerprint.read(self._folder.data).files
            except (OSError, ValueError):  # an imported run
                files = {}
        else:
            files = fingerprint.of_flags(self._config).files
        return files.get("--init_from", (0, 0, self._config.init_from))[2]

    @functools.cached_property
    def _cache(self) -> pathlib.Path | None:
        """Path of the file that other runs share, or None."""
        return cache.path(f"baselines-{self._key}.json")

    # ---------------------------------------------------------- beginning --
    def expected(self) -> bool:
        """Returns whether they are to be measured beside training.

        It is asked before the run begins, and before it is known how long it
        takes. Those of a run with first weights are known by then.
        """
        if not self._config.baselines or self.left_out is not None:
            return False
        if self._config.init_from:
            return False
        return self._cache is None or not self._cache.is_file()

    def missing(self) -> bool:
        """Returns whether they are to be measured: not left out, not known."""
        if not self._config.baselines or self.left_out is not None:
            return False
        if self.measured is None and self.failure is None:
            self.measured = self._in_folder() or self._in_cache()
        return self.measured is None and self.failure is None

    def _in_folder(self) -> list[baselines.Baseline] | None:
        """Returns those in the run's folder, if nothing of them is missing."""
        if self._folder.anew:  # they are another run's
            return None
        measured = baselines.read(self._home.baselines, self._key)
        # Once the model is written, its classifier is not needed any more.
        if self.first_weights and not self._home.baseline.is_file():
            return measured if baselines.has_classifier(measured) else None
        return measured

    def _in_cache(self) -> list[baselines.Baseline] | None:
        """Returns those of another run, if nothing of them is missing."""
        if self._cache is None:
            return None
        measured = baselines.read(self._cache, self._key)
        if self.first_weights and not baselines.has_classifier(measured):
            return None
        return measured

    def without_first_weights(self) -> None:
        """Leaves out those on the first weights, which are gone."""
        self.first_weights = False
        for name in ("_key", "_cache"):
            self.__dict__.pop(name, None)

    def store(self) -> None:
        """Writes baselines.json, if they are known and it is not there.

        Raises:
            InputError: It cannot be written.
        """
        if self.measured is None or self._in_folder() is not None:
            return
        if self.first_weights:
            # It is never that of other baselines than the file tells of.
            with contextlib.suppress(OSError):  # nor can the other be
                self._home.baseline.unlink(missing_ok=True)
        baselines.write(self._home.baselines, self._key, self.measured)

    def measure(
        self, features: Sequence[np.ndarray] | None, request: signals.Request
    ) -> None:
        """Measures them now; nothing is written into the run's folder.

        Args:
            features: See `start`.
            request: The signals that come.

        Raises:
            InputError: An image cannot be read.
            Interrupted: A signal came.
        """
        self._output = self._folder.measuring / "baselines.json"
        try:
            with contextlib.suppress(OSError):  # then the process fails
                self._folder.measuring.mkdir(exist_ok=True)
            self.start(features)
            self.wait(request, before=True)
        finally:
            self.close()
            shutil.rmtree(self._folder.measuring, ignore_errors=True)

    def start(self, features: Sequence[np.ndarray] | None = None) -> None:
        """Reads the images and starts the process.

        Args:
            features: What the first weights make of the images of each of
                `sets`: float32 [K, D] and [n, D].

        Raises:
            InputError: An image cannot be read.
        """
        arrays = {"remark": np.array(self.choice.remark)}
        if self._scored[0] is not None:
            arrays["scored_on"] = np.array(self._scored[0])
        if features is not None:
            arrays["classes"] = np.array(self._source.num_classes)
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
            f"--output={self._output.absolute()}",
            f"--key={self._key}",
            f"--parent={os.getpid()}",
            *["--keeps"] * (features is not None),
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
        resize = self._config.eval_resize
        batches = pixels.read(
            images,
            indices,
            resize=resize and resize / self._source.image_shape[0],
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
        path = self._output
        if status < 0:
            self.failure = f"their process was {signals.killed_by(-status)}"
        elif status:
            lines = text.splitlines() or [f"it ended with status {status}"]
            self.failure = f"their process failed: {lines[-1]}"
        elif (measured := baselines.read(path, self._key)) is not None:
            self.measured = measured
        else:
            self.failure = f"{path} is damaged or missing"

    def news(self) -> list[str]:
        """Returns lines on the baselines, once, when they are known."""
        self.poll()
        if self._told or self.measured is None:
            return []
        self._told = True
        figures = ", ".join(f"{b.name} {b.top1:.2%}" for b in self.measured)
        name = self._scored[0]
        count = len(self.measured[0].right)
        lines = [f"baselines on {count} {name} images: {figures}"]
        on = f"on {count:,} {name} images"
        if name is None:
            lines = [
                f"baselines by cross-validation on {count} labels: {figures}"
            ]
            on = f"by cross-validation on {count:,} labels"
        if (frozen := baselines.kept(self.measured)) is not None:
            ends = (frozen.top1, *frozen.summary()["interval"])
            top1, low, high = (100 * end for end in ends)
            kept = f"; kept: predict --weights={workdir_lib.BASELINE}"
            lines.append(
                f"frozen features, {baselines.KEPT}: {top1:.1f} % "
                f"[{low:.1f}, {high:.1f}] {on}"
                + kept
                * self._home.baseline.is_file()
            )
        return lines

    def to_keep(self) -> bool:
        """Returns whether baseline.keras is to be written, and is not there."""
        return (
            baselines.has_classifier(self.measured)
            and not self._home.baseline.is_file()
        )

    def keep(self, first: keras.Model) -> None:
        """Writes baseline.keras: the baseline on the first weights, as a model.

        If it cannot be written, a warning says why.

        Args:
            first: A network with the first weights.
        """
        classifier = baselines.kept(self.measured).classifier
        path = self._home.baseline
        try:
            network.save(
                network.with_linear_classifier(
                    first, **vars(classifier), most=baselines.MOST_DEVIATIONS
                ),
                path,
                self._source.class_names,
            )
            # What is left of it is in the model.
            arrays = baselines.arrays_path(self._home.baselines)
            arrays.unlink(missing_ok=True)
        # Keras lets through whatever a layer's get_config raises.
        except Exception as error:
            reason = getattr(error, "strerror", "") or errors.reason(error)
            terminal.warn(
                f"{path}: cannot be written ({reason}), so the "
                "baseline cannot be used by predict and export; the run goes "
                "on, and started again it tries once more"
            )

    def wait(self, request: signals.Request, *, before: bool = False) -> None:
        """Waits for the process, if it has not ended yet.

        Args:
            request: The signals that come.
            before: Whether it is before the first step, not after the last.

        Raises:
            Interrupted: A signal came. They are measured when the run is
                started again.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        self.poll()
        if self._process is not None and not before:
            terminal.say("waiting for the baselines")
        while self._process is not None:
            if request.signal and before:
                raise signals.Interrupted(
                    f"{request.signal} while the baselines were measured; "
                    "nothing is lost: start it again, or with --nobaselines "
                    "to go on without them"
                )
            if request.signal:
                raise signals.Interrupted(
                    f"{request.signal} while waiting for the baselines; all "
                    f"steps are saved in {self._folder.path}: start it again "
                    "to go on, or with --nobaselines to end without them"
                )
            if time.monotonic() > end:
                self.close()
                when = "they began" if before else "the last step"
                self.failure = (
                    f"they were not ready {PATIENCE_SECONDS} s after {when}"
                )
                break
            time.sleep(_POLL_SECONDS)
            self.poll()
        if self.failure is not None and not self._warned:
            self._warned = True
            rest = (
                "the run goes on without them"
                if before
                else "the result itself is whole"
            )
            terminal.warn(
                f"there are no baselines beside the result, because "
                f"{self.failure}; {rest}"
            )

    def close(self) -> None:
        """Ends the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._errors is not None:
            self._errors.close()

    def outcome(
        self,
        right: Sequence[bool] | None,
        further: Sequence[baselines.Baseline] = (),
    ) -> Outcome:
        """Returns what results.json says.

        Args:
            right: Whether the model is right, for each image that the result
                is measured on; None: there are no such images.
            further: Further baselines, of the same images.
        """
        measured = list(self.measured or ())
        if right is not None:
            own = np.asarray(right)[self.choice.scored]
            measured += [
                baselines.Baseline(each.name, each.right[self.choice.scored])
                for each in further
            ]
        entries = [each.summary() for each in measured]
        if not entries or right is None:
            return Outcome(entries, None)
        best = max(measured, key=lambda each: each.top1)
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
