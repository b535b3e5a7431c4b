"""Batches: every one a function of (seed, step), so nothing to save.

The batch's keys are this module's contract with the algorithms:

    labeled_weak      uint8 [B, H, W, C]    weak views of labeled images
    labels            int32 [B]             their classes
    slots             int64 [B]             their memory slots
    unlabeled_weak    uint8 [U, H, W, C]    weak views of unlabeled images
    unlabeled_strong  uint8 [U, H, W, C]    strong views of the same images
    unlabeled_labels  int32 [U]             their classes, -1 where not known;
                                            for figures alone, and left out
                                            where none is known
"""

import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf.data import decoding, randomness, service, splits, views
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.commandline import InputError

Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The training input of one run.

    Attributes:
        source: The dataset.
        split: Its labeled and unlabeled images.
        recipe: The views.
        batch_size: Labeled images of the global batch.
        unlabeled_batch_size: Unlabeled ones; 0 leaves them out.
        seed: Of order and views.
        parallel_calls: Batches prepared at once; no batch depends on it.
        finished: Whether views are finished here; if not, the batch has the
            crops and, as `draws/VIEW`, what `recipe.finish_batch` needs.
    """

    source: source_lib.Source
    split: splits.Split
    recipe: views.Recipe
    batch_size: int
    unlabeled_batch_size: int
    seed: int
    parallel_calls: int = 2
    finished: bool = True

    def dataset(
        self,
        start: int,
        stop: int,
        context: tf.distribute.InputContext | None = None,
        *,
        numbered: bool = False,
    ) -> tf.data.Dataset:
        """The batches of steps start … stop - 1, for the replicas here.

        Args:
            start: First step.
            stop: One after the last.
            context: Which workers and replicas there are; default: one.
            numbered: Give (place among the elements, batch), which
                `service.ordered` takes.

        Returns:
            One element for each replica of this worker and step, in order.

        Raises:
            ValueError: A batch does not divide by the replicas.
        """
        context = context or tf.distribute.InputContext()
        replicas = context.num_replicas_in_sync
        here = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * here
        for name in ("batch_size", "unlabeled_batch_size"):
            if getattr(self, name) % replicas:
                raise ValueError(
                    f"{name}={getattr(self, name)} does not divide by "
                    f"{replicas} replicas"
                )

        def make(element: tf.Tensor) -> Batch | tuple[tf.Tensor, Batch]:
            batch = self.batch(
                element, replicas=replicas, here=here, first=first
            )
            return (element - start * here, batch) if numbered else batch

        # Nothing to convert: AutoGraph would only cost seconds at the start.
        make = tf.autograph.experimental.do_not_convert(make)
        dataset = tf.data.Dataset.range(start * here, stop * here)
        dataset = dataset.map(
            make, num_parallel_calls=self.parallel_calls, deterministic=True
        )
        return _without_autotune(dataset.prefetch(2))

    def batch(
        self, element: tf.Tensor, *, replicas: int, here: int, first: int
    ) -> Batch:
        """One replica's share of one step's batch.

        Args:
            element: step · here + number of the replica on this worker.
            replicas: Replicas of all workers.
            here: Replicas of this worker.
            first: Number of this worker's first replica.
        """
        step, replica = element // here, first + element % here
        slots, epoch = self._positions(
            "labeled",
            step * self.batch_size,
            replica,
            self.batch_size // replicas,
            len(self.split.labeled),
        )
        labels = self.source.train.labels[self.split.labeled]
        batch = {
            "labels": tf.gather(_held(labels), slots),
            "slots": slots,
            **self._crops(
                tf.gather(_held(self.split.labeled), slots),
                epoch,
                ["labeled_weak"],
            ),
        }
        if self.unlabeled_batch_size:
            place, epoch = self._positions(
                "unlabeled",
                step * self.unlabeled_batch_size,
                replica,
                self.unlabeled_batch_size // replicas,
                len(self.split.unlabeled),
            )
            index = tf.gather(_held(self.split.unlabeled), place)
            batch |= self._crops(
                index, epoch, ["unlabeled_weak", "unlabeled_strong"]
            )
            if self._truth is not None:
                batch["unlabeled_labels"] = tf.gather(self._truth, place)
        return self.recipe.finish_batch(batch) if self.finished else batch

    @functools.cached_property
    def _truth(self) -> tf.Tensor | None:
        """Classes of the unlabeled images, where any is known.

        An image that is labeled, too, tells nothing: the run was given its
        class.
        """
        places = self.split.unlabeled
        learned = np.isin(places, self.split.labeled)
        truth = self.source.train.labels[places]
        truth = np.where(learned, -1, truth).astype(np.int32)
        return _held(truth) if np.any(truth >= 0) else None

    def _crops(
        self, index: tf.Tensor, epoch: tf.Tensor, names: list[str]
    ) -> Batch:
        """The crops of some views of the same images, and their draws."""
        seeds = [
            randomness.seeds(randomness.key(self.seed, name), epoch, index)
            for name in names
        ]
        crops = self.recipe.crops(self.source.train, index, seeds)
        batch = dict(zip(names, crops, strict=True))
        for name, seed in zip(names, seeds, strict=True):
            batch[f"draws/{name}"] = self.recipe.draws(
                seed, strong=name.endswith("strong")
            )
        return batch

    def _positions(
        self,
        stream: str,
        start: tf.Tensor,
        replica: tf.Tensor,
        count: int,
        size: int,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Places in a set, and their epochs, both [count].

        A stream goes through one permutation of its set after the other and
        drops nothing: every run of `size` places holds each image once.
        """
        position = start + replica * count + tf.range(count, dtype=tf.int64)
        epoch, within = position // size, position % size
        key = randomness.key(self.seed, f"order_{stream}")
        place = randomness.shuffle(key, epoch, within, size)
        return tf.ensure_shape(place, [count]), epoch


