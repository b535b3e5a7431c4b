"""FlexMatch's whole step against its equations."""

import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.algorithms import whole_step

IMAGES = 20  # of `whole_step.make`


def remember(labels, index, p_w, threshold):
    """û after a batch: of an image that is twice in it, the first confident."""
    labels, done = labels.copy(), set()
    for i, p in zip(index, p_w, strict=True):
        if p.max() >= threshold and i not in done:
            labels[i] = p.argmax()
            done.add(i)
    return labels


def flexmatch(s):
    """L_s + λ_u L_u, the thresholds by û as it was before the step."""
    algorithm, c = s.algorithm, s.algorithm.config
    logits_l, logits_s, p_w, states = whole_step.weak_and_strong(s)
    labels = np.array(algorithm.status.labels)
    thresholds = reference.flexible(
        np.bincount(labels[labels >= 0], minlength=whole_step.L),
        np.sum(labels < 0),
        c.threshold,
        algorithm.hyper.threshold_warmup,
    )
    hard = p_w.argmax(axis=1)
    threshold = thresholds[hard]
    kept = p_w.max(axis=1) >= threshold
    p_s = reference.softmax(logits_s)
    loss_u = -np.mean(kept * np.log(p_s[np.arange(len(p_s)), hard]))
    loss_s = reference.supervised_loss(logits_l, s.batch["labels"])
    after = remember(labels, s.batch["unlabeled_index"], p_w, c.threshold)
    counts = np.bincount(after[after >= 0], minlength=whole_step.L)
    return {
        "loss/total": loss_s + c.lambda_u * loss_u,
        "loss/s": loss_s,
        "loss/u": loss_u,
        "pseudo_label/mask_rate": kept.mean(),
        "pseudo_label/threshold": threshold.mean(),
    }, {"status.labels": after, "status.counts": counts, **states}


def make(counts=None, **changes):
    """FlexMatch, `counts` of its images having each class already."""
    # Its first network predicts classes 0 and 2, from 0.4 to 0.97.
    algorithm = whole_step.make(
        "flexmatch", **{"seed": 2, "threshold": 0.7, "lambda_u": 2.0} | changes
    )
    if counts is not None:
        labels = np.repeat(np.arange(whole_step.L), counts)
        labels = np.concatenate([labels, -np.ones(IMAGES - len(labels))])
        labels = np.random.default_rng(0).permutation(labels)
        algorithm.status.labels.assign(labels.astype(np.int32))
        algorithm.status.counts.assign(np.array(counts, np.int32))
    return algorithm


def check(algorithm, *batches):
    steps = whole_step.check(
        algorithm, flexmatch, batches or [whole_step.batch()]
    )
    return [metrics["pseudo_label/mask_rate"] for metrics in steps]


def test_from_the_first_step():
    """At first all thresholds are 0; û grows, and they with it."""
    algorithm = make()
    rates = check(algorithm, *map(whole_step.batch, range(3)))
    assert rates[0] == 1 and int(algorithm.status.unused()) < IMAGES
    assert (algorithm.status.counts.numpy() > 0).sum() >= 2


@pytest.mark.parametrize("warmup", [True, False])
def test_the_hundredth_step(warmup):
    """A class behind the others is used at less confidence."""
    algorithm = make(
        [9, 2, 3], threshold=0.95, **{"flexmatch.threshold_warmup": warmup}
    )
    algorithm.step.assign(99)
    rates = check(algorithm, whole_step.batch(1))
    # Most images have a class, so that the warm-up makes no difference.
    assert rates == [0.5]


@pytest.mark.parametrize("warmup", [True, False])
def test_few_images_are_used(warmup):
    algorithm = make(
        [3, 1, 0], threshold=0.99, **{"flexmatch.threshold_warmup": warmup}
    )
    before = algorithm.status.thresholds().numpy()
    assert (before.max() == 0.99) == (not warmup)
    check(algorithm)


def test_a_class_never_seen_keeps_all_of_its_images():
    rates = check(make([10, 10, 0], threshold=1.0), whole_step.batch(1))
    assert rates == [0.5]  # of class 2


def test_no_image_is_kept():
    """Both classes are learned alike, and no image is that confident."""
    algorithm = make([7, 6, 7], threshold=1.0)
    before = algorithm.status.labels.numpy()
    assert check(algorithm) == [0.0]
    np.testing.assert_array_equal(algorithm.status.labels, before)


def test_an_image_that_is_twice_in_the_batch():
    """The first that is confident counts, once, in û and in σ."""
    algorithm = make([4, 4, 4])
    batch = whole_step.batch(2)
    batch["unlabeled_index"] = tf.constant([5, 3, 5, 5, 3, 5], tf.int64)
    check(algorithm, batch)
    # Confident are the third and the last of the one, the last of the other.
    labels = algorithm.status.labels.numpy()
    assert (labels[5], labels[3]) == (2, 2)
    check(algorithm, batch, whole_step.batch(1))


@pytest.mark.slow
@pytest.mark.variant
@pytest.mark.parametrize(
    "changes",
    [
        {"weak_forward": "separate"},
        {"targets_from": "teacher"},
        {"align": True, "da_window": 2},
        {"align": True, "targets_from": "teacher"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_options(changes):
    check(make([9, 2, 3], **changes), *map(whole_step.batch, range(3)))
