"""PyTorch's names and order, without PyTorch."""

import keras
import numpy as np
import pytest

from simmatch_tf.flags.errors import InputError
from simmatch_tf.networks import network
from simmatch_tf.pytorch import checkpoint as checkpoint_lib
from simmatch_tf.pytorch import tensors as tensors_lib


def build(backbone="resnet18", num_classes=3, dim=4):
    keras.utils.set_random_seed(0)
    return network.build(
        backbone,
        image_shape=(32, 32, 3),
        num_classes=num_classes,
        projection_dim=dim,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )


@pytest.fixture(scope="module")
def resnet():
    return build()


def test_names_are_torchvisions_in_its_order(resnet):
    names = list(tensors_lib.tensors(resnet))
    assert names[:10] == [
        "backbone.conv1.weight",
        *(f"backbone.bn1.{x}" for x in ("weight", "bias")),
        *(f"backbone.bn1.running_{x}" for x in ("mean", "var")),
        "backbone.layer1.0.conv1.weight",
        *(f"backbone.layer1.0.bn1.{x}" for x in ("weight", "bias")),
        *(f"backbone.layer1.0.bn1.running_{x}" for x in ("mean", "var")),
    ]
    block = [n for n in names if "layer2.0" in n and "running" not in n]
    assert [n.removeprefix("backbone.layer2.0.") for n in block] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "conv2.weight",
        "bn2.weight",
        "bn2.bias",
        "downsample.0.weight",
        "downsample.1.weight",
        "downsample.1.bias",
    ]
    assert names[-6:] == [
        *("fc.weight", "fc.bias", "head.0.weight", "head.0.bias"),
        *("head.2.weight", "head.2.bias"),
    ]
    # torchvision's resnet18 has 122 entries, 20 of them counters and 2 fc's.
    assert sum(n.startswith("backbone.") for n in names) == 122 - 20 - 2
    assert len(tensors_lib.batch_norms(resnet)) == 20
    assert tensors_lib.batch_norms(resnet)[0] == "backbone.bn1"


def test_axes(resnet):
    arrays = tensors_lib.export(resnet)
    assert arrays["backbone.conv1.weight"].shape == (64, 3, 7, 7)
    assert arrays["head.2.weight"].shape == (4, 512)
    kernel = np.asarray(
        resnet.get_layer("resnet18").get_layer("conv1").kernel.value
    )
    assert arrays["backbone.conv1.weight"][5, 2, 1, 6] == kernel[1, 6, 2, 5]


def test_load_gives_back_what_export_gave(resnet):
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=array.shape).astype(np.float32)
        for name, array in tensors_lib.export(resnet).items()
    }
    other = build()
    tensors_lib.load(other, arrays)
    again = tensors_lib.export(other)
    assert list(again) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(again[name], array)


def test_all_that_differs_is_listed_and_nothing_changed(resnet):
    arrays = tensors_lib.export(resnet)
    before = arrays["fc.bias"].copy()
    arrays["fc.bias"] = before + 1
    del arrays["backbone.bn1.bias"]
    arrays["fc.weight"] = np.zeros([7, 512], np.float32)
    arrays["fc2.weight"] = np.zeros([1], np.float32)
    with pytest.raises(InputError) as error:
        tensors_lib.load(resnet, arrays)
    assert str(error.value) == (
        "missing (1): backbone.bn1.bias; unknown (1): fc2.weight; "
        "of another shape (1): fc.weight [7, 512] for [3, 512]"
    )
    np.testing.assert_array_equal(tensors_lib.export(resnet)["fc.bias"], before)


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet18x2", "resnet50", "wrn_10_2"]
)
def test_backbones_are_known_by_their_tensors(name):
    arrays = {
        key.removeprefix("backbone."): value
        for key, value in tensors_lib.export(build(name)).items()
    }
    assert tensors_lib.guess_backbone(arrays) == name


def test_no_backbone_of_ours():
    with pytest.raises(InputError, match="no backbone that is known here"):
        tensors_lib.guess_backbone({"blocks.0.attn.qkv.weight": np.zeros(1)})
    model = network.build(
        lambda shape: keras.Sequential(
            [
                keras.Input(shape),
                keras.layers.DepthwiseConv2D(3),
                keras.layers.GlobalAveragePooling2D(),
            ]
        ),
        image_shape=(8, 8, 3),
        num_classes=2,
        projection_dim=None,
        mean=[0.0] * 3,
        std=[1.0] * 3,
    )
    with pytest.raises(InputError, match="has no counterpart in PyTorch"):
        tensors_lib.tensors(model)


