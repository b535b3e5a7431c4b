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
    "expected, seconds",
    # 3 s and 10 ms an image, of 20 and of 2,000 images.
    [(False, 0.0), (True, 26.2)],
)
def test_start_of_the_baselines_by_hand(expected, seconds, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measurement, "time", clock)
    one = object.__new__(measurement._Measurement)
    one._workers = types.SimpleNamespace(agree=int)
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
