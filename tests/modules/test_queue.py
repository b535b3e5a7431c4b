import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.modules import queue


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
