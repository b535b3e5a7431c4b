import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.data import decoding, pipeline, splits, views
from simmatch_tf.data.sources import digits


def small(strong="randaugment"):
    data = digits.load(8)
    split = splits.draw(
        data,
        labels=20,
        label_fraction=None,
        split_seed=0,
        validation_fraction=0.0,
        unlabeled_includes_labeled=True,
    )
    weak = views.Recipe(side=8, flip=False, pad=1, cutout=4)
    strong = dataclasses.replace(weak, strong=strong)
    return pipeline.Pipeline(
        source=data,
        split=split,
        labeled_views={"weak": weak},
        unlabeled_views={"weak": weak, "strong": strong},
        batch_size=8,
        unlabeled_batch_size=16,
        seed=0,
    )


@pytest.fixture(scope="module")
def make():
    return small()


def read(dataset):
    return [{k: v.numpy() for k, v in batch.items()} for batch in dataset]


def assert_equal(ones, others):
    assert len(ones) == len(others)
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_contract(make):
    spec = make.dataset(0, 1).element_spec
    assert {k: (v.dtype, tuple(v.shape)) for k, v in spec.items()} == {
        "labeled_weak": (tf.uint8, (8, 8, 8, 1)),
        "labels": (tf.int32, (8,)),
        "slots": (tf.int64, (8,)),
        "unlabeled_weak": (tf.uint8, (16, 8, 8, 1)),
        "unlabeled_strong": (tf.uint8, (16, 8, 8, 1)),
        "unlabeled_labels": (tf.int32, (16,)),
    }


def test_true_classes_are_those_of_images_that_are_not_labeled(make):
    labels = make.source.train.labels
    counts = np.bincount(
        np.concatenate(
            [b["unlabeled_labels"] for b in read(make.dataset(0, 88))]
        )[: len(make.split.unlabeled)]
        + 1,
        minlength=11,
    )
    # One pass over the set: those that are labeled, too, are not known.
    wanted = np.bincount(np.delete(labels, make.split.labeled), minlength=10)
    assert counts.tolist() == [len(make.split.labeled), *wanted]


def test_without_known_classes_there_are_none(make):
    train = make.source.train
    labels = np.full(len(train), -1)
    labels[make.split.labeled] = train.labels[make.split.labeled]
    train = dataclasses.replace(train, labels=labels)
    source = dataclasses.replace(make.source, train=train)
    spec = dataclasses.replace(make, source=source).dataset(0, 1).element_spec
    assert "unlabeled_labels" not in spec


def test_any_start_gives_the_same_batches(make):
    assert_equal(read(make.dataset(0, 7))[3:], read(make.dataset(3, 7)))


@pytest.mark.slow
def test_number_of_parallel_calls_changes_nothing(make):
    one = dataclasses.replace(make, parallel_calls=1)
    many = dataclasses.replace(make, parallel_calls=8)
    assert_equal(read(one.dataset(0, 10)), read(many.dataset(0, 10)))


def test_every_slot_once_in_each_pass(make):
    slots = np.concatenate([b["slots"] for b in read(make.dataset(0, 15))])
    passes = slots.reshape(-1, 20)  # the passes do not end with batches
    for one in passes:
        assert sorted(one) == list(range(20))
    assert (passes[0] != passes[1]).any()
    # So the memory is full after ⌈K / B⌉ steps.
    assert len(np.unique(slots[: 3 * 8])) == 20


def test_labels_belong_to_slots(make):
    truth = make.source.train.labels[make.split.labeled]
    for batch in read(make.dataset(0, 5)):
        np.testing.assert_array_equal(batch["labels"], truth[batch["slots"]])


def test_every_unlabeled_image_once_in_an_epoch(make):
    plain = views.Recipe(side=8, flip=False, pad=0)
    plain = dataclasses.replace(
        make, unlabeled_views={"weak": plain, "strong": plain}
    )
    steps = 1400 // 16
    images = np.concatenate(
        [b["unlabeled_weak"] for b in read(plain.dataset(0, steps))]
    )
    wanted = make.source.train.images
    wanted = {image.tobytes() for image in wanted}
    seen = [image.tobytes() for image in images]
    assert set(seen) <= wanted and len(set(seen)) >= len(seen) - 5


