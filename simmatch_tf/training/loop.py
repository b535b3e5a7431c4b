"""The training loop: from flags to a result, in one place."""

import contextlib
import dataclasses
import functools
import gc
import hashlib
import importlib.metadata
import math
import time
from collections.abc import Iterator, Mapping

import keras
import numpy as np

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, runtime, signals, terminal
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.data import fingerprint, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies, workers
from simmatch_tf.evaluation import baselines, evaluator, metrics
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.modules import guard as guard_lib
from simmatch_tf.monitoring import monitor as monitor_lib
from simmatch_tf.networks import network
from simmatch_tf.training import (
    baseline_process,
    checkpoints,
    duration,
    extension,
    initial,
    inputs,
    labels_alone,
    measurement,
    progress,
    results,
    state,
)
from simmatch_tf.training import step as step_lib
from simmatch_tf.training import workdir as workdir_lib


def fit(
    config: config_lib.Config,
    *,
    source: source_lib.Source | None = None,
) -> results.Result:
    """Trains, or resumes the run in the workdir.

    Args:
        config: The run's flags.
        source: The images, for `dataset="custom"` and only for it.

    Returns:
        The result. That of a finished run is read, not computed again.

    Raises:
        InputError: A flag, a file or the machine does not allow the run.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint was written; or
            another worker has gone.
        FloatingPointError: A number is not finite; see --on_nonfinite.
    """
    began = time.monotonic()
    if config.describe:
        raise InputError("--describe: is for the command; fit trains")
    preflight.warn_of_kernels()
    runtime.check_exact()
    workdir_lib.Workdir(config.workdir).check_available(config)
    if (config.dataset == "custom") != (source is not None):
        raise InputError(
            f"--dataset={config.dataset}, and source is "
            f"{'not ' if source is None else ''}given: "
            'with dataset="custom", and only then, pass source= from Python'
        )
    with workdir_lib.claim(config) as folder:
        folder, config = extension.target(folder, config)
        if folder.finished():
            if source is not None and folder.data.is_file():
                folder.check_data(config, source.fingerprint())
            terminal.warn(
                f"{folder.path} holds a finished run: its result is read, "
                "nothing is trained; overwrite=True trains anew"
            )
        return fit_in(folder, config, source, began=began)


def fit_in(
    folder: workdir_lib.Workdir,
    config: config_lib.Config,
    source: source_lib.Source | None = None,
    *,
    began: float | None = None,
) -> results.Result:
    """Does the same as `fit` in a workdir that is already claimed.

    Args:
        folder: The folder, or that of the extension of its run.
        config: The flags of the run or of its extension.
        source: See `fit`.
        began: When the command began, by time.monotonic: --minutes count from
            there. Default: now.
    """
    began = time.monotonic() if began is None else began
    if folder.finished():
        if folder.unread:
            images = inputs.make_source(config).fingerprint()
            folder.check_data(config, images)
        return results.read(folder.results)
    runtime.keep_memory()
    with (
        runtime.pinned(),
        signals.watch() as request,
        workers.lost(config, folder.checkpoints),
    ):
        run = _Run(folder, config, source, request, began)
        with contextlib.closing(run.baselines):
            return run.train()


