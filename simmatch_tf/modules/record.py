"""What a run reports besides its weights: the last loss, the best step."""

from __future__ import annotations

from simmatch_tf import lazy
from simmatch_tf.lazy import tf
from simmatch_tf.modules import replica


class Record(lazy.Module):
    """Figures that must survive a kill.

    Attributes:
        loss: float32, total loss of the last step.
        best: Name ("student", "ema") → float32 [3]: the score that chose it,
            top-1 on the test split, and the step. -1, where there is none yet.
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
        """Records a step's total loss, this replica's share of it."""
        self.loss.assign(tf.cast(replica.mean(loss), self.loss.dtype))

    def keep_best(
        self, name: str, score: float, top1: float, step: int
    ) -> None:
        """Records an evaluation if its score is above all before."""
        if score > float(self.best[name][0]):
            self.best[name].assign([score, top1, float(step)])
