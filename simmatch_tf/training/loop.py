"""The outer loop: from flags to a result, in one place."""

import functools
import importlib.metadata
import json
import math
import time

import tensorflow as tf
from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.commandline import InputError
from simmatch_tf.data import pipeline as pipeline_lib
from simmatch_tf.data import source as source_lib
from simmatch_tf.data import splits, views
from simmatch_tf.networks import network
from simmatch_tf.training import (
    allocator,
    assembly,
    checkpoints,
    evaluation,
    initial,
    inputs,
    interruption,
    progress,
    results,
    strategies,
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
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint was written.
        FloatingPointError: The loss is no longer a finite number.
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
    with interruption.watch() as request:
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
        self.folder = folder
        # First: once TensorFlow has begun, a CPU is not divided any more.
        self.strategy = strategies.make(config)
        # ------------------------------------------------------------ data --
        self.source = inputs.make_source(config, custom.source)
        self.split = inputs.make_split(config, self.source, folder)
        self.config = config.with_durations(len(self.split.unlabeled))
        self.scored = inputs.scored_images(self.source, self.split.validation)
        # ------------------------------------------------------- algorithm --
        resumed = folder.resumed()
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
        folder.begin(config)
        if not resumed:
            splits.write(folder.split, self.split, self.source)
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
        try:
            self.writer = tf.summary.create_file_writer(str(folder.tensorboard))
        except tf.errors.OpError as error:
            raise InputError(
                f"{folder.tensorboard}: cannot be written ({error.message})"
            ) from None
        self.accuracy: dict[str, dict[str, float]] = {}

    def train(self, request: interruption.Request) -> results.Result:
        """Trains to the end, or until it is asked to stop."""
        config = self.config
        # ---------------------------------------------------------- resume --
        self.checkpoints.tidy()
        with self.strategy.scope():
            start = self.checkpoints.restore() or 0
        bar = progress.Progress(start, config.steps, bar=config.progress)
        self._say_what(bar, start)
        # ----------------------------------------------------------- input --
        pipeline = inputs.make_pipeline(
            config,
            self.source,
            self.split,
            unlabeled=self.algorithm.needs_unlabeled,
        )
        batches = inputs.make_batches(
            self.strategy, pipeline, start, config.steps
        )
        train_step = self._compiled_step(pipeline.recipe)
        began = time.monotonic()
        # ------------------------------------------------------------ loop --
        for step in range(start + 1, config.steps + 1):
            metrics = train_step(
                pipeline_lib.read_next(batches, f"at step {step}")
            )
            itstime = functools.partial(_itstime, step, config.steps)
            bar.advance(
                step,
                self._log(step, metrics) if itstime(config.log_every) else None,
            )
            if itstime(config.eval_every):
                self._evaluate(step, bar)
            if itstime(config.checkpoint_every) or request.signal:
                self._check_finite(step)
                self.checkpoints.save(step)
            if request.signal and step < config.steps:
                bar.close()
                self._write_timing(start, step, time.monotonic() - began)
                raise interruption.Interrupted(
                    f"{request.signal} after step {step} of {config.steps}; "
                    f"saved in {self.folder.path}: start it again to go on"
                )
        # ---------------------------------------------------------- result --
        self._write_timing(start, config.steps, time.monotonic() - began)
        if not self.accuracy:  # killed between checkpoint and result
            self._evaluate(config.steps, bar)
        bar.close()
        self.writer.close()
        result = self._result()
        result.write(self.folder.results)
        return result

    def _compiled_step(self, recipe: views.Recipe):
        strategy, algorithm = self.strategy, self.algorithm
        finish = None
        if self.config.views_on == "device":
            finish = functools.partial(recipe.finish_batch, dense=True)

        def replica_step(batch):
            return algorithm.train_step(finish(batch) if finish else batch)

        # AutoGraph would read a thousand lines for seconds and change none.
        @tf.function(autograph=False)
        def train_step(batch):
            metrics = strategy.run(replica_step, args=(batch,))
            return {
                name: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, None)
                for name, value in metrics.items()
            }

        return train_step

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
        if start:
            bar.say(f"resumed after step {start}")

    def _log(
        self, step: int, metrics: dict[str, tf.Tensor]
    ) -> dict[str, float]:
        """Fetches a step's metrics and writes them to TensorBoard."""
        values = {name: float(value) for name, value in metrics.items()}
        self._check_finite(step)
        rate = self.algorithm.learning_rate(step - 1)
        with self.writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
            tf.summary.scalar("learning_rate", rate)
        return values

    def _check_finite(self, step: int) -> None:
        """Stops before a broken state can replace a good checkpoint."""
        loss = float(self.algorithm.record.loss.numpy())
        if not math.isfinite(loss):
            saved = self.checkpoints.steps()
            last = f"step {saved[-1]}" if saved else "none"
            raise FloatingPointError(
                f"the loss is {loss} at step {step}; last good checkpoint: "
                f"{last}, in {self.folder.checkpoints}. A lower "
                "--learning_rate or a --warmup_steps may help"
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
        sessions = []
        if self.folder.timing.is_file():
            try:
                sessions = json.loads(self.folder.timing.read_text("utf-8"))
            except ValueError:
                sessions = []  # a torn file of times is no reason to stop
        images = self.config.batch_size
        if self.algorithm.needs_unlabeled:
            images *= 1 + 2 * self.config.unlabeled_ratio
        sessions.append(
            {
                "first_step": start + 1,
                "last_step": stop,
                "seconds": round(seconds, 3),
                "views_per_second": round(
                    (stop - start) * images / max(seconds, 1e-9), 1
                ),
            }
        )
        results.write_json(self.folder.timing, sessions)