def checkpoint(**changes):
    main = {
        "backbone.conv1.weight": np.ones([2, 3, 1, 1], np.float32),
        "backbone.bn1.weight": np.ones([2], np.float32),
        "backbone.bn1.running_var": np.ones([2], np.float32),
        "fc.weight": np.full([4, 2], 2, np.float32),
        "fc.bias": np.zeros([4], np.float32),
    }
    values = {
        "networks": {"main": main, "ema": {n: a + 1 for n, a in main.items()}},
        "counters": {
            name: {"backbone.bn1.num_batches_tracked": 7}
            for name in ("main", "ema")
        },
        "buffers": {
            "bank": np.eye(3, 5, dtype=np.float32),
            "labels": np.arange(5),
            "DA_queue": np.zeros([2, 4], np.float32),
            "DA_ptr": np.array([1]),
        },
        "epoch": 2,
        "step": 9,
        "statistics": ([0.5], [0.25]),
        **changes,
    }
    return checkpoint_lib.Checkpoint(**values)


TRAINED = [
    "backbone.conv1.weight",
    "backbone.bn1.weight",
    "fc.weight",
    "fc.bias",
]


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("groups", [1, 2])
def test_parse_reads_what_compose_wrote(prefix, groups):
    velocities = {
        name: array * 0.5
        for name, array in checkpoint().networks["main"].items()
        if name in TRAINED
    }
    written = checkpoint(prefix=prefix, velocities=velocities)
    content = checkpoint_lib.compose(
        written, hyperparameters=[{"lr": 1}] * groups
    )
    names = list(content["state_dict"])
    # As PyTorch orders them: a module's own first; a counter behind its BN.
    assert names[0] == f"{prefix}bank"
    place = names.index(f"{prefix}main.backbone.bn1.running_var")
    assert names[place + 1] == f"{prefix}main.backbone.bn1.num_batches_tracked"
    if groups == 2:  # kernels first
        params = [g["params"] for g in content["optimizer"]["param_groups"]]
        assert params == [[0, 1], [2, 3]]
        buffer = content["optimizer"]["state"][1]["momentum_buffer"]
        assert buffer.shape == (4, 2)
    read = checkpoint_lib.parse(content)
    for name in ("counters", "epoch", "step", "statistics", "prefix"):
        assert getattr(read, name) == getattr(written, name)
    assert not read.unknown
    for part in ("networks", "buffers", "velocities"):
        np.testing.assert_equal(getattr(read, part), getattr(written, part))


def test_momentum_of_unknown_parameters_is_left_out():
    content = checkpoint_lib.compose(
        checkpoint(velocities={n: np.ones(1) for n in TRAINED}),
        hyperparameters=[{}],
    )
    optimizer = content["optimizer"]
    optimizer["param_groups"] *= 3
    assert checkpoint_lib.parse(content).velocities is None
    content["optimizer"] = {"state": {}}
    assert checkpoint_lib.parse(content).velocities is None
    # The teacher's parameters follow the student's, and have no buffers.
    optimizer["param_groups"] = [{"params": list(range(8))}]
    content["optimizer"] = optimizer
    assert list(checkpoint_lib.parse(content).velocities) == TRAINED


def test_other_names_are_unknown_not_lost():
    content = checkpoint_lib.compose(checkpoint(), hyperparameters=[{}])
    content["state_dict"]["module.queue"] = np.zeros(1)
    content["state_dict"]["extra"] = np.zeros(1)
    assert checkpoint_lib.parse(content).unknown == ["module.queue", "extra"]


@pytest.mark.parametrize("content", [3, {}, {"state_dict": {"a": 1}}, [1]])
def test_no_state_dict(content):
    with pytest.raises(InputError, match="state_dict"):
        checkpoint_lib.is_simmatch(content)


def test_kinds_of_files():
    content = checkpoint_lib.compose(
        checkpoint(prefix=""), hyperparameters=[{}]
    )
    assert checkpoint_lib.is_simmatch(content)
    one, two = np.zeros([2, 2]), np.zeros([2])
    plain = {"conv1.weight": one, "fc.weight": one, "fc.bias": two}
    for content in (
        plain,
        {"state_dict": {f"module.{n}": a for n, a in plain.items()}},
    ):
        assert not checkpoint_lib.is_simmatch(content)
        arrays, kind = checkpoint_lib.encoder(content)
        assert kind == "ResNet"
        assert list(arrays) == [
            "backbone.conv1.weight",
            "fc.weight",
            "fc.bias",
        ]
    moco = {
        "module.encoder_q.conv1.weight": one,
        "module.encoder_q.bn1.num_batches_tracked": two,
        "module.encoder_q.fc.0.weight": one,
        "module.encoder_q.fc.2.bias": two,
        "module.encoder_k.conv1.weight": one,
        "module.queue": one,
    }
    arrays, kind = checkpoint_lib.encoder({"state_dict": moco, "epoch": 200})
    assert kind == "MoCo"
    assert list(arrays) == [
        "backbone.conv1.weight",
        "head.0.weight",
        "head.2.bias",
    ]
    first = {"encoder_q.conv1.weight": one, "encoder_q.fc.weight": one}
    first["encoder_q.fc.bias"] = two
    assert list(checkpoint_lib.encoder(first)[0]) == ["backbone.conv1.weight"]
