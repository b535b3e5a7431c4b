"""A slot's embedding is of an image of the slot's class, whatever happens."""

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.data import pipeline, splits, views
from simmatch_tf.data.sources import digits
from simmatch_tf.distributed import strategies
from simmatch_tf.modules import memory


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
