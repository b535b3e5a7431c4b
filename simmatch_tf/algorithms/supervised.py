"""The supervised baseline: the labeled images alone."""

from __future__ import annotations

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm
from simmatch_tf.lazy import tf
from simmatch_tf.ops import losses


@registry.algorithms.register("supervised")
class Supervised(algorithm.Algorithm):
    """Minimizes the cross-entropy of weak views of the labeled images."""

    unlabeled_views = ()

    def train_step(self, batch: algorithm.Batch) -> algorithm.Metrics:
        """One step: L_s alone."""
        with tf.GradientTape() as tape:
            outputs = self.call(self.student, batch["labeled_weak"])
            loss = losses.supervised_loss(outputs["logits"], batch["labels"])
        self.minimize(tape, loss)
        return {"loss/total": loss, "loss/s": loss}
