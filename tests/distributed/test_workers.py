"""What the workers of one run tell each other."""

import json
import pathlib
import re
import subprocess

import numpy as np
import pytest
import tensorflow as tf

import simmatch_tf
from simmatch_tf import config as config_lib
from simmatch_tf.data import splits
from simmatch_tf.data.sources import digits
from simmatch_tf.distributed import workers as workers_lib
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import results
from tests import runs

ROOT = pathlib.Path(__file__).resolve().parents[2]
KNOWN = {"the images": "a", "the labels": "b"}


def made(strategy):
    return workers_lib.Workers(
        strategy, config_lib.Config(labels=10, steps=1, strategy="one")
    )


@pytest.fixture
def told(two_replicas, monkeypatch):
    """This worker is `index` of three; the others tell what is given."""

    def make(index, *others):
        workers = made(two_replicas)
        workers.count, workers.chief = 3, index == 0

        def gather(values):
            rows = [*others]
            rows.insert(index, values)
            return np.array(rows, np.int64)

        monkeypatch.setattr(workers, "gather", gather)
        return workers

    return make


def test_every_worker_has_a_row(two_replicas):
    """Its first replica fills it: here both are replicas of one worker."""
    workers = made(two_replicas)
    big = 2**60 - 1
    np.testing.assert_array_equal(workers.gather([big, 5]), [[big, 5]])
    rows = workers._gather(tf.constant([big, 5], tf.int64))
    for row in two_replicas.experimental_local_results(rows):
        np.testing.assert_array_equal(row, [[big, 5]])


def test_a_worker_s_first_replica_fills_its_row():
    rows = [workers_lib._row(tf.range(6), each) for each in (1, 2, 3)]
    np.testing.assert_array_equal(
        rows,
        [[0, 1, 2, 3, 4, 5], [0, -1, 1, -1, 2, -1], [0, -1, -1, 1, -1, -1]],
    )


def test_a_folder_that_is_not_shared(told, tmp_path):
    """It ends the others, too, with a status that no start mends."""
    files = [tmp_path / "flags.cfg"]  # not there
    seen = workers_lib._number("--steps=3")
    with pytest.raises(InputError, match="worker 1 .* a folder they share"):
        told(1, [seen], [seen]).same_folder(tmp_path, files)
    files[0].write_text("--steps=3")
    told(1, [seen], [seen]).same_folder(tmp_path, files)


def test_all_know_the_same(told):
    one = [workers_lib._number(text) for text in KNOWN.values()]
    told(1, one, one).same(KNOWN)


@pytest.mark.parametrize("index", [0, 1])
def test_a_worker_that_knows_otherwise_ends_all(told, index):
    """The last does; all, itself too, say the same of it."""
    one = [workers_lib._number(text) for text in KNOWN.values()]
    with pytest.raises(
        InputError, match=r"^worker 2 and the chief .* differ in the images\. "
    ):
        told(index, one, [0, one[1]]).same(KNOWN)


def test_one_that_fails_ends_all(told):
    with pytest.raises(InputError, match="^the chief cannot go on: its own"):
        told(2, [1], [0]).by_each(lambda: "x")
    with pytest.raises(InputError, match="^worker 1 cannot go on: its own"):
        told(0, [1], [0]).by_chief(lambda: 3)

    def fail():
        raise InputError("why")

    with pytest.raises(InputError, match="^why$"):
        told(0, [0], [0]).by_each(fail)
    assert told(0, [0], [0]).by_chief(lambda: 3) == 3
    # Only the chief acts.
    assert told(1, [0], [0]).by_chief(fail) == 0


def write_images(folder, seed):
    """A folder of images: their number, names and sizes are of no seed."""
    rng = np.random.default_rng(seed)
    names = [f"labeled/{c}/{n}.bmp" for c in "ab" for n in range(3)]
    names += [f"test/{c}/0.bmp" for c in "ab"]
    names += [f"unlabeled/{n}.bmp" for n in range(8)]
    for name in names:
        pixels = rng.integers(0, 256, [16, 16, 3], np.uint8)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bitmap(pixels))


def bitmap(pixels):
    """An uncompressed BMP of pixels [H, W, 3], W a multiple of 4."""
    height, width, _ = pixels.shape
    header = (
        b"BM"
        + np.array(
            [54 + pixels.nbytes, 0, 54, 40, width, height], "<u4"
        ).tobytes()
    )
    header += np.array([1, 24], "<u2").tobytes() + bytes(24)
    return header + pixels.tobytes()


def of_images(folder, number):
    write_images(folder / "data", number)
    return {"dataset": "folder", "data_dir": "data", "labels": None}


def of_splits(folder, number):
    source = digits.load(8)
    split = splits.draw(
        source,
        labels=20,
        label_fraction=None,
        split_seed=number,
        validation_fraction=0.0,
        unlabeled_includes_labeled=True,
    )
    splits.write(folder / "split.json", split, source)
    return {"split_file": "split.json", "labels": None}


def of_weights(folder, number):
    (folder / "first.weights.h5").write_bytes(b"weights %d" % number)
    return {"init_from": "first.weights.h5"}


def of_damage(folder, number):
    write_images(folder / "data", 0)
    if number:
        (folder / "data/unlabeled/3.bmp").write_bytes(b"BM")
    return {"dataset": "folder", "data_dir": "data", "labels": None}


@pytest.mark.slow
def test_the_chief_keeps_the_baseline(first_weights, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    import local_workers

    flags = {"init_from": str(first_weights), "baselines": True, "steps": 2}
    started = local_workers.start(
        2,
        runs.argv(tmp_path / "run", **flags),
        stderr=subprocess.PIPE,
        text=lambda index: True,
    )
    try:
        errors = [process.communicate(timeout=600)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert [process.returncode for process in started] == [0, 0], errors
    kept = "test images; kept: predict --weights=baseline"
    assert [kept in text for text in errors] == [True, False]
    result = results.read(tmp_path / "run" / "results.json")
    assert len(result.baselines) == 4
    # One worker alone finds the same.
    content = json.loads((tmp_path / "run" / "baselines.json").read_text())
    right = [digit == "1" for digit in content["baselines"][-1]["right"]]
    test = digits.load(8).test
    model = simmatch_tf.load(tmp_path / "run", weights="baseline")
    logits = model(test.images, training=False)["logits"].numpy()
    np.testing.assert_array_equal(logits.argmax(axis=1) == test.labels, right)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "message"),
    [
        (of_images, "worker 1 and the chief .* differ in the images. Give"),
        (of_splits, "worker 1 and the chief .* differ in which images are"),
        (of_weights, "worker 1 and the chief .* differ in the weights of"),
        (of_damage, "worker 1 cannot go on"),
    ],
)
def test_workers_on_different_data(of, message, tmp_path, monkeypatch):
    """A path is the same text for both, and another folder."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    import local_workers

    folders = [tmp_path / "chief", tmp_path / "other"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        changes = of(folder, number)
    started = local_workers.start(
        2,
        runs.argv(tmp_path / "run", **changes),
        cwd=lambda index: folders[index],
        stderr=subprocess.PIPE,
        text=lambda index: True,
    )
    try:
        errors = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert [process.returncode for process in started] == [1, 1], errors
    last = [text.splitlines()[-1] for text in errors]
    assert "Traceback" not in "".join(errors)
    assert re.search(message, last[0]), errors
    if of is of_damage:
        assert "3.bmp" in last[1]
    else:
        assert last[0] == last[1]
    assert not (tmp_path / "run" / "checkpoints").exists()
