"""A memory that is divided over the replicas is the same memory."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import memory, shard
from simmatch_tf.training import checkpoints

L, D, N = 4, 6, 8


def unit(rng, rows):
    x = rng.normal(size=[rows, D])
    return np.float32(x / np.linalg.norm(x, axis=1, keepdims=True))


def pair(strategy, slots, momentum=0.7, seed=0):
    """A memory on one device, and the same divided over the strategy's."""
    labels = np.random.default_rng(seed).integers(0, L, slots)
    alone = memory.MemoryBuffer(labels, D, momentum)
    with strategy.scope():
        divided = memory.MemoryBuffer(labels, D, momentum, sharded=True)
    return alone, divided


def shares(strategy, *values):
    count = strategy.num_replicas_in_sync
    return [
        strategy.experimental_distribute_values_from_function(
            lambda context, value=value: tf.constant(
                np.split(value, count)[context.replica_id_in_sync_group]
            )
        )
        for value in values
    ]


def run(strategy, function, *values):
    """What each replica returns, one below the other."""
    step = tf.function(
        lambda *parts: strategy.run(function, args=parts), autograph=False
    )
    results = step(*shares(strategy, *values))
    return tf.nest.map_structure(
        lambda x: np.concatenate(strategy.experimental_local_results(x)),
        results,
    )


def whole(strategy, buffer):
    """Q_f, from all replicas; each must have the same."""
    step = tf.function(lambda: strategy.run(lambda: buffer.features))
    first, *others = strategy.experimental_local_results(step())
    for other in others:
        np.testing.assert_array_equal(other, first)
    return first


def fill(strategy, alone, divided, seed=1):
    """Writes every slot, some twice, into both."""
    rng = np.random.default_rng(seed)
    slots = alone.labels.shape[0]
    for _ in range(2):
        order = np.resize(rng.permutation(slots), 2 * slots)
        z = rng.normal(size=[2 * slots, D]).astype(np.float32)
        alone.update(order, z)
        run(strategy, lambda s, x: (divided.update(s, x), s)[1], order, z)


@pytest.mark.parametrize("slots", [6, 7])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_writes_the_same(slots, momentum, two_replicas):
    alone, divided = pair(two_replicas, slots, momentum)
    fill(two_replicas, alone, divided)
    np.testing.assert_allclose(
        whole(two_replicas, divided), alone.features, atol=1e-6
    )
    np.testing.assert_array_equal(divided.filled, alone.filled)
    parts = two_replicas.experimental_local_results(divided.shard.local)
    for part in parts:  # half of the rows, and the spare one
        assert part.shape == [-(-slots // 2) + 1, D]
    assert not np.allclose(parts[0], parts[1])


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("slots", [6, 41])
def test_matches_the_same(slots, temperature, two_replicas):
    alone, divided = pair(two_replicas, slots)
    fill(two_replicas, alone, divided)
    rng = np.random.default_rng(2)
    p_w = rng.uniform(size=[N, L]).astype(np.float32)
    p_w[0] = 0.0
    p_w[0, (alone.labels.numpy()[0] + 1) % L] = 1.0
    given = unit(rng, N), unit(rng, N), p_w / p_w.sum(1, keepdims=True)

    def match(buffer):
        def call(z_w, z_s, p_w):
            with tf.GradientTape() as tape:
                tape.watch(z_s)
                p_hat, each = buffer.match(
                    z_w, z_s, p_w, temperature=temperature, alpha=0.9
                )
            return p_hat, each, tape.gradient(each, z_s)

        return call

    wanted = match(alone)(*map(tf.constant, given))
    results = run(two_replicas, match(divided), *given)
    for name, one, other in zip(
        ("p_hat", "loss", "gradient"), results, wanted, strict=True
    ):
        scale = 1 / temperature if name == "gradient" else 1.0
        np.testing.assert_allclose(
            one, other, rtol=1e-5, atol=1e-5 * scale, err_msg=name
        )


@pytest.mark.parametrize("count", [1, 3, 9])
@pytest.mark.parametrize("slots", [6, 7])
def test_finds_the_same_nearest(slots, count, two_replicas):
    alone, divided = pair(two_replicas, slots)
    fill(two_replicas, alone, divided)
    z = unit(np.random.default_rng(2), N)
    wanted = alone.nearest(z, count)
    nearest = run(two_replicas, lambda z: divided.nearest(z, count), z)
    assert nearest[0].shape == (N, min(count, slots), D)
    np.testing.assert_allclose(nearest[0], wanted[0], atol=1e-6)
    np.testing.assert_array_equal(nearest[1], wanted[1])
    order = np.argsort(-(z @ alone.features.numpy().T), axis=1)[:, :count]
    np.testing.assert_array_equal(wanted[1], alone.labels.numpy()[order])


def test_outside_of_the_replicas_it_is_not_whole(two_replicas):
    _, divided = pair(two_replicas, 6)
    with pytest.raises(ValueError, match="divided over 2 replicas: gather it"):
        print(divided.features)


def test_one_replica_has_it_all():
    buffer = memory.MemoryBuffer([0, 1], D, sharded=True)
    assert buffer.shard is None and isinstance(buffer.features, tf.Variable)


@pytest.mark.parametrize("slots", [7])
def test_a_checkpoint_does_not_tell_them_apart(slots, two_replicas, tmp_path):
    alone, divided = pair(two_replicas, slots)
    fill(two_replicas, alone, divided)

    class Owner(tf.Module):
        def __init__(self, buffer):
            super().__init__()
            self.memory = buffer

        def shards(self):
            return [m for m in self.submodules if isinstance(m, shard.Shard)]

    owner = Owner(divided)
    saved = tf.train.Checkpoint(algorithm=owner)
    with checkpoints.gathered(two_replicas, owner):
        path = saved.write(str(tmp_path / "divided"))
    assert divided.shard.whole.shape == [0, D]  # not kept
    reader = tf.train.load_checkpoint(path)
    name = "algorithm/memory/features/.ATTRIBUTES/VARIABLE_VALUE"
    np.testing.assert_allclose(
        reader.get_tensor(name), alone.features, atol=1e-6
    )

    other = memory.MemoryBuffer(alone.labels.numpy(), D, 0.7)
    both = tf.train.Checkpoint(algorithm=Owner(other))
    both.read(path).assert_consumed()
    np.testing.assert_array_equal(other.features, whole(two_replicas, divided))

    path = both.write(str(tmp_path / "whole"))
    with two_replicas.scope():
        again = Owner(
            memory.MemoryBuffer(alone.labels.numpy(), D, 0.7, sharded=True)
        )
    tf.train.Checkpoint(algorithm=again).read(path).assert_consumed()
    checkpoints.spread(two_replicas, again)
    np.testing.assert_array_equal(
        whole(two_replicas, again.memory), whole(two_replicas, divided)
    )
