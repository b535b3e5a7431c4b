"""Two replicas compute what one does, and not if a step is broken on purpose.

Each fault here is one way in which replicas go wrong: a share that is not
theirs, values that come in another order, a reduction that is missing. A
comparison that does not notice it would be worth nothing.
"""

import contextlib
import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import simmatch
from simmatch_tf.distributed import strategies
from simmatch_tf.evaluation import evaluator
from simmatch_tf.modules import (
    alignment,
    guard,
    memory,
    optimizer,
    record,
    replica,
    shard,
)
from simmatch_tf.networks import batch_norm
from simmatch_tf.ops import losses, matching
from tests import variants
from tests.algorithms import test_simmatch as small
from tests.evaluation import test_evaluator as test_evaluation
from tests.modules import test_replica

# Slots of each step's labeled images. A slot may come twice, on two replicas.
# The loss of a step with an image of class 3 is not finite, on its replica.
STEPS = [(0, 3, 0, 5), (1, 2, 4, 7), (5, 4, 1, 2)]
BROKEN = 3
NEAR = 1e-10


@contextlib.contextmanager
def float64():
    """Networks in double precision: what remains is no rounding."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def supervised_loss(logits, labels):
    """The loss, and NaN where an image is of the broken class."""
    broken = tf.reduce_any(labels == BROKEN)
    loss = losses.supervised_loss(logits, labels)
    return loss + tf.where(broken, tf.constant(np.nan, loss.dtype), 0.0)


def train(strategy, split, *, synchronized=True, **changes):
    """Trains for the steps above.

    Args:
        strategy: Where.
        split: From a value of the whole batch and a replica's number to its
            share.
        synchronized: BatchNorm's statistics.
        **changes: Flags.

    Returns:
        Name → a value for each replica: all state, and each step's loss.
    """
    flags = {"precision": "float64", "on_nonfinite": "skip", **changes}
    with strategy.scope(), float64():
        algorithm = small.make(**flags)
    for model in algorithm.networks().values():
        batch_norm.adjust(model, momentum=0.8, synchronized=synchronized)

    def on_replicas(function, values):
        shares = strategy.experimental_distribute_values_from_function(
            lambda context: {
                name: split(value, context.replica_id_in_sync_group)
                for name, value in values.items()
            }
        )
        step = tf.function(
            lambda x: strategy.run(function, args=(x,)), autograph=False
        )
        return step(shares)

    def fill(values):
        return algorithm.memory.update(values["slots"], values["z"])

    rng = np.random.default_rng(5)
    slots = tf.range(small.K, dtype=tf.int64)
    on_replicas(fill, {"slots": slots, "z": rng.normal(size=[small.K, 8])})
    results, step = {}, algorithm.guarded_step
    for number, slots in enumerate(STEPS):
        metrics = on_replicas(step, small.batch(number, slots))
        loss = strategy.reduce("MEAN", metrics["loss/total"], None)
        results[f"loss of step {number}"] = [loss.numpy()]
    features = on_replicas(lambda _: tf.identity(algorithm.memory.features), {})
    results["memory"] = strategy.experimental_local_results(features)
    for number, variable in enumerate(algorithm_lib.state(algorithm)):
        if "features" not in variable.name:  # see above
            name = f"{number}: {variable.name}"
            results[name] = strategy.experimental_local_results(variable)
    return {
        name: [np.array(value) for value in values]
        for name, values in results.items()
    }


@functools.cache
def alone(**changes):
    """What one replica makes of it."""
    return train(
        strategies.one(),
        lambda value, _: tf.convert_to_tensor(value),
        **changes,
    )


def halves(value, number):
    return tf.split(value, 2)[number]


def assert_as_alone(strategy, split=halves, synchronized=True, **changes):
    wanted = alone(**changes)
    results = train(strategy, split, synchronized=synchronized, **changes)
    # Names of variables may differ in their endings.
    assert len(results) == len(wanted)
    for (name, copies), (one,) in zip(
        results.items(), wanted.values(), strict=True
    ):
        for copy in copies:
            if one.dtype.kind == "f":
                size = np.linalg.norm(np.nan_to_num(np.ravel(one)))
                np.testing.assert_allclose(
                    copy, one, rtol=0, atol=NEAR * max(size, 1), err_msg=name
                )
            else:
                np.testing.assert_array_equal(copy, one, err_msg=name)


@pytest.fixture(autouse=True)
def broken_class(monkeypatch):
    monkeypatch.setattr(
        simmatch,
        "losses",
        types.SimpleNamespace(
            supervised_loss=supervised_loss,
            unsupervised_loss=losses.unsupervised_loss,
        ),
    )


SHARDED = {"memory_placement": "sharded"}
SHARP = {**SHARDED, "temperature": 0.01}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"targets_from": "teacher"}, marks=pytest.mark.slow),
        pytest.param(SHARDED, marks=[pytest.mark.slow, pytest.mark.variant]),
        pytest.param(SHARP, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_replicas_are_one(changes, two_replicas):
    assert_as_alone(two_replicas, **changes)


def faulty(**functions):
    """`replica`, but for some of its functions."""
    names = [name for name in dir(replica) if not name.startswith("__")]
    attributes = {name: getattr(replica, name) for name in names}
    return types.SimpleNamespace(**{**attributes, **functions})


_all_gather = replica.all_gather


def backwards(x):
    """Joins in the order of the last replica first."""
    return tf.concat(tf.split(_all_gather(x), 2)[::-1], axis=0)


def floats_backwards(x):
    return backwards(x) if x.dtype.is_floating else _all_gather(x)


def other_half(self):
    return (1 - replica.number()) * self.size


# What is broken → module or class, attribute, what stands in its place; flags.
FAULTS = {
    "alignment without a mean": (
        alignment, "replica", faulty(mean=tf.identity), {},
    ),
    "record without a mean": (record, "replica", faulty(mean=tf.identity), {}),
    "guard without a mean": (guard, "replica", faulty(mean=tf.identity), {}),
    "gradients not summed": (
        optimizer.Sgd, "_all_reduce_sum_gradients", lambda _, pairs: pairs, {},
    ),
    "loss not divided": (
        algorithm_lib, "replica", faulty(count=lambda: 1), {},
    ),
    "memory of own images": (
        memory, "replica", faulty(all_gather=tf.identity), {},
    ),
    "memory gathered in another order": (
        memory, "replica", faulty(all_gather=floats_backwards), {},
    ),
    "shard: sums of own slots": (
        memory, "replica", faulty(sum=tf.identity), SHARDED,
    ),
    "shard: sums of other images": (
        matching, "images", lambda sums, start, count, of=matching.images: of(
            sums, tf.zeros_like(start), count
        ), SHARDED,
    ),
    "shard: shifts of own slots": (
        memory, "replica", faulty(largest=tf.identity), SHARP,
    ),
    "shard: rows of another": (shard.Shard, "start", other_half, SHARDED),
    "shard: gathered in another order": (
        shard, "replica", faulty(all_gather=backwards), SHARDED,
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    variants.of(
        FAULTS,
        (
            "loss not divided",
            "memory gathered in another order",
            "shard: sums of own slots",
        ),
    ),
)
def test_a_fault_is_noticed(name, two_replicas, monkeypatch):
    owner, attribute, instead, changes = FAULTS[name]
    alone(**changes)  # is not to have it
    monkeypatch.setattr(owner, attribute, instead)
    with pytest.raises(AssertionError):
        assert_as_alone(two_replicas, **changes)


@pytest.mark.slow
def test_the_same_share_is_noticed(two_replicas):
    with pytest.raises(AssertionError):
        assert_as_alone(two_replicas, split=lambda x, _: tf.split(x, 2)[0])


@pytest.mark.slow
def test_statistics_of_its_own_are_noticed(two_replicas):
    """BatchNorm that is not synchronized."""
    with pytest.raises(AssertionError):
        assert_as_alone(two_replicas, synchronized=False)


def test_another_order_is_noticed_in_evaluation(two_replicas, monkeypatch):
    monkeypatch.setattr(evaluator, "replica", faulty(all_gather=backwards))
    with pytest.raises(AssertionError):
        test_evaluation.test_two_replicas_keep_the_order(two_replicas)


def test_another_order_is_noticed_in_a_shuffle(two_replicas, monkeypatch):
    monkeypatch.setattr(replica, "all_gather", backwards)
    with pytest.raises((AssertionError, IndexError)):
        test_replica.test_shuffled_rows_come_home("float32", two_replicas)


@pytest.mark.slow
@pytest.mark.parametrize("teacher_norm", ["eman", "shuffle"])
def test_statistics_that_part_are_noticed(
    teacher_norm, two_replicas, monkeypatch
):
    """BatchNorm with statistics of its own, whose averages are shared."""
    monkeypatch.setattr(algorithm_lib, "replica", faulty(mean=tf.identity))
    with pytest.raises(AssertionError):
        small.test_local_statistics_stay_the_same_on_all(
            teacher_norm, two_replicas
        )
