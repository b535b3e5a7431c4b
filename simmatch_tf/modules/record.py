"""The last loss and the best step of a run."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica


class Record(lazy.Module):
    """Results that a checkpoint holds beside the weights.

    Attributes:
        loss: Total loss of the last step, float32.
        best: "student" or "ema" → float32 [3]: the best score so far, top-1 on
            the test split at that step, and the step; -1 before the first.
    """

    def __init__(self) -> None:
        """Starts with nothing recorded."""
        super().__init__(name="record")
        self.loss = replica.variable(float("nan"), "loss", tf.float32)
        self.best = {
            name: replica.variable([-1.0, -1.0, -1.0], name, tf.float32)
            for name in ("student", "ema")
        }

    def keep_loss(self, loss: tf.Tensor) -> None:
        """Records a step's total loss, the mean over this replica's images."""
        self.loss.assign(tf.cast(replica.mean(loss), self.loss.dtype))

    def keep_best(
        self, name: str, score: float, top1: float, step: int
    ) -> None:
        """Records an evaluation if its score is higher than all before."""
        if score > float(self.best[name][0]):
            self.best[name].assign([score, top1, float(step)])
