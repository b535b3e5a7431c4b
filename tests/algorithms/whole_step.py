"""Whole steps of a method against its equations in NumPy float64.

A test writes a method's equations as a function of the network; `check` takes
the method's own steps on a tiny network, and compares losses, gradients of all
weights, BatchNorm's averages, the EMA and the method's state. The gradients of
the equations are central differences, so no derivative is written down:

    def equations(s):
        out = s.student(s.batch["labeled_weak"])
        target = s.constant(s.batch["unlabeled_weak"], "batch")["logits"]
        ...
        return {"loss/total": ...}, {"alignment.window": ...}

    def test_step():
        algorithm = whole_step.make("uda")
        batches = [whole_step.batch(seed) for seed in range(3)]
        whole_step.check(algorithm, equations, batches)
"""

import copy
import dataclasses

import numpy as np
import tensorflow as tf

import simmatch_tf
from simmatch_tf import registry
from simmatch_tf.distributed import strategies
from simmatch_tf.lazy import keras
from simmatch_tf.training import state
from tests import reference

L, D, WIDTH, SIDE = 3, 4, 5, 4  # classes, embedding, features, image
SLOT_LABELS = np.repeat(np.arange(L), 2)
_NUDGE = 1e-6
_NO_HEADS = {
    "normalize",
    "dense",
    "norm",
    "feature_norm",
    "hidden",
    "embedding",
}
_FAR = 1.0  # learning rate of the one step that shows the gradients


@registry.networks.register("whole_step_tiny")
def tiny(shape):
    images = keras.Input(shape)
    # Of images of several sizes it sees the means.
    any_size = None in shape
    pool = keras.layers.GlobalAveragePooling2D() if any_size else None
    x = (pool or keras.layers.Flatten())(images)
    x = keras.layers.Dense(WIDTH, use_bias=False, name="dense")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(images, keras.layers.Activation("tanh")(x), name="tiny")


def make(
    algorithm,
    strategy=None,
    *,
    unlabeled_images=20,
    prior=None,
    seed=0,
    **changes,
):
    """Makes a method on the tiny network, in float64, its weights drawn anew.

    Its optimizer is plain gradient descent at a rate of 1, so that a step shows
    the gradients.
    """
    values = {
        "algorithm": algorithm,
        "dataset": "custom",
        "labels": len(SLOT_LABELS),
        "steps": 200,
        "warmup_steps": 0,
        "batch_size": 4,
        "unlabeled_ratio": 1,
        "backbone": "whole_step_tiny",
        "projection_dim": D,
        "batch_norm_momentum": 0.9,
        "ema_momentum": 0.75,  # exact in float32, too
        "precision": "float64",
        "schedule": "constant",
        "learning_rate": _FAR,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "seed": seed,
    } | changes
    made = state.make_algorithm(
        simmatch_tf.Config(**values).with_durations(1),
        strategy or strategies.one(),
        image_shape=(SIDE, SIDE, 1),
        slot_labels=SLOT_LABELS,
        num_classes=L,
        statistics=([0.5], [0.3]),
        unlabeled_images=unlabeled_images,
        class_prior=prior,
    )
    # Logits far from equal, averages far from the statistics of a batch, and
    # an EMA that is not the student.
    rng = np.random.default_rng(seed + 100)
    for network in made.networks().values():
        for variable in network.variables:
            if "normalize" in variable.path:
                continue
            value = rng.normal(size=variable.shape)
            if "variance" in variable.path or "gamma" in variable.path:
                value = 0.5 + np.abs(value)
            variable.assign(value)
    return made


def batch(
    seed=0,
    *,
    views=("weak", "strong"),
    labels=(0, 2, 1, 0),
    unlabeled=6,
    sides=(),
):
    """Returns a batch of random images.

    Args:
        seed: Its seed.
        views: Those of the unlabeled images.
        labels: Those of the labeled images.
        unlabeled: Number of unlabeled images.
        sides: Sides of the views; default: SIDE for each.
    """
    rng = np.random.default_rng(seed)

    def images(count, side=SIDE):
        x = rng.integers(0, 256, [count, side, side, 1]).astype(np.uint8)
        return tf.constant(x)

    return {
        "labeled_weak": images(len(labels)),
        "labels": tf.constant(labels, tf.int32),
        "slots": tf.constant([2 * y for y in labels], tf.int64),
        "unlabeled_index": tf.constant(
            rng.permutation(20)[:unlabeled], tf.int64
        ),
        **{
            f"unlabeled_{view}": images(unlabeled, side)
            for view, side in zip(
                views, sides or [SIDE] * len(views), strict=True
            )
        },
    }