class _Run:
    """One session of a run, from its start or last checkpoint on."""

    def __init__(
        self,
        folder: workdir_lib.Workdir,
        config: config_lib.Config,
        source: source_lib.Source | None,
        request: signals.Request,
        began: float,
    ) -> None:
        self.folder, self.given = folder, config
        self.request, self.began = request, began
        # ---------------------------------------------------------- devices --
        # First: once TensorFlow has started, a CPU cannot be divided any more.
        self.strategy = strategies.make(config)
        self.workers = workers.Workers(self.strategy, config)
        resumed = bool(self.workers.agree(folder.resumed()))
        if not self.workers.chief:
            folder.anew = not resumed
        # ---------------------------------------------------- first weights --
        # Before all that takes long: they may have to be downloaded.
        self.published = None if resumed else self._published()
        # ------------------------------------------------------------- data --
        if source is None:
            self._say(f"reading the images of {config.dataset}")
        self.source, self.split, self.class_prior = self._read(source, resumed)
        self.scored = inputs.scored_images(self.source, self.split.validation)
        # -------------------------------------------------------- baselines --
        self.baselines = baseline_process.Baselines(
            config, folder, self.source, self.split, self.scored
        )
        self.first: keras.Model | None = None
        self.initial: str | None = None
        # ------------------------------------------------- the labels alone --
        self.alone = self._labels_alone() if config.labels_alone else ()
        # ----------------------------------------------------------- length --
        self.costs: duration.Costs | None = None
        self.flags = self._with_length()
        self.config = self.flags.with_durations(len(self.split.unlabeled))
        # -------------------------------------------------------- algorithm --
        self._say(f"building {config.backbone}")
        self.algorithm = self._make_algorithm(self.config, resumed)
        if config.init_from and not resumed:
            self.initial = self._initialize()
        # ---------------------------------------------------------- workdir --
        self.workers.by_chief(lambda: self._begin(self.flags))
        self.workers.same_folder(folder.path, (folder.flagfile, folder.split))
        data = splits.identity(self.source.class_names, self.split.labeled)
        self.checkpoints = checkpoints.Checkpoints(
            folder.checkpoints, self.algorithm, data, self.config.keep
        )
        self.before_cooldown = checkpoints.Checkpoints(
            folder.cooldown, self.algorithm, data, keep=1
        )
        # ---------------------------------------- evaluation and monitoring --
        self.evaluator = self._make_evaluator(
            self.config, self.algorithm.networks()
        )
        self.monitor = monitor_lib.Monitor(
            folder.tensorboard,
            self.config,
            self.source,
            self.split,
            self.algorithm,
            writes=self.config.summaries and self.workers.chief,
        )
        self.accuracy: dict[str, dict[str, float]] = {}
        self.calibration: dict[str, dict[str, float | None]] = {}
        self.right: np.ndarray | None = None

    def _published(self) -> list[np.ndarray] | None:
        """Fetches the weights that the backbone's library has published.

        Returns:
            None if the run does not start from these.
        """
        config = self.given
        if config.init_from != config_lib.PUBLISHED:
            return None
        self._say(f"fetching the published weights of {config.backbone}")
        return self.workers.by_each(lambda: initial.fetch(config.backbone))

    def _initialize(self) -> str:
        """Fills the networks with the first weights; says which those are."""
        config, fit = self.given, None
        if config.classifier_init == "frozen_features":
            fit = self._fit_classifier
        # Outside the strategy's scope: another run's network has its own.
        return initial.initialize(
            self.algorithm,
            config.init_from,
            self.source.class_names,
            published=self.published,
            fit=fit,
        )

    def train(self) -> results.Result:
        """Trains to the end, or until a signal asks to stop.

        Raises:
            Interrupted: A signal came, and a checkpoint was written.
        """
        config = self.config
        # -------------------------------------------------------- baselines --
        if config.init_from:
            self._measure_baselines()
        else:
            self._start_baselines()
        self.workers.by_chief(self.baselines.store)
        self._keep_baseline()
        # ----------------------------------------------------------- resume --
        start = self._restore()
        self.bar = progress.Progress(
            start,
            config.steps,
            bar=config.progress,
            loud=self.workers.chief,
            config=config,
            costs=self.costs,
            evaluation_steps=self._evaluation_steps(),
        )
        self._introduce(start)
        stepper = self._make_stepper(config, self.algorithm, start)
        self.profile = monitor_lib.Profile(
            config.profile, self.folder.tensorboard, start
        )
        self.monitor.begin(start)
        # ------------------------------------------------------------ steps --
        with self._timed():
            self._take_steps(stepper)
        # ----------------------------------------------------------- result --
        if not self.accuracy:  # killed between last checkpoint and result
            self._evaluate(config.steps)
        self._close()
        if self.workers.chief:
            self.baselines.wait(self.request)
        result = self._result()
        self.workers.by_chief(lambda: self._finish(result))
        return result

    def _take_steps(self, stepper: step_lib.Stepper) -> None:
        """Takes the remaining steps, and does what is due between them."""
        config, algorithm, step = self.config, self.algorithm, self.bar.done
        request, between_every = self.request, algorithm.between_steps_every
        # Without summaries there are no pictures to wait for.
        picture_every = config.picture_every or config.steps

        def due(every: int) -> bool:
            return step % every == 0 or step == config.steps

        while step < config.steps:
            self.profile.at(step)
            # ------------------------------------------------------- train --
            count = self._until_due(step)
            first, step = step + 1, step + count
            logs, shows = due(config.log_every), due(picture_every)
            asked_before = stepper.stop
            with self.bar.steps(count, compiled=not stepper.compiles(count)):
                metrics_of_step = stepper(
                    first, count, bool(request.signal), logged=logs or shows
                )
            # --------------------------------------------------------- log --
            values = None
            if logs:
                self._check_finite(step)
                with self.bar.aside("log"):
                    values = self.monitor.log(
                        step,
                        metrics_of_step,
                        stepper.diagnostics,
                        stepper.waited,
                    )
            self.bar.advance(step, values)
            if logs:
                self._say_baselines()
            # ----------------------------------------------- between steps --
            if between_every and step % between_every == 0:
                algorithm.between_steps(step)
            with self.monitor.paused():
                if shows:
                    with self.bar.aside("picture"):
                        self.monitor.picture(step, stepper.diagnostics)
                # ------------------------------------------------- evaluate --
                if due(config.eval_every):
                    with self.bar.aside("evaluation"):
                        self._evaluate(step)
                if logs:
                    self._warn(step)
                # ----------------------------------------------- checkpoint --
                stop = self.workers.stop(request, asked_before)
                if step == self._cooldown_start():
                    self._save(step, self.before_cooldown)
                if due(config.checkpoint_every) or stop:
                    with self.bar.aside("checkpoint"):
                        self._save(step, self.checkpoints)
            if not self.baselines.running:  # they slow the steps down
                self.bar.foretell()
            if stop and step < config.steps:
                raise signals.Interrupted(
                    f"{stop} after step {step} of {config.steps}; "
                    f"saved in {self.folder.path}: start it again to go on"
                )

    def _until_due(self, step: int) -> int:
        """Returns the number of steps until something is due between steps."""
        config = self.config
        intervals = (
            config.log_every,
            config.eval_every,
            config.checkpoint_every,
            config.steps_per_loop,
            config.picture_every or config.steps,
            self.algorithm.between_steps_every or config.steps,
        )
        ends = [config.steps, *(step - step % n + n for n in intervals)]
        if step < self._cooldown_start():
            ends.append(self._cooldown_start())
        return min(min(ends) - step, self.profile.until_next(step))

    def _cooldown_start(self) -> int:
        """Returns the last step before the cool-down, 0 without one."""
        cooldown = self.config.cooldown_steps()
        return self.config.steps - cooldown if cooldown else 0

    # ----------------------------------------------------- the labels alone --
    def _labels_alone(self) -> tuple[baselines.Baseline, ...]:
        """Begins the workdir, and measures what needs the labels alone.

        Returns:
            See `_train_alone`.
        """
        self.workers.by_chief(lambda: self._begin(self.given))
        if self.given.init_from:  # these take seconds, so they come first
            self._measure_baselines()
            self.workers.by_chief(self.baselines.store)
            self._keep_baseline()
            for line in self.baselines.news():
                self._say(line)
        return self._train_alone()

    def _train_alone(self) -> tuple[baselines.Baseline, ...]:
        """Trains on the labels alone first, by a run of its own.

        Returns:
            Its result on the images that are scored; nothing if it is left out
            or cannot be trained, which does not keep the run from its result.

        Raises:
            Interrupted: A signal came.
        """
        _, images, indices = self.scored
        if reason := labels_alone.left_out(self.given, len(indices)):
            self._say(f"the labels alone are not trained: {reason}")
            return ()
        place = labels_alone.folder(self.folder)
        if self.folder.extends is not None and not place.finished():
            return ()
        config = labels_alone.flags(self.given, place)
        anew = not self.folder.resumed()
        began = time.monotonic()
        try:
            with (
                labels_alone.claim(config, anew=anew) as own,
                runtime.names_apart(),
            ):
                if not own.finished():
                    self._say(f"first the labels alone, in {place.path}")
                    fit_in(own, config, self.source, began=began)
            right = self._right(state.load(place.path))
        except (InputError, FloatingPointError) as error:
            share = self.given.labels_alone
            terminal.warn(
                "the result will not be compared with the labels alone, which "
                f"have --labels_alone={share:g} of the run: {error}"
            )
            return ()
        alone = baselines.Baseline(baselines.LABELS_ALONE, right)
        low, high = metrics.wilson(alone.top1, len(right))
        self._say(
            f"the labels alone: {alone.top1:.2%} [{low:.1%}, {high:.1%}]; now "
            f"{self.given.algorithm}"
        )
        return (alone,)

    def _right(self, model: keras.Model) -> np.ndarray:
        """Returns on which of the scored images a network is right, [n]."""
        _, images, indices = self.scored
        config = self.given
        scored = evaluator.Evaluator(
            strategies.one(),
            {baselines.LABELS_ALONE: model},
            config.eval_batch_size,
            side=self.source.image_shape[0],
            resize=config.eval_resize,
            parallel_calls=config.parallel_calls,
        ).logits(images, indices)
        logits = scored[baselines.LABELS_ALONE]
        return logits.argmax(axis=1) == images.labels[indices]

    # --------------------------------------------------------------- length --
    def _with_length(self) -> config_lib.Config:
        """Returns the flags with the length of the run, measured if needed.

        All workers have the chief's.

        Raises:
            InputError: --minutes has no room for a step.
        """
        config = self.folder.planned(self.given)
        if config.minutes is None and config.schedule != "cooldown":
            return config
        names = (
            "measured_steps",
            "extended_steps",
            "eval_every",
            "checkpoint_every",
        )
        values = [getattr(config, name) or 0 for name in names]
        values = self.workers.gather(values)[0].tolist()
        known = zip(names, values, strict=True)
        config = dataclasses.replace(config, **{n: v or None for n, v in known})
        length = config.measured_steps
        if config.extend_minutes is not None:
            length = config.extended_steps
        flag, value = duration.minutes(config)
        if value is None or length is not None:
            return config
        if config.init_from:  # so that their time counts
            self._measure_baselines()
            self.first = None
            gc.collect()
        self._say(
            f"measuring how fast this machine is, for {flag}={value:g}, which "
            "takes a minute or so"
        )
        planned = self._measure(config, 60 * value)
        self._say(
            f"{flag}={value:g} is {planned.steps} steps in all of "
            f"{self.costs.step:.3g} s"
            + f", and evaluations of {self.costs.evaluation:.1f} s every "
            f"{planned.eval_every} steps" * bool(self.scored[0])
        )
        side = self.source.image_shape[0]
        if text := duration.few_steps(config, planned, side, self.costs.step):
            if self.workers.chief:
                terminal.warn(text)
        return duration.with_length(config, planned)

    def _measure(
        self, config: config_lib.Config, seconds: float
    ) -> duration.Plan:
        """Measures the run, and plans it for its minutes; see `_with_length`.

        Args:
            config: The run's flags.
            seconds: Length of the run.
        """

        def make(config: config_lib.Config) -> tuple:
            algorithm = self._make_algorithm(config, resumed=False)
            return (
                algorithm,
                self._make_evaluator(config, algorithm.networks()),
                self._make_stepper(config, algorithm, 0),
            )

        parts = measurement.Parts(
            config=measurement.provisional(config),
            source=self.source,
            split=self.split,
            scored=self.scored[1:],
            baselines=self.baselines,
            folder=self.folder.measuring,
            make=make,
        )
        start, least = 0, 1
        if self.folder.extends is not None:
            steps = checkpoints.steps_in(self.folder.checkpoints)
            start = self.workers.agree(max(steps, default=0))
            least = 1 + results.read(self.folder.extends.results).steps
        with runtime.names_apart():
            self.costs, again = measurement.measure(
                parts,
                self.strategy,
                self.workers,
                self.request,
                seconds=seconds,
            )

        def plan() -> tuple[int, ...]:
            if not self.workers.chief:  # its clock is that of all
                return (0, 0, 0)
            around = time.monotonic() - self.began + again
            planned = duration.plan(
                config,
                self.costs,
                seconds - around,
                unlabeled_images=len(self.split.unlabeled),
                start=start,
            )
            if planned is None or planned.steps < least:
                raise duration.too_short(
                    config, self.costs, around, least - start
                )
            return dataclasses.astuple(planned)

        numbers = self.workers.by_each(plan)
        return duration.Plan(*self.workers.gather(numbers)[0].tolist())

    def _evaluation_steps(self) -> float:
        """Estimates how many steps take as long as an evaluation.

        A step costs about three forward passes of each image that it trains
        on, and one of each that it labels.
        """
        config, forwards = self.config, 3 * self.config.batch_size
        if self.algorithm.needs_unlabeled:
            forwards += 4 * config.batch_size * config.unlabeled_ratio
        evaluated = len(self.scored[2])
        if self.source.test is not None:
            evaluated += len(self.split.validation)
        return len(self.algorithm.networks()) * evaluated / forwards

    # ------------------------------------------------------------ beginning --
    def _say(self, text: str) -> None:
        if self.workers.chief:
            terminal.say(text)

    def _read(
        self, given: source_lib.Source | None, resumed: bool
    ) -> tuple[source_lib.Source, splits.Split, list[float] | None]:
        """Reads images, split and prior, which all workers must share."""
        config = self.given
        if resumed:
            config = self.folder.with_side(config)

        def read() -> tuple[source_lib.Source, splits.Split, list | None]:
            with signals.at_once(f"the images of {config.dataset}"):
                source = inputs.make_source(config, given)
            if source.overview and given is None:
                self._say(source.overview)
            split = inputs.make_split(config, source, self.folder)
            prior = inputs.class_prior(config, source, split, self.folder)
            return source, split, prior

        def known() -> dict[str, str]:
            parts = splits.parts(split, source)
            parts["the images"] = source.identity()
            parts["the class shares of --class_prior"] = repr(prior)
            if not resumed:
                named = fingerprint.of_flags(config).files
                _, _, digest = named.get("--init_from", (0, 0, None))
                parts["the weights of --init_from"] = str(digest)
            return parts

        source, split, prior = self.workers.by_each(read)
        if self.workers.count > 1:
            self.workers.same(self.workers.by_each(known))
        return source, split, prior

    def _begin(self, flags: config_lib.Config) -> None:
        """Writes the files that a new run begins with.

        Args:
            flags: The flags, whose length may not be known yet.
        """
        resumed = self.folder.resumed()
        self.folder.begin(flags, self.source.fingerprint)
        if not resumed:
            splits.write(
                self.folder.split, self.split, self.source, self.class_prior
            )

    def _restore(self) -> int:
        """Reads the last checkpoint, the chief's; returns its step or 0."""
        if self.workers.chief:
            self.checkpoints.tidy()
        with self.strategy.scope():
            start = self.workers.by_chief(self.checkpoints.restore)
            if start and not self.workers.chief:
                self.checkpoints.restore(at=start)
        if start:
            checkpoints.spread(self.strategy, self.algorithm)
        return start

    def _introduce(self, start: int) -> None:
        """Prints what is trained on what, and where it goes on."""
        config, split, bar = self.config, self.split, self.bar
        side = self.source.image_shape[0]
        scored_on, _, indices = self.scored
        bar.say(
            f"{config.algorithm} on {self.source.name}: "
            f"{len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, "
            f"{len(indices)} {scored_on or 'test'} images; "
            f"{config.backbone} on images of {side} pixels; "
            f"{config.steps} steps in {self.folder.path}"
        )
        if len(self.source.set_aside):
            bar.say(
                f"{len(split.validation)} validation images choose the best "
                "step"
            )
        elif len(split.validation):
            bar.say(
                f"{len(split.validation)} labeled images set aside to choose "
                f"the best step; {len(split.labeled)} are left to train on"
            )
        if scored_on == "validation":
            bar.say(
                f"{self.source.name} has no test images: the result is "
                "measured on the images set aside, too"
            )
        elif scored_on is None:
            bar.say(
                f"{self.source.name} has no test images, and no labeled ones "
                "are set aside: the accuracy of this run will not be known; "
                "--validation_fraction=0.2 would measure it"
            )
        if self.initial:
            bar.say(self.initial)
        if config.baselines and self.baselines.left_out:
            bar.say(f"no baselines: {self.baselines.left_out}")
        self._say_baselines()
        # Those of the command line, which `config` does not have any more.
        for line in self.given.replaced_defaults():
            bar.say(line)
        for line in self.given.without_effect():
            bar.say(line)
        for line in config.hyper.notes(config.steps):
            bar.say(f"warning: {line}")
        devices = self.strategy.num_replicas_in_sync
        if devices > 1:
            count = self.workers.count
            bar.say(
                f"{devices} devices"
                + (f" of {count} workers" if count > 1 else "")
            )
        if start:
            bar.say(f"resumed after step {start}")
        self._warn(start)
        if text := self.monitor.scalars.imbalance():
            bar.say(text)

    # ------------------------------------------------------------ baselines --
    def _start_baselines(self) -> None:
        """Starts to measure the baselines, unless they are known."""
        if self.workers.by_chief(self.baselines.missing):
            self.workers.by_chief(self.baselines.start)

    def _measure_baselines(self) -> None:
        """Measures those of a run with first weights, unless they are known."""
        if not self.workers.by_chief(self.baselines.missing):
            return
        features, first = None, self._first_network()
        if first is None:
            self.baselines.without_first_weights()
            if not self.workers.by_chief(self.baselines.missing):
                return
        self._say(
            "measuring the baselines"
            + " on the features of the first weights" * (first is not None)
        )
        if first is not None:
            features_of = self._make_evaluator(self.given, {"first": first})
            features = tuple(
                features_of.features("first", *each)
                for each in self.baselines.sets
            )
        self.workers.by_chief(
            lambda: self.baselines.measure(features, self.request)
        )

    def _keep_baseline(self) -> None:
        """Keeps the baseline on the first weights as a model, if it is new."""
        if self.workers.by_chief(self.baselines.to_keep):
            first = self._first_network()
            if first is not None:
                self.workers.by_chief(lambda: self.baselines.keep(first))
        self.first = None

    def _first_network(self) -> keras.Model | None:
        """Returns a network with the weights of --init_from.

        It must be used before the first step: of a run that begins it is the
        student.

        Returns:
            None if the weights are gone by now, which a line says.

        Raises:
            InputError: A run that begins cannot read the weights.
        """
        if self.initial is not None:
            return self.algorithm.student
        if self.first is not None:
            return self.first
        # The student of a run that goes on has no statistics of the images
        # before its checkpoint is read.
        with runtime.names_apart():
            algorithm = self._make_algorithm(
                measurement.provisional(self.given), resumed=False
            )
        try:
            self.workers.by_each(
                lambda: initial.initialize(
                    algorithm,
                    self.given.init_from,
                    self.source.class_names,
                    published=self.published,
                )
            )
        except InputError as error:
            if not self.folder.resumed():
                raise
            self._say(f"no baselines on the first weights: {error}")
            return None
        self.first = algorithm.student
        return self.first

    def _fit_classifier(self) -> baselines.Classifier | None:
        """Fits a classifier to the student's features of the labeled images.

        Raises:
            InputError: An image cannot be read; or the fits of several workers
                differ.
        """
        train, labeled = self.source.train, self.split.labeled
        features = self._make_evaluator(
            self.config, {"student": self.algorithm.student}
        ).features("student", train, labeled)
        fitted = baselines.fit_classifier(
            features, train.labels[labeled], self.source.num_classes
        )
        if self.workers.count > 1:
            arrays = () if fitted is None else vars(fitted).values()
            digest = hashlib.sha256(b"".join(a.tobytes() for a in arrays))
            self.workers.same(
                {"the fit of --classifier_init": digest.hexdigest()}
            )
        return fitted

    def _say_baselines(self) -> None:
        """Prints the baselines as soon as they are known, once."""
        lines = self.baselines.news() if self.workers.chief else []
        for line in lines:
            self.bar.say(line)
        if lines:
            self.bar.time_anew()

    # ---------------------------------------------------------------- parts --
    def _make_algorithm(
        self, config: config_lib.Config, resumed: bool
    ) -> algorithm_lib.Algorithm:
        """Builds the algorithm with its first weights."""
        return state.make_algorithm(
            config,
            self.strategy,
            image_shape=self.source.image_shape,
            slot_labels=self.source.train.labels[self.split.labeled],
            num_classes=self.source.num_classes,
            unlabeled_images=len(self.split.unlabeled),
            class_prior=self.class_prior,
            # A checkpoint has them.
            statistics=None if resumed else self.source.statistics(),
        )

    def _make_evaluator(
        self, config: config_lib.Config, networks: Mapping[str, keras.Model]
    ) -> evaluator.Evaluator:
        """Makes what evaluates networks."""
        return evaluator.Evaluator(
            self.strategy,
            networks,
            config.eval_batch_size,
            side=self.source.image_shape[0],
            resize=config.eval_resize,
            parallel_calls=config.parallel_calls,
        )

    def _make_stepper(
        self,
        config: config_lib.Config,
        algorithm: algorithm_lib.Algorithm,
        start: int,
    ) -> step_lib.Stepper:
        """Makes what takes the steps from `start` on, with its input."""
        pipeline = inputs.make_pipeline(
            config, self.source, self.split, algorithm
        )
        finish = functools.partial(pipeline.finish, dense=True)
        return step_lib.Stepper(
            self.strategy,
            algorithm,
            inputs.make_batches(self.strategy, pipeline, start, config),
            finish=finish if config.views_on == "device" else None,
            jit_compile=config.jit_compile,
            workers=self.workers.count,
            logs=config.summaries,
        )

    # -------------------------------------------------------- between steps --
    def _warn(self, step: int) -> None:
        """Warns of known problems that show by now."""
        self.bar.warn(
            self.monitor.scalars.findings(step, self.flags, len(self.scored[2]))
        )

    def _check_finite(self, step: int) -> None:
        """Stops before a broken state can replace a good checkpoint.

        Raises:
            FloatingPointError: A number is not finite, and steps are not to be
                skipped, or too many were.
        """
        guard = self.algorithm.guard
        trouble = guard.look()
        if trouble is None:
            return
        first, name = trouble
        if guard.skips and not guard.gave_up():
            terminal.warn(
                f"step {first} was skipped: {name} is not finite (the first of "
                f"those since the last warning; {int(guard.total.numpy())} so "
                "far)"
            )
            return
        saved = self.checkpoints.steps()
        last = f"step {saved[-1]}" if saved else "none"
        hint = "; --on_nonfinite=skip leaves such steps out"
        many = f" ({guard_lib.GIVES_UP_AFTER} such steps in a row by now)"
        raise FloatingPointError(
            f"{name} is not finite at step {first}"
            f"{many if guard.skips else ''}; last good checkpoint: {last}, in "
            f"{self.folder.checkpoints}. "
            f"--learning_rate={self.config.learning_rate / 2:g} or "
            f"--warmup_steps={max(1, self.config.steps // 20)} may help, in "
            "another --workdir or with --overwrite"
            + ("" if guard.skips else hint)
        )

    def _evaluate(self, step: int) -> None:
        """Evaluates all networks, and keeps the best step on record."""
        name_of_set, images, indices = self.scored
        if name_of_set is None:
            return
        logits = self.evaluator.logits(images, indices)
        labels = images.labels[indices]
        self.accuracy = chosen = metrics.accuracy(logits, labels)
        fit_on = name_of_set, logits, labels
        train, aside = self.source.train, self.split.validation
        if len(aside) and self.source.test is not None:
            set_aside = self.evaluator.logits(train, aside)
            chosen = metrics.accuracy(set_aside, train.labels[aside])
            if len(aside) >= metrics.LEAST_TO_CALIBRATE:
                fit_on = "validation", set_aside, train.labels[aside]
        if step == self.config.steps:
            self._calibrate(logits, labels, fit_on)
        values = {}
        for name, accuracy in self.accuracy.items():
            score, top1 = chosen[name]["top1"], accuracy["top1"]
            self.algorithm.record.keep_best(name, score, top1, step)
            values[f"{name_of_set}/{name}_top1"] = top1
            if chosen is not self.accuracy:
                values[f"validation/{name}_top1"] = score
        self.monitor.keep(step, values)
        weights = self.algorithm.evaluated_weights
        self.right = logits[weights].argmax(axis=1) == labels
        title = f"{len(indices)} {name_of_set} images, {weights}"
        self.monitor.writer.confusion(step, logits[weights], labels, title)
        self.bar.evaluated(step, name_of_set, self.accuracy, weights)

    def _calibrate(
        self,
        logits: Mapping[str, np.ndarray],
        labels: np.ndarray,
        fit_on: tuple[str, Mapping[str, np.ndarray], np.ndarray],
    ) -> None:
        """Fits temperatures, and measures them.

        Images that were trained on cannot fit one: of those a network is always
        too sure.

        Args:
            logits: Network → logits of the images that results are measured on.
            labels: Their classes.
            fit_on: "validation" or "test", and logits and classes of the images
                to fit on: those set aside or, where they are too few, the same
                as above.
        """
        name_of_set, others, classes = fit_on
        enough = len(classes) >= metrics.LEAST_TO_CALIBRATE
        images = min(len(classes), metrics.MOST_TO_CALIBRATE)
        for name, values in logits.items():
            temperature = None
            if enough:
                temperature = metrics.fit_temperature(others[name], classes)
            self.calibration[name] = {
                "temperature": temperature,
                "fitted_on": name_of_set if enough else None,
                "images": images if enough else 0,
                **metrics.calibration(
                    values,
                    labels,
                    temperature=temperature,
                    fitted_on_these=others is logits,
                ),
            }

    def _save(self, step: int, place: checkpoints.Checkpoints) -> None:
        """Writes a checkpoint, unless the state is broken."""
        self._check_finite(step)
        with checkpoints.gathered(self.strategy, self.algorithm):
            self.workers.by_chief(lambda: place.save(step))

    # --------------------------------------------------------------- ending --
    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Writes the time of the session's steps, however they end."""
        start, began = self.bar.done, time.monotonic()
        try:
            yield
        except (InputError, FloatingPointError, signals.Interrupted):
            self._close()
            # Perhaps nothing can be written any more.
            with contextlib.suppress(InputError):
                self._write_timing(start, time.monotonic() - began)
            raise
        self._write_timing(start, time.monotonic() - began)

    def _write_timing(self, start: int, seconds: float) -> None:
        """Adds this session to timing.json."""
        algorithm, stop = self.algorithm, self.bar.done
        views = len(algorithm.labeled_views)
        views += self.config.unlabeled_ratio * len(algorithm.unlabeled_views)
        if self.workers.chief:
            results.add_session(
                self.folder.timing,
                first_step=start + 1,
                last_step=stop,
                seconds=seconds,
                images=(stop - start) * views * self.config.batch_size,
            )

    def _close(self) -> None:
        """Ends what shows the run."""
        self.profile.close()
        self.bar.close()
        self.monitor.writer.close()

    def _result(self) -> results.Result:
        """Collects the result from the state after the last step."""
        config, algorithm, source = self.config, self.algorithm, self.source
        scored_on, _, indices = self.scored
        networks = self._networks()
        last = networks[algorithm.evaluated_weights]["last"]
        loss = float(algorithm.record.loss.numpy())
        beside = self.baselines.outcome(self.right, self.alone)
        return results.Result(
            top1=last["top1"],
            top5=last["top5"],
            macro_accuracy=last["macro_accuracy"],
            loss=None if math.isnan(loss) else loss,
            steps=config.steps,
            weights_of_record=algorithm.evaluated_weights,
            **networks,
            algorithm=config.algorithm,
            dataset=source.name,
            class_names=list(source.class_names),
            labels=len(self.split.labeled),
            validation_labels=len(self.split.validation),
            unlabeled=len(self.split.unlabeled),
            scored_on=scored_on,
            test_images=len(indices),
            seed=config.seed,
            split_seed=config.split_seed,
            class_prior=self.class_prior,
            versions={
                name: importlib.metadata.version(name)
                for name in ("tensorflow", "keras", "numpy")
            },
            baselines=beside.baselines,
            lead=beside.lead,
        )

    def _networks(self) -> dict[str, dict[str, dict]]:
        """Returns what the result says of each network."""
        step, count = self.config.steps, len(self.scored[2])
        if not count:
            unknown = dict.fromkeys(("top1", "top5", "macro_accuracy"))
            return {
                name: {
                    "last": {**unknown, "step": step},
                    "best": {"top1": None, "step": step, "chosen_on": None},
                    "calibration": {"temperature": None, "images": 0},
                }
                for name in self.algorithm.networks()
            }
        chosen_on = "validation" if len(self.split.validation) else "test"
        networks = {}
        for name, last in self.accuracy.items():
            _, best, at = self.algorithm.record.best[name].numpy().tolist()
            networks[name] = {
                "last": {**last, "step": step},
                "best": {
                    # Kept in float32; the number of images gives the rest.
                    "top1": round(best * count) / count,
                    "step": int(at),
                    "chosen_on": chosen_on,
                },
                "calibration": self.calibration[name],
            }
        return networks

    def _finish(self, result: results.Result) -> None:
        """Writes model.keras, then results.json, which finishes the run.

        Raises:
            InputError: They cannot be written.
        """
        path = self.folder.model
        model = self.algorithm.networks()[result.weights_of_record]
        try:
            network.save(model, path, result.class_names)
        except OSError as error:
            reason = error.strerror or errors.reason(error)
            raise InputError(
                f"{path}: cannot be written ({reason}); make room and start "
                "the run again: it goes on from its last checkpoint"
            ) from None
        # Keras lets through whatever a layer's get_config raises.
        except Exception as error:
            terminal.warn(
                f"{path}: cannot be written ({errors.reason(error)}); "
                "evaluate, predict and export use the last checkpoint instead. "
                "Layers of an own backbone must be registered with keras.saving"
            )
            path.unlink(missing_ok=True)
        result.write(self.folder.results)
        if self.folder.extends is not None:
            extension.promote(self.folder.extends)
