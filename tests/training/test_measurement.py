"""What a measurement adds up, on a clock of the test's own."""

import types

import numpy as np
import pytest

from simmatch_tf.training import measurement


class Clock:
    """Seconds that pass only where something is done."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def passing(self, start, each):
        """A function of images and indices that takes so long."""

        def act(*arguments):
            self.now += start + each * len(arguments[-1])

        return act


@pytest.mark.parametrize(
    "expected, init_from, seconds",
    # 3 s and 10 ms an image, of 20 and of 2,000 images; with the features 5 s
    # and 20 ms more.
    [(False, None, 0.0), (True, None, 26.2), (True, "run", 26.2 + 50.4)],
)
def test_start_of_the_baselines_by_hand(
    expected, init_from, seconds, monkeypatch
):
    clock = Clock()
    monkeypatch.setattr(measurement, "time", clock)
    one = object.__new__(measurement._Measurement)
    one._config = types.SimpleNamespace(init_from=init_from)
    one._workers = types.SimpleNamespace(agree=int)
    one._evaluator = types.SimpleNamespace(features=clock.passing(5.0, 0.02))
    one._parts = types.SimpleNamespace(
        baselines=types.SimpleNamespace(
            expected=lambda: expected,
            sets=[(None, np.arange(20)), (None, np.arange(2000))],
            pixels=clock.passing(3.0, 0.01),
        )
    )
    assert one._baselines(12.0) == pytest.approx(seconds)
    # It took but a part of that: at most five batches of a set.
    assert clock.now < 2 * seconds + 1e-9


def test_a_run_without_images_to_score_on_has_no_evaluation():
    one = object.__new__(measurement._Measurement)
    one._parts = types.SimpleNamespace(scored=(None, np.zeros(0, int)))
    assert one._evaluation(12.0) == (0.0, 0.0)
