"""A Gaussian fitted to the confidence of predictions: SoftMatch's weights."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import targets, tensors, thresholds


class ConfidenceGaussian(lazy.Module):
    """Averages the predictions, and the mean and variance of their confidence.

    Attributes:
        p_mean: p̃, mean class probabilities [L].
        mean: μ̃ of the confidence max p, a scalar.
        variance: σ̃² of it, a scalar.

    References:
        Chen et al., "SoftMatch: Addressing the Quantity-Quality Trade-off in
        Semi-supervised Learning", ICLR 2023,
        https://arxiv.org/abs/2301.10921. Code:
        https://github.com/microsoft/Semi-supervised-learning
    """

    def __init__(
        self,
        num_classes: int,
        momentum: float = 0.999,
        *,
        n_sigma: float = 2.0,
        dtype: str = "float32",
    ) -> None:
        """Starts with equal shares, a mean of 1 / L and a variance of 1.

        Args:
            num_classes: Number of classes L, at least 1.
            momentum: Weight of the old values, in [0, 1].
            n_sigma: n: the weights' Gaussian has the deviation σ̃ / n.
            dtype: "float32" or "float64".
        """
        super().__init__(name="confidence_gaussian")
        share = 1.0 / num_classes
        self.p_mean = replica.variable([share] * num_classes, "p_mean", dtype)
        self.mean = replica.variable(share, "mean", dtype)
        self.variance = replica.variable(1.0, "variance", dtype)
        self._momentum, self._n_sigma = momentum, n_sigma

    def record(self, p: tf.Tensor) -> None:
        """Updates the averages by the whole batch's predictions.

        The variance is that of the images of all replicas, divided by their
        number less one; of a single image it is 0.

        Args:
            p: Class probabilities [N, L] of this replica's images.

        Raises:
            ValueError: `p` is not of shape [N, L].
        """
        p = self._checked(p)
        # Differs: not of aligned p, as in the paper; the authors' later code
        # (USB) fits the Gaussian to aligned confidences.
        confidence = replica.all_gather(tf.reduce_max(p, axis=1))  # [N]
        mean = tf.reduce_mean(confidence)
        squares = tf.reduce_sum(tf.square(confidence - mean))
        m = self._momentum
        for average, value in (
            (self.p_mean, replica.mean(tf.reduce_mean(p, axis=0))),
            (self.mean, mean),
            (self.variance, squares / max(confidence.shape[0] - 1, 1)),
        ):
            average.assign(m * average + (1.0 - m) * value)

    def weights(self, p: tf.Tensor) -> tf.Tensor:
        """Returns λ of each image, by its uniformly aligned confidence.

        Args:
            p: Class probabilities [N, L].

        Returns:
            [N], from 0 to 1.

        Raises:
            ValueError: `p` is not of shape [N, L].
        """
        p_hat = targets.align(self._checked(p), self.p_mean)  # [N, L]
        return thresholds.truncated_gaussian(
            tf.reduce_max(p_hat, axis=1),
            self.mean,
            self.variance,
            self._n_sigma,
        )

    def _checked(self, p: tf.Tensor) -> tf.Tensor:
        p = tf.cast(tf.convert_to_tensor(p), self.p_mean.dtype)
        tensors.check(p=(p, ("N", self.p_mean.shape[0])))
        return p
