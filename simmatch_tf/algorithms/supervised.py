"""The yardstick: the labeled images alone."""

from __future__ import annotations

from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm
from simmatch_tf.lazy import tf
from simmatch_tf.ops import losses


@registry.algorithms.register("supervised")
class Supervised(algorithm.Algorithm):
    """Cross-entropy on weak views of the labeled images."""

    needs_unlabeled = False
    needs_embeddings = False

    def train_step(self, batch: dict[str, tf.Tensor]) -> algorithm.Metrics:
        """One step: L_s alone."""
        with tf.GradientTape() as tape:
            outputs = self.student(batch["labeled_weak"], training=True)
            loss = losses.supervised_loss(outputs["logits"], batch["labels"])
        self.minimize(tape, loss)
        return {"loss/total": loss, "loss/s": loss}
