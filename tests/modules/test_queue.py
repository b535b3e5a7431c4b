import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import queue, shard
from simmatch_tf.ops import propagation
from simmatch_tf.training import checkpoints
from tests import reference
from tests.modules import test_shard


def rows(first, count):
    """Embeddings and probabilities that tell the number of the image."""
    n = np.arange(first, first + count, dtype=np.float64)
    return np.stack([n, -n], 1), np.stack([n, n + 0.25, n + 0.5], 1)


def make(size, **options):
    return queue.Queue(size, 2, 3, **options)


def test_starts_empty():
    memory = make(4)
    assert memory.embeddings.shape == (4, 2)
    assert memory.probabilities.shape == (4, 3)
    assert memory.embeddings.dtype == memory.probabilities.dtype == tf.float32
    assert int(memory.written) == 0 and not bool(memory.full())
    assert not memory.filled.numpy().any()


def test_fills_and_wraps_around():
    """Batches of 3 in 5 rows, which 3 does not divide."""
    memory = make(5, dtype="float64")
    wanted = [
        [1, 2, 3, 0, 0],
        [6, 2, 3, 4, 5],
        [6, 7, 8, 9, 5],
        [11, 12, 8, 9, 10],
    ]
    for step, numbers in enumerate(wanted):
        memory.write(*rows(1 + 3 * step, 3))
        z, p = memory.embeddings.numpy(), memory.probabilities.numpy()
        np.testing.assert_array_equal(z[:, 0], numbers)
        np.testing.assert_array_equal(z[:, 1], -z[:, 0])
        np.testing.assert_array_equal(p[:, 0], numbers)
        filled = np.array(numbers) > 0
        np.testing.assert_array_equal(p[:, 2], (p[:, 0] + 0.5) * filled)
        np.testing.assert_array_equal(memory.filled, filled)
        assert bool(memory.full()) == filled.all()
    assert int(memory.written) == 12


def test_full_at_the_last_row():
    memory = make(4)
    memory.write(*rows(1, 3))
    assert not bool(memory.full())
    memory.write(*rows(4, 1))
    assert bool(memory.full())


@pytest.mark.parametrize("before", [0, 2])
def test_more_rows_than_it_has(before):
    memory = make(3)
    memory.write(*rows(100, before))
    memory.write(*rows(1, 8))
    numbers = memory.embeddings.numpy()[:, 0]
    assert sorted(numbers) == [6, 7, 8]
    # The next one replaces the oldest.
    memory.write(*rows(9, 1))
    assert sorted(memory.embeddings.numpy()[:, 0]) == [7, 8, 9]


