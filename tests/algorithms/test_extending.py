"""Methods in files outside of the package: those of docs/extending.md."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import registry
from simmatch_tf.algorithms import algorithm as algorithm_lib
from simmatch_tf.algorithms import diagnostics
from simmatch_tf.distributed import strategies
from simmatch_tf.ops import rotations, schedules
from simmatch_tf.training import loop, state
from tests import reference, runs
from tests.algorithms import test_simmatch as small
from tests.docs import pages
from tests.training import test_loop


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The file of the page's method, imported."""
    (text,) = (
        block.text
        for block in pages.blocks(pages.ROOT / "docs" / "extending.md")
        if "class SelfDistillation" in block.text
    )
    assert len(text.splitlines()) < 40
    path = tmp_path_factory.mktemp("plugin") / "self_distillation.py"
    path.write_text(text)
    registry.load_plugin(str(path))
    return path


@pytest.fixture(scope="module")
def mixup(tmp_path_factory):
    """The file of the page's second method, imported."""
    (text,) = (
        block.text
        for block in pages.blocks(pages.ROOT / "docs" / "extending.md")
        if "class Mixup" in block.text
    )
    path = tmp_path_factory.mktemp("plugin") / "mixup.py"
    path.write_text(text)
    registry.load_plugin(str(path))


@pytest.fixture(scope="module")
def ensembling(tmp_path_factory):
    """The file of the page's method with state of each image, imported."""
    (text,) = (
        block.text
        for block in pages.blocks(pages.ROOT / "docs" / "extending.md")
        if "class TemporalEnsembling" in block.text
    )
    path = tmp_path_factory.mktemp("plugin") / "ensembling.py"
    path.write_text(text)
    registry.load_plugin(str(path))


def test_state_of_each_image(ensembling):
    ours = make(algorithm="ensembling", unlabeled_images=9)
    x = batch()
    del x["unlabeled_weak_2"]
    x["unlabeled_index"] = tf.constant([8, 2, 8, 0, 1, 3], tf.int64)
    x[diagnostics.LOGGED] = tf.constant(True)
    step = tf.function(ours.guarded_step, autograph=False)
    metrics = step(x)
    assert metrics["loss/c"] == 0
    rows = ours.last.numpy()
    np.testing.assert_allclose(rows.sum(1), [1, 1, 1, 1, 0, 0, 0, 0, 1])
    metrics = step(x)
    assert metrics["loss/c"] > 0
    seen = metrics[diagnostics.DIAGNOSTICS].means["ensembling/seen"]
    np.testing.assert_allclose(seen, 1, rtol=1e-6)
    assert any(v is ours.last for v in algorithm_lib.state(ours))


@pytest.mark.slow
def test_draws_for_the_whole_batch_are_those_of_one_device(mixup, two_replicas):
    one, two = make(algorithm="mixup"), make(two_replicas, "mixup")
    step = tf.function(one.guarded_step, autograph=False)
    losses = [step(small.batch())["loss/total"] for _ in range(2)]
    assert losses[0] > 0 and losses[0] != losses[1]
    small.on_two(two_replicas, two, small.batch(), 2, guarded=True)
    for a, b in zip(
        one.student.trainable_variables,
        two.student.trainable_variables,
        strict=True,
    ):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-7)


