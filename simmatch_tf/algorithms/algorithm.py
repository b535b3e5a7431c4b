"""The base class of all methods: the state of a run, and one step of it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from simmatch_tf import config as config_lib
from simmatch_tf import lazy
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.flags import commandline, errors
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

Batch = dict[str, "tf.Tensor"]
Metrics = dict[str, Any]

# Operations with a hidden state, which no checkpoint holds.
_STATEFUL = {
    "Multinomial": "tf.random.categorical",
    "ParameterizedTruncatedNormal": "a truncated normal distribution",
    "RandomGamma": "tf.random.gamma",
    "RandomPoisson": "tf.random.poisson",
    "RandomPoissonV2": "tf.random.poisson",
    "RandomShuffle": "tf.random.shuffle",
    "RandomStandardNormal": "tf.random.normal",
    "RandomUniform": "tf.random.uniform",
    "RandomUniformInt": "tf.random.uniform",
    "TruncatedNormal": "tf.random.truncated_normal",
}

_AUGMENTATIONS = (
    "weak",
    "strong",
    "randaugment",
    "moco",
    "jitter",
    "keras_cv",
    "none",
)


@dataclasses.dataclass(frozen=True)
class View:
    """A view of the images that an algorithm asks for.

    Where a value is None, that of the run's flags is taken.

    Attributes:
        name: The view's name; its images are `batch["unlabeled_NAME"]` or
            `batch["labeled_NAME"]`.
        augmentation: "weak"; "strong" (that of --strong); or one of the
            choices of --strong, whatever the flag says.
        crop: "flip_crop" or "resized_crop"; default: --weak.
        side: Height and width in pixels; default: those of the images.
        scale: Height and width as a share of the images', in place of a side.
        crop_area: Least and greatest share of the image's area in a
            "resized_crop"; default: --crop_area to 1.
    """

    name: str
    augmentation: str
    crop: str | None = None
    side: int | None = None
    crop_area: tuple[float, float] | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: A value is unknown, or two do not fit.
        """
        for name, choices in (
            ("augmentation", _AUGMENTATIONS),
            ("crop", (None, "flip_crop", "resized_crop")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"view {self.name!r}: {name}={getattr(self, name)!r}: must "
                    f"be one of {', '.join(map(str, choices))}"
                )
        if self.crop_area is not None and self.crop != "resized_crop":
            raise ValueError(
                f"view {self.name!r}: crop_area={self.crop_area} is for "
                f"crop='resized_crop', not {self.crop!r}"
            )
        if None not in (self.side, self.scale):
            raise ValueError(
                f"view {self.name!r}: side={self.side} and scale={self.scale}: "
                "give one of them"
            )

    def side_of(self, side: int) -> int:
        """Returns the view's side for images of this side, in pixels."""
        return self.side or round((self.scale or 1) * side)

    @classmethod
    def parse(cls, view: str | View) -> View:
        """Returns the view that a name stands for: "weak_2" is a weak view.

        Raises:
            ValueError: The name says neither weak nor strong.
        """
        if isinstance(view, View):
            return view
        augmentation = view.partition("_")[0]
        if augmentation not in ("weak", "strong"):
            raise ValueError(
                f"view {view!r}: must be weak, strong, weak_… or strong_…; "
                "describe any other by a View"
            )
        return cls(view, augmentation)


class _Batch(dict):
    """A batch that says what it has where a key is wrong."""

    def __missing__(self, key: str) -> None:
        keys = sorted(self.keys() - {diagnostics.LOGGED})
        raise errors.InputError(
            f"batch[{key!r}]: there is no such key; it has {', '.join(keys)}"
        )


class Algorithm(lazy.Module):
    """A method: everything that a checkpoint holds, and one training step.

    A method is a subclass in a file of its own, registered by name:

        @registry.algorithms.register("mine")
        class Mine(algorithm.Algorithm):
            labeled_views = ("weak",)
            unlabeled_views = ("weak", "weak_2")

            def train_step(self, batch):
                ...

    `train_step` is all that it must write. What else a method may say:

    * Views. `labeled_views` and `unlabeled_views` name the views that a batch
      has of its labeled and unlabeled images, any number of them, or none:
      "weak", "strong", further ones such as "weak_2", or a `View` with an
      augmentation, crop or size of its own. All views of an image differ.
      Other copies, such as rotated or mixed images, are made in the step by a
      pure function of `ops`. `needs_index` asks for the place of each
      unlabeled image in its set; where that depends on flags, `build_state`
      sets it. `data.pipeline` lists the keys of a batch.
    * Hyper-parameters. `HyperParameters`, a frozen dataclass, declares flags,
      and other defaults of the run's flags, such as one unlabeled image for
      each labeled one (see `flags.commandline.HyperParameters`).
    * Outputs of the network. `needs_embeddings` asks for SimMatch's projection
      head, `heads` for any others; `needs_feature_norm` for a LayerNorm of the
      features in front of classifier and projection head.
    * State of its own. `build_state` makes modules and variables (see
      `modules.replica.variable`) as attributes.
    * `evaluated_weights`, "student" or "ema": whose results are the run's. A
      property, where that depends on the run's flags.
    * `square_images`: whether images must be square, as for rotated copies.
    * `evaluation_copies`: copies of an image whose mean logits `evaluate`
      measures beside the result, such as its rotations: a name → a function
      from images [N, H, W, C] to k copies of each, [k N, H, W, C], all first
      copies before all second ones.
    * `eman`: whether the EMA averages BatchNorm's statistics as it averages
      the weights; if not, it has statistics of its own (see
      `modules.teacher`).
    * Work on the host between steps, such as clustering: `between_steps`, and
      how often, `between_steps_every`.

    A step computes targets, runs the student under a tape, and calls
    `minimize` once, which updates weights, EMA and the count of steps. `call`
    runs a network in one of three modes of BatchNorm. `seed` gives seeds for
    random numbers (see `ops.sampling`), so that a run can be repeated and
    resumed; operations with a state of their own, such as tf.random.normal, are
    refused.

    Attributes:
        hyper: Hyper-parameters, of the class HyperParameters.
        config: The run's flags, with durations in steps. With
            --schedule=cooldown `steps` is refused: nothing before the
            cool-down may depend on the length of the run.
        num_classes: Number of classes L.
        slot_labels: Class of each labeled image [K], in the order of
            `batch["slots"]`.
        unlabeled_images: Size N of the unlabeled set.
        class_prior: Class shares [L] that pseudo-labels are aligned with, by
            --class_prior; None: equal shares.
        student: The network that is trained.
        teacher: Its EMA.
        optimizer: That of --optimizer.
        record: The last loss and the best step.
        guard: Detects steps with numbers that are not finite.
        loss_scale: The loss scale of float16, else None.
        dtype: Type of losses and state: "float32", or "float64".
        generators: States of the networks' own random generators (Dropout's),
            which tf.train.Checkpoint does not find by itself.
        step: Number of steps done, int64.
    """

    HyperParameters = commandline.HyperParameters
    labeled_views: ClassVar[tuple[str | View, ...]] = ("weak",)
    unlabeled_views: ClassVar[tuple[str | View, ...]] = ("weak", "strong")
    needs_index: bool = False
    needs_embeddings: ClassVar[bool] = False
    needs_feature_norm: ClassVar[bool] = False
    evaluated_weights: str = "ema"
    square_images: ClassVar[bool] = False
    evaluation_copies: ClassVar[
        Mapping[str, Callable[[tf.Tensor], tf.Tensor]]
    ] = types.MappingProxyType({})
    eman: bool = True
    # Steps between two calls of `between_steps`; None: never called.
    between_steps_every: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Checks what the class declares.

        Raises:
            ValueError: A view is unknown, or `defaults` of HyperParameters
                names no flag of every run.
        """
        super().__init_subclass__(**kwargs)
        for name in ("labeled_views", "unlabeled_views"):
            declared = getattr(cls, name)
            if isinstance(declared, str):
                raise ValueError(
                    f"{name}={declared!r}: must be a tuple, such as "
                    f"({declared!r},)"
                )
            if isinstance(declared, tuple | list):  # not a property
                for view in declared:
                    View.parse(view)
        known = [
            field.name
            for field in dataclasses.fields(config_lib.Config)
            if "help" in field.metadata
        ]
        for name in cls.HyperParameters.defaults:
            if name not in known:
                raise ValueError(
                    f"defaults of {cls.__name__} has {name!r}, which is no "
                    "flag" + errors.nearest(name, known)
                )

    def __init__(
        self,
        config: config_lib.Config,
        make_network: Callable[..., keras.Model],
        *,
        num_classes: int,
        slot_labels: np.ndarray,
        unlabeled_images: int = 0,
        class_prior: Sequence[float] | None = None,
    ) -> None:
        """Makes the networks, the optimizer, the counters and own state.

        Args:
            config: The run's flags, with durations in steps.
            make_network: Makes a network from the keyword arguments `heads`
                (see `networks.network.build`) and `any_size`, whether it must
                take images of several sizes.
            num_classes: Number of classes L.
            slot_labels: Class of each labeled image [K], in slot order.
            unlabeled_images: Size of the unlabeled set.
            class_prior: Class shares [L], above 0; None: equal shares.

        Raises:
            ValueError: A class is not in [0, num_classes).
        """
        super().__init__(name=type(self).__name__.lower())
        if slot_labels.min() < 0 or slot_labels.max() >= num_classes:
            raise ValueError(
                f"labels from {slot_labels.min()} to {slot_labels.max()}: must "
                f"be in [0, {num_classes})"
            )
        self.config, self.num_classes = _without_length(config), num_classes
        self.hyper = config.hyper
        self.slot_labels, self.unlabeled_images = slot_labels, unlabeled_images
        self.class_prior = class_prior
        double = config.precision == "float64"
        self.dtype = "float64" if double else "float32"
        views = map(View.parse, (*self.labeled_views, *self.unlabeled_views))
        network = {
            "heads": self.heads(),
            "any_size": any(view.side or view.scale for view in views),
        }
        self.student = make_network(**network)
        self.teacher = teacher.Teacher(
            make_network(**network),
            self.student,
            momentum=config.ema_momentum,
            warmup=config.ema_warmup,
            start=(config.ema_start_momentum, config.ema_start_steps or 0),
            eman=self.eman,
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
            cooldown_steps=config.cooldown_steps(),
        )
        self.optimizer = self._make_optimizer()
        self.record = record.Record()
        self.guard = guard.Guard(skips=config.on_nonfinite == "skip")
        self.loss_scale = None
        if config.precision == "mixed_float16":
            self.loss_scale = loss_scale.LossScale()
        self.step = replica.variable(0, "step", tf.int64)
        # Of each thread, because each replica's step has its own.
        self._traced = threading.local()
        self.build_state()

    def _make_optimizer(self) -> keras.optimizers.Optimizer:
        """Makes the optimizer of the student's weights.

        The backbone has a rate of its own; with a rate of 0 it is not trained.
        """
        # Their classes derive from Keras', so their import needs TensorFlow.
        from simmatch_tf.modules import optimizer as optimizer_lib
        from simmatch_tf.networks import network as network_lib

        config, make = self.config, optimizer_lib.Adam
        if config.optimizer == "sgd":
            make = functools.partial(
                optimizer_lib.Sgd, momentum=config.momentum
            )
        optimizer = make(
            optimizer_lib.Schedule(self.learning_rate),
            decay=config.weight_decay,
            decay_on=config.weight_decay_on,
        )
        factor = config.backbone_rate_factor
        backbones = [
            network_lib.parts(network)["backbone"]
            for network in self.networks().values()
        ]
        for backbone in backbones if factor == 0 else ():
            backbone.trainable = False
        optimizer.build(
            self.student.trainable_variables,
            {v.path: factor for v in backbones[0].trainable_variables},
        )
        return optimizer

    # ------------------------------------------- what a method declares --

    def heads(self) -> Mapping[str, Any]:
        """Returns further heads of the network; none by default.

        Returns:
            The name of an output → a function from the features [N, width] to
            it, such as `{"rotation": lambda x: keras.layers.Dense(4)(x)}`; or
            a pair of the name of an output before it and a function from that,
            such as `{"projection": f, "prediction": ("projection", g)}`.
            Heads are part of the student, its EMA and the checkpoint, and may
            have a BatchNorm.
        """
        return {}

    def build_state(self) -> None:
        """Makes the method's own state, as attributes; nothing by default."""

    def train_step(self, batch: Batch) -> Metrics:
        """Takes one step on one replica's share of a batch.

        Args:
            batch: See `data.pipeline` for its keys.

        Returns:
            Scalars by their TensorBoard tags, at least "loss/total". Each is
            the mean over this replica's images. `diagnose` gives a further
            entry.
        """
        raise TypeError(f"{type(self).__name__} has no train_step")

    def between_steps(self, step: int) -> None:
        """Works on the host after every `between_steps_every` steps.

        Args:
            step: Number of steps done.
        """

    # --------------------------------------------- what a step is made of --

    def call(
        self, network: keras.Model, images: tf.Tensor, batch_norm: str = "train"
    ) -> dict[str, tf.Tensor]:
        """Runs a network on images, as a part of a training step.

        Args:
            network: The student, or `teacher.model`.
            images: [N, H, W, C], 0 to 255.
            batch_norm: "train", the default: BatchNorm uses the statistics of
                these images and updates its running averages by them.
                "batch": it uses the statistics of these images, and the
                averages stay unchanged. "inference": it uses the averages.

        Returns:
            The network's outputs by name: "features" [N, width], "logits"
            [N, L], and those of other heads.

        Raises:
            ValueError: `batch_norm` is none of the three.
        """
        from simmatch_tf.networks import batch_norm as batch_norm_lib

        if batch_norm not in ("train", "batch", "inference"):
            raise ValueError(
                f"batch_norm={batch_norm!r}: must be train, batch or inference"
            )
        if batch_norm != "batch":
            return network(images, training=batch_norm == "train")
        # Not by a setting of the layers: these may be of any library.
        averages = [v.value for v in batch_norm_lib.statistics(network)]
        before = [tf.identity(average) for average in averages]
        outputs = network(images, training=True)
        for average, value in zip(averages, before, strict=True):
            average.assign(value)
        return outputs

    def seed(self, stream: str, *, shared: bool = False) -> tf.Tensor:
        """Returns a seed for random numbers of this step.

        It is a function of --seed, the number of the step, the stream and the
        replica, so a run can be repeated, and resumed to the same weights.
        Call it before `minimize`, which counts the step.

        Args:
            stream: Name of the purpose, such as "mixup". Draws of different
                streams are independent, those of one stream are the same.
            shared: Every replica gets the same seed, to draw for the whole
                batch and take a part of it by `replica.share`.

        Returns:
            int32 [2], for `ops.sampling` and tf.random.stateless_uniform.
        """
        from simmatch_tf.data import randomness

        key = tf.constant(
            randomness.key(self.config.seed, f"step_{stream}"), tf.int32
        )
        if not shared:
            key += replica.number()
        return tf.stack([key, tf.cast(self.step, tf.int32)])

    def minimize(self, tape: tf.GradientTape, loss: tf.Tensor) -> None:
        """Ends a step: updates weights, EMA, the loss on record and the count.

        Args:
            tape: The tape that recorded the student's forward and the losses.
            loss: Mean over this replica's images, a scalar. This is the only
                place that divides by the number of replicas, whose gradients
                are summed.
        """
        from simmatch_tf.networks import batch_norm

        self._traced.calls = calls = getattr(self._traced, "calls", 0) + 1
        if calls > 1 and getattr(self._traced, "guarded", False):
            raise errors.InputError(
                "train_step calls minimize twice: must call it once, with the "
                "sum of the losses"
            )
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
        self._traced.tensors = {
            v.path: v.value for v in batch_norm.statistics(self.student)
        } | {f"gradient of {w.path}": g for w, g in pairs}
        self.optimizer.apply(gradients, weights)
        if self.config.batch_norm == "local" and replica.count() > 1:
            self._share_statistics()
        self.teacher.update(self.student, self.step)
        self.record.keep_loss(loss)
        self.step.assign_add(1)

    def diagnose(
        self,
        batch: Batch,
        compute: Callable[[], diagnostics.Diagnostics],
    ) -> Metrics:
        """Returns the diagnostics of a step, as a part of its metrics.

        Args:
            batch: The step's batch.
            compute: Computes them; called in steps that are logged only. It
                must not communicate with other replicas.

        Returns:
            An entry for the metrics; none where the run writes no summaries.

        Raises:
            InputError: `compute` returns something else.
        """
        return diagnostics.in_logged_steps(batch, compute)

    def _share_statistics(self) -> None:
        """Gives each replica the mean of all replicas' BatchNorm statistics.

        Differs: the published runs keep those of the first replica.
        """
        from simmatch_tf.networks import batch_norm

        variables = batch_norm.statistics(self.student)
        if not self.teacher.eman:
            variables += batch_norm.statistics(self.teacher.model)
        for variable in variables:
            variable.value.assign(replica.mean(variable.value))

    # --------------------------------------------- what the loop calls --

    def guarded_step(self, batch: Batch) -> Metrics:
        """Takes a `train_step`, and undoes it if it broke the state.

        Where --on_nonfinite=skip or the loss scale asks for it, a step with
        numbers that are not finite is undone, all but the counts: the batch
        that follows is that of the next step.

        Args:
            batch: One replica's share of a batch.

        Returns:
            The metrics of `train_step`.

        Raises:
            InputError: `train_step` takes a key that the batch lacks, does not
                call `minimize` once, does not return "loss/total", or draws
                random numbers that are not reproducible.
        """
        undone = self.guard.skips or self.loss_scale is not None
        variables = self._changing() if undone else []
        before = [tf.identity(variable) for variable in variables]
        metrics = self._checked_step(batch)
        # The total comes last, so that its first bad part is named.
        losses = [name for name in metrics if name != diagnostics.DIAGNOSTICS]
        losses.sort(key=lambda name: name == "loss/total")
        undo = self.guard.examine(
            self.step,
            {name: metrics[name] for name in losses},
            self._traced.tensors,
            self.loss_scale,
        )
        for variable, value in zip(variables, before, strict=True):
            variable.assign(tf.where(undo, value, variable))
        if self.loss_scale:
            metrics["loss_scale"] = tf.identity(self.loss_scale.scale)
        return metrics

    def _checked_step(self, batch: Batch) -> Metrics:
        """Takes a `train_step`, and checks what it does."""
        self._traced.calls, self._traced.guarded = 0, True
        self._traced.tensors = {}
        method = type(self).train_step
        code = inspect.unwrap(method).__code__
        file = code.co_filename
        try:
            metrics = self.train_step(_Batch(batch))
            # A tf.function calls it when it is first traced only.
            if not self._traced.calls and inspect.isfunction(method):
                raise errors.InputError(
                    "train_step never calls minimize: must call it once"
                )
            if not isinstance(metrics, dict) or "loss/total" not in metrics:
                keys = ", ".join(metrics) if isinstance(metrics, dict) else None
                raise errors.InputError(
                    f"train_step returns {keys}: must return a dict with "
                    '"loss/total"'
                )
            if not tf.executing_eagerly():
                _check_random(tf.compat.v1.get_default_graph())
        except errors.InputError as error:
            line = errors.line_in(file, error) or code.co_firstlineno
            raise errors.InputError(f"{file}, line {line}: {error}") from error
        finally:
            self._traced.guarded = False
        return metrics

    def _changing(self) -> list[tf.Variable]:
        """Returns all state but what counts steps."""
        counts = [self.step, self.optimizer.iterations.value]
        for module in (self.guard, self.loss_scale):
            counts += module.variables if module else []
        left_out = {id(variable) for variable in counts}
        own = [each.local for each in self.shards()]
        return [v for v in state(self) if id(v) not in left_out] + own

    def shards(self) -> list[shard.Shard]:
        """Returns the state that is divided over the replicas."""
        return [m for m in self.submodules if isinstance(m, shard.Shard)]

    @property
    def needs_unlabeled(self) -> bool:
        """Whether batches have unlabeled images."""
        return bool(self.unlabeled_views)

    def networks(self) -> dict[str, keras.Model]:
        """Returns the networks to evaluate, by name."""
        return {"student": self.student, "ema": self.teacher.model}


class _EndlessConfig(config_lib.Config):
    """Flags of a run that can be extended: they do not tell its length."""

    def __getattribute__(self, name: str) -> Any:
        if name == "steps":
            raise errors.InputError(
                "--schedule=cooldown: the method reads config.steps, so that "
                "its first steps depend on the length of the run, and an "
                "extended run would not be the one planned that long. Give the "
                "method a ramp of fixed length, or the run another --schedule"
            )
        return super().__getattribute__(name)


def _without_length(config: config_lib.Config) -> config_lib.Config:
    """Hides the length of a run that can be extended from its method."""
    if config.schedule != "cooldown":
        return config
    endless = object.__new__(_EndlessConfig)
    vars(endless).update(vars(config))
    return endless


def state(
    owner: tf.Module | keras.Layer | keras.optimizers.Optimizer | tf.Variable,
) -> list[tf.Variable]:
    """Returns the variables that a checkpoint of `owner` holds, each once."""
    variables = [
        # Keras' variable and the one inside it are both listed.
        each.value if isinstance(each, keras.Variable) else each
        for each in tf.train.TrackableView(owner).descendants()
        if isinstance(each, tf.Variable | keras.Variable)
    ]
    return list({id(variable): variable for variable in variables}.values())


def _check_random(graph: tf.Graph) -> None:
    """Refuses random operations with a state of their own.

    Raises:
        InputError: The graph of a step, or a function that it calls, has one.
    """
    definition = graph.as_graph_def()
    functions = [each.node_def for each in definition.library.function]
    for node in itertools.chain(definition.node, *functions):
        if node.op in _STATEFUL:
            raise errors.InputError(
                f"train_step uses {_STATEFUL[node.op]}, which is not "
                "reproducible: use self.seed(stream) with "
                "simmatch_tf.ops.sampling"
            )
