"""--labels_alone: a run before the run, to compare it with."""

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf.data.sources import digits
from simmatch_tf.evaluation import baselines
from simmatch_tf.training import labels_alone, loop
from simmatch_tf.training import workdir as workdir_lib
from tests import runs
from tests.training import test_loop

SHARE = {"labels_alone": 0.5}


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished run of 6 steps, and before it 3 of the labels alone."""
    workdir = tmp_path_factory.mktemp("compared") / "run"
    return workdir, runs.fit(workdir, **SHARE)


def right(workdir):
    test = digits.load(8).test
    logits = simmatch_tf.load(workdir).predict(test.images, verbose=0)["logits"]
    return logits.argmax(1) == test.labels


def test_it_is_the_run_that_its_flags_give(compared, tmp_path):
    workdir, _ = compared
    config = runs.config(
        tmp_path / "alone",
        algorithm="supervised",
        steps=3,
        eval_every=None,
        checkpoint_every=None,
        summaries=False,
        progress=False,
    )
    simmatch_tf.fit(config)
    test_loop.assert_same_run(workdir / "labels_alone", tmp_path / "alone", 3)


def test_the_run_itself_is_the_one_without_it(compared, finished_run):
    workdir, result = compared
    other, without = finished_run
    one, two = (test_loop.tensors(each, 6) for each in (workdir, other))
    for name in two:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    assert result.top1 == without.top1


def test_it_stands_among_the_baselines(compared):
    workdir, result = compared
    alone = right(workdir / "labels_alone")
    (entry,) = result.baselines
    assert entry["name"] == baselines.LABELS_ALONE
    assert entry["top1"] == alone.mean()
    assert result.lead["over"] == baselines.LABELS_ALONE
    difference = right(workdir).astype(float) - alone
    assert result.lead["top1"] == pytest.approx(difference.mean())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["labels_alone/", ""])
def test_killed_and_resumed(compared, tmp_path, monkeypatch, place):
    """In either run: what was done is not done again."""
    workdir, result = compared
    saved = loop._Run._save

    def killed(self, step, where):
        saved(self, step, where)
        inside = self.folder.path.name == workdir_lib.LABELS_ALONE
        if inside == bool(place) and (inside or step < self.config.steps):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop._Run, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            runs.fit(tmp_path / "run", checkpoint_every=2, steps=6, **SHARE)
    before = {
        path: path.stat().st_mtime_ns
        for path in (tmp_path / "run").rglob("labels_alone/results.json")
    }
    assert bool(before) == (not place)
    again = runs.fit(tmp_path / "run", checkpoint_every=2, steps=6, **SHARE)
    assert again == result
    test_loop.assert_same_run(workdir, tmp_path / "run", 6)
    for path, time in before.items():
        assert path.stat().st_mtime_ns == time


@pytest.mark.slow
def test_a_new_run_in_an_old_folder_replaces_it(compared, tmp_path):
    runs.fit(tmp_path / "run", seed=1, **SHARE)
    runs.fit(tmp_path / "run", overwrite=True, **SHARE)
    test_loop.assert_same_run(compared[0], tmp_path / "run", 6)
    runs.fit(tmp_path / "run", overwrite=True)
    assert not (tmp_path / "run" / "labels_alone").exists()


def test_its_failure_does_not_keep_the_run_from_its_result(
    tmp_path, monkeypatch, capsys
):
    train = loop._Run._take_steps

    def broken(self, stepper):
        if self.config.algorithm == "supervised":
            raise FloatingPointError("loss/s is not finite")
        train(self, stepper)

    monkeypatch.setattr(loop._Run, "_take_steps", broken)
    result = runs.fit(tmp_path / "run", **SHARE)
    assert result.baselines == [] and result.lead is None
    shown = capsys.readouterr().err
    assert "not be compared with the labels alone" in shown
    share = SHARE["labels_alone"]
    assert f"--labels_alone={share:g} of the run: loss/s is not fin" in shown


@pytest.mark.parametrize(
    ("changes", "scored", "reason"),
    [
        ({}, 10, None),
        ({}, 0, "no images to measure"),
        ({"algorithm": "supervised"}, 10, "--algorithm=supervised is that"),
        ({"tpu": "local"}, 10, "of a TPU"),
    ],
)
def test_when_it_is_left_out(tmp_path, changes, scored, reason):
    config = runs.config(tmp_path, **SHARE, **changes)
    said = labels_alone.left_out(config, scored)
    assert said == reason if reason is None else reason in said


def test_its_length(tmp_path):
    place = workdir_lib.Workdir(tmp_path / "labels_alone")

    def length(**changes):
        config = runs.config(tmp_path, **SHARE, **changes)
        own = labels_alone.flags(config, place)
        return own.steps, own.epochs, own.minutes, own.measured_steps

    assert length() == (3, None, None, None)
    assert length(steps=1) == (1, None, None, None)
    assert length(steps=None, epochs=3.0) == (None, 1.5, None, None)
    # Its own steps are measured, whatever those of the run are.
    assert length(steps=None, minutes=3.0, measured_steps=9) == (
        None, None, 1.5, None,
    )  # fmt: skip
    assert length(steps=None, minutes=0.15) == (None, None, 0.1, None)
