"""Parameters, FLOPs and bytes against formulas written out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.networks import network
from simmatch_tf.reporting import description
from simmatch_tf.training import state

K, L, D = 20, 10, 16
CONFIG = config_lib.Config(
    dataset="digits",
    labels=K,
    backbone="wrn_10_1",
    projection_dim=D,
    batch_size=8,
    unlabeled_ratio=3,
    steps=6,
    warmup_steps=0,
    da_window=4,
    keep=2,
)
# WRN-10-1 on one channel: stem; BN and convolution twice a block, the wider
# ones with a shortcut; the last BN. Vectors of BN have trainable halves.
KERNELS = (
    [9 * 16, 9 * 16 * 16, 9 * 16 * 16]
    + [9 * 16 * 32, 9 * 32 * 32, 16 * 32]
    + [9 * 32 * 64, 9 * 64 * 64, 32 * 64]
)
CHANNELS = [16, 16, 16, 32, 32, 64, 64]
BACKBONE = sum(KERNELS) + 2 * sum(CHANNELS)
CLASSIFIER = 64 * L + L
PROJECTION = 64 * 64 + 64 + 64 * D + D


@pytest.fixture(scope="module")
def algorithm():
    return state.make_algorithm(
        CONFIG,
        tf.distribute.OneDeviceStrategy("/cpu:0"),
        image_shape=(8, 8, 1),
        slot_labels=np.arange(K) % L,
        num_classes=L,
    )


def cells(table):
    """The first column → the others, of a table of text."""
    rows = [line.split("  ") for line in table.splitlines()[2:]]
    return {
        r[0]: [cell.strip() for cell in r[1:] if cell.strip()] for r in rows
    }


def test_flags_are_described():
    text = description.of_flags(CONFIG)
    assert text.startswith(
        "simmatch on digits: backbone wrn_10_1, images 16×16×1, 10 classes, 20 "
    )
    words = " ".join(text.split())
    assert "B = 8 labeled and μB = 24 unlabeled images a step" in words
    assert f"{BACKBONE + CLASSIFIER + PROJECTION:,}" in text
    assert "memory bank Q_f [20, 16]" in text
    assert max(map(len, text.splitlines())) <= 80


def test_parameters(algorithm):
    rows = cells(description.parts(algorithm.student, (8, 8, 1)))
    assert {name: row[-3] for name, row in rows.items()} == {
        "backbone": f"{BACKBONE:,}",
        "classifier": f"{CLASSIFIER:,}",
        "projection_head": f"{PROJECTION:,}",
        "at test time: backbone, classifier": f"{BACKBONE + CLASSIFIER:,}",
        "all: with projection head": f"{BACKBONE + CLASSIFIER + PROJECTION:,}",
    }
    assert rows["classifier"][0] == str(L)


def test_memory(algorithm):
    table = description.memory(algorithm, CONFIG.keep)
    rows = {name: row[0] for name, row in cells(table).items()}
    trainable = 4 * (BACKBONE + CLASSIFIER + PROJECTION)
    # Two statistics a channel; mean and deviation of the images' one channel.
    weights = trainable + 4 * (2 * sum(CHANNELS) + 2)
    # Q_l and when slots were written; step, batches in the window; the record:
    # last loss, and two figures of three numbers; four counts of the guard;
    # the alignment window.
    rest = 12 * K + 8 + 8 + 4 + 2 * 3 * 4 + 4 * 8 + 4 * 4 * L
    total = 2 * weights + trainable + 8 + 4 * K * D + rest
    assert rows == {
        "weights, BatchNorm's statistics": f"{weights / 2**20:.2f}",
        "EMA teacher": f"{weights / 2**20:.2f}",
        "optimizer": f"{trainable / 2**20:.2f}",
        "memory bank Q_f [20, 16]": "0.00",
        "rest": "0.00",
        "sum, as in a checkpoint on disk": f"{total / 2**20:.2f}",
        "the 2 checkpoints kept": f"{2 * total / 2**20:.2f}",
    }
    variables = description.algorithm_lib.state(algorithm)
    assert description.bytes_of(variables) == total


def test_a_checkpoint_has_the_size_described(algorithm, tmp_path):
    tf.train.Checkpoint(algorithm=algorithm).write(str(tmp_path / "one"))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    variables = description.algorithm_lib.state(algorithm)
    total = description.bytes_of(variables)
    # Beside the arrays there are their names, a few hundred bytes each.
    arrays = len(tf.train.list_variables(str(tmp_path / "one")))
    assert total < size < total + 1000 * arrays
    assert 1000 * arrays < 0.2 * total  # or the check above says little


def test_bytes():
    one = tf.Variable(tf.zeros([3, 5]))
    flags = tf.Variable(tf.zeros([7], tf.bool))
    half = keras.Variable(np.zeros([2, 2]), dtype="bfloat16")
    count = tf.Variable(0, dtype=tf.int64)
    assert description.bytes_of([one, flags, half, count]) == 60 + 7 + 8 + 8
    assert description.bytes_of([one, one]) == 60
    assert description.bytes_of([half, half.value]) == 8
    assert description.bytes_of([]) == 0


def build(backbone, shape, classes):
    return network.build(
        backbone,
        image_shape=shape,
        num_classes=classes,
        projection_dim=128,
        mean=[0.5] * 3,
        std=[0.25] * 3,
    )


def test_resnet_50(capfd):
    model = build("resnet50", (224, 224, 3), 1000)
    table = description.parts(model, (224, 224, 3))
    printed = capfd.readouterr()
    assert printed.out == "" and "deprecat" not in printed.err
    for count, millions in {
        "23,508,032": "23.5",
        "25,557,032": "25.6",
        "30,015,656": "30.0",
    }.items():
        assert f"  {count}  ({millions} M)  " in table
    # Multiply-adds of the convolutions; published: 4.09 G with the classifier.
    wanted, side, width = 112**2 * 64 * 7 * 7 * 3, 56, 64
    for group, blocks in enumerate((3, 4, 6, 3)):
        filters = 64 * 2**group
        for block in range(blocks):
            # The stride is at the 3×3: the 1×1 before it works on all pixels.
            wanted += side**2 * width * filters
            if group and not block:
                side //= 2
            wanted += side**2 * (9 * filters**2 + filters * 4 * filters)
            if not block:
                wanted += side**2 * width * 4 * filters
            width = 4 * filters
    backbone = network.parts(model)["backbone"]
    # The profiler counts sums, pools and normalizations as well.
    assert 1 <= description.flops(backbone) / (2 * wanted) < 1.01


def test_wrn_28_2():
    model = build("wrn_28_2", (32, 32, 3), 10)
    rows = cells(description.parts(model, (32, 32, 3)))
    assert rows["backbone"][1:3] == ["1,466,320", "(1.5 M)"]
    assert rows["at test time: backbone, classifier"][0] == "1,467,610"


def chain(*layers, shape=(6, 6, 2)):
    return keras.Sequential([keras.Input(shape), *layers])


@pytest.mark.parametrize(
    ("layer", "wanted"),
    [
        (keras.layers.Conv2D(4, 3, use_bias=False), 2 * 16 * 4 * 9 * 2),
        (
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2, use_bias=False),
            2 * 16 * 4 * 9,
        ),
        (keras.layers.Dense(5, use_bias=False), 2 * 36 * 2 * 5),
    ],
)
def test_flops_of_layers(layer, wanted):
    assert description.flops(chain(layer)) == wanted


def test_flops_of_attention():
    images = keras.Input((36, 2))
    x = keras.layers.MultiHeadAttention(3, 5, use_bias=False)(images, images)
    # Queries, keys, values; scores; their use; the output. 3 heads of 5.
    wanted = 3 * 36 * 2 * 15 + 36 * 36 * 15 + 36 * 36 * 15 + 36 * 15 * 2
    # Scaling and softmax are counted as well.
    extra = description.flops(keras.Model(images, x)) - 2 * wanted
    assert 0 <= extra < 8 * 3 * 36 * 36


@pytest.mark.parametrize(
    ("equation", "shapes", "wanted"),
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        ("...ij,jk->...ik", [(7, 2, 3, 4), (4, 5)], 7 * 2 * 3 * 4 * 5),
        # One of the two is stretched.
        ("...i,...i->...", [(3, 1, 4), (2, 4)], 3 * 2 * 4),
        ("ij->ji", [(3, 4)], 0),
    ],
)
def test_flops_of_an_einsum(equation, shapes, wanted):
    with tf.Graph().as_default() as graph:
        # TensorFlow's own: Keras makes matrix products of some.
        tf.einsum(equation, *(tf.ones(shape) for shape in shapes))
    counts = map(description._einsum_flops, graph.get_operations())
    assert sum(counts) == 2 * wanted


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1.00 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (4_089_184_256, "4.09 G"),
        (123_400_000_000_000, "123 T"),
    ],
)
def test_prefixes(number, text):
    assert description.rounded(number) == text
