"""Batches: every one a function of (seed, step), so nothing to save.

The batch's keys are this module's contract with the algorithms:

    labeled_weak      uint8 [B, H, W, C]    weak views of labeled images
    labels            int32 [B]             their classes
    slots             int64 [B]             their memory slots
    unlabeled_weak    uint8 [U, H, W, C]    weak views of unlabeled images
    unlabeled_strong  uint8 [U, H, W, C]    strong views of the same images
"""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from simmatch_tf.data import randomness, splits, views
from simmatch_tf.data import source as source_lib

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
    """

    source: source_lib.Source
    split: splits.Split
    recipe: views.Recipe
    batch_size: int
    unlabeled_batch_size: int
    seed: int
    parallel_calls: int = 2

    def dataset(
        self,
        start: int,
        stop: int,
        context: tf.distribute.InputContext | None = None,
    ) -> tf.data.Dataset:
        """The batches of steps start … stop - 1, for the replicas here.

        Args:
            start: First step.
            stop: One after the last.
            context: Which workers and replicas there are; default: one.

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
        make = functools.partial(
            self.batch, replicas=replicas, here=here, first=first
        )
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
        index = tf.gather(tf.constant(self.split.labeled), slots)
        labels = self.source.train.labels[self.split.labeled]
        batch = {
            "labeled_weak": self.recipe.weak(
                self.source.train.fetch(index),
                self._seeds("labeled_weak", epoch, index),
            ),
            "labels": tf.gather(tf.constant(labels), slots),
            "slots": slots,
        }
        if self.unlabeled_batch_size:
            place, epoch = self._positions(
                "unlabeled",
                step * self.unlabeled_batch_size,
                replica,
                self.unlabeled_batch_size // replicas,
                len(self.split.unlabeled),
            )
            index = tf.gather(tf.constant(self.split.unlabeled), place)
            images = self.source.train.fetch(index)
            for name in ("weak", "strong"):
                batch[f"unlabeled_{name}"] = getattr(self.recipe, name)(
                    images, self._seeds(f"unlabeled_{name}", epoch, index)
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

    def _seeds(
        self, stream: str, epoch: tf.Tensor, index: tf.Tensor
    ) -> tf.Tensor:
        key = randomness.key(self.seed, stream)
        return randomness.seeds(key, epoch, index)


def evaluation_dataset(
    images: source_lib.Images, indices: np.ndarray, batch_size: int
) -> tf.data.Dataset:
    """Images in batches of one size; the last is filled with repeats.

    Args:
        images: The set.
        indices: Which of them, in order; at least one.
        batch_size: Of every batch.

    Returns:
        uint8 [batch_size, H, W, C]; drop what is beyond len(indices).
    """
    batches = -(-len(indices) // batch_size)
    padded = np.resize(indices, batches * batch_size)
    dataset = tf.data.Dataset.from_tensor_slices(
        padded.reshape(batches, batch_size)
    )
    return _without_autotune(dataset.map(images.fetch).prefetch(1))


def _without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Every number here is given, so there is nothing to tune.

    The tuner's thread sleeps for up to a minute, and with one core the end of
    an iterator may wait until it wakes.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
