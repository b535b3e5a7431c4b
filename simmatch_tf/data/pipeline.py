"""Batches of training images: each a function of (seed, step).

Therefore no state of the input has to be saved, and a resumed run gets the same
batches as an uninterrupted one. A batch of B labeled and U unlabeled images has
the entries:

    labeled_VIEW      uint8 [B, H, W, C]    a view of each labeled image
    labels            int32 [B]             their classes
    slots             int64 [B]             their slots in the memory bank
    unlabeled_VIEW    uint8 [U, H, W, C]    a view of each unlabeled image
    unlabeled_labels  int32 [U]             their classes, -1 where unknown, for
                                            diagnostics alone; left out where
                                            none is known
    unlabeled_index   int64 [U]             their places in the unlabeled set,
                                            where the algorithm asks for them

VIEW is the name of a view that the algorithm declares, such as weak or strong.
Without labeled views the first three are left out, without unlabeled views the
others. Each view of an image has random numbers of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from simmatch_tf.data import decoding, randomness, service, splits, views
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.flags.errors import InputError

Batch = dict[str, tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The training input of one run.

    Attributes:
        source: The dataset.
        split: Its labeled and unlabeled images.
        labeled_views: Name → recipe of each view of the labeled images.
        unlabeled_views: Likewise of the unlabeled images.
        batch_size: Labeled images of the global batch.
        unlabeled_batch_size: Unlabeled images of the global batch.
        seed: Seed of the order and of the views.
        parallel_calls: Batches prepared at once; no batch depends on it.
        finished: Whether views are finished here. If not, a batch has the
            crops and, as `draws/KEY`, what `finish` needs.
        needs_index: Whether batches have `unlabeled_index`.
    """

    source: source_lib.Source
    split: splits.Split
    labeled_views: Mapping[str, views.Recipe]
    unlabeled_views: Mapping[str, views.Recipe]
    batch_size: int
    unlabeled_batch_size: int
    seed: int
    parallel_calls: int = 2
    finished: bool = True
    needs_index: bool = False

    def dataset(
        self,
        start: int,
        stop: int,
        context: tf.distribute.InputContext | None = None,
        *,
        numbered: bool = False,
    ) -> tf.data.Dataset:
        """Returns the batches of steps start … stop - 1 for this worker.

        Args:
            start: First step.
            stop: One after the last step.
            context: Workers and replicas; default: one.
            numbered: Elements are (index of the element, batch), as
                `service.ordered` takes them.

        Returns:
            One element for each replica of this worker and step, in order.
        """
        context = context or tf.distribute.InputContext()
        replicas = context.num_replicas_in_sync
        here = replicas // context.num_input_pipelines
        first = context.input_pipeline_id * here

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
        """Makes one replica's share of one step's batch.

        Args:
            element: step · here + index of the replica on this worker.
            replicas: Number of replicas of all workers.
            here: Number of replicas of this worker.
            first: Index of this worker's first replica.
        """
        step, replica = element // here, first + element % here
        batch: Batch = {}
        if self.labeled_views:
            slots, epoch = self._positions(
                "labeled",
                step * self.batch_size,
                replica,
                self.batch_size // replicas,
                len(self.split.labeled),
            )
            labels = self.source.train.labels[self.split.labeled]
            batch |= {"labels": tf.gather(_held(labels), slots), "slots": slots}
            index = tf.gather(_held(self.split.labeled), slots)
            batch |= self._crops(index, epoch, self._recipes("labeled"))
        if self.unlabeled_views:
            place, epoch = self._positions(
                "unlabeled",
                step * self.unlabeled_batch_size,
                replica,
                self.unlabeled_batch_size // replicas,
                len(self.split.unlabeled),
            )
            index = tf.gather(_held(self.split.unlabeled), place)
            batch |= self._crops(index, epoch, self._recipes("unlabeled"))
            if self._truth is not None:
                batch["unlabeled_labels"] = tf.gather(self._truth, place)
            if self.needs_index:
                batch["unlabeled_index"] = place
        return self.finish(batch) if self.finished else batch

    def finish(self, batch: Batch, *, dense: bool = False) -> Batch:
        """Finishes the views of a batch.

        Args:
            batch: A batch with the crops and draws of its views.
            dense: See `views.Recipe.finish`.

        Returns:
            The batch with its views, and without their draws.
        """
        batch = dict(batch)
        for images in ("labeled", "unlabeled"):
            for key, recipe in self._recipes(images).items():
                draws = batch.pop(f"draws/{key}")
                batch[key] = recipe.finish(batch[key], draws, dense=dense)
        return batch

    def _recipes(self, images: str) -> dict[str, views.Recipe]:
        """Returns the recipes of "labeled" or "unlabeled" views, by key."""
        recipes = getattr(self, f"{images}_views")
        return {f"{images}_{name}": recipe for name, recipe in recipes.items()}

    @functools.cached_property
    def _truth(self) -> tf.Tensor | None:
        """Returns the classes of the unlabeled images; None if none is known.

        The class of an image that is also labeled counts as unknown, because
        its pseudo-label says nothing about the other images.
        """
        places = self.split.unlabeled
        learned = np.isin(places, self.split.labeled)
        truth = self.source.train.labels[places]
        truth = np.where(learned, -1, truth).astype(np.int32)
        return _held(truth) if np.any(truth >= 0) else None

    def _crops(
        self,
        index: tf.Tensor,
        epoch: tf.Tensor,
        recipes: Mapping[str, views.Recipe],
    ) -> Batch:
        """Returns the crops and draws of all views of the same images."""
        seeds = {
            key: randomness.seeds(randomness.key(self.seed, key), epoch, index)
            for key in recipes
        }
        crops = views.crops(recipes, self.source.train, index, seeds)
        draws = {f"draws/{k}": r.draws(seeds[k]) for k, r in recipes.items()}
        return crops | draws

    def _positions(
        self,
        stream: str,
        start: tf.Tensor,
        replica: tf.Tensor,
        count: int,
        size: int,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the next images of a set, and their epochs, both [count].

        A stream goes through one permutation of its set after another and
        drops nothing: each pass of `size` images holds every image once.
        """
        position = start + replica * count + tf.range(count, dtype=tf.int64)
        epoch, within = position // size, position % size
        key = randomness.key(self.seed, f"order_{stream}")
        place = randomness.shuffle(key, epoch, within, size)
        return tf.ensure_shape(place, [count]), epoch


def _held(array: np.ndarray) -> tf.Tensor:
    """Returns a tensor that graphs refer to, instead of holding a copy."""
    with tf.init_scope(), tf.device("CPU"):
        return tf.convert_to_tensor(array)


def read_next(batches: Iterator[Any], when: str) -> Any:
    """Returns the next batch, or None at the end.

    Args:
        batches: Iterator of a dataset.
        when: When it is read, for the message about an unreadable image.

    Raises:
        InputError: An image cannot be read.
    """
    try:
        return next(batches, None)
    except tf.errors.OpError as error:
        raise InputError(unreadable(when, error)) from None


def unreadable(when: str, error: tf.errors.OpError) -> str:
    """Returns the message for an unreadable image or a missing batch.

    Batches are missing if the data service did not send them.

    Args:
        when: When it was read.
        error: TensorFlow's error.
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
    """Returns TensorFlow's message without the position in its graphs."""
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
    """Returns images in batches of one size; the last is padded by repeats.

    Args:
        images: The set.
        indices: Which of its images, in order; at least one.
        batch_size: Size of the global batch; rounded up to a multiple of the
            replicas.
        side: Side of the crops; see `decoding.centre_crops`.
        resize: See `decoding.centre_crops`.
        kernel: See `decoding.centre_crops`.
        parallel_calls: Batches prepared at once.
        context: Workers and replicas; default: one.

    Returns:
        uint8 [batch_size / replicas, H, W, C] for each replica of this worker
        and batch, in order. Drop the results beyond len(indices).
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
    """Turns autotuning off: every parameter of a dataset is set here.

    The tuner's thread sleeps for up to a minute, and with one core the end of
    an iterator may wait until it wakes.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)
