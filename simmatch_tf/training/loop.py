"""The outer loop: from flags to a result, in one place."""

import contextlib
import functools
import time
from collections.abc import Iterator

import tensorflow as tf
from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, runtime, signals, terminal
from simmatch_tf.data import fingerprint, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies, workers
from simmatch_tf.evaluation import evaluator
from simmatch_tf.evaluation import metrics as metrics_lib
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.modules import guard as guard_lib
from simmatch_tf.monitoring import monitor as monitor_lib
from simmatch_tf.networks import network
from simmatch_tf.training import (
    allocator,
    checkpoints,
    initial,
    inputs,
    outcome,
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
    """Trains, or resumes what stands in the workdir.

    Args:
        config: The run.
        source: The images, for `dataset="custom"`, and only for it.

    Returns:
        The result. A finished run's is read, not computed again.

    Raises:
        InputError: Something the caller can put right.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint was written; or
            another worker has gone.
        FloatingPointError: A number is not finite; see --on_nonfinite.
    """
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
        if folder.finished():
            if source is not None and folder.data.is_file():
                folder.check_data(config, source.fingerprint())
            logging.warning(
                "%s holds a finished run: its result is read, nothing is "
                "trained; overwrite=True trains anew",
                folder.path,
            )
        return fit_in(folder, config, source)


def fit_in(
    folder: workdir_lib.Workdir,
    config: config_lib.Config,
    source: source_lib.Source | None = None,
) -> results.Result:
    """As `fit`, in a workdir that is already claimed."""
    if folder.finished():
        return results.read(folder.results)
    allocator.keep_memory()
    with (
        runtime.pinned(),
        signals.watch() as request,
        workers.lost(config, folder.checkpoints),
    ):
        return _Run(folder, config, source).train(request)


def _itstime(step: int, last: int, every: int) -> bool:
    """Whether something that is done every so many steps, and last, is due."""
    return step % every == 0 or step == last


class _Run:
    """One session of a run: what `train` needs at hand."""

    def __init__(
        self,
        folder: workdir_lib.Workdir,
        config: config_lib.Config,
        source: source_lib.Source | None,
    ) -> None:
        self.folder, self.given = folder, config
        # First: once TensorFlow has begun, a CPU is not divided any more.
        self.strategy = strategies.make(config)
        self.workers = workers.Workers(self.strategy, config)
        resumed = bool(self.workers.agree(folder.resumed()))
        if not self.workers.chief:
            folder.anew = not resumed
        # ------------------------------------------------------------ data --
        self._say(f"reading the images of {config.dataset}")
        self.source, self.split = self._read(source, resumed)
        self.config = config.with_durations(len(self.split.unlabeled))
        self.scored = inputs.scored_images(self.source, self.split.validation)
        # ------------------------------------------------------- algorithm --
        self._say(f"building {config.backbone}")
        self.algorithm = state.make_algorithm(
            self.config,
            self.strategy,
            image_shape=self.source.image_shape,
            slot_labels=self.source.train.labels[self.split.labeled],
            num_classes=self.source.num_classes,
            unlabeled_images=len(self.split.unlabeled),
            # A checkpoint brings them.
            statistics=None if resumed else self.source.statistics(),
        )
        self.initial = None
        if config.init_from and not resumed:
            # Outside the strategy's scope: another run's network has its own.
            self.initial = initial.initialise(
                self.algorithm,
                config.init_from,
                self.source.class_names,
            )
        # --------------------------------------------------------- workdir --
        self.workers.by_chief(self._begin)
        self.workers.same_folder(folder.path, (folder.flagfile, folder.split))
        self.checkpoints = checkpoints.Checkpoints(
            folder.checkpoints,
            self.algorithm,
            splits.identity(self.source.class_names, self.split.labeled),
            self.config.keep,
        )
        self.evaluator = evaluator.Evaluator(
            self.strategy,
            self.algorithm.networks(),
            self.config.eval_batch_size,
            side=self.source.image_shape[0],
            resize=config.eval_resize,
            parallel_calls=config.parallel_calls,
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

    def _say(self, text: str) -> None:
        if self.workers.chief:
            terminal.say(text)

    def _read(
        self, given: source_lib.Source | None, resumed: bool
    ) -> tuple[source_lib.Source, splits.Split]:
        """The images, and which of them are labeled: all workers' alike."""
        config = self.given

        def read() -> tuple[source_lib.Source, splits.Split]:
            with signals.at_once(f"the images of {config.dataset}"):
                source = inputs.make_source(config, given)
            return source, inputs.make_split(config, source, self.folder)

        def known() -> dict[str, str]:
            parts = splits.parts(split, source)
            parts["the images"] = source.identity()
            if not resumed:
                named = fingerprint.of_flags(config).files
                _, _, digest = named.get("--init_from", (0, 0, None))
                parts["the weights of --init_from"] = str(digest)
            return parts

        source, split = self.workers.by_each(read)
        if self.workers.count > 1:
            self.workers.same(self.workers.by_each(known))
        return source, split

    def _begin(self) -> None:
        """Writes what a new run begins with."""
        resumed = self.folder.resumed()
        self.folder.begin(self.given, self.source.fingerprint)
        if not resumed:
            splits.write(self.folder.split, self.split, self.source)

    def _make_stepper(self, start: int) -> step_lib.Stepper:
        """What takes the steps from `start` on, with its input."""
        config = self.config
        pipeline = inputs.make_pipeline(
            config,
            self.source,
            self.split,
            self.algorithm,
        )
        finish = functools.partial(pipeline.finish, dense=True)
        return step_lib.Stepper(
            self.strategy,
            self.algorithm,
            inputs.make_batches(self.strategy, pipeline, start, config),
            finish=finish if config.views_on == "device" else None,
            jit_compile=config.jit_compile,
            workers=self.workers.count,
            logs=config.summaries,
        )

    def train(self, request: signals.Request) -> results.Result:
        """Trains to the end, or until it is asked to stop."""
        config = self.config
        # ---------------------------------------------------------- resume --
        start = self._restore()
        bar = progress.Progress(
            start, config.steps, bar=config.progress, loud=self.workers.chief
        )
        self._say_what(bar, start)
        stepper = self._make_stepper(start)
        profile = monitor_lib.Profile(
            config.profile, self.folder.tensorboard, start
        )
        self.monitor.begin(start)
        with self._session(bar, profile):
            self._loop(request, bar, stepper, profile)
        # ---------------------------------------------------------- result --
        if not self.accuracy:  # killed between checkpoint and result
            self._evaluate(config.steps, bar)
        self._close(bar, profile)
        result = self._result()
        self.workers.by_chief(lambda: self._write(result))
        return result

    def _write(self, result: results.Result) -> None:
        """Writes model.keras, then results.json, which ends the run."""
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
            logging.warning(
                "%s: cannot be written (%s); evaluate, predict and export use "
                "the last checkpoint instead. Layers of an own backbone must "
                "be registered with keras.saving",
                path,
                errors.reason(error),
            )
            path.unlink(missing_ok=True)
        result.write(self.folder.results)

    def _loop(
        self,
        request: signals.Request,
        bar: progress.Progress,
        stepper: step_lib.Stepper,
        profile: monitor_lib.Profile,
    ) -> None:
        """Takes the steps that are left, and does what is due between them."""
        config, step = self.config, bar.done
        every = (config.log_every, config.eval_every)
        every += (config.checkpoint_every, config.steps_per_loop)
        # Without summaries there are no pictures to wait for.
        every += (config.picture_every or config.steps,)
        while step < config.steps:
            profile.at(step)
            count = min(config.steps - step, *(n - step % n for n in every))
            count = min(count, profile.until_next(step))
            itstime = functools.partial(_itstime, step + count, config.steps)
            logs, shows = (itstime(n) for n in (config.log_every, every[-1]))
            asked_before = stepper.stop
            with bar.steps(count, compiled=not stepper.compiles(count)):
                metrics = stepper(
                    step + 1, count, bool(request.signal), logged=logs or shows
                )
            step += count
            values = self._log(step, metrics, stepper) if logs else None
            bar.advance(step, values)
            with self.monitor.paused():
                if shows:
                    self.monitor.picture(step, stepper.diagnostics)
                if itstime(config.eval_every):
                    self._evaluate(step, bar)
                if logs:
                    bar.warn(self.monitor.scalars.findings(step))
                stop = self.workers.stop(request, asked_before)
                if itstime(config.checkpoint_every) or stop:
                    self._save(step)
            if stop and step < config.steps:
                raise signals.Interrupted(
                    f"{stop} after step {step} of {config.steps}; "
                    f"saved in {self.folder.path}: start it again to go on"
                )

    @contextlib.contextmanager
    def _session(
        self, bar: progress.Progress, profile: monitor_lib.Profile
    ) -> Iterator[None]:
        """Around the steps of a session: writes its time, however it ends."""
        start, began = bar.done, time.monotonic()
        try:
            yield
        except (InputError, FloatingPointError, signals.Interrupted):
            self._close(bar, profile)
            # It may be that nothing can be written.
            with contextlib.suppress(InputError):
                self._write_timing(start, bar.done, time.monotonic() - began)
            raise
        self._write_timing(start, bar.done, time.monotonic() - began)

    def _result(self) -> results.Result:
        return outcome.collect(
            self.config,
            self.algorithm,
            self.accuracy,
            self.source,
            self.split,
            self.scored,
        )

    def _close(
        self, bar: progress.Progress, profile: monitor_lib.Profile
    ) -> None:
        """Ends what shows the run."""
        profile.close()
        bar.close()
        self.monitor.writer.close()

    def _restore(self) -> int:
        """Reads the last checkpoint: the chief says which one that is."""
        if self.workers.chief:
            self.checkpoints.tidy()
        with self.strategy.scope():
            start = self.workers.by_chief(self.checkpoints.restore)
            if start and not self.workers.chief:
                self.checkpoints.restore(at=start)
        if start:
            checkpoints.spread(self.strategy, self.algorithm)
        return start

    def _save(self, step: int) -> None:
        """Writes a checkpoint, unless the state is broken."""
        self._check_finite(step)
        with checkpoints.gathered(self.strategy, self.algorithm):
            self.workers.by_chief(lambda: self.checkpoints.save(step))

    def _say_what(self, bar: progress.Progress, start: int) -> None:
        config, split = self.config, self.split
        bar.say(
            f"{config.algorithm} on {self.source.name}: "
            f"{len(split.labeled)} labeled, {len(split.unlabeled)} unlabeled, "
            f"{len(self.scored[2])} {self.scored[0]} images; "
            f"{config.backbone}; "
            f"{config.steps} steps in {self.folder.path}"
        )
        if len(split.validation):
            bar.say(
                f"{len(split.validation)} labeled images set aside to choose "
                f"the best step; {len(split.labeled)} are left to train on"
            )
        if self.source.test is None:
            bar.say(
                f"{self.source.name} has no test images: the images set aside "
                "are the result's, too"
            )
        if self.initial:
            bar.say(self.initial)
        devices = self.strategy.num_replicas_in_sync
        if devices > 1:
            bar.say(f"{devices} devices{self.workers.text()}")
        if start:
            bar.say(f"resumed after step {start}")

    def _log(
        self,
        step: int,
        metrics: dict[str, tf.Tensor],
        stepper: step_lib.Stepper,
    ) -> dict[str, float]:
        """Fetches a step's figures, and writes them to TensorBoard."""
        self._check_finite(step)
        return self.monitor.log(
            step, metrics, stepper.diagnostics, stepper.waited
        )

    def _check_finite(self, step: int) -> None:
        """Stops before a broken state can replace a good checkpoint."""
        guard = self.algorithm.guard
        found = guard.look()
        if found is None:
            return
        first, name = found
        if guard.skips and not guard.gave_up():
            logging.warning(
                "step %d was skipped: %s is not finite (the first of those "
                "since the last warning; %d so far)",
                first,
                name,
                int(guard.total.numpy()),
            )
            return
        saved = self.checkpoints.steps()
        last = f"step {saved[-1]}" if saved else "none"
        hint = "; --on_nonfinite=skip leaves such steps out"
        many = f" ({guard_lib.GIVES_UP_AFTER} such steps in a row by now)"
        raise FloatingPointError(
            f"{name} is not finite at step {first}"
            f"{many if guard.skips else ''}; last good checkpoint: {last}, in "
            f"{self.folder.checkpoints}. A lower --learning_rate or a "
            "--warmup_steps may help, in another --workdir or with --overwrite"
            + ("" if guard.skips else hint)
        )

    def _evaluate(self, step: int, bar: progress.Progress) -> None:
        """Evaluates all networks; keeps the best on record."""
        name_of_set, images, places = self.scored
        logits = self.evaluator.logits(images, places)
        labels = images.labels[places]
        self.accuracy = chosen = metrics_lib.accuracy(logits, labels)
        if len(self.split.validation) and self.source.test is not None:
            train, aside = self.source.train, self.split.validation
            chosen = metrics_lib.accuracy(
                self.evaluator.logits(train, aside), train.labels[aside]
            )
        values = {}
        for name, accuracy in self.accuracy.items():
            score, top1 = chosen[name]["top1"], accuracy["top1"]
            self.algorithm.record.keep_best(name, score, top1, step)
            values[f"{name_of_set}/{name}_top1"] = top1
            if chosen is not self.accuracy:
                values[f"validation/{name}_top1"] = score
        self.monitor.keep(step, values)
        record = self.algorithm.evaluated_weights
        title = f"{len(places)} {name_of_set} images, {record}"
        self.monitor.writer.confusion(step, logits[record], labels, title)
        bar.evaluated(step, name_of_set, self.accuracy, record)

    def _write_timing(self, start: int, stop: int, seconds: float) -> None:
        """Adds this session to timing.json."""
        algorithm, ratio = self.algorithm, self.config.unlabeled_ratio
        views = len(algorithm.labeled_views)
        views += ratio * len(algorithm.unlabeled_views)
        images = views * self.config.batch_size
        if self.workers.chief:
            results.add_session(
                self.folder.timing,
                first_step=start + 1,
                last_step=stop,
                seconds=seconds,
                images=(stop - start) * images,
            )
