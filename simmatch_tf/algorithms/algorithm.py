"""What every algorithm is: the state of a run and one step over it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar

from simmatch_tf import config as config_lib
from simmatch_tf import lazy
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.lazy import keras, np, tf
from simmatch_tf.modules import (
    guard,
    loss_scale,
    record,
    replica,
    shard,
    teacher,
)
from simmatch_tf.ops import schedules

Metrics = dict[str, "tf.Tensor"]


def state(
    owner: tf.Module | keras.Layer | keras.optimizers.Optimizer | tf.Variable,
) -> list[tf.Variable]:
    """The variables under `owner`, each once, by the view of checkpoints."""
    found = [
        # What Keras' variable stands for may be found beside it.
        each.value if isinstance(each, keras.Variable) else each
        for each in tf.train.TrackableView(owner).descendants()
        if isinstance(each, tf.Variable | keras.Variable)
    ]
    return list({id(variable): variable for variable in found}.values())


class Algorithm(lazy.Module):
    """All state of a run; `tf.train.Checkpoint(algorithm=…)` saves it whole.

    A subclass writes `train_step`, and adds its own state in `__init__`.

    Attributes:
        student: The network that is trained.
        teacher: Its EMA.
        optimizer: SGD with one velocity for each weight.
        record: Last loss and best step.
        guard: Finds steps whose numbers are not finite.
        layout: Of what is seen of a step that is watched.
        loss_scale: Of float16; None otherwise.
        dtype: Of losses and state: float32, or float64.
        generators: States of the networks' own random generators (Dropout's),
            which tf.train.Checkpoint does not find by itself.
        step: Steps done, int64.
        weights_of_record: "student" or "ema": whose figures are the result.
        needs_unlabeled: Whether batches need unlabeled views.
        needs_embeddings: Whether the network needs its projection head.
    """

    needs_unlabeled: ClassVar[bool] = True
    needs_embeddings: ClassVar[bool] = True
    weights_of_record: str = "ema"

    def __init__(
        self,
        config: config_lib.Config,
        make_network: Callable[[], keras.Model],
        *,
        num_classes: int,
        slot_labels: np.ndarray,
    ) -> None:
        """Makes networks, optimizer and counters.

        Args:
            config: The run's, with its durations in steps.
            make_network: Makes a network (see `networks.network.build`).
            num_classes: L.
            slot_labels: Class of each labeled image [K], in slot order.

        Raises:
            ValueError: A class is not in [0, num_classes).
        """
        # Keras' classes derive from it, so it is imported with TensorFlow.
        from simmatch_tf.modules import optimizer

        super().__init__(name=type(self).__name__.lower())
        if slot_labels.min() < 0 or slot_labels.max() >= num_classes:
            raise ValueError(
                f"labels from {slot_labels.min()} to {slot_labels.max()}: must "
                f"be in [0, {num_classes})"
            )
        self.config, self.num_classes = config, num_classes
        double = config.precision == "float64"
        self.dtype = "float64" if double else "float32"
        self.student = make_network()
        self.teacher = teacher.Teacher(
            make_network(),
            self.student,
            momentum=config.ema_momentum,
            warmup=config.ema_warmup,
            eman=config.teacher_norm == "eman",
            shuffles=config.batch_norm == "local",
        )
        self.generators = [
            variable.value
            for model in self.networks().values()
            for variable in model.variables
            if not variable.value.dtype.is_floating
        ]
        self.learning_rate = functools.partial(
            schedules.learning_rate,
            peak=config.learning_rate,
            steps=config.steps,
            warmup_steps=config.warmup_steps,
            shape=config.schedule,
        )
        self.optimizer = optimizer.Sgd(
            optimizer.Schedule(self.learning_rate),
            momentum=config.momentum,
            decay=config.weight_decay,
            decay_on=config.weight_decay_on,
        )
        self.optimizer.build(self.student.trainable_variables)
        self.record = record.Record()
        self.guard = guard.Guard(skips=config.on_nonfinite == "skip")
        self.layout = diagnostics.Layout()
        self.loss_scale = None
        if config.precision == "mixed_float16":
            self.loss_scale = loss_scale.LossScale()
        self.step = replica.variable(0, "step", tf.int64)

    def train_step(self, batch: dict[str, tf.Tensor]) -> Metrics:
        """One step on one replica's share of a batch.

        Args:
            batch: See `data.pipeline` for its keys.

        Returns:
            Scalars whose names are the TensorBoard tags; "loss/total" at
            least. Each is this replica's share of the mean. Of a batch that
            is watched, what is seen (`watching.Layout`), too.
        """
        raise TypeError(f"{type(self).__name__} has no train_step")

    def guarded_step(self, batch: dict[str, tf.Tensor]) -> Metrics:
        """`train_step`, undone if a number of it must not stay.

        Undone is all but the counts: what comes next is the next step.
        """
        undone = self.guard.skips or self.loss_scale is not None
        variables = self._changing() if undone else []
        before = [tf.identity(variable) for variable in variables]
        metrics = self.train_step(batch)
        # The total comes last, so that its first bad part is named.
        losses = [name for name in metrics if name != diagnostics.SEEN]
        losses.sort(key=lambda name: name == "loss/total")
        undo = self.guard.examine(
            self.step, {n: metrics[n] for n in losses}, self.loss_scale
        )
        guard.put_back(variables, before, undo)
        if self.loss_scale:
            metrics["loss_scale"] = tf.identity(self.loss_scale.scale)
        return metrics

    def _changing(self) -> list[tf.Variable]:
        """All state but what counts steps."""
        counts = [self.step, self.optimizer.iterations.value]
        for module in (self.guard, self.loss_scale):
            counts += module.variables if module else []
        left_out = {id(variable) for variable in counts}
        own = [each.local for each in self.shards()]
        return [v for v in state(self) if id(v) not in left_out] + own

    def shards(self) -> list[shard.Shard]:
        """What is divided over the replicas; a checkpoint has it whole."""
        return [m for m in self.submodules if isinstance(m, shard.Shard)]

    def networks(self) -> dict[str, keras.Model]:
        """The networks to evaluate, by name."""
        return {"student": self.student, "ema": self.teacher.model}

    def minimize(self, tape: tf.GradientTape, loss: tf.Tensor) -> None:
        """Ends a step: optimizer, EMA, the loss on record, the count.

        Args:
            tape: It recorded the student's work.
            loss: Mean over this replica's images. The only place that divides
                by the number of replicas, whose gradients are summed.
        """
        from simmatch_tf.networks import batch_norm

        weights = self.student.trainable_variables
        scale = self.loss_scale.scale if self.loss_scale else 1.0
        gradients = tape.gradient(
            loss,
            [weight.value for weight in weights],
            output_gradients=tf.ones_like(loss) * scale / replica.count(),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        if self.loss_scale:
            gradients = [gradient / scale for gradient in gradients]
        # Those of the last layers come first.
        pairs = list(zip(weights, gradients, strict=True))[::-1]
        self.guard.note(
            {v.path: v.value for v in batch_norm.statistics(self.student)}
            | {f"gradient of {w.path}": g for w, g in pairs}
        )
        self.optimizer.apply(gradients, weights)
        if self.config.batch_norm == "local" and replica.count() > 1:
            self._share_statistics()
        self.teacher.update(self.student, self.step)
        self.record.keep_loss(loss)
        self.step.assign_add(1)

    def _share_statistics(self) -> None:
        """Gives each replica the mean of all replicas' BatchNorm statistics.

        Differs: the published runs keep those of the first.
        """
        from simmatch_tf.networks import batch_norm

        variables = batch_norm.statistics(self.student)
        if not self.teacher.eman:
            variables += batch_norm.statistics(self.teacher.model)
        for variable in variables:
            variable.value.assign(replica.mean(variable.value))
