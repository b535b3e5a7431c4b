"""Thresholds that follow the confidence of the predictions: FreeMatch's."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica
from simmatch_tf.ops import tensors, thresholds


class AdaptiveThresholds(lazy.Module):
    """Averages confidence, probabilities and classes of the predictions.

    Attributes:
        threshold: τ̃, mean confidence, or a quantile of it; a scalar.
        p_mean: p̃, mean class probabilities [L].
        histogram: h̃, mean shares of the predicted classes [L].

    References:
        Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised
        Learning", ICLR 2023, https://arxiv.org/abs/2205.07246. Code:
        https://github.com/microsoft/Semi-supervised-learning
    """

    def __init__(
        self,
        num_classes: int,
        momentum: float = 0.999,
        *,
        quantile: float | None = None,
        most: float | None = None,
        dtype: str = "float32",
    ) -> None:
        """Starts with 1 / L everywhere.

        Args:
            num_classes: Number of classes L, at least 1.
            momentum: Weight of the old values, in [0, 1].
            quantile: Which quantile of a batch's confidences τ̃ follows, in
                [0, 1]; None: their mean.
            most: Upper limit of τ̃; None for none.
            dtype: "float32" or "float64".
        """
        super().__init__(name="adaptive_thresholds")
        share = 1.0 / num_classes
        shares = [share] * num_classes
        self.threshold = replica.variable(share, "threshold", dtype)
        self.p_mean = replica.variable(shares, "p_mean", dtype)
        self.histogram = replica.variable(shares, "histogram", dtype)
        self._momentum, self._quantile, self._most = momentum, quantile, most

    def record(self, p: tf.Tensor) -> None:
        """Updates the averages by the whole batch's predictions.

        Args:
            p: Class probabilities [N, L] of this replica's images.

        Raises:
            ValueError: `p` is not of shape [N, L].
        """
        p = tf.cast(tf.convert_to_tensor(p), self.p_mean.dtype)
        classes = self.p_mean.shape[0]
        tensors.check(p=(p, ("N", classes)))
        confidence = tf.reduce_max(p, axis=1)  # [N]
        if self._quantile is None:
            confidence = replica.mean(tf.reduce_mean(confidence))
        else:
            confidence = _quantile(
                replica.all_gather(confidence), self._quantile
            )
        predicted = tf.one_hot(tf.argmax(p, axis=1), classes, dtype=p.dtype)
        for average, value in (
            (self.threshold, confidence),
            (self.p_mean, replica.mean(tf.reduce_mean(p, axis=0))),
            (self.histogram, replica.mean(tf.reduce_mean(predicted, axis=0))),
        ):
            m = self._momentum
            average.assign(m * average + (1.0 - m) * value)
        if self._most is not None:
            self.threshold.assign(tf.minimum(self.threshold, self._most))

    def thresholds(self) -> tf.Tensor:
        """Returns τ_c of each class, [L] in [0, τ̃]."""
        return thresholds.self_adaptive(self.threshold, self.p_mean)


def _quantile(x: tf.Tensor, share: float) -> tf.Tensor:
    """Returns a quantile of x [N], linear between two values as NumPy's."""
    place = share * (x.shape[0] - 1)
    x = tf.sort(x)
    below = int(place)
    above = min(below + 1, x.shape[0] - 1)
    return x[below] + (place - below) * (x[above] - x[below])
