"""The outer loop: from flags to a result, in one place."""

import functools
import importlib.metadata
import math
import time

import tensorflow as tf
from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.commandline import InputError
from simmatch_tf.data import source as source_lib
from simmatch_tf.data import splits
from simmatch_tf.modules import guard as guard_lib
from simmatch_tf.networks import network
from simmatch_tf.training import (
    allocator,
    assembly,
    checkpoints,
    evaluation,
    initial,
    inputs,
    interruption,
    placement,
    progress,
    results,
    stepping,
    strategies,
    workers,
)
from simmatch_tf.training import workdir as workdir_lib


def fit(
    config: config_lib.Config,
    *,
    source: source_lib.Source | None = None,
    backbone: network.MakeBackbone | None = None,
    algorithm: type[algorithm_lib.Algorithm] | None = None,
) -> results.Result:
    """Trains, or resumes what stands in the workdir.

    Args:
        config: The run.
        source: Images, for `dataset="custom"`.
        backbone: From an image shape to a Keras model that ends in a global
            pool, for `backbone="custom"`.
        algorithm: A subclass of Algorithm, for `algorithm="custom"`.

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
    workdir_lib.Workdir(config.workdir).check_available(config)
    custom = assembly.Custom(source, backbone, algorithm)
    custom.check(config)
    with workdir_lib.claim(config) as folder:
        if folder.finished():
            logging.warning(
                "%s holds a finished run: its result is read, nothing is "
                "trained; overwrite=True trains anew",
                folder.path,
            )
        return fit_in(folder, config, custom)


def fit_in(
    folder: workdir_lib.Workdir,
    config: config_lib.Config,
    custom: assembly.Custom,
) -> results.Result:
    """As `fit`, in a workdir that is already claimed."""
    if folder.finished():
        return results.read(folder.results)
    allocator.keep_memory()
    with interruption.watch() as request, workers.lost(folder, config):
        return _Run(folder, config, custom).train(request)


def _itstime(step: int, last: int, every: int) -> bool:
    """Whether something that is done every so many steps, and last, is due."""
    return step % every == 0 or step == last


class _Run:
    """One session of a run: what `train` needs at hand."""

    def __init__(
        self,
        folder: workdir_lib.Workdir,
        config: config_lib.Config,
        custom: assembly.Custom,
    ) -> None:
        self.folder, self.given = folder, config
        # First: once TensorFlow has begun, a CPU is not divided any more.
        self.strategy = strategies.make(config)
        self.workers = workers.Workers(self.strategy, config)
        resumed = bool(self.workers.agree(folder.resumed()))
        if not self.workers.chief:
            folder.anew = not resumed
        # ------------------------------------------------------------ data --
        self.source = inputs.make_source(config, custom.source)
        self.split = inputs.make_split(config, self.source, folder)
        self.config = config.with_durations(len(self.split.unlabeled))
        self.scored = inputs.scored_images(self.source, self.split.validation)
        # ------------------------------------------------------- algorithm --
        self.algorithm = assembly.make_algorithm(
            self.config,
            custom,
            self.strategy,
            image_shape=self.source.image_shape,
            slot_labels=self.source.train.labels[self.split.labeled],
            num_classes=self.source.num_classes,
            # A checkpoint brings them.
            statistics=None if resumed else self.source.statistics(),
        )
        self.initial = None
        if config.init_from and not resumed:
            # Outside the strategy's scope: another run's network has its own.
            self.initial = initial.initialise(
                self.algorithm, config.init_from, custom
            )
        # --------------------------------------------------------- workdir --
        self.workers.by_chief(self._begin)
        self.workers.same_folder(folder)
        self.checkpoints = checkpoints.Checkpoints(
            folder.checkpoints,
            self.algorithm,
            splits.identity(self.source.class_names, self.split.labeled),
            self.config.keep,
        )
        self.evaluator = evaluation.Evaluator(
            self.strategy,
            self.algorithm.networks(),
            self.config.eval_batch_size,
            side=self.source.image_shape[0],
            resize=config.eval_resize,
            parallel_calls=config.parallel_calls,
        )
        self.writer = self._make_writer()
        self.accuracy: dict[str, dict[str, float]] = {}

    def _begin(self) -> None:
        """Writes what a new run begins with."""
        resumed = self.folder.resumed()
        self.folder.begin(self.given)
        if not resumed:
            splits.write(self.folder.split, self.split, self.source)

    def train(self, request: interruption.Request) -> results.Result:
        """Trains to the end, or until it is asked to stop."""
        config = self.config
        # ---------------------------------------------------------- resume --
        start = self._restore()
        bar = progress.Progress(
            start, config.steps, bar=config.progress, loud=self.workers.chief
        )
        self._say_what(bar, start)
        # ----------------------------------------------------------- input --
        pipeline = inputs.make_pipeline(
            config,
            self.source,
            self.split,
            unlabeled=self.algorithm.needs_unlabeled,
        )
        finish = functools.partial(pipeline.recipe.finish_batch, dense=True)
        stepper = stepping.Stepper(
            self.strategy,
            self.algorithm,
            inputs.make_batches(self.strategy, pipeline, start, config),
            finish=finish if config.views_on == "device" else None,
            jit_compile=config.jit_compile,
            workers=self.workers.count,
        )
        began = time.monotonic()
        # ------------------------------------------------------------ loop --
        step, every = start, (config.log_every, config.eval_every)
        every += (config.checkpoint_every, config.steps_per_loop)
        while step < config.steps:
            count = min(config.steps - step, *(n - step % n for n in every))
            asked_before = stepper.stop
            metrics = stepper(step + 1, count, bool(request.signal))
            step += count
            itstime = functools.partial(_itstime, step, config.steps)
            logs = itstime(config.log_every)
            bar.advance(step, self._log(step, metrics) if logs else None)
            if itstime(config.eval_every):
                self._evaluate(step, bar)
            stop = self.workers.stop(request, asked_before)
            if itstime(config.checkpoint_every) or stop:
                self._save(step)
            if stop and step < config.steps:
                bar.close()
                self._write_timing(start, step, time.monotonic() - began)
                raise interruption.Interrupted(
                    f"{stop} after step {step} of {config.steps}; "
                    f"saved in {self.folder.path}: start it again to go on"
                )
        # ---------------------------------------------------------- result --
        self._write_timing(start, config.steps, time.monotonic() - began)
        if not self.accuracy:  # killed between checkpoint and result
            self._evaluate(config.steps, bar)
        bar.close()
        self.writer.close()
        result = self._result()
        if self.workers.chief:
            result.write(self.folder.results)
        self.workers.wait()
        return result

    def _make_writer(self) -> tf.summary.SummaryWriter:
        path = self.folder.tensorboard
        if not self.workers.chief:
            return tf.summary.create_noop_writer()
        try:
            return tf.summary.create_file_writer(str(path))
        except tf.errors.OpError as error:
            raise InputError(
                f"{path}: cannot be written ({error.message})"
            ) from None

    def _restore(self) -> int:
        """Reads the last checkpoint: the chief says which one that is."""
        with self.strategy.scope():
            start = self.workers.by_chief(self.checkpoints.restore)
            if start and not self.workers.chief:
                self.checkpoints.restore(at=start)
        if start:
            placement.spread(self.strategy, self.algorithm)
        return start

    def _save(self, step: int) -> None:
        """Writes a checkpoint, unless the state is broken."""
        self._check_finite(step)
        with placement.gathered(self.strategy, self.algorithm):
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
        self, step: int, metrics: dict[str, tf.Tensor]
    ) -> dict[str, float]:
        """Fetches a step's metrics and writes them to TensorBoard."""
        self._check_finite(step)
        values = {name: float(value) for name, value in metrics.items()}
        rate = self.algorithm.learning_rate(step - 1)
        with self.writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
            tf.summary.scalar("learning_rate", rate)
        return values

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
        name_of_set, *scored = self.scored
        split = self.split
        self.accuracy = self.evaluator.accuracy(*scored)
        chosen = self.accuracy
        if len(split.validation) and self.source.test is not None:
            chosen = self.evaluator.accuracy(
                self.source.train, split.validation
            )
        with self.writer.as_default(step):
            for name, accuracy in self.accuracy.items():
                score = chosen[name]["top1"]
                self.algorithm.record.keep_best(
                    name, score, accuracy["top1"], step
                )
                tf.summary.scalar(
                    f"{name_of_set}/{name}_top1", accuracy["top1"]
                )
                if chosen is not self.accuracy:
                    tf.summary.scalar(f"validation/{name}_top1", score)
        figures = ", ".join(
            f"{name} {accuracy['top1']:.2%}"
            for name, accuracy in self.accuracy.items()
        )
        bar.say(f"step {step}: {name_of_set} top-1 {figures}")

    def _result(self) -> results.Result:
        """Collects results.json from the state after the last step."""
        config, record = self.config, self.algorithm.record
        chosen_on = "validation" if len(self.split.validation) else "test"
        scored_on, _, places = self.scored
        networks = {}
        for name, accuracy in self.accuracy.items():
            _, best, step = record.best[name].numpy().tolist()
            networks[name] = {
                "last": {**accuracy, "step": config.steps},
                "best": {
                    # Kept as float32; the number of images gives the rest.
                    "top1": round(best * len(places)) / len(places),
                    "step": int(step),
                    "chosen_on": chosen_on,
                },
            }
        last = networks[self.algorithm.weights_of_record]["last"]
        loss = float(record.loss.numpy())
        return results.Result(
            top1=last["top1"],
            top5=last["top5"],
            loss=None if math.isnan(loss) else loss,
            steps=config.steps,
            weights_of_record=self.algorithm.weights_of_record,
            **networks,
            algorithm=config.algorithm,
            dataset=self.source.name,
            class_names=list(self.source.class_names),
            labels=len(self.split.labeled),
            validation_labels=len(self.split.validation),
            unlabeled=len(self.split.unlabeled),
            scored_on=scored_on,
            test_images=len(places),
            seed=config.seed,
            split_seed=config.split_seed,
            versions={
                name: importlib.metadata.version(name)
                for name in ("tensorflow", "keras", "numpy")
            },
        )

    def _write_timing(self, start: int, stop: int, seconds: float) -> None:
        """Adds this session to timing.json."""
        images = self.config.batch_size
        if self.algorithm.needs_unlabeled:
            images *= 1 + 2 * self.config.unlabeled_ratio
        if self.workers.chief:
            results.add_session(
                self.folder.timing,
                first_step=start + 1,
                last_step=stop,
                seconds=seconds,
                images=(stop - start) * images,
            )
