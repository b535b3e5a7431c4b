"""Parameters and FLOPs against formulas written out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.networks import cost, network


def build(backbone, shape, classes=10, dim=128):
    return network.build(
        backbone,
        image_shape=shape,
        num_classes=classes,
        projection_dim=dim,
        mean=[0.5] * shape[2],
        std=[0.25] * shape[2],
    )


def rows_of(layers, shape=(6, 6, 2)):
    """Rows, by name, of a chain of layers that ends with a global pool."""

    def backbone(shape):
        images = x = keras.Input(shape)
        for layer in layers:
            x = layer(x)
        if len(x.shape) == 4:
            x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(images, x, name="backbone")

    model = build(backbone, shape, dim=4)
    rows = cost.rows(model)
    assert sum(row.parameters for row in rows) == cost.parameters(model)
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def total(rows, field, *parts):
    return sum(getattr(row, field) for row in rows if row.part in parts)


@pytest.fixture(scope="module")
def resnet50():
    model = build("resnet50", (224, 224, 3), 1000)
    return model, cost.rows(model)


def test_resnet_50_parameters(resnet50):
    model, rows = resnet50
    assert total(rows, "parameters", "backbone") == 23_508_032
    tested = total(rows, "parameters", "backbone", "classifier")
    assert tested == 25_557_032
    # g: 2048 → 2048 → 128, with biases.
    head = 2048 * 2048 + 2048 + 2048 * 128 + 128
    assert total(rows, "parameters", "projection_head") == head
    everything = sum(row.parameters for row in rows)
    assert everything == cost.parameters(model) == 30_015_656
    assert cost.parameters(network.parts(model)["backbone"]) == 23_508_032


def test_resnet_50_flops(resnet50):
    _, rows = resnet50
    flops = {row.name: row.flops for row in rows}
    wanted = {"conv1": 112**2 * 64 * 7 * 7 * 3}
    side, width = 56, 64
    for group, blocks in enumerate((3, 4, 6, 3)):
        filters = 64 * 2**group
        for block in range(blocks):
            # The stride is at the 3×3: the 1×1 before it works on all pixels.
            work = side**2 * width * filters
            if group and not block:
                side //= 2
            work += side**2 * (9 * filters**2 + filters * 4 * filters)
            if not block:
                work += side**2 * width * 4 * filters
            width = 4 * filters
            wanted[f"layer{group + 1}_{block}"] = work
    wanted["classifier"] = 2048 * 1000
    assert sum(wanted.values()) == 4_089_184_256  # published: 4.09 G
    wanted["projection_head"] = 2048 * 2048 + 2048 * 128
    assert {n: f // 2 for n, f in flops.items() if f} == wanted


def test_resnet_50_rows(resnet50):
    _, rows = resnet50
    shapes = {row.name: row.output_shape for row in rows}
    assert list(shapes)[:4] == ["conv1", "maxpool", "layer1_0", "layer1_1"]
    assert list(shapes)[-4:] == [
        "layer4_2",
        "features",
        "classifier",
        "projection_head",
    ]
    assert len(shapes) == 2 + 16 + 3
    assert shapes["conv1"] == (112, 112, 64)
    assert shapes["maxpool"] == shapes["layer1_0"][:2] + (64,) == (56, 56, 64)
    assert shapes["layer2_0"] == (28, 28, 512)
    assert shapes["layer4_2"] == (7, 7, 2048)
    assert shapes["features"] == (2048,)
    assert shapes["projection_head"] == (128,)
    first = rows[0]
    assert first.parameters == 7 * 7 * 3 * 64 + 2 * 64  # bn1 is in it
    assert not any(row.uncounted for row in rows)


def test_wrn_28_2():
    model = build("wrn_28_2", (32, 32, 3))
    rows = cost.rows(model)
    tested = total(rows, "parameters", "backbone", "classifier")
    assert tested == 1_467_610
    assert sum(row.parameters for row in rows) == cost.parameters(model)
    wanted, width = {"conv": 32**2 * 16 * 9 * 3}, 16
    for group, (side, filters) in enumerate(((32, 32), (16, 64), (8, 128)), 1):
        for block in range(4):
            work = side**2 * filters * 9 * (width + filters)
            if width != filters:
                work += side**2 * filters * width
            width = filters
            wanted[f"group{group}_{block}"] = work
    wanted |= {"classifier": 1280, "projection_head": 2 * 128**2}
    assert {r.name: r.flops // 2 for r in rows if r.flops} == wanted
    names = [row.name for row in rows if not row.flops]
    assert names == ["bn", "features"]
    (last,) = (row for row in rows if row.name == "bn")
    assert (last.parameters, last.output_shape) == (256, (8, 8, 128))


def test_kinds_of_convolutions():
    rows = rows_of(
        [
            keras.layers.ZeroPadding2D(1, name="pad"),
            keras.layers.Conv2D(4, 3, name="plain"),  # 8 → 6
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.BatchNormalization(name="bn_behind_relu"),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depth"),
            keras.layers.Conv2D(6, 1, groups=2, use_bias=False, name="groups"),
            keras.layers.Conv2DTranspose(
                5, 2, strides=2, use_bias=False, name="up"
            ),
            keras.layers.MaxPooling2D(2, name="half"),
        ]
    )
    assert {
        name: (row.output_shape, row.parameters, row.flops // 2)
        for name, row in rows.items()
    } == {
        "plain": ((6, 6, 4), 9 * 2 * 4 + 4 + 2 * 4, 36 * 4 * 9 * 2),
        "bn_behind_relu": ((6, 6, 4), 8, 0),
        "depth": ((4, 4, 8), 9 * 8 + 8, 16 * 8 * 9),
        "groups": ((4, 4, 6), 4 * 6, 16 * 6 * 4),
        # Each pixel of the input is multiplied with a 2×2 kernel.
        "up": ((8, 8, 5), 4 * 5 * 6, 16 * 6 * 4 * 5),
        "half": ((4, 4, 5), 0, 0),
        "pool": ((5,), 0, 0),
        "classifier": ((10,), 5 * 10 + 10, 5 * 10),
        "projection_head": ((4,), 5 * 5 + 5 + 5 * 4 + 4, 5 * 5 + 5 * 4),
    }


def test_attention():
    def backbone(shape):
        images = keras.Input(shape)
        x = keras.layers.Reshape((36, 2), name="pixels")(images)
        attention = keras.layers.MultiHeadAttention(3, 5, name="attention")
        x = keras.layers.LayerNormalization(name="norm")(attention(x, x))
        return keras.Model(images, keras.layers.GlobalMaxPool1D(name="p")(x))

    rows = {r.name: r for r in cost.rows(build(backbone, (6, 6, 2)))}
    row = rows["attention"]
    # Queries, keys, values; scores; their use; the output. 3 heads of 5.
    wanted = 3 * 36 * 2 * 15 + 36 * 36 * 15 + 36 * 36 * 15 + 36 * 15 * 2
    assert row.flops == 2 * wanted
    assert row.parameters == 3 * (2 * 15 + 15) + 15 * 2 + 2
    assert row.output_shape == (36, 2)
    assert (rows["norm"].parameters, rows["norm"].flops) == (4, 0)
    assert list(rows)[:3] == ["pixels", "attention", "norm"]


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
def test_einsum(equation, shapes, wanted):
    class Einsum(keras.layers.Layer):
        def call(self, x):
            # TensorFlow's own: Keras makes matrix products of some.
            product = tf.einsum(equation, *map(tf.ones, shapes))
            return x + tf.reduce_sum(product)

    rows = rows_of([Einsum(name="einsum")])
    assert ("einsum" in rows) == (wanted > 0)
    assert not wanted or rows["einsum"].flops == 2 * wanted


def test_operations_that_are_no_layers():
    class Product(keras.layers.Layer):
        def call(self, x):
            return keras.ops.matmul(keras.ops.swapaxes(x, 1, 2), x)

    def backbone(shape):
        images = keras.Input(shape)
        x = keras.ops.reshape(images, (-1, 36, 2))  # operations without layer
        x = keras.ops.matmul(x, keras.ops.transpose(x, (0, 2, 1)))
        return keras.Model(images, keras.ops.max(x, axis=2))

    rows = cost.rows(build(backbone, (6, 6, 2)))
    assert [r.flops for r in rows if r.flops and r.part == "backbone"] == [
        2 * 36 * 2 * 36
    ]
    layers = [keras.layers.Reshape((36, 2)), Product(name="product")]
    rows = rows_of([*layers, keras.layers.Flatten()])
    assert rows["product"].flops == 2 * 2 * 36 * 2


def test_models_inside_and_a_layer_that_is_used_twice():
    twice = keras.layers.Conv2D(2, 1, name="conv")
    inner = keras.Sequential(
        [keras.Input((6, 6, 2)), keras.layers.Conv2D(2, 3, name="conv")],
        name="inner",
    )
    rows = rows_of([twice, twice, inner])
    # 2 → 2 channels: used twice, kept once.
    assert rows["backbone/conv"].flops == 2 * (2 * 36 * 2 * 2)
    assert rows["backbone/conv"].parameters == 2 * 2 + 2
    assert rows["backbone/inner/conv"].flops == 2 * 16 * 2 * 2 * 9
    assert rows["backbone/inner/conv"].output_shape == (4, 4, 2)


def test_layers_that_keras_named():
    """In scopes' names the second conv2d and the first conv2d_1 are one."""
    first, second = (
        keras.layers.Conv2D(n, 1, use_bias=False, name=name)
        for name, n in (("conv2d", 3), ("conv2d_1", 4))
    )
    rows = rows_of([second, first])
    assert rows["conv2d"].flops == 2 * 36 * 4 * 3
    assert rows["conv2d_1"].flops == 2 * 36 * 2 * 4


