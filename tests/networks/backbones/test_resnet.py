"""ResNets against published sizes."""

import keras
import numpy as np
import pytest

from simmatch_tf.networks import network
from simmatch_tf.networks.backbones import resnet


def count(model):
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        # torchvision's totals, less their classifiers for 1,000 classes.
        ("resnet18", 11_689_512 - 513_000),
        ("resnet34", 21_797_672 - 513_000),
        ("resnet50", 23_508_032),
        ("resnet101", 44_549_160 - 2_049_000),
        ("resnet50x2", 93_907_072),
    ],
)
def test_resnets_have_the_published_sizes(name, published):
    depth, _, wide = name.removeprefix("resnet").partition("x")
    model = resnet.resnet((32, 32, 3), depth, wide or None)
    assert count(model) == published
    width = 512 if name in ("resnet18", "resnet34") else 2048
    assert model.output.shape == (None, width * (2 if "x2" in name else 1))
    assert model.name == name


def test_resnet50_with_its_heads_is_that_of_table_2():
    model = network.build(
        "resnet50",
        image_shape=(224, 224, 3),
        num_classes=1000,
        projection_dim=128,
        mean=[0.0] * 3,
        std=[1.0] * 3,
    )
    parts = network.parts(model)
    encoder, fc = count(parts["backbone"]), count(parts["classifier"])
    assert (encoder, fc) == (23_508_032, 2_049_000)
    # 2048 · 2048 + 2048 + 2048 · 128 + 128.
    assert count(parts["projection_head"]) == 4_458_624
    assert count(model) == 30_015_656


def test_resnets_strides_norms_and_sizes():
    model = resnet.resnet((64, 96, 3), 50)
    # v1.5: a bottleneck's stride is at its second convolution.
    for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 1)):
        layer = model.get_layer(f"layer2_0_{name}")
        assert layer.strides == (stride, stride)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.epsilon, layer.momentum) == (1e-5, 0.9)
            # No residual branch starts at 0.
            assert float(layer.gamma.value[0]) == 1
    sizes = {
        f"layer{group}": model.get_layer(f"layer{group}_0_relu").output.shape[
            1:
        ]
        for group in (1, 2, 3, 4)
    }
    assert sizes == {
        "layer1": (16, 24, 256),
        "layer2": (8, 12, 512),
        "layer3": (4, 6, 1024),
        "layer4": (2, 3, 2048),
    }