def test_weak_and_strong_are_views_of_the_same_images(make):
    plain = views.Recipe(side=8, flip=False, pad=0)
    plain = dataclasses.replace(
        make, unlabeled_views={"weak": plain, "strong": plain}
    )
    for batch in read(plain.dataset(0, 3)):
        np.testing.assert_array_equal(
            batch["unlabeled_weak"], batch["unlabeled_strong"]
        )


@pytest.mark.slow
def test_replicas_share_the_global_batch(make):
    whole = read(make.dataset(0, 3))
    for pipelines in (1, 2):  # two replicas on one worker, or on two
        parts = []
        for worker in range(pipelines):
            context = tf.distribute.InputContext(pipelines, worker, 2)
            parts.append(read(make.dataset(0, 3, context)))
        for step, batch in enumerate(whole):
            if pipelines == 1:
                shares = parts[0][2 * step : 2 * step + 2]
            else:
                shares = [part[step] for part in parts]
            for name in batch:
                np.testing.assert_array_equal(
                    np.concatenate([share[name] for share in shares]),
                    batch[name],
                )


def test_without_unlabeled_images(make):
    alone = dataclasses.replace(make, unlabeled_views={})
    batch = read(alone.dataset(0, 1))[0]
    assert set(batch) == {"labeled_weak", "labels", "slots"}
    np.testing.assert_array_equal(
        batch["labeled_weak"], read(make.dataset(0, 1))[0]["labeled_weak"]
    )


def test_without_labeled_images(make):
    alone = dataclasses.replace(make, labeled_views={}, needs_index=True)
    batch, whole = (read(each.dataset(0, 1))[0] for each in (alone, make))
    index = batch.pop("unlabeled_index")
    assert set(batch) == {
        "unlabeled_weak",
        "unlabeled_strong",
        "unlabeled_labels",
    }
    for name, value in batch.items():
        np.testing.assert_array_equal(value, whole[name])
    assert index.dtype == np.int64
    wanted = make.source.train.labels[make.split.unlabeled[index]]
    known = batch["unlabeled_labels"] >= 0
    np.testing.assert_array_equal(
        batch["unlabeled_labels"][known], wanted[known]
    )
    assert not np.isin(
        make.split.unlabeled[index[known]], make.split.labeled
    ).any()


def test_two_weak_views_differ_and_change_no_other(make):
    weak = make.labeled_views["weak"]
    more = dataclasses.replace(
        make,
        unlabeled_views={**make.unlabeled_views, "weak_2": weak},
        labeled_views={"weak_2": weak, "weak": weak},
    )
    whole, batch = (read(each.dataset(0, 1))[0] for each in (make, more))
    for images in ("labeled", "unlabeled"):
        one, other = batch[f"{images}_weak"], batch.pop(f"{images}_weak_2")
        assert (one != other).any(axis=(1, 2, 3)).mean() > 0.5
    assert_equal([whole], [batch])


def test_views_of_several_sizes(make):
    weak = make.unlabeled_views["weak"]
    sizes = {
        f"crop_{side}": dataclasses.replace(
            weak, side=side, crop=crop, crop_area=(0.1, side / 8)
        )
        for side, crop in ((8, "resized_crop"), (6, "resized_crop"))
    } | {"small": dataclasses.replace(weak, side=4, pad=0)}
    more = dataclasses.replace(make, unlabeled_views=sizes)
    batch = read(more.dataset(0, 1))[0]
    for name, side in (("crop_8", 8), ("crop_6", 6), ("small", 4)):
        assert batch[f"unlabeled_{name}"].shape == (16, side, side, 1)


def test_evaluation_pads_the_last_batch(make):
    test = make.source.test
    dataset = pipeline.evaluation_dataset(test, np.arange(10), 4, side=8)
    images = np.concatenate([batch.numpy() for batch in dataset])
    assert len(images) == 12
    np.testing.assert_array_equal(images[:10], test.images[:10])


@pytest.mark.parametrize("kernel", ["triangle", "keyscubic"])
def test_evaluation_with_a_kernel(make, kernel):
    test = make.source.test
    dataset = pipeline.evaluation_dataset(
        test, np.arange(2), 2, side=16, resize=20, kernel=kernel
    )
    (batch,) = dataset
    for pixels, one in zip(test.images, batch, strict=False):
        wanted = decoding.fit(
            tf.constant(pixels), resize=20, side=16, kernel=kernel
        )
        np.testing.assert_array_equal(one, wanted)
