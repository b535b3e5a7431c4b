"""SimMatchV2's whole step against its equations."""

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.flags import errors
from tests import reference
from tests.algorithms import whole_step
from tests.algorithms.whole_step import SLOT_LABELS, D, L

B, U = 4, 6  # of whole_step's batches
V2 = "simmatch_v2.{}".format
OFTEN = {
    "threshold": 0.9,
    "lambda_u": 2.0,
    V2("lambda_ee"): 3.0,
    V2("lambda_ne"): 0.7,
    # Labels and neighbors matter much; with unlabeled_ratio=1 the queue has 8
    # rows, which 6 does not divide.
    V2("alpha"): 0.5,
    V2("neighbors"): 4,
    V2("queue_steps"): 2,
}


def simmatch_v2(s):
    """L_s + λ_u L_nn + λ_ee L_ee + λ_ne L_ne."""
    c, h = s.algorithm.config, s.algorithm.hyper
    bank, queue, t = s.algorithm.memory, s.algorithm.queue, h.temperature
    x_l, x_w, y = (
        s.batch[name] for name in ("labeled_weak", "unlabeled_weak", "labels")
    )
    x_s = [
        s.batch[f"unlabeled_{view.name}"] for view in s.algorithm.strong_views
    ]
    b, mode = len(x_l), "inference" if h.teacher_norm == "eman" else "batch"
    out = s.teacher(np.concatenate([x_l, x_w]), mode)
    z_l, z_w = out["embeddings"][:b], out["embeddings"][b:]
    p_w, states = reference.softmax(out["logits"][b:]), {}
    average = s.algorithm.align.window.numpy()[0]
    if h.align:
        prior = s.algorithm.class_prior
        shares = np.ones(L) if prior is None else np.array(prior) + 1e-6
        m = h.da_momentum
        states["align.window"] = [m * average + (1 - m) * p_w.mean(axis=0)]
        p_w = p_w * shares / (average + 1e-6)
        p_w /= p_w.sum(axis=1, keepdims=True)
    p_hat = p_w
    if (bank.written.numpy() >= 0).all():
        p_hat = reference.graph_propagate(
            p_w,
            z_w,
            bank.features.numpy(),
            SLOT_LABELS,
            L,
            h.neighbors,
            t,
            h.alpha,
        )
    kept = p_w.max(axis=1) >= c.threshold

    joint = s.student(np.concatenate([x_l, x_s[0]]))
    views = [(joint["logits"][b:], joint["embeddings"][b:])]
    for x in x_s[1:]:
        out = s.student(x)
        views.append((out["logits"], out["embeddings"]))
    rows, p_rows = queue.embeddings.numpy(), queue.probabilities.numpy()
    sums = np.zeros(3)
    for logits, z in views:
        sums[0] += np.mean(
            kept * reference.cross_entropy(p_hat, reference.softmax(logits))
        )
        if int(queue.written) < len(rows):
            continue
        q_w, q_s = (reference.instance_similarity(x, rows, t) for x in (z_w, z))
        sums[1] += np.mean(reference.cross_entropy(q_w, q_s))
        sums[2] += np.mean(reference.cross_entropy(p_w, q_s @ p_rows))
    loss_nn, loss_ee, loss_ne = sums / len(views)
    loss_s = reference.supervised_loss(joint["logits"][:b], y)

    features, written = bank.features.numpy(), bank.written.numpy()
    for slot in set(s.batch["slots"]):
        mean = z_l[s.batch["slots"] == slot].mean(axis=0)
        features[slot] = mean / np.linalg.norm(mean)
        written[slot] = s.k + 1
    count = int(queue.written)
    for i in range(len(z_w)):
        rows[(count + i) % len(rows)] = z_w[i]
        p_rows[(count + i) % len(rows)] = p_w[i]
    states |= {
        "memory.features": features,
        "memory.written": written,
        "queue.embeddings": rows,
        "queue.probabilities": p_rows,
        "queue.written": count + len(z_w),
    }
    return {
        "loss/total": loss_s
        + c.lambda_u * loss_nn
        + h.lambda_ee * loss_ee
        + h.lambda_ne * loss_ne,
        "loss/s": loss_s,
        "loss/u": loss_nn,
        "loss/ee": loss_ee,
        "loss/ne": loss_ne,
        "loss/weighted_u": c.lambda_u * loss_nn,
        "loss/weighted_ee": h.lambda_ee * loss_ee,
        "loss/weighted_ne": h.lambda_ne * loss_ne,
        "pseudo_label/mask_rate": kept.mean(),
    }, states