def test_compiled_and_eager_are_the_same():
    eager, compiled = make(7), make(7)
    write = tf.function(compiled.write, autograph=False, jit_compile=True)
    for step in range(4):
        eager.write(*rows(5 * step, 5))
        write(*map(tf.constant, rows(5 * step, 5)))
    for one, other in zip(eager.variables, compiled.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_two_replicas_write_in_order(two_replicas):
    one = make(5)
    with two_replicas.scope():
        two = make(5)
    z, p = map(tf.constant, rows(1, 6))

    def share(context):
        number = context.replica_id_in_sync_group
        return [tf.split(x, 2)[number] for x in (z, p)]

    shares = two_replicas.experimental_distribute_values_from_function(share)
    write = tf.function(
        lambda x: two_replicas.run(lambda y: two.write(*y), args=(x,)),
        autograph=False,
    )
    for _ in range(2):
        one.write(z, p)
        write(shares)
    for a, b in zip(one.variables, two.variables, strict=True):
        for local in two_replicas.experimental_local_results(b):
            np.testing.assert_array_equal(local.numpy(), a.numpy())


def test_survives_a_checkpoint(tmp_path):
    memory, other = make(4), make(4)
    memory.write(*rows(1, 6))
    path = tf.train.Checkpoint(memory=memory).write(str(tmp_path / "x"))
    tf.train.Checkpoint(memory=other).read(path).assert_consumed()
    for one, two in zip(memory.variables, other.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())


def test_refuses_other_shapes():
    memory = make(4)
    z, p = rows(1, 2)
    for arguments in ((z[:, :1], p), (z, p[:, :2]), (z, p[:1])):
        with pytest.raises(ValueError, match="has shape"):
            memory.write(*arguments)


def unit(rng, rows, dim):
    x = rng.normal(size=[rows, dim])
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def filled(size, dim=4, seed=0):
    """A full queue of random rows, in float64."""
    rng = np.random.default_rng(seed)
    memory = queue.Queue(size, dim, 3, "float64")
    memory.write(unit(rng, size, dim), rng.dirichlet(np.ones(3), size))
    return memory


def compare(memory, t, weights):
    """What is similar to z, and a gradient through all of it."""

    def call(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            near = memory.similar(z, t)
            loss = tf.add_n(
                [tf.reduce_sum(w * x) for w, x in zip(weights, near)]  # noqa: B905
            )
        return near, tape.gradient(loss, z)

    return call


@pytest.mark.parametrize("t", [0.01, 0.3])
def test_what_is_similar(t):
    memory, z = filled(9), unit(np.random.default_rng(1), 5, 4)
    near = memory.similar(z, t)
    q = reference.instance_similarity(z, memory.embeddings, t)
    np.testing.assert_allclose(near.embeddings, q @ memory.embeddings)
    np.testing.assert_allclose(near.probabilities, q @ memory.probabilities)
    logits = z @ memory.embeddings.numpy().T / t
    np.testing.assert_allclose(
        near.log_total, np.log(np.exp(logits).sum(axis=1)), rtol=1e-12
    )
    # The same as the plain functions.
    np.testing.assert_allclose(
        near.probabilities,
        propagation.neighbor_smooth(
            near.probabilities,
            z,
            memory.embeddings,
            memory.probabilities,
            t,
            0.0,
        ),
    )


# 9 rows: the second replica has one less. 1 row: it has none.
@pytest.mark.parametrize(("size", "t"), [(8, 0.3), (9, 0.01), (1, 0.3)])
def test_divided_it_is_the_same(size, t, two_replicas):
    alone, rng = filled(size), np.random.default_rng(1)
    with two_replicas.scope():
        divided = queue.Queue(size, 4, 3, "float64", sharded=True)
    z = unit(rng, 6, 4)
    weights = [rng.normal(size=shape) for shape in ([3], [3, 4], [3, 3])]
    rows = unit(rng, 6, 4), rng.dirichlet(np.ones(3), 6)

    def run(function, *values):
        parts = test_shard.shares(two_replicas, *values)
        step = tf.function(
            lambda *x: two_replicas.run(function, args=x), autograph=False
        )
        return tf.nest.map_structure(
            two_replicas.experimental_local_results, step(*parts)
        )

    for each, rows_of in zip(
        divided.shards, (alone.embeddings, alone.probabilities), strict=True
    ):
        spread = tf.function(
            lambda each, x: two_replicas.run(each.spread, args=(x,)),
            autograph=False,
        )
        spread(each, tf.constant(rows_of))
    divided.written.assign(alone.written)
    for _ in range(2):
        near, gradient = run(compare(divided, t, weights), z)
        for half, part in enumerate(np.split(z, 2)):
            wanted, d_wanted = compare(alone, t, weights)(tf.constant(part))
            for one, other in zip(near, wanted, strict=True):
                np.testing.assert_allclose(one[half], other, rtol=1e-9)
            np.testing.assert_allclose(
                gradient[half], d_wanted, rtol=1e-7, atol=1e-9 / t
            )
        # More than the queue has, or in two turns around it.
        alone.write(*rows)
        run(lambda z, p: (divided.write(z, p), p)[1], *rows)
    whole = run(lambda z: (divided.embeddings, divided.probabilities), z)
    for name, copies in zip(
        ("embeddings", "probabilities"), whole, strict=True
    ):
        for copy in copies:
            np.testing.assert_array_equal(copy, getattr(alone, name))
    np.testing.assert_array_equal(divided.filled, alone.filled)


def test_a_checkpoint_does_not_tell_them_apart(two_replicas, tmp_path):
    alone = filled(5)
    path = tf.train.Checkpoint(algorithm=alone).write(str(tmp_path / "alone"))

    class Owner(tf.Module):
        def __init__(self):
            super().__init__()
            self.queue = queue.Queue(5, 4, 3, "float64", sharded=True)

        def shards(self):
            return [m for m in self.submodules if isinstance(m, shard.Shard)]

    with two_replicas.scope():
        owner = Owner()
    assert len(owner.shards()) == 2
    saved = tf.train.Checkpoint(algorithm=owner.queue)
    saved.read(path).assert_consumed()
    checkpoints.spread(two_replicas, owner)
    with checkpoints.gathered(two_replicas, owner):
        path = saved.write(str(tmp_path / "divided"))
    again = queue.Queue(5, 4, 3, "float64")
    tf.train.Checkpoint(algorithm=again).read(path).assert_consumed()
    for one, other in zip(again.variables, alone.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_replica_has_it_all():
    memory = make(4, sharded=True)
    assert memory.shards is None and isinstance(memory.embeddings, tf.Variable)
