"""CoMatch's whole step against its equations."""

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf.algorithms import comatch as comatch_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.flags import errors
from tests import reference
from tests.algorithms import test_simmatch as small
from tests.algorithms import whole_step
from tests.algorithms.whole_step import D, L

VIEWS = ("weak", "strong", "strong_2")
B, U = 4, 6  # of whole_step's batches
COMATCH = "comatch.{}".format
# A batch fills the memory, and its last image goes to the first row again.
SIZE = 9
OFTEN = {
    "threshold": 0.7,
    COMATCH("edge_threshold"): 0.5,
    COMATCH("queue_size"): SIZE,
}


def written(memory, z, p):
    """A queue after a write: rows, in a loop, the oldest first."""
    states = {
        "embeddings": memory.embeddings.numpy(),
        "probabilities": memory.probabilities.numpy(),
        "written": int(memory.written),
    }
    for z_i, p_i in zip(z, p, strict=True):
        place = states["written"] % len(states["embeddings"])
        states["embeddings"][place] = z_i
        states["probabilities"][place] = p_i
        states["written"] += 1
    return states


def comatch(s):
    """L_s + λ_u L_u + λ_c L_c, of either form."""
    c, hyper, memory = s.algorithm.config, s.algorithm.hyper, s.algorithm.queue
    x_l, x_w, x_s, x_s2 = (
        s.batch[name]
        for name in ("labeled_weak", *(f"unlabeled_{v}" for v in VIEWS))
    )
    b, u = len(x_l), len(x_w)
    graph, queue = s.algorithm.graph_queue, ((), ())
    if c.targets_from == "teacher":
        mode = "batch" if c.teacher_norm == "shuffle" else "inference"
        out = s.teacher(np.concatenate([x_l, x_w]), mode)
        logits_w, z_w = out["logits"][b:], out["embeddings"][b:]
        z_l = out["embeddings"][:b]
        z_s2 = s.teacher(x_s2, mode)["embeddings"]
        out = s.student(np.concatenate([x_l, x_s]))
        z_s, count = out["embeddings"][b:], int(graph.written)
        queue = [
            rows.numpy()[:count]
            for rows in (graph.embeddings, graph.probabilities)
        ]
    else:
        if c.weak_forward == "separate":
            # It moves the averages as well, before the other forward.
            s.student(x_w)
            const = s.constant(x_w)
            logits_w, z_w = const["logits"], const["embeddings"]
            images = np.concatenate([x_l, x_s, x_s2])
            out, const = s.student(images), s.constant(images)
        else:
            images = np.concatenate([x_l, x_s, x_s2, x_w])
            out, const = s.student(images), s.constant(images)
            logits_w = const["logits"][-u:]
            z_w = const["embeddings"][-u:]
        z_l = const["embeddings"][:b]
        z_s, z_s2 = (
            out["embeddings"][start : start + u] for start in (b, b + u)
        )
    logits_l, logits_s = out["logits"][:b], out["logits"][b : b + u]

    p_w, states = reference.softmax(logits_w), {}
    if c.align:
        window = s.algorithm.align.window.numpy()
        count = int(s.algorithm.align.written)
        window[count % len(window)] = p_w.mean(axis=0)
        states["align.window"] = window
        p_w = reference.align(p_w, window[: count + 1].mean(axis=0))
    p_hat = p_w
    if int(memory.written) >= len(memory.filled):
        p_hat = reference.neighbor_smooth(
            p_w,
            z_w,
            memory.embeddings.numpy(),
            memory.probabilities.numpy(),
            hyper.temperature,
            hyper.alpha,
        )
    kept = p_hat.max(axis=1) >= c.threshold
    loss_u = np.mean(
        kept * reference.cross_entropy(p_hat, reference.softmax(logits_s))
    )
    loss_s = reference.supervised_loss(logits_l, s.batch["labels"])
    loss_c = reference.graph_loss(
        z_s, z_s2, p_hat, hyper.temperature, hyper.edge_threshold, *queue
    )
    ramp = min(1, s.k / hyper.ramp_c_steps) if hyper.ramp_c_steps else 1
    one_hot = np.eye(L)[s.batch["labels"]]
    states |= {
        f"queue.{name}": value
        for name, value in written(
            memory, [*z_w, *z_l], [*p_w, *one_hot]
        ).items()
    }
    if graph:
        states |= {
            f"graph_queue.{name}": value
            for name, value in written(graph, z_s2, p_hat).items()
        }
    return {
        "loss/total": loss_s
        + c.lambda_u * loss_u
        + ramp * hyper.lambda_c * loss_c,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "loss/c": loss_c,
        "loss/weighted_c": ramp * hyper.lambda_c * loss_c,
        "pseudo_label/mask_rate": kept.mean(),
    }, states


def make(**changes):
    return whole_step.make("comatch", **{**OFTEN, **changes})


def check(algorithm, inputs):
    # Images are normalized in float32.
    return whole_step.check(algorithm, comatch, inputs, atol=5e-7)