class Network:
    """The tiny network and its heads in NumPy.

    Attributes:
        values: Path → weight.
        averages: Path → average of BatchNorm.
        weights: Paths of the trained weights.
        moves: Whether a forward in mode "train" updates the averages.
    """

    def __init__(self, model):
        """Copies the values of a network of `make`."""
        self.values = {v.path: np.array(v, np.float64) for v in model.variables}
        self.averages = {
            path: self.values.pop(path)
            for path in list(self.values)
            if "moving" in path
        }
        self.weights = [v.path for v in model.trainable_variables]
        self.moves = True

    def copy(self):
        return copy.deepcopy(self)

    def twin(self):
        """A copy for targets, with the same averages, which it leaves alone."""
        other = self.copy()
        other.averages, other.moves = self.averages, False
        return other

    def __call__(self, images, batch_norm="train"):
        """Runs it; `batch_norm` is one of the modes of `Algorithm.call`."""
        v = self.values
        x = np.asarray(images, np.float64) / 255
        x = (x - v["normalize/mean"]) / v["normalize/std"]
        pooled = len(v["dense/kernel"]) == x.shape[-1]
        x = x.mean(axis=(1, 2)) if pooled else x.reshape(len(x), -1)
        x = x @ v["dense/kernel"]
        mean, variance = (
            self.averages[f"norm/moving_{name}"]
            for name in ("mean", "variance")
        )
        if batch_norm != "inference":
            mean, variance = x.mean(axis=0), x.var(axis=0)
        if batch_norm == "train" and self.moves:
            for name, value in (("mean", mean), ("variance", variance)):
                path = f"norm/moving_{name}"
                self.averages[path] = 0.9 * self.averages[path] + 0.1 * value
        x = (x - mean) / np.sqrt(variance + 1e-3)
        features = np.tanh(x * v["norm/gamma"] + v["norm/beta"])
        outputs = {"features": features}
        if "feature_norm/gamma" in v:
            x = features - features.mean(axis=1, keepdims=True)
            x = x / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
            features = x * v["feature_norm/gamma"] + v["feature_norm/beta"]
        for name in {path.split("/")[0] for path in v} - _NO_HEADS:
            outputs[name] = _dense(v, name, features)
        if "embedding/kernel" in v:
            z = np.maximum(_dense(v, "hidden", features), 0)
            z = _dense(v, "embedding", z)
            z /= np.linalg.norm(z, axis=1, keepdims=True)
            outputs["embeddings"] = z
        return outputs


def _dense(values, name, x):
    return x @ values[f"{name}/kernel"] + values[f"{name}/bias"]


@dataclasses.dataclass
class Step:
    """What the equations of a step may use.

    Attributes:
        algorithm: The method as it stands before the step; not to be changed.
            Its `config`, `hyper`, `seed` and state are read here.
        batch: The batch, in NumPy.
        k: Number of steps done.
        student: The network that has a gradient.
        constant: The same network at the same weights, for targets, which have
            none. Its forwards leave the averages alone; where the method has a
            forward of its own for targets in mode "train", set `moves`.
        teacher: The EMA before the step.
    """

    algorithm: object
    batch: dict
    k: int
    student: Network
    constant: Network
    teacher: Network


