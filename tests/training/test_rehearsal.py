"""What a step costs, before there is a run."""

import dataclasses

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.training import rehearsal
from tests import runs


def test_outline_counts_steps():
    config = runs.config("x", steps=None, epochs=3.0)
    # 1,400 images, 16 of them a step: 87 steps an epoch.
    assert rehearsal.outline(config).steps == 3 * 87
    found = rehearsal.outline(
        dataclasses.replace(config, unlabeled_includes_labeled=False)
    )
    assert found.steps == 3 * (1380 // 16)
    assert (found.slots, found.num_classes) == (20, 10)
    assert found.image_shape == (8, 8, 1)


def test_a_large_dataset_needs_not_be_there(tmp_path):
    found = rehearsal.outline(
        config_lib.Config.from_argv(
            [
                "x",
                "--flagfile=configs/imagenet_1pct.cfg",
                f"--tfds_dir={tmp_path}",
            ]
        )  # fmt: skip
    )
    # 1,268,356 unlabeled images, 320 a step, 400 epochs.
    assert found.steps == 400 * 3963
    assert found.image_shape == (224, 224, 3)


def test_a_dataset_of_unknown_size_needs_steps(monkeypatch):
    config = runs.config("x", steps=None, epochs=3.0)
    found = rehearsal.inputs.outline(config)
    monkeypatch.setattr(
        rehearsal.inputs,
        "outline",
        lambda _: dataclasses.replace(found, train_images=None),
    )
    with pytest.raises(InputError, match="--epochs=3.0 are is not known; give"):
        rehearsal.outline(config)
    assert rehearsal.outline(runs.config("x")).steps == 6


def test_work_is_equal_where_steps_are():
    def work(**changes):
        return rehearsal.outline(runs.config("x", **changes)).work()

    assert work() == work(seed=3, labels=40, alpha=0.5, steps=9)
    for change in (
        {"algorithm": "fixmatch"},
        {"targets_from": "teacher"},
        {"batch_size": 16},
        {"image_size": 16},
        {"backbone": "wrn_10_2"},
    ):
        assert work() != work(**change), change


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["simmatch", "supervised"])
def test_a_step_is_taken(algorithm):
    """Of a small batch, where a whole one is too much."""
    taken = []

    class Stepper(rehearsal.stepping.Stepper):
        def __call__(self, first, count, asked):
            taken.append(first)
            return super().__call__(first, count, asked)

    config = runs.config("x", algorithm=algorithm)
    found = rehearsal.outline(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rehearsal.stepping, "Stepper", Stepper)
        whole = rehearsal.seconds_per_step(
            config, found, pixels=10**6, rounds=2
        )
        part = rehearsal.seconds_per_step(config, found, pixels=1, rounds=1)
        rehearsal.seconds_per_step(
            config, found, pixels=1, rounds=9, patience=0
        )
    assert taken == [1, 2, 3, 4, 1, 2, 3, 1, 2, 3]
    # One labeled image of eight: the time of its step, eight times.
    assert whole > 0 and part > 0