def make(strategy=None, **changes):
    return whole_step.make("simmatch_v2", strategy, **{**OFTEN, **changes})


def fill(algorithm, seed=3):
    """Fills the memory bank and the queue, and moves the average."""
    rng = np.random.default_rng(seed)

    def unit(rows):
        z = rng.normal(size=[rows, D])
        return z / np.linalg.norm(z, axis=1, keepdims=True)

    size = algorithm.queue.size
    algorithm.memory.features.assign(unit(len(SLOT_LABELS)))
    algorithm.memory.written.assign(range(len(SLOT_LABELS)))
    algorithm.queue.embeddings.assign(unit(size))
    algorithm.queue.probabilities.assign(rng.dirichlet(np.ones(L), size))
    algorithm.queue.written.assign(size + 3)
    algorithm.align.window.assign([[0.5, 0.2, 0.3]])
    return algorithm


def check(algorithm, inputs):
    # Images are normalized in float32.
    return whole_step.check(algorithm, simmatch_v2, inputs, atol=1e-6)


def batches(count, algorithm=None, **options):
    views = algorithm.strong_views if algorithm else ()
    names = [view.name for view in views] or ["strong"]
    sides = [view.side_of(whole_step.SIDE) for view in views] or [
        whole_step.SIDE
    ]
    return [
        whole_step.batch(
            seed,
            views=["weak", *names],
            sides=[whole_step.SIDE, *sides],
            **options,
        )
        for seed in range(count)
    ]


SLOW = [pytest.mark.slow, pytest.mark.variant]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {V2("strong_views"): 3, "teacher_norm": "eman", "threshold": 0.9695},
        pytest.param(
            {V2("neighbors"): 128, V2("temperature"): 0.5}, marks=SLOW
        ),
        pytest.param({"align": False, V2("alpha"): 0.9}, marks=SLOW),
        pytest.param({V2("strong_views"): 5}, marks=SLOW),
        pytest.param(
            {"prior": [0.6, 0.3, 0.1], V2("da_momentum"): 0.5}, marks=SLOW
        ),
    ],
    ids=str,
)
def test_steps(changes):
    algorithm = fill(make(**changes))
    (metrics,) = check(algorithm, batches(1, algorithm))
    assert 0 < metrics["pseudo_label/mask_rate"] < 1
    assert all(metrics[f"loss/{name}"] > 0.01 for name in ("u", "ee", "ne"))


def test_steps_from_the_start():
    """Nothing is propagated, nothing compared, until the state is full."""
    algorithm = make()
    metrics = check(algorithm, batches(1))[0]
    assert metrics["loss/u"] > 0
    assert metrics["loss/ee"] == metrics["loss/ne"] == 0
    assert int(algorithm.queue.written) == U


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_all_kept_and_none(threshold):
    (metrics,) = check(fill(make(threshold=threshold)), batches(1))
    assert metrics["pseudo_label/mask_rate"] == 1 - threshold
    assert (metrics["loss/u"] > 0) == (threshold == 0)


@pytest.mark.slow
@pytest.mark.variant
def test_a_class_that_no_labeled_image_has():
    check(fill(make()), batches(1, labels=(0, 0, 1, 0)))


@pytest.mark.slow
@pytest.mark.variant
def test_the_hundredth_step():
    algorithm = fill(make())
    algorithm.step.assign(100)
    check(algorithm, batches(1))


def test_similarities_of_a_queue_without_a_class_are_finite():
    """Its probability is 0, which has no logarithm."""
    algorithm = fill(make())
    only = np.tile(np.eye(L)[0], [algorithm.queue.size, 1])
    algorithm.queue.probabilities.assign(only)
    step = tf.function(algorithm.guarded_step, autograph=False)
    metrics = step(batches(1)[0])
    assert np.isfinite(metrics["loss/ne"]) and metrics["loss/ne"] > 1
    for variable in algorithm.student.variables:
        assert np.isfinite(variable).all()


