"""The signatures of an export against the network and the method."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import propagation
from simmatch_tf.serving import classifier, loading
from simmatch_tf.training import state
from tests.serving.helpers import TEST, png


@pytest.mark.parametrize("count", [0, 1, 7, 64])
def test_signatures_agree_with_the_network(
    exported, model, calibrated_softmax, count
):
    _, loaded = exported
    pixels = TEST.images[:count]
    wanted = model(tf.constant(pixels), training=False)
    p = calibrated_softmax(wanted["logits"])
    images = tf.constant(pixels)
    encoded = tf.constant([png(image) for image in pixels], tf.string)
    default = loaded.signatures["serving_default"](images=images)
    for out in (
        default,
        loaded.signatures["classify_bytes"](image_bytes=encoded),
        loaded.signatures["explain"](images=images),
    ):
        np.testing.assert_allclose(out["probabilities"], p, atol=1e-6)
        names = out["classes"].numpy().astype(str)
        assert names.shape == (count, 5)
        order = np.argsort(-p, axis=1)[:, :1].astype(str)
        np.testing.assert_array_equal(names[:, :1], order)
        np.testing.assert_allclose(
            out["scores"], -np.sort(-p)[:, :5], atol=1e-6
        )
    out = loaded.signatures["embed"](images=images)
    for name in ("features", "embeddings"):
        np.testing.assert_allclose(out[name], wanted[name], atol=1e-5)


@pytest.mark.slow
def test_empty_batch_with_onednn_kernels(exported):
    """Its convolutions return the shape of the input for an empty batch."""
    code = (
        "import sys, tensorflow as tf;"
        "module = tf.saved_model.load(sys.argv[1]);"
        "none = tf.zeros([0, 8, 8, 1], tf.uint8);"
        "out = module.signatures['serving_default'](images=none);"
        "assert out['probabilities'].shape == (0, 10)"
    )
    subprocess.run(
        [sys.executable, "-c", code, exported[0].path],
        env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1"},
        check=True,
    )


def test_explain_agrees_with_the_method(exported, finished_run):
    _, loaded = exported
    workdir, _ = finished_run
    restored, _, _ = state.restore(workdir)
    images = tf.constant(TEST.images[:9])
    explained = loaded.signatures["explain"](images=images)
    out = restored.networks()["ema"](images, training=False)
    p, z = tf.nn.softmax(out["logits"]), out["embeddings"]
    memory = restored.memory
    q = propagation.instance_similarity(z, memory.features, 0.1)
    aggregated = propagation.aggregate(q, memory.labels, 10)
    np.testing.assert_allclose(explained["aggregated"], aggregated, atol=1e-6)
    np.testing.assert_allclose(
        explained["propagated"],
        propagation.smooth(p, aggregated, restored.config.alpha),
        atol=1e-6,
    )
    cosines = (z @ tf.transpose(memory.features)).numpy()
    slots = explained["neighbor_slots"].numpy()
    np.testing.assert_allclose(
        np.take_along_axis(cosines, slots, 1), -np.sort(-cosines)[:, :5],
        atol=1e-6,
    )  # fmt: skip
    np.testing.assert_allclose(
        np.take_along_axis(q.numpy(), slots, 1), explained["weights"], atol=1e-6
    )
    split = json.loads((workdir / "split.json").read_text())
    for number in range(9):
        for k in range(5):
            slot = slots[number, k]
            name = explained["neighbor_ids"].numpy()[number, k].decode()
            assert name == str(split["labeled"][slot])
            label = explained["neighbor_classes"].numpy()[number, k].decode()
            assert label == str(split["labels"][slot])


def test_signatures_refuse_images_that_cannot_be_decoded(exported):
    _, loaded = exported
    good = png(TEST.images[0])
    function = loaded.signatures["classify_bytes"]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"bytes\[1 3\]"):
        function(image_bytes=tf.constant([good, good[:50], good, b"", good]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(image_bytes=tf.constant([b"no image"]))
    huge = bytearray(good)
    huge[16:24] = b"\x00\x01\x00\x00" * 2  # a header of 4 gigapixels
    with pytest.raises(tf.errors.InvalidArgumentError, match="megapixels"):
        function(image_bytes=tf.constant([bytes(huge)]))
    function(image_bytes=tf.constant([good]))  # and still works
    with pytest.raises(Exception, match="uint8|dtype"):
        loaded.signatures["serving_default"](images=tf.zeros([1, 8, 8, 1]))


def test_explain_with_a_partly_written_memory(finished_run):
    run = loading.run(finished_run[0])
    some = run.classifier.labeled
    keep = np.array([3, 11, 19])
    part = classifier.Labeled(
        features=some.features[keep],
        slots=some.slots[keep],
        labels=some.labels[keep],
        ids=[some.ids[i] for i in keep],
        temperature=0.1,
        alpha=0.9,
    )
    partial = classifier.Classifier(
        run.classifier.network,
        run.classifier.class_names,
        run.classifier.preprocessing,
        labeled=part,
    )
    out = partial.explain(tf.constant(TEST.images[:4]))
    assert set(out["neighbor_slots"].numpy().ravel()) == {3, 11, 19}