class Own(keras.Model):
    """Weights and work of its own beside a layer, and a layer unused."""

    def __init__(self):
        super().__init__(name="own")
        self.inner = keras.layers.Dense(3, name="inner")
        self.mix = self.add_weight(shape=(3, 5), name="mix")
        self.unused = keras.layers.Dense(7, name="unused")
        self.unused.build((None, 2))

    def call(self, x):
        x = self.inner(keras.ops.mean(x, (1, 2)))
        return keras.ops.matmul(x, self.mix)


def test_what_a_model_does_itself():
    rows = rows_of([Own()])
    assert rows["inner"].flops == 2 * 2 * 3
    assert rows["own"].flops == 2 * 3 * 5
    assert rows["own"].parameters == 3 * 5 + (2 * 7 + 7)
    assert rows["own"].output_shape == (5,)


def test_frozen_layers_have_no_trainable_parameters():
    frozen = keras.layers.Conv2D(2, 1, name="frozen", trainable=False)
    row = rows_of([frozen])["frozen"]
    assert (row.parameters, row.flops) == (0, 2 * 36 * 2 * 2)


class Compiled(keras.layers.Layer):
    """Work inside a tf.function, traced for a batch of any size."""

    def __init__(self, kind):
        super().__init__(name=kind)
        self.kind = kind

    @tf.function
    def call(self, x):
        product = tf.ones([2, 2])
        if self.kind == "convolution":
            return tf.nn.conv2d(x, tf.ones([3, 3, 2, 2]), 1, "SAME")
        if self.kind == "condition":
            y = tf.ones([5, 2])
            if tf.reduce_sum(x) > 0:
                y = tf.ones([5, 2]) @ product @ product
            else:
                y = y @ product
            return x + tf.reduce_sum(y)
        if self.kind == "loop":
            y = tf.ones([5, 2])
            while tf.reduce_sum(y) < 100:
                y = y @ product
            return x + tf.reduce_sum(y)
        pixels = tf.reshape(x, [-1, 2])
        return x + tf.reduce_sum(pixels @ product)


