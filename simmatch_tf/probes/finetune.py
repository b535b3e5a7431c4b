"""Fine-tuning: all weights of a network are trained on a dataset's labels.

As in SimCLR and BYOL: SGD with Nesterov momentum and half a cosine, random
crops and flips, BatchNorm's momentum by the length of an epoch. Learning rate
and weight decay are chosen on validation images from a small grid, then the
network is trained on training and validation images together. Every run is a
supervised one of `training.loop`, with checkpoints, so an interrupted grid
continues from its last checkpoint.
"""

import dataclasses
import hashlib
import itertools
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf import io
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.evaluation import evaluator as evaluator_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.probes import classifiers, encoders, features, tasks
from simmatch_tf.training import loop, state, workdir

_WEIGHTS = "first.weights.h5"
_LEAST_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Point:
    """A point of the grid.

    Attributes:
        rate: Peak learning rate.
        decay: Weight decay; divided by the rate, it is the L2 coefficient.
    """

    rate: float
    decay: float

    @property
    def title(self) -> str:
        """The name of its run's folder."""
        return f"rate_{self.rate:g}_decay_{self.decay:g}"


class Grid:
    """The runs that fine-tune one network on one dataset."""

    def __init__(
        self,
        encoder: encoders.Encoder,
        task: tasks.Task,
        flags: Any,
    ) -> None:
        """Writes the first weights, without training.

        Args:
            encoder: The network.
            task: The dataset.
            flags: The flags of `transfer`.

        Raises:
            InputError: The folder cannot be written, or the network cannot
                take the images.
        """
        self._encoder, self._task, self._flags = encoder, task, flags
        side, _, channels = encoder.image_shape
        self._channels, self._side = channels, side
        sets = [task.train, task.validation, task.test]
        for images in sets:
            if images is not None and images.encoded and channels == 1:
                raise InputError(
                    f"--datasets={task.name}: has color images, decoded when "
                    f"they are needed, but {encoder.name} takes grey ones; "
                    "--protocol=linear makes them grey"
                )
            if images is not None and not images.encoded:
                height, width = images.images.shape[1:3]
                if height != width:
                    raise InputError(
                        f"--datasets={task.name}: its images are {height}×"
                        f"{width}, but --protocol=finetune needs square ones"
                    )
        values = flags.steps, flags.batch_size, flags.crop_area, flags.seed
        content = (encoder.digest, task.identity, task.flip, values)
        digest = hashlib.sha256(repr(content).encode())
        folder = io.expand(flags.output) / "finetune"
        self.folder = folder / digest.hexdigest()[:16]
        self._weights = self.folder / _WEIGHTS
        io.make_folder(self.folder, f"--output={flags.output}")
        if not self._weights.is_file():
            with io.replacing(self._weights) as temporary:
                encoder.network.save_weights(temporary)

    def run(self) -> tuple[float, dict[str, Any]]:
        """Trains all points, then the best once more on all images.

        Returns:
            The score on the test images, and the details to report.

        Raises:
            InputError: An image cannot be read, a run's folder cannot be
                written, or every rate was too high.
            Interrupted: By a signal, after a checkpoint was written.
        """
        task, results = self._task, {}
        train, validation = task.train, task.validation
        if validation is None:
            validation = train.take(np.flatnonzero(task.held_out))
            train = train.take(np.flatnonzero(~task.held_out))
        for point in itertools.starmap(Point, self._flags.grid()):
            try:
                score = self._train(point, train, validation, point.title)
                result = f"{100 * score:.2f} % of the validation images"
            except FloatingPointError as error:
                score, result = None, f"not finite: {error}"
            results[point] = score
            print(
                f"{self._encoder.name} on {task.name}: rate {point.rate:g}, "
                f"decay {point.decay:g}: {result}"
            )
        finite = [point for point in results if results[point] is not None]
        if not finite:
            raise self._diverged(self._flags.rates)
        # The first of equals has the lowest rate.
        best = max(finite, key=results.__getitem__)
        everything = task.train
        if task.validation is not None:
            everything = everything.join(task.validation)
        name = f"final_{best.title}"
        try:
            score = self._train(best, everything, task.test, name)
        except FloatingPointError:
            raise self._diverged(f"{best.rate:g}") from None
        return score, {
            "run": str(self.folder / name),
            "rate": best.rate,
            "decay": best.decay,
            "steps": self._flags.steps,
            "validation": [
                {"rate": p.rate, "decay": p.decay, "score": s}
                for p, s in results.items()
            ],
        }

    def _diverged(self, rates: str) -> InputError:
        return InputError(
            f"--rates={rates}: the loss of {self._encoder.name} on "
            f"{self._task.name} was not finite; give lower ones"
        )

    def _train(
        self, point: Point, train: tasks.Set, test: tasks.Set, name: str
    ) -> float:
        """Trains a run, if it is not finished, and returns its score."""
        flags, task = self._flags, self._task
        source = source_lib.Source(
            name=task.name,
            class_names=task.class_names,
            train=_with_channels(train, self._channels),
            test=_with_channels(test, self._channels),
            flip=task.flip,
            image_size=self._side,
            # The first weights have their own normalization.
            measure=lambda: tuple(
                list(values[: self._channels]) for values in source_lib.IMAGENET
            ),
        )
        epoch_steps = max(1, len(train) // flags.batch_size)
        config = config_lib.Config(
            workdir=str(self.folder / name),
            dataset="custom",
            label_fraction=1.0,
            algorithm="supervised",
            backbone=self._encoder.backbone,
            **self._encoder.flags.values(),
            init_from=str(self._weights),
            weak="resized_crop",
            crop_area=flags.crop_area,
            batch_size=flags.batch_size,
            ema_momentum=0.0,  # no EMA: the last weights are the result
            batch_norm_momentum=max(1 - 10 / epoch_steps, _LEAST_MOMENTUM),
            steps=flags.steps,
            learning_rate=point.rate,
            weight_decay=point.decay / point.rate,
            schedule="half_cosine",
            eval_every=flags.steps,
            seed=flags.seed,
            checkpoint_every=max(1, min(500, flags.steps // 4)),
            keep=1,
            summaries=False,
            parallel_calls=flags.parallel_calls,
            progress=flags.progress,
        )
        with workdir.claim(config) as run:
            if not run.finished():
                loop.fit_in(run, config, source)
        return self._score(config, source)

    def _score(
        self, config: config_lib.Config, source: source_lib.Source
    ) -> float:
        network = state.load(config.workdir, weights="student")
        # Differs: BYOL resizes to 256 and crops 224; this resizes to 224.
        evaluator = evaluator_lib.Evaluator(
            strategies.one(),
            {"student": network},
            config.eval_batch_size,
            side=self._side,
            parallel_calls=config.parallel_calls,
        )
        places = np.arange(len(source.test))
        logits = evaluator.logits(source.test, places)["student"]
        return classifiers.score(
            self._task.metric, source.test.labels, logits.argmax(axis=1)
        )


def _with_channels(images: tasks.Set, channels: int) -> tasks.Set:
    """Returns the images with 1 or 3 channels; encoded ones have 3."""
    if images.encoded or images.images.shape[-1] == channels:
        return images
    with tf.device("CPU"):
        pixels = features.match_channels(tf.constant(images.images), channels)
    return dataclasses.replace(images, images=pixels.numpy())