def _held(array: np.ndarray) -> tf.Tensor:
    """An array as a tensor that graphs refer to, instead of holding a copy."""
    with tf.init_scope(), tf.device("CPU"):
        return tf.convert_to_tensor(array)


def read_next(batches: Iterator[Any], when: str) -> Any:
    """The next batch, or None at the end.

    Args:
        batches: Of a dataset.
        when: For the message: an image may have gone bad since the start.

    Raises:
        InputError: An image cannot be read.
    """
    try:
        return next(batches, None)
    except tf.errors.OpError as error:
        raise InputError(unreadable(when, error)) from None


def unreadable(when: str, error: tf.errors.OpError) -> str:
    """The message on an image that went bad since the start.

    Or on a batch that the data service did not send.
    """
    message = service.reason(error.message)
    if message.startswith(service.FAILED):
        return (
            f"no batch {when}: {message} (put it right and start again: the "
            "run goes on from its last checkpoint)"
        )
    return (
        f"an image could not be read {when}: {_cause(message)} (the last "
        "checkpoint stays: put it right and start again)"
    )


def _cause(message: str) -> str:
    """What TensorFlow says of a file, without where in its graphs it was."""
    before = r"Iterator::[\w:\[\]]+: |<stack traces unavailable>\n"
    behind = r"\s*(?:\[\[\{\{node |\[\[Iterator|\[Op:)"
    text = re.sub(r"\{\{function_node .*?\}\} ?", "", message)
    return re.split(behind, re.split(before, text)[-1])[0].strip()


def evaluation_dataset(
    images: source_lib.Images | source_lib.Encoded,
    indices: np.ndarray,
    batch_size: int,
    *,
    side: int,
    resize: int | None = None,
    kernel: str = "triangle",
    parallel_calls: int = 1,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Images in batches of one size; the last is filled with repeats.

    Args:
        images: The set.
        indices: Which of them, in order; at least one.
        batch_size: Of every batch, all replicas together; made to divide by
            them.
        side: Of the crops; see `decoding.centre_crops`.
        resize: Likewise.
        kernel: Likewise.
        parallel_calls: Batches prepared at once.
        context: Which workers and replicas there are; default: one.

    Returns:
        uint8 [batch_size / replicas, H, W, C] for each replica of this worker
        and batch, in order; drop what is beyond len(indices).
    """
    context = context or tf.distribute.InputContext()
    replicas = context.num_replicas_in_sync
    here = replicas // context.num_input_pipelines
    share = -(-batch_size // replicas)
    batches = -(-len(indices) // (share * replicas))
    padded = np.resize(indices, batches * replicas * share)
    padded = padded.reshape(batches, -1, here, share)
    dataset = tf.data.Dataset.from_tensor_slices(
        padded[:, context.input_pipeline_id].reshape(-1, share)
    )
    crop = tf.autograph.experimental.do_not_convert(
        functools.partial(
            decoding.centre_crops,
            images,
            side=side,
            resize=resize,
            kernel=kernel,
        )
    )
    dataset = dataset.map(
        crop, num_parallel_calls=parallel_calls, deterministic=True
    )
    return _without_autotune(dataset.prefetch(1))


def _without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Every number here is given, so there is nothing to tune.

    The tuner's thread sleeps for up to a minute, and with one core the end of
    an iterator may wait until it wakes.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
