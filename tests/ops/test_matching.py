"""The pass over the memory against the plain equations, and its edges."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.ops import (
    losses,
    matching,
    propagation,
)
from tests import reference

L, D, N = 5, 8, 6


def unit(rng, rows, dtype=np.float32):
    x = rng.normal(size=[rows, D])
    return dtype(x / np.linalg.norm(x, axis=1, keepdims=True))


def inputs(slots, seed=0, classes=L):
    rng = np.random.default_rng(seed)
    p_w = reference.softmax(rng.normal(size=[N, classes]) * 2)
    return {
        "z_w": unit(rng, N),
        "z_s": unit(rng, N),
        "p_w": np.float32(p_w),
        "memory": unit(rng, slots),
        "memory_labels": rng.integers(0, classes, slots),
    }


def plain(
    z_w, z_s, p_w, memory, memory_labels, *, temperature, alpha, valid=None
):
    """The definition: p̂, the loss of each image, its gradient to z_s."""
    memory = tf.convert_to_tensor(memory)
    q_w = propagation.instance_similarity(z_w, memory, temperature, valid)
    q_hat = propagation.scale(q_w, propagation.unfold(p_w, memory_labels))
    q_agg = propagation.aggregate(q_w, memory_labels, p_w.shape[1])
    z_s = tf.convert_to_tensor(z_s)
    with tf.GradientTape() as tape:
        tape.watch(z_s)
        each = tf.stack(
            [
                losses.instance_loss(
                    z_s[i : i + 1], memory, q_hat[i : i + 1], temperature, valid
                )
                for i in range(len(z_w))
            ]
        )
    return (
        propagation.smooth(p_w, q_agg, alpha),
        each,
        tape.gradient(each, z_s),
    )


def fused(given, **options):
    """`match` with the gradient of the summed losses to z_s."""
    given = {name: tf.convert_to_tensor(x) for name, x in given.items()}
    with tf.GradientTape() as tape:
        tape.watch(list(given.values())[:4])
        p_hat, each = matching.match(
            **given, num_classes=given["p_w"].shape[1], **options
        )
    others = [given[name] for name in ("z_w", "p_w", "memory")]
    gradients = tape.gradient([each, p_hat], [given["z_s"], *others])
    assert gradients[1:] == [None] * 3  # targets
    return p_hat, each, gradients[0]


def assert_same(results, wanted, rtol=2e-5, atol=2e-6):
    for name, one, other in zip(
        ("p_hat", "loss", "gradient"), results, wanted, strict=True
    ):
        np.testing.assert_allclose(
            one, other, rtol=rtol, atol=atol, err_msg=name
        )


@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 1.0])
@pytest.mark.parametrize("block_size", [None, 1, 7, 20, 64])
def test_equals_the_definition(temperature, block_size):
    given = inputs(20)
    options = {"temperature": temperature, "alpha": 0.9}
    # At small t the definition itself is a rounding or two over t away.
    assert_same(
        fused(given, block_size=block_size, **options),
        plain(**given, **options),
        atol=2e-6 / temperature,
    )


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("slots", [1, 2, 33, 3000])
def test_any_number_of_slots(slots, temperature):
    given = inputs(slots, seed=slots)
    options = {"temperature": temperature, "alpha": 0.5}
    wanted = plain(**given, **options)
    for block_size in (None, 32):
        assert_same(
            fused(given, block_size=block_size, **options),
            wanted,
            atol=3e-6 / temperature,
        )


@pytest.mark.slow
def test_two_hundred_thousand_slots():
    given = inputs(200_000, classes=1000)
    options = {"temperature": 0.1, "alpha": 0.9}
    assert_same(
        fused(given, block_size=2048, **options),
        plain(**given, **options),
        rtol=2e-4,
    )


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_against_the_slides_in_double_precision(temperature):
    given = {
        name: np.float64(x) if x.dtype == np.float32 else x
        for name, x in inputs(20).items()
    }
    p_hat, each, gradient = fused(
        given, temperature=temperature, alpha=0.9, block_size=6
    )
    assert p_hat.dtype == each.dtype == gradient.dtype == tf.float64
    z_w, z_s, p_w, memory, labels = given.values()
    q_w = reference.instance_similarity(z_w, memory, temperature)
    q_hat = reference.scale(q_w, reference.unfold(p_w, labels))
    q_agg = reference.aggregate(q_w, labels, L)
    np.testing.assert_allclose(p_hat, reference.smooth(p_w, q_agg, 0.9), 1e-10)
    loss = functools.partial(
        reference.instance_loss, memory=memory, q_hat=q_hat, t=temperature
    )
    np.testing.assert_allclose(np.mean(each), loss(z_s), 1e-9)
    slope = reference.gradient(loss, z_s, h=1e-6)
    np.testing.assert_allclose(gradient / N, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("garbage", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("block_size", [None, 4])
def test_slots_left_out(garbage, temperature, block_size):
    given = inputs(20)
    valid = np.arange(20) % 3 > 0
    given["memory"][~valid] = garbage
    options = {"temperature": temperature, "alpha": 0.9, "valid": valid}
    results = fused(given, block_size=block_size, **options)
    kept = {**given, "memory": given["memory"][valid]}
    kept["memory_labels"] = given["memory_labels"][valid]
    wanted = plain(**kept, temperature=temperature, alpha=0.9)
    assert_same(results, wanted, atol=2e-6 / temperature)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_no_valid_slot(temperature):
    given = inputs(20)
    p_hat, each, gradient = fused(
        given, temperature=temperature, alpha=0.9, valid=np.zeros(20, bool)
    )
    np.testing.assert_allclose(p_hat, 0.9 * given["p_w"], rtol=1e-6)
    assert not each.numpy().any() and not gradient.numpy().any()


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_p_rules_out_the_class_of_every_slot(temperature):
    given = inputs(20)
    given["memory_labels"] %= 2
    given["p_w"] = np.float32([[0.0, 0.0, 0.3, 0.7, 0.0]] * N)
    options = {"temperature": temperature, "alpha": 0.9}
    results = fused(given, block_size=6, **options)
    assert_same(results, plain(**given, **options), atol=2e-6 / temperature)
    # q^w is kept: as if all classes were alike.
    alike = {**given, "p_w": np.full([N, L], 0.2, np.float32)}
    np.testing.assert_allclose(
        results[1], fused(alike, **options)[1], rtol=1e-4, atol=1e-4
    )


def test_a_small_p_of_a_class_without_slots_overflows_nothing():
    given = inputs(20)
    given["memory_labels"] %= 2
    given["p_w"] = np.float32([[1e-37, 0.0, 1.0, 0.0, 0.0]] * N)
    results = fused(given, temperature=0.1, alpha=0.9)
    for x in results:
        assert np.isfinite(x).all()
    # All of q̂ is on the slots of class 0.
    only = {**given, "p_w": np.float32([[1.0, 0.0, 0.0, 0.0, 0.0]] * N)}
    wanted = fused(only, temperature=0.1, alpha=0.9)
    np.testing.assert_allclose(results[1], wanted[1], rtol=1e-5)


def test_small_temperature_does_not_underflow():
    """Exponents of -200 and less, where a fixed shift would leave nothing."""
    given = inputs(20)
    given["memory"] = -np.repeat(given["z_w"][:1], 20, axis=0)
    given["z_s"] = given["z_w"]
    p_hat, each, gradient = fused(given, temperature=0.005, alpha=0.0)
    np.testing.assert_allclose(np.sum(p_hat, axis=1), 1, rtol=1e-5)
    # All slots are alike: q̂ = q^s = 1/K where p^w is uniform over slots.
    assert np.isfinite(each).all() and np.isfinite(gradient).all()
    np.testing.assert_allclose(each, np.log(20), rtol=1e-3)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_is_widened(dtype):
    given = inputs(20)
    half = {
        name: tf.cast(x, dtype) if x.dtype == np.float32 else x
        for name, x in given.items()
    }
    wide = {
        name: tf.cast(x, tf.float32) if x.dtype == dtype else x
        for name, x in half.items()
    }
    options = {"temperature": 0.1, "alpha": 0.9}
    p_hat, each, gradient = fused(half, **options)
    assert p_hat.dtype == each.dtype == tf.float32
    wanted = fused(wide, **options)
    np.testing.assert_array_equal(p_hat, wanted[0])
    np.testing.assert_array_equal(each, wanted[1])
    np.testing.assert_allclose(gradient, wanted[2], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_add_up(shards, temperature):
    given = inputs(21)
    options = {"num_classes": L, "temperature": temperature}
    present = matching.classes_present(given["memory_labels"], L)
    parts = [
        matching.partials(
            given["z_w"],
            given["z_s"],
            given["p_w"],
            given["memory"][places],
            given["memory_labels"][places],
            present=present,
            **options,
        )
        for places in np.array_split(np.arange(21), shards)
    ]
    shifts = tf.reduce_max([part.shifts for part in parts], axis=0)
    sums = [matching.rebase(part, shifts) for part in parts]
    sums = matching.Partials(*(sum(each) for each in zip(*sums, strict=True)))
    sums = sums._replace(shifts=shifts)
    z_s = tf.constant(given["z_s"])
    with tf.GradientTape() as tape:
        tape.watch(z_s)
        p_hat, each = matching.combine(
            sums, z_s, given["p_w"], temperature=temperature, alpha=0.9
        )
    results = p_hat, each, tape.gradient(each, z_s)
    wanted = fused(given, temperature=temperature, alpha=0.9)
    assert_same(results, wanted, atol=2e-6 / temperature)


def test_the_order_of_slots_does_not_matter():
    given = inputs(50)
    order = np.random.default_rng(1).permutation(50)
    other = {**given, "memory": given["memory"][order]}
    other["memory_labels"] = given["memory_labels"][order]
    options = {"temperature": 0.1, "alpha": 0.9, "block_size": 8}
    assert_same(fused(other, **options), fused(given, **options))


@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_compiled_with_xla(temperature):
    given = inputs(20)
    options = {"temperature": temperature, "alpha": 0.9, "block_size": 6}
    compiled = tf.function(
        functools.partial(fused, **options), jit_compile=True, autograph=False
    )
    assert_same(
        compiled({n: tf.constant(x) for n, x in given.items()}),
        fused(given, **options),
        atol=2e-6 / temperature,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"z_s": np.zeros([N, D + 1], np.float32)},
        {"p_w": np.zeros([N, L + 1], np.float32)},
        {"memory_labels": np.zeros(19, int)},
        {"valid": np.ones(19, bool)},
        {"temperature": 0.0},
        {"alpha": 1.5},
        {
            "memory": np.zeros([0, D], np.float32),
            "memory_labels": np.zeros(0, int),
        },
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_arguments(change):
    arguments = inputs(20) | {"temperature": 0.1, "alpha": 0.9} | change
    with pytest.raises(ValueError, match="must be|is wanted|slot is"):
        matching.match(**arguments, num_classes=L)


@pytest.mark.parametrize(
    "change",
    [
        {"present": np.ones(L - 1, bool)},
        {"memory_labels": np.zeros(20, np.float32)},
        {"memory_labels": np.zeros(20, np.uint8)},
    ],
    ids=str,
)
def test_bad_kinds(change):
    arguments = inputs(20) | {"temperature": 0.1, "alpha": 0.9} | change
    with pytest.raises(ValueError, match="must be|is wanted"):
        matching.match(**arguments, num_classes=L)


@pytest.mark.parametrize("slots", [20, 9_000])
def test_no_image(slots):
    given = inputs(slots)
    for name in ("z_w", "z_s", "p_w"):
        given[name] = given[name][:0]
    p_hat, each, gradient = fused(given, temperature=0.1, alpha=0.9)
    assert p_hat.shape == (0, L) and each.shape == (0,)
    assert gradient.shape == (0, D)


def test_combine_takes_the_images_of_the_sums():
    given = inputs(20)
    options = {"num_classes": L, "temperature": 0.1}
    sums = matching.partials(**given, **options)
    z_s, p_w = given["z_s"], given["p_w"]
    for one, other in ((z_s[:1], p_w), (z_s, p_w[:3]), (z_s, p_w[:, :2])):
        with pytest.raises(ValueError, match="is wanted"):
            matching.combine(sums, one, other, temperature=0.1, alpha=0.9)


def graphs(graph):
    """A graph and those of all functions that it calls."""
    yield graph
    for name in graph._functions:
        yield from graphs(graph._functions[name].graph)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.01, 0.1])
def test_nothing_of_all_images_by_all_slots(temperature):
    slots, images = 60_000, 64  # more images than D

    @tf.function(autograph=False)
    def step(z_w, z_s, p_w, memory, labels):
        with tf.GradientTape() as tape:
            tape.watch(z_s)
            p_hat, each = matching.match(
                z_w,
                z_s,
                p_w,
                memory,
                labels,
                num_classes=L,
                temperature=temperature,
                alpha=0.9,
            )
        return p_hat, tape.gradient(each, z_s)

    shapes = [[images, D], [images, D], [images, L], [slots, D]]
    specs = [tf.TensorSpec(shape) for shape in shapes]
    traced = step.get_concrete_function(
        *specs, tf.TensorSpec([slots], tf.int32)
    )
    seen = [
        output.shape.num_elements()
        for graph in graphs(traced.graph)
        for op in graph.get_operations()
        for output in op.outputs
    ]
    assert images * matching._block_size(slots, images) in seen  # a block
    assert max(n for n in seen if n) == slots * D  # Q_f itself


def test_one_double_input_is_not_all_of_them():
    given = inputs(20)
    given["z_s"] = np.float64(given["z_s"])
    results = fused(given, temperature=0.1, alpha=0.9)
    assert results[0].dtype == results[1].dtype == tf.float32
    assert results[2].dtype == tf.float64  # its own
