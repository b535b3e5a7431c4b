import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from simmatch_tf import config as config_lib
from simmatch_tf.algorithms import simmatch
from simmatch_tf.reporting import description as text
from simmatch_tf.training import description, state

K, L, D = 20, 10, 16
SHAPE = (8, 8, 1)
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


class OwnStep(simmatch.SimMatch):
    def train_step(self, batch):
        return super().train_step(batch)


def make(custom=None, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    algorithm = state.make_algorithm(
        config,
        state.Custom(algorithm=custom),
        tf.distribute.OneDeviceStrategy("/cpu:0"),
        image_shape=SHAPE,
        slot_labels=np.arange(K) % L,
        num_classes=L,
    )
    found = description.describe(
        config,
        algorithm,
        dataset="digits",
        image_shape=SHAPE,
        num_classes=L,
        slots=K,
    )
    return algorithm, found


@pytest.fixture(scope="module")
def simmatch_run():
    return make()


def parameters(found):
    sums = {}
    for row in found.rows:
        sums[row.part] = sums.get(row.part, 0) + row.parameters
    return sums


def test_parameters(simmatch_run):
    _, found = simmatch_run
    assert parameters(found) == {
        "backbone": BACKBONE,
        "classifier": CLASSIFIER,
        "projection_head": PROJECTION,
    }


def test_memory(simmatch_run):
    _, found = simmatch_run
    trainable = 4 * (BACKBONE + CLASSIFIER + PROJECTION)
    # Two statistics a channel; mean and deviation of the images' one channel.
    network = trainable + 4 * (2 * sum(CHANNELS) + 2)
    sizes = {each.name: (each.bytes, each.shape) for each in found.memory}
    rest = sizes.pop("rest")
    assert sizes == {
        "weights": (network, None),
        "EMA teacher": (network, None),
        "optimizer": (trainable + 8, None),  # and its count of steps
        "Q_f": (4 * K * D, (K, D)),
        "alignment window": (4 * 4 * L, (4, L)),
    }
    # Q_l and when slots were written; step, batches in the window; the record:
    # last loss, and two figures of three numbers; four counts of the guard.
    assert rest == (12 * K + 8 + 8 + 4 + 2 * 3 * 4 + 4 * 8, None)


def test_a_checkpoint_takes_what_is_said(simmatch_run, tmp_path):
    algorithm, found = simmatch_run
    checkpoint = tf.train.Checkpoint(algorithm=algorithm)
    checkpoint.write(str(tmp_path / "one"))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    total = sum(each.bytes for each in found.memory)
    # Above the arrays there are their names, a few hundred bytes each.
    arrays = len(tf.train.list_variables(str(tmp_path / "one")))
    assert total < size < total + 1000 * arrays
    assert 1000 * arrays < 0.2 * total  # or the check above says little


@pytest.mark.parametrize(
    ("changes", "form", "views"),
    [
        ({"targets_from": "teacher"}, "teacher", (8 + 24, 8 + 24)),
        ({"targets_from": "student"}, "student", (8 + 24 + 24, 0)),
        ({"weak_forward": "separate"}, "student", (8 + 24, 24)),
        ({"algorithm": "supervised"}, None, (8, 0)),
    ],
)
def test_a_step(changes, form, views):
    _, found = make(**changes)
    assert found.form == form
    assert (found.student_views, found.forward_views) == views
    supervised = changes.get("algorithm") == "supervised"
    assert found.unlabeled_batch == (0 if supervised else 24)
    assert ("projection_head" in parameters(found)) != supervised
    names = {each.name for each in found.memory}
    assert ("Q_f" in names) == ("alignment window" in names) == (not supervised)


def test_a_step_of_the_users_own():
    _, found = make(custom=OwnStep, algorithm="custom")
    assert (found.student_views, found.forward_views) == (None, None)
    assert found.algorithm == "custom" and found.form is None


def test_what_stands_there(simmatch_run):
    _, found = simmatch_run
    assert (found.dataset, found.backbone, found.keep) == (
        "digits",
        "wrn_10_1",
        2,
    )
    assert (found.image_shape, found.num_classes, found.slots) == (SHAPE, L, K)
    written = text.table(found)
    assert "Q_f [20, 16]" in written
    assert f"{BACKBONE + CLASSIFIER:,}" in written
    assert max(map(len, written.splitlines())) <= 80


def test_a_variable_that_is_kept_twice_counts_once(simmatch_run):
    algorithm, found = simmatch_run
    algorithm.again = [algorithm.student.variables[0].value]
    try:
        memory = tuple(description._memory(algorithm))
    finally:
        del algorithm.again
    assert memory == found.memory


def test_nothing_is_trained(simmatch_run):
    algorithm, _ = simmatch_run
    before = [v.numpy() for v in algorithm.student.variables]
    description.describe(
        CONFIG,
        algorithm,
        dataset="digits",
        image_shape=SHAPE,
        num_classes=L,
        slots=K,
    )
    for value, variable in zip(
        before, algorithm.student.variables, strict=True
    ):
        np.testing.assert_array_equal(value, variable.numpy())
    assert int(algorithm.step) == 0