def batches(count, **options):
    return [
        whole_step.batch(seed, views=VIEWS, **options) for seed in range(count)
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"lambda_u": 2.0, COMATCH("lambda_c"): 3.0},
        {COMATCH("alpha"): 0.3, COMATCH("temperature"): 0.5},
        {"align": False, "weak_forward": "separate"},
        {COMATCH("ramp_c_steps"): 4, "da_window": 2},
        {"targets_from": "teacher"},
        pytest.param(
            {"targets_from": "teacher", "teacher_norm": "shuffle"},
            marks=[pytest.mark.slow, pytest.mark.variant],
        ),
    ],
    ids=str,
)
def test_steps(changes):
    """Before the memory is full, and after it."""
    algorithm = make(**changes)
    before = [variable.numpy() for variable in algorithm.student.variables]
    rates = []
    for inputs in batches(2):
        # A step of rate 1 may leave the tiny network without a gradient.
        for variable, value in zip(
            algorithm.student.variables, before, strict=True
        ):
            variable.assign(value)
        (metrics,) = check(algorithm, [inputs])
        rates.append(metrics["pseudo_label/mask_rate"])
    assert int(algorithm.queue.written) == 2 * (B + U)
    assert any(0 < rate < 1 for rate in rates), rates


@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_all_kept_and_none(threshold):
    algorithm = make(threshold=threshold)
    (metrics,) = check(algorithm, batches(1))
    assert metrics["pseudo_label/mask_rate"] == 1 - threshold
    assert (metrics["loss/u"] > 0) == (threshold == 0)


def test_a_class_that_no_labeled_image_has():
    algorithm = make()
    inputs = batches(1, labels=(0, 0, 1, 0))
    check(algorithm, inputs)
    rows = (np.arange(B) + U) % SIZE
    classes = algorithm.queue.probabilities.numpy()[rows].argmax(axis=1)
    assert set(classes) == {0, 1}


def test_the_hundredth_step():
    algorithm = make()
    algorithm.step.assign(100)
    check(algorithm, batches(1))


def test_smoothing_waits_until_the_memory_is_full():
    """Rows that are empty have no part in it, whatever they hold."""
    one, other = make(), make()
    other.queue.embeddings.assign(tf.fill([SIZE, D], np.float64(np.nan)))
    steps = [
        tf.function(a.guarded_step, autograph=False)(batches(1)[0])
        for a in (one, other)
    ]
    for name in ("loss/total", "loss/u", "loss/c"):
        assert np.isfinite(steps[1][name])
        np.testing.assert_array_equal(steps[0][name], steps[1][name])


def test_size_of_the_memory():
    algorithm = whole_step.make("comatch", batch_size=6, unlabeled_ratio=3)
    assert algorithm.queue.embeddings.shape == (5 * (6 + 18), D)
    assert algorithm.graph_queue is None
    assert algorithm.evaluated_weights == "ema"
    algorithm = make(targets_from="teacher")
    assert algorithm.graph_queue.embeddings.shape == (SIZE, D)
    assert algorithm.evaluated_weights == "student"


def test_defaults_are_the_published_ones():
    config = simmatch_tf.Config(algorithm="comatch", labels=10, steps=9)
    values = {
        "threshold": 0.95,
        "lambda_u": 1.0,
        "da_window": 32,
        "align": True,
        "weak_forward": "joint",
        "projection_dim": 64,
        "unlabeled_ratio": 7,
        "ema_momentum": 0.999,
        COMATCH("alpha"): 0.9,
        COMATCH("temperature"): 0.2,
        COMATCH("lambda_c"): 1.0,
        COMATCH("edge_threshold"): 0.8,
    }
    flags = config.values()
    assert {name: flags[name] for name in values} == values
    view = comatch_lib.CoMatch.unlabeled_views[2]
    assert (view.augmentation, view.crop) == ("jitter", "resized_crop")
    assert view.crop_area == (0.2, 1.0)


def test_flags_of_simmatch_alone_are_refused():
    with pytest.raises(errors.InputError, match="--alpha=0.5: is for"):
        simmatch_tf.Config(algorithm="comatch", labels=10, steps=9, alpha=0.5)


def test_diagnostics():
    algorithm = make()
    x = batches(1)[0] | {diagnostics.LOGGED: tf.constant(True)}
    metrics = tf.function(algorithm.guarded_step, autograph=False)(x)
    shown = metrics[diagnostics.DIAGNOSTICS]
    views = {f"view/{view}" for view in VIEWS}
    assert views < set(shown.rows) and "mask" in shown.rows
    assert shown.means["predicted"].shape == (L,)


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize("form", ["student", "teacher"])
def test_two_replicas_are_as_one(form, two_replicas):
    """The graph, the memory and its order are those of the whole batch."""
    x = batches(1)[0]
    one, two = (
        make(strategy=strategy, targets_from=form, learning_rate=0.05)
        for strategy in (None, two_replicas)
    )
    step = tf.function(one.guarded_step, autograph=False)
    for _ in range(3):
        step(x)
    small.on_two(two_replicas, two, x, 3, guarded=True)
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_allclose(
            a.numpy(), b.numpy(), rtol=1e-6, atol=1e-7, err_msg=a.name
        )
