"""The whole step as StableHLO: what a TPU would be given."""

import dataclasses
import functools
import re

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf.algorithms import diagnostics
from simmatch_tf.distributed import strategies
from simmatch_tf.training import inputs, state
from simmatch_tf.training import workdir as workdir_lib
from tests import runs

QUICK = [
    {"algorithm": "supervised"},
    {"targets_from": "student"},
    {"targets_from": "teacher"},
]
SLOW = [
    {"targets_from": "student", "weak_forward": "separate"},
    {"targets_from": "teacher", "teacher_norm": "shuffle"},
    {"targets_from": "student", "on_nonfinite": "skip"},
    {"targets_from": "teacher", "precision": "mixed_bfloat16"},
    {"targets_from": "student", "precision": "mixed_float16"},
]
FORMS = [*QUICK, *(pytest.param(f, marks=pytest.mark.slow) for f in SLOW)]


def make(**changes):
    """A run's algorithm, its views' last part, and its first batches."""
    config = runs.config("nowhere", **changes)
    source = inputs.make_source(config)
    split = inputs.make_split(config, source, workdir_lib.Workdir("nowhere"))
    config = config.with_durations(len(split.unlabeled))
    algorithm = state.make_algorithm(
        config,
        strategies.one(),
        image_shape=source.image_shape,
        slot_labels=source.train.labels[split.labeled],
        num_classes=source.num_classes,
        statistics=source.statistics(),
    )
    return algorithm, inputs.make_pipeline(config, source, split, algorithm)


def lowered(algorithm, pipeline):
    finish = functools.partial(pipeline.finish, dense=True)

    @tf.function(autograph=False, jit_compile=True)
    def step(batch):
        return algorithm.guarded_step(
            batch if pipeline.finished else finish(batch)
        )

    # As a run does by default: some of its steps are logged.
    batch = next(iter(pipeline.dataset(0, 1)))
    batch[diagnostics.LOGGED] = tf.constant(True)
    return step.experimental_get_compiler_ir(batch)(stage="stablehlo")


def assert_for_a_tpu(text):
    # No call back to the host, nothing that only one kind of device knows.
    assert set(re.findall(r"custom_call @(\w+)", text)) == set()
    # Every shape is known.
    assert not re.search(r"tensor<[^>]*\?", text)
    for word in ("infeed", "outfeed", "send", "recv"):
        assert f"stablehlo.{word}" not in text
    assert "stablehlo.convolution" in text


@pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: "-".join(form.values())
)
def test_every_algorithm_and_memory_form(form):
    assert_for_a_tpu(lowered(*make(**form)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "views",
    [
        {"weak": "flip_crop", "strong": "randaugment"},
        {"weak": "resized_crop", "strong": "moco"},
    ],
    ids=lambda views: views["strong"],
)
def test_with_the_views_on_the_device(views):
    assert_for_a_tpu(
        lowered(*make(**views, views_on="device", image_size=32, flip=True))
    )


@pytest.mark.slow
@pytest.mark.parametrize("targets_from", ["student", "teacher"])
def test_compiled_is_the_same(targets_from, tmp_path):
    # In float64: in float32 the order of sums alone is worth 3e-4 by the end.
    changes = {
        "targets_from": targets_from,
        "threshold": 0.2,
        "precision": "float64",
    }
    plain, pipeline = make(**changes)
    compiled, _ = make(**changes)
    steps = [
        tf.function(a.guarded_step, autograph=False, jit_compile=c)
        for a, c in ((plain, False), (compiled, True))
    ]
    for batch in pipeline.dataset(0, 4):
        one, other = (step(batch) for step in steps)
        for name, value in one.items():
            np.testing.assert_allclose(
                other[name], value, rtol=1e-6, err_msg=name
            )
    for a, b in zip(
        plain.student.variables, compiled.student.variables, strict=True
    ):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_stays_in_the_network(precision):
    half, pipeline = make(precision=precision, threshold=0.2)
    full, _ = make(threshold=0.2)
    for a, b in zip(full.student.weights, half.student.weights, strict=True):
        np.testing.assert_array_equal(a, b)  # the same first weights
    batch = next(iter(pipeline.dataset(0, 1)))
    outputs = half.student(batch["labeled_weak"])
    assert outputs["logits"].dtype == outputs["embeddings"].dtype == tf.float32
    convolutions = [
        layer.compute_dtype
        for layer in half.student._flatten_layers()
        if "conv" in layer.name
    ]
    assert set(convolutions) == {precision.removeprefix("mixed_")}
    assert half.memory.features.dtype == half.align.window.dtype == tf.float32
    one, other = (
        tf.function(a.guarded_step, autograph=False)(batch)
        for a in (full, half)
    )
    for name in ("loss/s", "loss/u", "loss/total"):
        np.testing.assert_allclose(other[name], one[name], rtol=3e-2)


def test_images_as_floats_are_not_rounded_first():
    half, _ = make(precision="mixed_bfloat16")
    images = np.full([2, 8, 8, 1], 129.0, np.float32)
    images[1] += 0.49  # bfloat16 has no number between 129 and 130
    layer = half.student.get_layer("normalize")
    same = layer(tf.constant(images))
    assert same.dtype == tf.bfloat16
    wanted = (images / 255.0 - layer.mean.numpy()) / layer.std.numpy()
    np.testing.assert_allclose(tf.cast(same, tf.float32), wanted, rtol=4e-3)


def test_double_precision_is_double_everywhere():
    double, pipeline = make(precision="float64")
    metrics = double.guarded_step(next(iter(pipeline.dataset(0, 1))))
    assert metrics["loss/total"].dtype == tf.float64
    for variable in double.memory.features, double.align.window:
        assert variable.dtype == tf.float64
    weights = double.student.trainable_variables
    assert {weight.dtype for weight in weights} == {"float64"}


def test_the_caller_s_policy_is_left_alone():
    import keras

    before = keras.config.dtype_policy().name
    algorithm, _ = make(precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == before
    assert dataclasses.asdict(algorithm.config)["precision"] == "mixed_bfloat16"
