"""Distribution alignment over a window of the last batches."""

from __future__ import annotations

from collections.abc import Sequence

from simmatch_tf import lazy
from simmatch_tf.lazy import np, tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import targets, tensors


class DistributionAlignment(lazy.Module):
    """Aligns predictions by the mean prediction of the last batches.

    Attributes:
        window: Mean prediction of each batch in the window, [window, L].
        written: Number of batches recorded so far, int64.
        prior: Class shares that predictions are aligned with [L]; None: equal
            shares.

    References:
        Berthelot et al., "ReMixMatch: Semi-Supervised Learning with
        Distribution Alignment and Augmentation Anchoring", ICLR 2020,
        https://arxiv.org/abs/1911.09785.
    """

    def __init__(
        self,
        num_classes: int,
        window: int,
        dtype: str = "float32",
        prior: Sequence[float] | None = None,
    ) -> None:
        """Makes an empty window.

        Args:
            num_classes: Number of classes L, at least 1.
            window: Number of batches to average over, at least 1.
            dtype: "float32" or "float64".
            prior: Class shares [L], above 0; None: equal shares.

        Raises:
            ValueError: A share is not above 0, or their number is not L.
        """
        super().__init__(name="distribution_alignment")
        self.window = replica.variable(
            tf.zeros([window, num_classes], dtype), "window", dtype
        )
        self.written = replica.variable(0, "written", tf.int64)
        self.prior = None
        if prior is None:
            return
        prior = np.asarray(prior, np.float64)
        if prior.shape != (num_classes,) or not np.all(prior > 0):
            raise ValueError(
                f"prior={prior.tolist()}: must be {num_classes} shares above 0"
            )
        # Equal shares cancel, but for the last bits.
        if np.ptp(prior):
            self.prior = tf.constant(prior, dtype)

    def record(self, p: tf.Tensor) -> None:
        """Replaces the oldest row of the window by the mean of `p` [N, L]."""
        size = self.window.shape[0]
        row = replica.mean(tf.reduce_mean(p, axis=0))  # [L]
        place = tf.range(size, dtype=tf.int64) == self.written % size
        self.window.assign(tf.where(place[:, None], row, self.window))
        self.written.assign_add(1)

    def mean(self) -> tf.Tensor:
        """Returns the mean prediction [L] of the batches in the window."""
        rows = tf.minimum(self.written, self.window.shape[0])
        return tf.math.divide_no_nan(
            tf.reduce_sum(self.window, axis=0), tf.cast(rows, self.window.dtype)
        )

    def __call__(self, p: tf.Tensor) -> tf.Tensor:
        """Records a batch, and aligns it by the mean that includes it.

        Args:
            p: Class probabilities [N, L] of this replica's images.

        Returns:
            The aligned probabilities [N, L], rows sum to 1.

        Raises:
            ValueError: `p` is not of shape [N, L].
        """
        p = tf.cast(tf.convert_to_tensor(p), self.window.dtype)
        tensors.check(p=(p, ("N", self.window.shape[1])))
        self.record(p)
        return targets.align(p, self.mean(), self.prior)


class PastAlignment(DistributionAlignment):
    """Aligns predictions by the mean of the batches before them (ReMixMatch).

    p̃ ∝ p (π + ε) / (p_avg + ε), ε = 1e-6

    The window starts full of equal shares. So the first predictions are hardly
    changed, a class that is hardly predicted is divided by ε at least, and one
    of a share π of 0 can still be predicted.
    """

    EPSILON = 1e-6

    def __init__(
        self,
        num_classes: int,
        window: int,
        dtype: str = "float32",
        prior: Sequence[float] | None = None,
    ) -> None:
        """Makes a window of equal shares; see `DistributionAlignment`.

        Args:
            num_classes: Number of classes L, at least 1.
            window: Number of batches to average over, at least 1.
            dtype: "float32" or "float64".
            prior: Class shares π [L], at least 0; None: equal shares.

        Raises:
            ValueError: A share is below 0, or their number is not L.
        """
        if prior is not None:
            prior = np.asarray(prior, np.float64) + self.EPSILON
        super().__init__(num_classes, window, dtype, prior)
        self.window.assign(tf.ones_like(self.window) / num_classes)

    def mean(self) -> tf.Tensor:
        """Returns the mean [L] of the window."""
        return tf.reduce_mean(self.window, axis=0)

    def __call__(self, p: tf.Tensor) -> tf.Tensor:
        """Aligns a batch by the mean before it, and then records the batch.

        Args:
            p: Class probabilities [N, L] of this replica's images.

        Returns:
            The aligned probabilities [N, L], rows sum to 1.

        Raises:
            ValueError: `p` is not of shape [N, L].
        """
        p = tf.cast(tf.convert_to_tensor(p), self.window.dtype)
        aligned = targets.align(p, self.mean() + self.EPSILON, self.prior)
        self.record(p)
        return aligned


class AverageAlignment(PastAlignment):
    """Aligns predictions by a moving average of those before (SimMatchV2).

    p̃ ∝ p (π + ε) / (p_avg + ε), ε = 1e-6, then p_avg ← m p_avg + (1 - m) p̄

    Its window is one row, p_avg, which starts at equal shares.

    Attributes:
        momentum: m, the weight of the old average.

    References:
        Zheng et al., "SimMatchV2: Semi-Supervised Learning with Graph
        Consistency", ICCV 2023, https://arxiv.org/abs/2308.06692.
    """

    def __init__(
        self,
        num_classes: int,
        momentum: float,
        dtype: str = "float32",
        prior: Sequence[float] | None = None,
    ) -> None:
        """Makes an average of equal shares; see `PastAlignment`.

        Args:
            num_classes: Number of classes L, at least 1.
            momentum: Weight of the old average, in [0, 1].
            dtype: "float32" or "float64".
            prior: Class shares π [L], at least 0; None: equal shares.

        Raises:
            ValueError: A share is below 0, or their number is not L.
        """
        super().__init__(num_classes, 1, dtype, prior)
        self.momentum = momentum

    def record(self, p: tf.Tensor) -> None:
        """Averages the mean of `p` [N, L] over all replicas."""
        row = replica.mean(tf.reduce_mean(p, axis=0))  # [L]
        m = self.momentum
        self.window.assign(m * self.window + (1.0 - m) * row)
        self.written.assign_add(1)
