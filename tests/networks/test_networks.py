import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.networks import heads, network, wide_resnet


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def test_wrn_28_2_has_the_published_size():
    model = wide_resnet.wide_resnet(28, 2, (32, 32, 3))
    # 1,467,610 with the ten-class Dense of the published network.
    assert count(model) + 128 * 10 + 10 == 1_467_610


@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 16, 1), (13, 10, 3)])
def test_sizes_and_strides(shape):
    model = wide_resnet.wide_resnet(10, 1, shape)
    x = np.random.default_rng(0).normal(size=[2, *shape]).astype(np.float32)
    assert model(x).shape == (2, 64)
    sides = {
        layer.output.shape[1:3]
        for layer in model.layers
        if isinstance(layer, keras.layers.Add)
    }
    height, width = shape[:2]
    assert sides == {(-(-height // s), -(-width // s)) for s in (1, 2, 4)}


def numpy_convolution(x, kernel, stride):
    """Padding 1 on every side (0 for 1×1), as in the published weights."""
    size, _, _, filters = kernel.shape
    pad = size // 2
    x = np.pad(x, [[pad, pad], [pad, pad], [0, 0]])
    height = (x.shape[0] - size) // stride + 1
    width = (x.shape[1] - size) // stride + 1
    y = np.zeros([height, width, filters])
    for i in range(height):
        for j in range(width):
            top, left = i * stride, j * stride
            patch = x[top : top + size, left : left + size]
            y[i, j] = np.tensordot(patch, kernel, 3)
    return y


def test_forward_equals_a_numpy_transcription():
    """WRN-10-1 written out: BN, leak 0.1, shortcuts, symmetric padding."""
    keras.utils.set_random_seed(0)
    model = wide_resnet.wide_resnet(10, 1, (8, 8, 1))
    rng = np.random.default_rng(0)
    for v in model.variables:  # statistics and scales that matter
        if len(v.shape) == 1:
            v.assign(rng.uniform(0.5, 1.5, v.shape))
    image = rng.normal(size=[8, 8, 1]).astype(np.float32)
    kernels = iter(
        np.float64(layer.kernel)
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    norms = iter(
        layer
        for layer in model.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    )

    def activate(x):
        bn = next(norms)
        gamma, beta, mean, variance = (np.float64(v) for v in bn.variables)
        assert bn.epsilon == 1e-3 and bn.momentum == 0.999
        y = (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta
        return np.where(y > 0, y, 0.1 * y)

    x = numpy_convolution(np.float64(image), next(kernels), 1)
    for stride, changes in ((1, False), (2, True), (2, True)):
        h = activate(x)
        # Only the very first block's shortcut starts at the activation.
        shortcut = x if changes else h
        y = activate(numpy_convolution(h, next(kernels), stride))
        second = next(kernels)
        if changes:
            # Keras lists the shortcut's layer before or after the second
            # convolution; their sizes tell them apart.
            other = next(kernels)
            if second.shape[0] == 1:
                second, other = other, second
            shortcut = numpy_convolution(shortcut, other, stride)
        x = numpy_convolution(y, second, 1) + shortcut
    wanted = activate(x).mean(axis=(0, 1))
    np.testing.assert_allclose(model(image[None])[0], wanted, rtol=1e-4)


def test_he_normal_fan_out():
    keras.utils.set_random_seed(0)
    model = wide_resnet.wide_resnet(10, 4, (8, 8, 3))
    layer = [x for x in model.layers if isinstance(x, keras.layers.Conv2D)][-1]
    kernel = np.array(layer.kernel)
    wanted = np.sqrt(2 / (kernel.shape[0] ** 2 * kernel.shape[3]))
    np.testing.assert_allclose(kernel.std(), wanted, rtol=0.02)
    # Untruncated: some values lie beyond two deviations.
    assert np.abs(kernel).max() > 3 * wanted


def build(backbone="wrn_10_1", shape=(8, 8, 3), **changes):
    options = {
        "image_shape": shape,
        "num_classes": 5,
        "projection_dim": 16,
        "mean": [0.5] * shape[2],
        "std": [0.25] * shape[2],
        **changes,
    }
    return network.build(network.backbone(backbone), **options)


def test_outputs():
    model = build()
    images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 3])
    out = model(images.astype(np.uint8))
    assert {k: tuple(v.shape) for k, v in out.items()} == {
        "features": (3, 64),
        "logits": (3, 5),
        "embeddings": (3, 16),
    }
    np.testing.assert_allclose(
        np.linalg.norm(out["embeddings"], axis=1), 1, rtol=1e-5
    )
    np.testing.assert_allclose(
        out["logits"], model(images.astype(np.float32))["logits"], rtol=1e-5
    )
    assert set(build(projection_dim=None).output) == {"features", "logits"}


def test_heads_stay_in_float32_under_mixed_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        out = build()(np.zeros([2, 8, 8, 3], np.uint8))
    finally:
        keras.config.set_dtype_policy(policy)
    assert out["features"].dtype == tf.bfloat16
    assert out["logits"].dtype == out["embeddings"].dtype == tf.float32


def test_projection_of_zero_has_a_finite_gradient():
    head = heads.projection_head(4, 3, "glorot_normal")
    x = tf.zeros([2, 4])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(head(x))
    assert np.isfinite(tape.gradient(y, x)).all()
    assert np.isfinite(y)


def test_normalisation_is_part_of_the_network_and_of_its_weights(tmp_path):
    layer = heads.Normalize([0.5, 0.25], [0.1, 0.2])
    x = np.full([1, 1, 1, 2], 255, np.uint8)
    np.testing.assert_allclose(layer(x)[0, 0, 0], [5.0, 3.75], rtol=1e-5)
    assert [v.name for v in layer.variables] == ["mean", "std"]
    assert not layer.trainable_variables
    model = build()
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3])
    np.testing.assert_allclose(
        again(images)["logits"], model(images)["logits"], rtol=1e-5
    )


def test_a_backbone_without_a_pool():
    def flat(shape):
        images = keras.Input(shape)
        return keras.Model(images, keras.layers.Conv2D(4, 3)(images))

    with pytest.raises(ValueError, match="end it with a global pool"):
        network.build(
            network.Backbone(flat),
            image_shape=(8, 8, 1),
            num_classes=2,
            projection_dim=4,
            mean=[0.0],
            std=[1.0],
        )


def test_bad_arguments():
    with pytest.raises(ValueError, match="depth=12: must be 6n"):
        wide_resnet.wide_resnet(12, 1, (8, 8, 1))
    with pytest.raises(ValueError, match="sides must be at least 8"):
        wide_resnet.wide_resnet(10, 1, (7, 8, 1))
    with pytest.raises(ValueError, match="backbone 'vgg' is unknown"):
        network.backbone("vgg")
