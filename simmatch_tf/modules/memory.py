"""The labeled memory: one embedding and one class for each labeled image."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from simmatch_tf.modules import replica
from simmatch_tf.ops import matching, shapes


class MemoryBuffer(tf.Module):
    """Q_f and Q_l of the slides. A slot is a labeled image, for ever.

    Attributes:
        features: Q_f [K, D]; rows never written are 0.
        labels: Q_l, int32 [K]; known from the data, so right from the start.
        filled: bool [K], which slots were written.
        momentum: Weight of a slot's old embedding.
    """

    def __init__(
        self,
        labels: Sequence[int],
        dim: int,
        momentum: float = 0.0,
        dtype: str = "float32",
    ) -> None:
        """Makes an empty memory.

        Args:
            labels: Class of each slot [K], K at least 1.
            dim: D.
            momentum: 0 overwrites (student-teacher form), above 0 is the
                temporal ensemble.
            dtype: float32 or float64.

        Raises:
            ValueError: `labels` is empty, not a vector, or has a negative
                class; `dim` is below 1; `momentum` is not in [0, 1).
        """
        super().__init__(name="memory")
        labels = np.asarray(labels)
        if labels.ndim != 1 or not len(labels):
            raise ValueError(
                f"labels has shape {labels.shape}, but [K] with K ≥ 1 is wanted"
            )
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise ValueError(
                f"labels of type {labels.dtype} with least value "
                f"{labels.min()}: must be classes, integers from 0"
            )
        if dim < 1:
            raise ValueError(f"dim={dim}: must be at least 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum={momentum}: must be in [0, 1)")
        self.momentum = float(momentum)
        self.features = replica.variable(
            tf.zeros([len(labels), dim], dtype), "features", dtype
        )
        self.labels = replica.variable(
            labels.astype(np.int32), "labels", tf.int32
        )
        self.filled = replica.variable(
            tf.zeros([len(labels)], tf.bool), "filled", tf.bool
        )

    def full(self) -> tf.Tensor:
        """Whether every slot was written: a bool scalar."""
        return tf.reduce_all(self.filled)

    def match(
        self,
        z_w: tf.Tensor,
        z_s: tf.Tensor,
        p_w: tf.Tensor,
        *,
        temperature: float,
        alpha: float,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Matches this replica's images with all slots; see `matching.match`.

        Slots that are not written yet count as rows of 0: what is returned
        is of use once the memory is full.
        """
        return matching.match(
            z_w,
            z_s,
            p_w,
            self.features,
            self.labels,
            num_classes=p_w.shape[1],
            temperature=temperature,
            alpha=alpha,
        )

    def update(self, indices: tf.Tensor, z: tf.Tensor) -> None:
        """Writes embeddings into their slots.

        Q_f[i] ← norm(m Q_f[i] + (1 - m) norm(z)), and norm(z) for a slot's
        first write. Where a slot occurs more than once in the global batch,
        the mean of its unit embeddings is written, once.

        Args:
            indices: Slots [B] of this replica's share of the batch, int32 or
                int64 in [0, K).
            z: Their embeddings [B, D], of any length.

        Raises:
            ValueError: A shape does not fit.
        """
        indices = tf.convert_to_tensor(indices)
        z = tf.cast(tf.convert_to_tensor(z), self.features.dtype)
        shapes.check(
            indices=(indices, "B"), z=(z, ("B", self.features.shape[1]))
        )
        indices = replica.all_gather(indices)  # [B], global from here
        z = replica.all_gather(tf.math.l2_normalize(z, axis=1))  # [B, D]
        same = indices[:, None] == indices[None, :]  # [B, B]
        z = tf.math.l2_normalize(tf.matmul(tf.cast(same, z.dtype), z), 1)
        # Of duplicates the first's row stands for all, to the last bit, so
        # that it does not matter which of them is written last.
        z = tf.gather(z, tf.argmax(same, axis=1))
        old = tf.gather(self.features, indices)  # [B, D]
        m = tf.cast(tf.gather(self.filled, indices), z.dtype) * self.momentum
        m = m[:, None]  # [B, 1]
        new = tf.math.l2_normalize(m * old + (1.0 - m) * z, axis=1)
        place = indices[:, None]  # [B, 1]
        self.features.assign(
            tf.tensor_scatter_nd_update(self.features, place, new)
        )
        self.filled.assign(
            tf.tensor_scatter_nd_update(
                self.filled, place, tf.ones_like(indices, tf.bool)
            )
        )
