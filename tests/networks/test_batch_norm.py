"""Our BatchNorm is Keras', by another kernel."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.networks import batch_norm

SHAPE = (6, 5, 4, 3)


def pair(**options):
    """Ours and Keras', with the same weights, none of them the first ones."""
    layers = []
    for kind in (
        batch_norm.BatchNormalization,
        keras.layers.BatchNormalization,
    ):
        layer = kind(momentum=0.9, epsilon=1e-5, **options)
        layer.build(SHAPE)
        rng = np.random.default_rng(1)
        layer.set_weights([rng.uniform(0.5, 1.5, 3) for _ in range(4)])
        layers.append(layer)
    return layers


def images(dtype="float32"):
    x = np.random.default_rng(0).normal(1.0, 2.0, SHAPE)
    return tf.cast(x, dtype)


def call(layer, x, training):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 3)
    weights = [v.value for v in layer.trainable_variables]
    return y, *tape.gradient(loss, [x, *weights])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_keras(training, dtype):
    ours, theirs = pair(dtype=dtype)
    x = images(dtype)
    for _ in range(3):
        for one, other in zip(
            call(ours, x, training), call(theirs, x, training), strict=True
        ):
            assert one.dtype == other.dtype
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, err_msg=one.name)


def test_the_kernel_is_one_operation():
    ours, theirs = pair()
    graphs = [
        tf.function(lambda x, layer=layer: layer(x, training=True))
        .get_concrete_function(images())
        .graph.as_graph_def()
        for layer in (ours, theirs)
    ]
    names = [{node.op for node in graph.node} for graph in graphs]
    assert "FusedBatchNormV3" in names[0] - names[1]


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(precision):
    ours, theirs = pair(dtype=precision)
    x = images(ours.compute_dtype)
    for one, other in zip(
        call(ours, x, True), call(theirs, x, True), strict=True
    ):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(
            tf.cast(one, tf.float32),
            tf.cast(other, tf.float32),
            rtol=5e-2,
            atol=5e-1,
        )
    # Statistics are averaged in float32.
    assert ours.moving_mean.dtype == "float32"
    np.testing.assert_allclose(
        ours.moving_variance, theirs.moving_variance, rtol=1e-2
    )


def test_frozen_it_does_not_learn():
    ours, _ = pair()
    before = [np.array(v) for v in ours.weights]
    ours.trainable = False
    y = ours(images(), training=True)
    np.testing.assert_allclose(y, ours(images(), training=False), rtol=1e-6)
    for one, other in zip(before, ours.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_value_a_channel_has_no_variance():
    ours, _ = pair()
    ours(tf.ones([1, 1, 1, 3]), training=True)
    _, _, _, variance = (np.array(v) for v in ours.weights)
    rng = np.random.default_rng(1)
    first = [rng.uniform(0.5, 1.5, 3) for _ in range(4)][3]
    np.testing.assert_allclose(variance, 0.9 * first, rtol=1e-5)


def test_synchronized_is_left_to_keras(two_replicas):
    with two_replicas.scope():
        ours, _ = pair(synchronized=True)
    alone, _ = pair()
    x = images()
    halves = two_replicas.experimental_distribute_values_from_function(
        lambda c: tf.split(x, 2)[c.replica_id_in_sync_group]
    )
    step = tf.function(
        lambda part: two_replicas.run(
            lambda y: ours(y, training=True), args=(part,)
        )
    )
    parts = two_replicas.experimental_local_results(step(halves))
    np.testing.assert_allclose(
        tf.concat(parts, 0), alone(x, training=True), rtol=1e-4, atol=1e-5
    )


def test_saved_and_read_again(tmp_path):
    inputs = keras.Input(SHAPE[1:])
    layer = batch_norm.BatchNormalization(momentum=0.9, name="bn")
    model = keras.Model(inputs, layer(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert type(again.get_layer("bn")) is batch_norm.BatchNormalization
    np.testing.assert_allclose(again(images()), model(images()))


def test_what_the_kernel_does_not_take_is_left_to_keras():
    ours, theirs = pair()
    whole = np.arange(24, dtype=np.int32).reshape(1, 2, 4, 3)
    np.testing.assert_allclose(ours(whole), theirs(whole))


def test_a_stateless_call():
    """What Keras' own layer can do: statistics go in, and new ones out."""
    outputs = []
    for layer in pair():
        model = keras.Sequential([keras.Input(images().shape[1:]), layer])
        outputs.append(
            model.stateless_call(
                [v.value for v in model.trainable_variables],
                [v.value for v in model.non_trainable_variables],
                images(),
                training=True,
            )
        )
    (ours, new), (theirs, others) = outputs
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(new) == len(others) == 2
    for one, other in zip(new, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_version_of_keras_without_renorm():
    layer, _ = pair()
    wanted = layer(images())
    vars(layer).pop("renorm", None)
    np.testing.assert_array_equal(layer(images()), wanted)


def test_frozen_layers_keep_averages_and_weights():
    layer, _ = pair()
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    before = [np.array(v) for v in layer.variables]
    batch_norm.adjust(model, momentum=None, synchronized=False, frozen=True)
    x = images()
    np.testing.assert_array_equal(model(x, training=True), model(x))
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert not layer.trainable_variables