@pytest.mark.slow
def test_it_is_resumed_to_the_same_weights(plugin, tmp_path, monkeypatch):
    changes = {
        "algorithm": "self_distillation",
        "plugin": (str(plugin),),
        "self_distillation.weight": 5.0,
        "unlabeled_ratio": None,
        "threshold": None,
        "da_window": None,
        "steps": 4,
        "eval_every": 2,
    }
    changes = {**runs.SMALL, **changes}
    changes = {n: v for n, v in changes.items() if v is not None}

    def fit(name):
        config = simmatch_tf.Config(**changes, workdir=str(tmp_path / name))
        assert config.unlabeled_ratio == 1
        return simmatch_tf.fit(config)

    fit("whole")
    evaluate = loop._Run._evaluate

    def die(self, step, *rest):
        if step == 4:
            raise RuntimeError("killed")
        evaluate(self, step, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_evaluate", die)
        with pytest.raises(RuntimeError, match="killed"):
            fit("killed")
    fit("killed")
    assert runs.began_after(tmp_path / "killed") == 2
    test_loop.assert_same_run(tmp_path / "whole", tmp_path / "killed", 4)
    flags = (tmp_path / "whole" / "flags.cfg").read_text()
    assert "--self_distillation.weight=5.0" in flags
    assert f"--plugin={plugin}" in flags


def test_its_flag_is_in_help(plugin):
    command = [sys.executable, "-m", "simmatch_tf.train", f"--plugin={plugin}"]
    done = subprocess.run(
        [*command, "--algorithm=self_distillation", "--help"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert "self_distillation.weight" in done.stdout + done.stderr


def test_python_gives_its_flags_by_name(plugin):
    (snippet,) = (
        block.text
        for block in pages.blocks(pages.ROOT / "docs" / "extending.md")
        if block.text.startswith("simmatch_tf.Config.from_flagfile(")
    )
    # In a process of its own: here the plugin is loaded already.
    script = f"import simmatch_tf\nconfig = {snippet}\nprint(config.hyper)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=plugin.parent,
        env={**os.environ, "PYTHONPATH": str(pages.ROOT)},
    )
    assert "HyperParameters(weight=2.0)" in done.stdout, done.stderr


def make(strategy=None, algorithm="self_distillation", unlabeled_images=0):
    config = simmatch_tf.Config(
        algorithm=algorithm,
        dataset="custom",
        labels=small.K,
        steps=20,
        batch_size=small.B,
        backbone="wrn_10_1",
        batch_norm_momentum=0.9,
        ema_momentum=0.9,
        precision="float64",
    )
    return state.make_algorithm(
        config.with_durations(1),
        strategy or strategies.one(),
        image_shape=(8, 8, 1),
        slot_labels=small.LABELS,
        num_classes=small.L,
        statistics=([0.5], [0.3]),
        unlabeled_images=unlabeled_images,
    )


def batch():
    parts = small.batch()
    del parts["slots"]
    parts["unlabeled_weak_2"] = parts.pop("unlabeled_strong")
    return parts


def test_its_step_is_the_equation(plugin):
    ours, other = make(), make()
    ours.step.assign(4)  # half of the ramp over 8 of 20 steps
    x = batch()
    before = [v.numpy() for v in ours.teacher.model.non_trainable_variables]
    metrics = ours.train_step(x)
    target, out = (
        tf.nn.softmax(network(x[name], training=True)["logits"]).numpy()
        for network, name in (
            (other.teacher.model, "unlabeled_weak"),
            (other.student, "unlabeled_weak_2"),
        )
    )
    wanted = np.mean(reference.cross_entropy(target, out))
    np.testing.assert_allclose(metrics["loss/teacher"], wanted)
    np.testing.assert_allclose(
        metrics["loss/total"], metrics["loss/s"] + 3 * 0.5 * wanted
    )
    # The teacher's averages are those of the student's alone.
    assert wanted > 0
    for old, new, student in zip(
        before,
        ours.teacher.model.non_trainable_variables,
        ours.student.non_trainable_variables,
        strict=True,
    ):
        m = ours.config.ema_momentum
        np.testing.assert_allclose(
            new, m * old + (1 - m) * student.numpy(), rtol=1e-5
        )


@pytest.mark.slow
@pytest.mark.variant
def test_two_replicas_are_as_one(plugin, two_replicas):
    one, two = make(), make(two_replicas)
    for _ in range(3):
        one.train_step(batch())
    small.on_two(two_replicas, two, batch(), 3)
    for a, b in zip(one.variables, two.variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-7)


def test_ramps():
    linear = [float(schedules.ramp(s, steps=4)) for s in (0, 1, 4, 9)]
    np.testing.assert_allclose(linear, [0, 0.25, 1, 1])
    curve = [
        float(schedules.ramp(s, steps=4, shape="exponential"))
        for s in (0, 2, 8)
    ]
    np.testing.assert_allclose(curve, np.exp([-5, -1.25, 0]), rtol=1e-6)
    assert schedules.ramp(0, steps=0, dtype="float64").dtype == tf.float64
    with pytest.raises(ValueError, match="shape='cosine': must be linear"):
        schedules.ramp(0, steps=1, shape="cosine")


def test_rotations():
    images = np.arange(2 * 3 * 3).reshape(2, 3, 3, 1)
    copies, turns = rotations.four_rotations(images)
    assert turns.numpy().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    for copy, turn, which in zip(copies, turns, [0, 1] * 4, strict=True):
        np.testing.assert_array_equal(copy, np.rot90(images[which], int(turn)))
    own = rotations.rotate(images, [3, 1])
    np.testing.assert_array_equal(own[0], np.rot90(images[0], 3))
    np.testing.assert_array_equal(own[1], np.rot90(images[1]))
    with pytest.raises(ValueError, match="images has shape"):
        rotations.rotate(images[:, :2], [3, 1])
