import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.data import pipeline, splits, views
from simmatch_tf.data.sources import digits
from simmatch_tf.distributed import strategies
from simmatch_tf.modules import memory


def norm(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_starts_empty_with_its_labels():
    buffer = memory.MemoryBuffer([0, 1, 1], 2)
    assert isinstance(buffer.features, tf.Variable)
    assert buffer.features.dtype == tf.float32
    assert buffer.labels.dtype == tf.int32 and buffer.filled.dtype == tf.bool
    np.testing.assert_array_equal(buffer.labels, [0, 1, 1])
    assert not buffer.filled.numpy().any() and not bool(buffer.full())


def test_overwrites_and_normalises():
    buffer = memory.MemoryBuffer([0, 1, 1], 2)
    buffer.update([2, 0], [[3.0, 4.0], [0.0, -2.0]])
    np.testing.assert_allclose(
        buffer.features, [[0, -1], [0, 0], [0.6, 0.8]], rtol=1e-6
    )
    np.testing.assert_array_equal(buffer.filled, [True, False, True])
    buffer.update([2], [[5.0, 0.0]])
    np.testing.assert_allclose(buffer.features[2], [1, 0])


def test_temporal_ensemble():
    buffer = memory.MemoryBuffer([0], 2, momentum=0.7)
    buffer.update([0], [[0.0, 5.0]])  # the first write sets the slot
    np.testing.assert_allclose(buffer.features, [[0, 1]])
    length = buffer.update([0], [[9.0, 0.0]], 7)
    np.testing.assert_allclose(
        buffer.features, [norm(np.array([0.3, 0.7]))], rtol=1e-6
    )
    assert float(length) == pytest.approx(np.hypot(0.3, 0.7))
    assert buffer.written.numpy().tolist() == [7]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_duplicates_are_averaged(dtype, momentum):
    rng = np.random.default_rng(0)
    z = rng.normal(size=[5, 3])
    buffer = memory.MemoryBuffer([0, 0], 3, momentum)
    buffer.update(np.array([1, 0, 1, 1, 0], dtype), z)
    wanted = norm(
        np.stack([norm(z)[[1, 4]].mean(0), norm(z)[[0, 2, 3]].mean(0)])
    )
    np.testing.assert_allclose(buffer.features, wanted, rtol=1e-5)


def test_duplicates_do_not_depend_on_writing_order():
    rng = np.random.default_rng(0)
    z = rng.normal(size=[64, 128]).astype(np.float32)
    slots = rng.integers(40, size=64)
    one = memory.MemoryBuffer(np.zeros(40, int), 128)
    one.update(slots, z)
    for _ in range(3):
        again = memory.MemoryBuffer(np.zeros(40, int), 128)
        again.update(slots, z)
        np.testing.assert_array_equal(one.features, again.features)


def test_two_replicas_write_the_whole_batch(two_replicas):
    rng = np.random.default_rng(0)
    z = rng.normal(size=[4, 3]).astype(np.float32)
    slots = np.array([0, 2, 2, 1])
    alone = memory.MemoryBuffer([0, 0, 1], 3, 0.7)
    with two_replicas.scope():
        buffer = memory.MemoryBuffer([0, 0, 1], 3, 0.7)

    def part(values):
        return two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant(
                np.split(values, 2)[context.replica_id_in_sync_group]
            )
        )

    step = tf.function(
        lambda s, v: two_replicas.run(buffer.update, args=(s, v))
    )
    for _ in range(2):
        alone.update(slots, z)
        step(part(slots), part(z))
        z = z[::-1].copy()
    for copy in two_replicas.experimental_local_results(buffer.features):
        np.testing.assert_allclose(copy, alone.features, rtol=1e-6)
    assert bool(buffer.full())


def test_shapes_that_do_not_fit():
    buffer = memory.MemoryBuffer([0, 1], 2)
    for indices, z in (([0], [[1.0]]), ([0, 1], [[1.0, 0.0]]), (0, [1.0])):
        with pytest.raises(ValueError, match="is wanted"):
            buffer.update(indices, z)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("batch_size", [8, 24, 64])
@pytest.mark.parametrize("replicas", [1, 2])
def test_labels_are_never_wrong(momentum, batch_size, replicas, two_replicas):
    """Batches wrap around the 20 labeled images, and hold some twice."""
    source = digits.load(8)
    split = splits.draw(
        source,
        labels=20,
        label_fraction=None,
        split_seed=1,
        validation_fraction=0.0,
        unlabeled_includes_labeled=True,
    )
    batches = pipeline.Pipeline(
        source=source,
        split=split,
        # Views are the images themselves, which tell what they show.
        labeled_views={"weak": views.Recipe(side=8, flip=False, pad=0)},
        unlabeled_views={},
        batch_size=batch_size,
        unlabeled_batch_size=0,
        seed=3,
    )
    images = {
        image.tobytes(): label
        for image, label in zip(
            source.train.images, source.train.labels, strict=True
        )
    }
    strategy = two_replicas if replicas == 2 else strategies.one()
    with strategy.scope():
        ours = memory.MemoryBuffer(
            source.train.labels[split.labeled], 10, momentum
        )

    @tf.function(autograph=False)
    def write(batch, z):
        strategy.run(ours.update, args=(batch["slots"], z))

    def seen(batch):
        """One-hot of what each image shows, found by its pixels."""
        shows = [images[x.tobytes()] for x in batch["labeled_weak"].numpy()]
        return tf.one_hot(shows, 10)

    for batch in strategy.distribute_datasets_from_function(
        lambda context: batches.dataset(0, 12, context)
    ):
        parts = [
            strategy.experimental_local_results(value)
            for value in batch.values()
        ]
        z = [
            seen(dict(zip(batch, part, strict=True)))
            for part in zip(*parts, strict=True)
        ]
        write(
            batch,
            strategy.experimental_distribute_values_from_function(
                lambda context, z=z: z[context.replica_id_in_sync_group]
            )
            if replicas == 2
            else z[0],
        )
    assert bool(ours.full())
    features = ours.features.numpy()
    np.testing.assert_array_equal(features.argmax(1), ours.labels.numpy())
    np.testing.assert_allclose(features.max(1), np.ones(20), rtol=1e-6)
