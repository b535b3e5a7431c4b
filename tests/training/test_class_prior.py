"""The class shares that alignment aims at, from the flag to the result."""

import json

import numpy as np
import pytest

import simmatch_tf
from simmatch_tf.data import splits
from simmatch_tf.data.sources import digits
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import inputs, loop, state
from simmatch_tf.training import workdir as workdir_lib
from tests import runs

SOURCE = digits.load(8)
DIGITS = [str(number) for number in range(10)]
# Shares of the classes "0" to "9".
SHARES = [0.28, *[0.08] * 9]


@pytest.fixture
def shares(tmp_path):
    path = tmp_path / "shares.csv"
    lines = [f"{n},{s}" for n, s in zip(DIGITS, SHARES, strict=True)]
    path.write_text("\n".join(lines[::-1]))  # in any order
    return path


def prior(folder, indices=range(40), **changes):
    split = splits.Split(np.asarray(indices), np.zeros(0, int), np.arange(100))
    config = runs.config(folder, **changes)
    return inputs.class_prior(
        config, SOURCE, split, workdir_lib.Workdir(folder)
    )


def test_shares_of_the_labeled_images(tmp_path):
    (zeros,) = np.nonzero(SOURCE.train.labels == 0)
    others = [np.flatnonzero(SOURCE.train.labels == n)[0] for n in range(1, 10)]
    chosen = [*zeros[:11], *others]
    assert prior(tmp_path, chosen, class_prior="labeled") == pytest.approx(
        [0.55, *[0.05] * 9]
    )
    assert prior(tmp_path, chosen) is None
    assert prior(tmp_path, chosen, algorithm="supervised") is None


def test_shares_in_a_file(shares, tmp_path):
    values = prior(tmp_path, class_prior=str(shares))
    assert values == pytest.approx(SHARES)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("", "gives no share of the class '9'; 9 of the 10 classes of digits"),
        ("nine,0.08", "digits has no class 'nine'"),
    ],
)
def test_classes_of_the_file_are_those_of_the_dataset(last, message, tmp_path):
    path = tmp_path / "shares.csv"
    lines = [f"{n},{s}" for n, s in zip(DIGITS, SHARES, strict=True)]
    lines[0] = "0,0.28" if last else "0,0.36"
    path.write_text("\n".join([*lines[:-1], last]))
    with pytest.raises(InputError) as caught:
        prior(tmp_path, class_prior=str(path))
    assert message in str(caught.value)


def test_a_run_that_has_begun_keeps_its_shares(tmp_path):
    folder = workdir_lib.Workdir(tmp_path)
    split = splits.Split(np.arange(20), np.zeros(0, int), np.arange(100))
    splits.write(folder.split, split, SOURCE, SHARES)
    folder.results.touch()  # it has begun
    assert prior(tmp_path, class_prior="gone.csv") == SHARES
    content = json.loads(folder.split.read_text())
    content["class_prior"] = SHARES[1:]
    folder.split.write_text(json.dumps(content))
    with pytest.raises(InputError, match="differ in length"):
        prior(tmp_path, class_prior="gone.csv")


@pytest.mark.slow
def test_a_run_aligned_with_a_file(shares, tmp_path, finished_run, monkeypatch):
    changes = {"class_prior": str(shares)}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = runs.fit(whole, **changes)
    assert result.class_prior == pytest.approx(SHARES)
    _, uniform = finished_run
    assert uniform.class_prior is None and result.loss != uniform.loss
    algorithm, _, _ = state.restore(whole)
    np.testing.assert_allclose(algorithm.align.prior, SHARES, rtol=1e-6)
    # Dies after step 3, and goes on without the file.
    evaluate = loop._Run._evaluate

    def die(self, step):
        if step == 3:
            raise RuntimeError("killed")
        evaluate(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_evaluate", die)
        with pytest.raises(RuntimeError, match="killed"):
            runs.fit(broken, **changes)
    text = shares.read_text()
    shares.write_text(
        text.replace("0,0.28", "0,0.18").replace("9,0.08", "9,0.18")
    )
    with pytest.raises(InputError, match="--class_prior"):
        runs.fit(broken, **changes)
    shares.unlink()
    runs.fit(broken, **changes)
    assert runs.began_after(broken) == 2
    first, second = (
        json.loads((folder / "results.json").read_text())
        for folder in (whole, broken)
    )
    assert first == second
    # What it aims at is a part of what it is.
    with pytest.raises(InputError, match="--class_prior is"):
        runs.fit(broken, class_prior="uniform")


@pytest.mark.slow
def test_equal_labels_are_a_uniform_prior(tmp_path, finished_run):
    result = runs.fit(tmp_path / "run", class_prior="labeled")
    assert result.class_prior == [0.1] * 10
    uniform = finished_run[1]
    assert (result.loss, result.ema) == (uniform.loss, uniform.ema)
    networks = [
        simmatch_tf.load(folder)
        for folder in (tmp_path / "run", finished_run[0])
    ]
    for one, other in zip(
        *(network.weights for network in networks), strict=True
    ):
        np.testing.assert_array_equal(one, other)