@pytest.mark.parametrize(
    ("kind", "flops", "uncounted"),
    [
        ("convolution", 2 * 36 * 2 * 9 * 2, ()),
        ("condition", 2 * (2 * 5 * 2 * 2), ()),  # the longer branch
        ("loop", 0, ("StatelessWhile",)),
        ("unknown", 0, ("MatMul",)),
    ],
)
def test_functions_and_what_cannot_be_told(kind, flops, uncounted):
    row = rows_of([Compiled(kind)])[kind]
    assert (row.flops, row.uncounted) == (flops, uncounted)


def test_the_model_is_left_as_it_was(capfd):
    model = build("wrn_10_1", (8, 8, 3))
    images = np.random.default_rng(0).integers(0, 256, [2, 8, 8, 3])
    before = model(images)
    first = cost.rows(model)
    assert cost.rows(model) == first
    assert capfd.readouterr().out == ""
    for layer in (model, *model.layers, *model.layers[2].layers):
        assert "call" not in vars(layer)
    for name, value in model(images).items():
        np.testing.assert_array_equal(value, before[name])


def test_a_model_that_fails_is_left_as_it_was():
    class Broken(keras.layers.Layer):
        broken = False

        def call(self, x):
            if self.broken:
                raise RuntimeError("broken on purpose")
            return x

    layer = Broken()

    def backbone(shape):
        images = keras.Input(shape)
        x = keras.layers.GlobalAveragePooling2D()(layer(images))
        return keras.Model(images, x)

    model = build(backbone, (6, 6, 2))
    layer.broken = True
    with pytest.raises(RuntimeError, match="broken on purpose"):
        cost.rows(model)
    assert "call" not in vars(layer)


def test_another_network():
    images = keras.Input((8, 8, 3))
    x = keras.layers.Dense(3)(keras.layers.Flatten()(images))
    with pytest.raises(ValueError, match="is not a network of simmatch_tf"):
        cost.rows(keras.Model(images, x))


def test_bytes():
    one = tf.Variable(tf.zeros([3, 5]))
    flags = tf.Variable(tf.zeros([7], tf.bool))
    half = keras.Variable(np.zeros([2, 2]), dtype="bfloat16")
    count = tf.Variable(0, dtype=tf.int64)
    assert cost.bytes_of([one, flags, half, count]) == 60 + 7 + 8 + 8
    assert cost.bytes_of([one, one]) == 60
    assert cost.bytes_of([half, half.value]) == 8
    assert cost.bytes_of([]) == 0
