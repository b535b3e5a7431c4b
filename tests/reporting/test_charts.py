import math

from simmatch_tf.reporting import charts
from tests.reporting import written

CHARTS = {chart.name: chart for chart in charts.CHARTS}
NAN = math.nan


def test_running_mean():
    """Over three points, two at the ends; non-finite values have no part."""
    curve = charts.Curve([1, 2, 3, 4, 5], [1.0, 2.0, 6.0, 4.0, 5.0])
    assert charts.smooth(curve, 3).values == [1.5, 3.0, 4.0, 5.0, 4.5]
    assert charts.smooth(curve, 1) == curve
    curve = charts.Curve([1, 2, 3, 4, 5], [1.0, 2.0, NAN, 4.0, 5.0])
    values = charts.smooth(curve, 3).values
    assert values[:2] == [1.5, 1.5] and values[3:] == [4.5, 4.5]
    assert math.isnan(values[2])
    # A spike affects its neighbors alone; a short curve stays short.
    curve = charts.Curve([*range(6)], [1e30, 1.0, 1.0, 1.0, 1.0, 3.0])
    assert charts.smooth(curve, 3).values[2:] == [1.0, 1.0, 5 / 3, 2.0]
    assert charts.smooth(charts.Curve([1, 2], [1.0, 3.0]), 9).values == [2, 2]


def test_mean_at_the_steps_that_all_curves_have():
    mean_curve = charts.mean(
        [
            charts.Curve([1, 2, 3], [1.0, 2.0, NAN]),
            charts.Curve([2, 3, 4], [4.0, 6.0, 8.0]),
        ]
    )
    assert mean_curve.steps == [2, 3] and mean_curve.values[0] == 3.0
    assert math.isnan(mean_curve.values[1])
    apart = [charts.Curve([1], [1.0]), charts.Curve([2], [1.0])]
    assert charts.mean(apart) is None


def test_window_of_the_running_mean(tmp_path):
    """151 points of a loss give 3; evaluations are never averaged."""
    curves = {
        "loss/total": {step: 1.0 for step in range(151)},
        "test/ema_top1": {step: 0.5 for step in range(151)},
    }
    groups = written.groups(written.run(tmp_path / "a", curves=curves))
    assert charts.window(CHARTS["losses"], groups) == 3
    assert charts.window(CHARTS["accuracy"], groups) == 1
    assert charts.window(CHARTS["pseudo_labels"], groups) == 1
    for tag in (charts.RECORD, "test/ema_top1", "validation/student_top1"):
        assert not charts.is_noisy(tag)
    assert charts.is_noisy("pseudo_label/accuracy")
