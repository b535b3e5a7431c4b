"""Runs networks over images: the only loop of the package that does."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from simmatch_tf.data import pipeline
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.distributed import strategies
from simmatch_tf.modules import replica


def outputs(
    forward: Callable[[tf.Tensor], Any],
    images: source_lib.Images | source_lib.Encoded,
    indices: np.ndarray,
    *,
    batch_size: int,
    side: int,
    resize: int | None = None,
    kernel: str = "triangle",
    parallel_calls: int = 1,
    strategy: tf.distribute.Strategy | None = None,
    when: str = "in evaluation",
) -> Iterator[Any]:
    """Runs a function over images in batches, in order.

    Args:
        forward: From uint8 [B, H, W, C] to a tensor [B, …] or a structure of
            such. All batches have one shape, so a tf.function traces once.
            With a strategy it is given what `strategy.run` takes, and returns
            the values of all replicas.
        images: The images to choose from.
        indices: Which of them, [n].
        batch_size: Images of a batch, all replicas together.
        side: Side of the square that the network sees; see
            `pipeline.evaluation_dataset`.
        resize: Shorter side before the central crop, likewise.
        kernel: Resampling kernel, likewise.
        parallel_calls: Batches that are prepared at once.
        strategy: Where `forward` runs; None is the default device.
        when: What goes on, for the message on an image that cannot be read.

    Yields:
        What `forward` returned for a batch, as NumPy arrays; the last batch
        has as many rows as there are images left.

    Raises:
        InputError: An image cannot be read.
    """
    left = len(indices)
    if not left:
        return

    def dataset(
        context: tf.distribute.InputContext | None = None,
    ) -> tf.data.Dataset:
        return pipeline.evaluation_dataset(
            images,
            indices,
            batch_size,
            side=side,
            resize=resize,
            kernel=kernel,
            parallel_calls=parallel_calls,
            context=context,
        )

    if strategy is None:
        batches = iter(dataset())
    else:
        batches = strategies.iterate(strategy, dataset)
    while (batch := pipeline.read_next(batches, when)) is not None:
        rows = slice(left)
        values = tf.nest.map_structure(
            lambda x, rows=rows: x.numpy()[rows], forward(batch)
        )
        yield values
        left -= len(tf.nest.flatten(values)[0])


class Evaluator:
    """Computes the logits of networks, each of which is traced once."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        networks: Mapping[str, keras.Model | Callable],
        batch_size: int,
        *,
        side: int,
        resize: int | None = None,
        parallel_calls: int = 1,
    ) -> None:
        """Takes the networks.

        Args:
            strategy: Where they live.
            networks: Name → network, or a function of images and `training`
                to a dict with `logits`.
            batch_size: Images of a batch, all replicas together; fewer where
                there are fewer images.
            side: See `outputs`.
            resize: See `outputs`.
            parallel_calls: See `outputs`.
        """
        self._strategy, self._batch_size = strategy, batch_size
        self._input = {
            "side": side,
            "resize": resize,
            "parallel_calls": parallel_calls,
        }
        self._networks = networks
        self._forward = {
            name: self._gathered(model, "logits")
            for name, model in networks.items()
        }

    def _gathered(self, model: keras.Model | Callable, output: str) -> Callable:
        """Returns a function from a batch to an output of all replicas."""
        strategy = self._strategy
        return tf.function(
            lambda images: strategy.run(
                lambda x: replica.all_gather(model(x, training=False)[output]),
                args=(images,),
            ),
            autograph=False,
        )

    def _first(self, forward: Callable, batch: Any) -> tf.Tensor:
        """Returns a result that all replicas have."""
        return self._strategy.experimental_local_results(forward(batch))[0]

    def _all_logits(self, batch: Any) -> dict[str, tf.Tensor]:
        """The logits of a batch; each replica has those of all replicas."""
        return {
            name: self._first(forward, batch)
            for name, forward in self._forward.items()
        }

    def logits(
        self,
        images: source_lib.Images | source_lib.Encoded,
        indices: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Computes the logits of every network.

        Args:
            images: The images to choose from.
            indices: Which of them, [n], n ≥ 1.

        Returns:
            Name → float32 [n, L].

        Raises:
            InputError: An image cannot be read.
        """
        parts = self._parts(self._all_logits, images, indices)
        return {
            name: np.concatenate([part[name] for part in parts])
            for name in self._forward
        }

    def features(
        self,
        name: str,
        images: source_lib.Images | source_lib.Encoded,
        indices: np.ndarray,
    ) -> np.ndarray:
        """Computes the features of one network, before its heads.

        Args:
            name: The network.
            images: The images to choose from.
            indices: Which of them, [n], n ≥ 1.

        Returns:
            float32 [n, width].

        Raises:
            InputError: An image cannot be read.
        """
        forward = self._gathered(self._networks[name], "features")
        parts = self._parts(
            lambda batch: self._first(forward, batch), images, indices
        )
        return np.concatenate(parts).astype(np.float32)

    def _parts(
        self,
        forward: Callable[[Any], Any],
        images: source_lib.Images | source_lib.Encoded,
        indices: np.ndarray,
    ) -> list[Any]:
        """Returns what a function makes of each batch of images."""
        return list(
            outputs(
                forward,
                images,
                indices,
                batch_size=min(self._batch_size, len(indices)),
                strategy=self._strategy,
                **self._input,
            )
        )
