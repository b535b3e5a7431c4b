"""What is written, and that it changes nothing."""

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf.flags.errors import InputError
from simmatch_tf.monitoring import pictures, tensorboard_writer
from simmatch_tf.reporting import runs as saved_runs
from tests import runs
from tests.training import test_loop


@pytest.mark.slow
def test_without_summaries_it_is_the_same_run(finished_run, tmp_path):
    runs.fit(tmp_path / "run", summaries=False)
    assert not (tmp_path / "run" / "tensorboard").exists()
    test_loop.assert_same_run(finished_run[0], tmp_path / "run", 6)


@pytest.mark.slow
def test_without_summaries_in_loops_it_is_the_same_run(finished_run, tmp_path):
    runs.fit(tmp_path / "run", summaries=False, steps_per_loop=7)
    test_loop.assert_same_run(finished_run[0], tmp_path / "run", 6)


@pytest.mark.slow
@pytest.mark.parametrize("summaries", [True, False])
def test_nothing_to_see_in_loops(summaries, tmp_path):
    """Labels alone: their steps have no pseudo-labels to watch."""
    changes = {"algorithm": "supervised", "steps_per_loop": 7}
    result = runs.fit(tmp_path / "run", summaries=summaries, **changes)
    assert result.steps == 6


@pytest.mark.slow
def test_often_and_in_loops_it_is_the_same_run(finished_run, tmp_path):
    changes = {"log_every": 1, "picture_every": 2, "steps_per_loop": 3}
    runs.fit(tmp_path / "run", **changes)
    test_loop.assert_same_run(finished_run[0], tmp_path / "run", 6)
    names = {p.name for p in (tmp_path / "run" / "tensorboard").iterdir()}
    assert {"memory.bytes", "memory.tsv", "memory.png"} < names
    assert "projector_config.pbtxt" in names
    tags = saved_runs.read_scalars(tmp_path / "run" / "tensorboard").keys()
    # Inside a loop nobody sees how long it waits.
    assert "speed/images_per_second" in tags and "speed/input_wait" not in tags


@pytest.mark.slow
def test_the_event_file_cannot_be_written(tmp_path):
    (tmp_path / "tensorboard").write_text("in the way")
    with pytest.raises(InputError, match="tensorboard: cannot be written"):
        runs.fit(tmp_path)


@pytest.mark.slow
def test_images_whose_classes_are_not_known(tmp_path):
    """Of the user's own images: no accuracies, all else."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [24, 8, 8, 3], dtype=np.uint8)
    labels = np.where(np.arange(24) < 8, np.arange(24) % 2, -1)
    source = simmatch_tf.Source(
        "own",
        ["a\tb", "$c$ | <d>"],
        simmatch_tf.Images(images, labels),
        simmatch_tf.Images(images[:8], labels[:8]),
        flip=True,
    )
    config = runs.config(
        tmp_path, dataset="custom", image_size=None, labels=8, batch_size=4
    )
    simmatch_tf.fit(config, source=source)
    from tensorboard.backend.event_processing import event_accumulator

    accumulator = event_accumulator.EventAccumulator(
        str(tmp_path / "tensorboard")
    )
    accumulator.Reload()
    tags = set(accumulator.Tags()["tensors"])
    assert "pseudo_label/confidence" in tags and "pictures/views" in tags
    assert not {t for t in tags if "accuracy" in t or "sure" in t}
    table = (tmp_path / "tensorboard" / "memory.tsv").read_text()
    assert table.splitlines()[1] == "a b\t0"


def test_slots_to_show():
    filled = np.ones(10_000, bool)
    filled[:7] = False
    slots = tensorboard_writer.shown_slots(filled)
    assert len(slots) == tensorboard_writer._MAX_POINTS == len(set(slots))
    assert slots[0] == 7 and slots[-1] == 9_999
    assert tensorboard_writer.shown_slots(filled[:9]).tolist() == [7, 8]


def test_the_projector_s_files_replace_those_before(tmp_path):
    features = np.eye(3, dtype=np.float32)
    images = [np.zeros([4, 4, 1], np.uint8)] * 3
    names = ["a\tb", "", "c"]
    tensorboard_writer.write_embeddings(
        tmp_path, features, ["x", "y", "z"], names, images
    )
    before = (tmp_path / "memory.png").read_bytes()
    tensorboard_writer.write_embeddings(
        tmp_path, 2 * features, ["x", "y", "z"], names, None
    )
    assert (tmp_path / "memory.png").read_bytes() == before
    rows = np.fromfile(tmp_path / "memory.bytes", "<f4").reshape(3, 3)
    np.testing.assert_array_equal(rows, 2 * features)
    assert (tmp_path / "memory.tsv").read_text() == (
        "class\timage\nx\ta b\ny\t-\nz\tc\n"
    )
    assert not list(tmp_path.glob(".tmp-*"))


def test_pictures_without_summaries():
    with pytest.raises(InputError, match="--nosummaries writes no pictures"):
        runs.config("unused", picture_every=5, summaries=False)


@pytest.mark.slow
def test_pictures_of_a_memory_that_is_not_full(tmp_path, monkeypatch):
    drawn = []
    draw = pictures.neighbors
    monkeypatch.setattr(
        pictures,
        "neighbors",
        lambda images, near, names: (
            drawn.extend(near) or draw(images, near, names)
        ),
    )
    # None is written before the first step, four before the second.
    runs.fit(tmp_path / "run", steps=2, picture_every=1, batch_size=4)
    assert [len(near) for near in drawn] == [0] * 8 + [4] * 8
    assert all(np.isfinite(one.cosine) for near in drawn for one in near)