def check(algorithm, equations, batches, *, rtol=1e-6, atol=1e-8):
    """Takes one step on each batch and compares it with the equations.

    Args:
        algorithm: Of `make`.
        equations: Step → metrics, and the state after the step by the path of
            its attribute, such as "align.window". What it returns is compared,
            and "loss/total" must be among it.
        batches: The batches.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Returns:
        The metrics of each step, in NumPy.
    """
    taken = tf.function(algorithm.guarded_step, autograph=False)
    all_metrics = []
    for inputs in batches:
        before = Network(algorithm.student)
        teacher = Network(algorithm.teacher.model)
        arrays = {k: v.numpy() for k, v in inputs.items()}
        k = int(algorithm.step)

        def run(student, constant, arrays=arrays, k=k, teacher=teacher):
            step = Step(algorithm, arrays, k, student, constant, teacher.copy())
            return equations(step)

        student = before.copy()
        wanted, states = run(student, student.twin())
        wanted = {k: np.array(v, np.float64) for k, v in wanted.items()}
        states = {k: np.array(v) for k, v in states.items()}
        gradients = {}
        for path in before.weights:
            gradients[path] = np.zeros_like(before.values[path])
            for place in np.ndindex(before.values[path].shape):
                ends = []
                for nudge in (_NUDGE, -_NUDGE):
                    moved = before.copy()
                    constant = moved.twin()
                    moved.values[path][place] += nudge
                    metrics, _ = run(moved, constant)
                    ends.append(float(metrics["loss/total"]))
                gradients[path][place] = (ends[0] - ends[1]) / (2 * _NUDGE)

        metrics = taken(inputs)
        for name, value in wanted.items():
            np.testing.assert_allclose(
                metrics[name], value, rtol=rtol, atol=atol, err_msg=name
            )
        all_metrics.append({k: np.array(v) for k, v in metrics.items()})
        after = Network(algorithm.student)
        largest = max(np.abs(g).max() for g in gradients.values())
        assert largest > 0
        for path, gradient in gradients.items():
            np.testing.assert_allclose(
                (before.values[path] - after.values[path]) / _FAR,
                gradient,
                rtol=1e-5,
                # Differences of numbers of the size of the loss are rounded.
                atol=1e-8 + 1e-6 * largest,
                err_msg=f"gradient of {path}",
            )
        for path, value in student.averages.items():
            np.testing.assert_allclose(
                after.averages[path],
                value,
                rtol=1e-6,
                atol=1e-6,  # the momentum is a float32
                err_msg=path,
            )
        ema, m = Network(algorithm.teacher.model), algorithm.config.ema_momentum
        for path, value in ema.averages.items() if algorithm.eman else ():
            np.testing.assert_allclose(
                value,
                m * teacher.averages[path] + (1 - m) * after.averages[path],
                rtol=1e-6,
                atol=1e-7,
                err_msg=f"EMA of {path}",
            )
        for path, value in ema.values.items():
            np.testing.assert_allclose(
                value,
                m * teacher.values[path] + (1 - m) * after.values[path],
                rtol=1e-6,
                err_msg=f"EMA of {path}",
            )
        for path, value in states.items():
            actual = algorithm
            for name in path.split("."):
                actual = getattr(actual, name)
            np.testing.assert_allclose(
                actual, value, rtol=rtol, atol=atol, err_msg=path
            )
    return all_metrics


def weak_and_strong(s):
    """The forwards and the alignment of `pseudo_labeling.PseudoLabeling`.

    Returns:
        Logits of the labeled images and of the strong views, p^w, and states.
    """
    c = s.algorithm.config
    x_l, x_w, x_s = (
        s.batch[name]
        for name in ("labeled_weak", "unlabeled_weak", "unlabeled_strong")
    )
    b, u = len(x_l), len(x_s)
    if c.targets_from == "teacher":
        logits_w = s.teacher(x_w, "inference")["logits"]
        logits = s.student(np.concatenate([x_l, x_s]))["logits"]
    elif c.weak_forward == "separate":
        s.constant.moves = True
        logits_w = s.constant(x_w)["logits"]
        s.constant.moves = False
        logits = s.student(np.concatenate([x_l, x_s]))["logits"]
    else:
        images = np.concatenate([x_l, x_s, x_w])
        logits = s.student(images)["logits"]
        logits_w = s.constant(images)["logits"][b + u :]
    p_w, states = reference.softmax(logits_w), {}
    if c.align:
        window = np.array(s.algorithm.align.window)
        written = int(s.algorithm.align.written)
        window[written % len(window)] = p_w.mean(axis=0)
        rows = min(written + 1, len(window))
        p_w = reference.align(p_w, window.sum(axis=0) / rows)
        states = {"align.window": window, "align.written": written + 1}
    return logits[:b], logits[b : b + u], p_w, states