def test_defaults_are_the_published_ones():
    config = simmatch_tf.Config(algorithm="simmatch_v2", labels=10, steps=9)
    values = {
        "threshold": 0.7,
        "lambda_u": 10.0,
        "align": True,
        "teacher_norm": "shuffle",
        "projection_dim": 128,
        "unlabeled_ratio": 5,
        "ema_momentum": 0.999,
        V2("temperature"): 0.1,
        V2("alpha"): 0.1,
        V2("neighbors"): 128,
        V2("queue_steps"): 256,
        V2("da_momentum"): 0.9,
        V2("lambda_ee"): 10.0,
        V2("lambda_ne"): 10.0,
    }
    flags = config.values()
    assert {name: flags[name] for name in values} == values
    algorithm = make(**{V2("strong_views"): 5})
    assert [v.side_of(224) for v in algorithm.strong_views] == [
        224,
        192,
        160,
        120,
        96,
    ]
    assert algorithm.strong_views[1].crop_area == (0.117, 0.86)
    (only,) = make().strong_views
    assert only == algorithm_lib.View("strong", "strong")
    assert algorithm.evaluated_weights == "student"


def test_flags_that_do_not_fit():
    values = {"algorithm": "simmatch_v2", "labels": 10, "steps": 9}
    with pytest.raises(errors.InputError, match="--da_window=5: is for"):
        simmatch_tf.Config(**values, da_window=5)
    with pytest.raises(errors.InputError, match="alpha=0.95: .*0.9"):
        simmatch_tf.Config(**values, **{V2("alpha"): 0.95})
    with pytest.raises(errors.InputError, match="LayerNorm in front of it"):
        simmatch_tf.Config(
            **values, init_from="x.keras", classifier_init="frozen_features"
        )
    hyper = simmatch_tf.Config(**values).hyper
    assert "256: the losses of similarities" in hyper.notes(256)[0]
    assert not hyper.notes(257)


def test_diagnostics():
    algorithm = fill(make(**{V2("strong_views"): 2}))
    x = batches(1, algorithm)[0] | {diagnostics.LOGGED: tf.constant(True)}
    metrics = tf.function(algorithm.guarded_step, autograph=False)(x)
    shown = metrics[diagnostics.DIAGNOSTICS]
    views = {"view/weak", "view/strong_1", "view/strong_2", "mask"}
    assert views < set(shown.rows)
    assert shown.means["predicted"].shape == (L,)
    assert shown.means["queue/filled"] == shown.means["memory/filled"] == 1


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize("placement", ["replicated", "sharded"])
def test_two_replicas_are_as_one(placement, two_replicas):
    """Slots, queue and their order are those of the whole batch."""
    one, two = (
        make(strategy, learning_rate=0.05, memory_placement=placement)
        for strategy in (None, two_replicas)
    )
    assert len(two.shards()) == (3 if placement == "sharded" else 0)
    step = tf.function(one.guarded_step, autograph=False)
    on_two = tf.function(
        lambda x: two_replicas.run(two.guarded_step, args=(x,)),
        autograph=False,
    )
    losses = []
    for x in batches(3, labels=(0, 1, 2, 0)):
        x["slots"] += len(losses) % 2  # all of them in two steps
        losses.append(float(step(x)["loss/ee"]))

        def share(context, x=x):
            number = context.replica_id_in_sync_group
            return {name: tf.split(v, 2)[number] for name, v in x.items()}

        values = two_replicas.experimental_distribute_values_from_function
        on_two(values(share))
    assert losses[1] == 0 and losses[-1] > 0 and bool(one.memory.full())

    def of(method):
        return {
            "features": tf.identity(method.memory.features),
            "embeddings": tf.identity(method.queue.embeddings),
            "probabilities": tf.identity(method.queue.probabilities),
            "average": tf.identity(method.align.window),
            **{v.path: tf.identity(v.value) for v in method.student.variables},
        }

    states = tf.function(lambda: two_replicas.run(of, args=(two,)))()
    for name, wanted in of(one).items():
        for value in two_replicas.experimental_local_results(states[name]):
            np.testing.assert_allclose(
                value, wanted, rtol=1e-6, atol=1e-8, err_msg=name
            )
    assert int(two.queue.written.numpy()) == 3 * U
