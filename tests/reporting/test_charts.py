import math

import PIL.Image
import pytest

from simmatch_tf.reporting import chart_figure, charts, runs
from tests.reporting import written

CHARTS = {chart.name: chart for chart in charts.CHARTS}
NAN = math.nan


def groups(*folders):
    return runs.group(
        [runs.read(p) for p in runs.find(list(map(str, folders)))]
    )


def test_a_running_mean():
    """Of three: at the ends of two; what is not finite is in none."""
    found = charts.Curve([1, 2, 3, 4, 5], [1.0, 2.0, 6.0, 4.0, 5.0])
    assert charts.smooth(found, 3).values == [1.5, 3.0, 4.0, 5.0, 4.5]
    assert charts.smooth(found, 1) == found
    found = charts.Curve([1, 2, 3, 4, 5], [1.0, 2.0, NAN, 4.0, 5.0])
    values = charts.smooth(found, 3).values
    assert values[:2] == [1.5, 1.5] and values[3:] == [4.5, 4.5]
    assert math.isnan(values[2])
    # A spike is in no mean but its neighbours'; a short curve stays short.
    found = charts.Curve([*range(6)], [1e30, 1.0, 1.0, 1.0, 1.0, 3.0])
    assert charts.smooth(found, 3).values[2:] == [1.0, 1.0, 5 / 3, 2.0]
    assert charts.smooth(charts.Curve([1, 2], [1.0, 3.0]), 9).values == [2, 2]


def test_a_mean_is_of_the_steps_that_all_have():
    found = charts.mean(
        [
            charts.Curve([1, 2, 3], [1.0, 2.0, NAN]),
            charts.Curve([2, 3, 4], [4.0, 6.0, 8.0]),
        ]
    )
    assert found.steps == [2, 3] and found.values[0] == 3.0
    assert math.isnan(found.values[1])
    apart = [charts.Curve([1], [1.0]), charts.Curve([2], [1.0])]
    assert charts.mean(apart) is None


def test_how_much_is_averaged(tmp_path):
    """151 points of a loss: 3; evaluations are never averaged."""
    curves = {
        "loss/total": {step: 1.0 for step in range(151)},
        "test/ema_top1": {step: 0.5 for step in range(151)},
    }
    found = groups(written.run(tmp_path / "a", curves=curves))
    assert charts.window(CHARTS["losses"], found) == 3
    assert charts.window(CHARTS["accuracy"], found) == 1
    assert charts.window(CHARTS["pseudo_labels"], found) == 1
    for tag in (charts.RECORD, "test/ema_top1", "validation/student_top1"):
        assert not charts.is_noisy(tag)
    assert charts.is_noisy("pseudo_label/accuracy")


def drawn(monkeypatch):
    """What is plotted: steps, values and the look of each line."""
    seen = []
    monkeypatch.setattr(
        chart_figure, "_plot", lambda axes, found, **look: seen.append(
            (found.steps, found.values, look)
        )
    )  # fmt: skip
    return seen


def test_what_is_drawn_of_a_group(tmp_path, monkeypatch):
    """Two seeds thin, their mean thick; an unfinished one does not cut it."""
    folders = [
        written.run(
            tmp_path / f"sim{seed}",
            top1,
            {"test/ema_top1": points},
            seed=seed,
        )
        for seed, (top1, points) in enumerate(
            [
                (0.7, {15: 0.2, 30: 0.4}),
                (0.7, {15: 0.4, 30: 0.8}),
                (None, {15: 0.9}),
            ]
        )
    ]
    seen = drawn(monkeypatch)
    panel = CHARTS["pseudo_labels"].panels[2]
    chart_figure.svg(panel, groups(*folders), 3)
    lines = [values for _, values, _ in seen]
    assert lines == [
        pytest.approx([20, 40]),
        pytest.approx([40, 80]),
        pytest.approx([90]),
        pytest.approx([30, 60]),
    ]
    widths = [look["linewidth"] for _, _, look in seen]
    assert max(widths[:3]) < widths[3]
    assert {look["color"] for _, _, look in seen} == {chart_figure.COLOURS[0]}


def test_colours_and_styles(tmp_path, monkeypatch):
    one = written.run(tmp_path / "a")
    other = written.run(tmp_path / "b", alpha=0.5)
    panel = CHARTS["accuracy"].panels[0]
    seen = drawn(monkeypatch)
    chart_figure.svg(panel, groups(one, other), 1)
    looks = [(look["color"], look["linestyle"]) for *_, look in seen]
    first, second = chart_figure.COLOURS[:2]
    assert looks == [(first, "-"), (second, "-"), (first, "--"), (second, "--")]
    seen.clear()
    chart_figure.svg(panel, groups(one), 1)
    looks = [(look["color"], look["linestyle"]) for *_, look in seen]
    assert looks == [(first, "-"), (second, "-")]


def test_panels_without_values_are_left_out(tmp_path):
    curves = {"loss/total": {1: 2.0}, "loss/s": {1: NAN, 2: math.inf}}
    found = groups(written.run(tmp_path / "a", curves=curves))
    panels = chart_figure.present(CHARTS["losses"], found)
    assert [panel.title for panel in panels] == ["total"]
    assert chart_figure.present(CHARTS["memory"], found) == []
    assert not chart_figure.save(CHARTS["memory"], found, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_pictures(tmp_path):
    """Long curves with gaps, names that look like formulas, two columns."""
    curves = {
        tag: {
            step: NAN if step % 97 == 0 else float(step) for step in range(3000)
        }
        for tag in ("loss/total", "loss/s", "loss/u", "loss/in")
    }
    name = r"$\badmacro$ & <b>"
    a = f"{name}={written.run(tmp_path / 'a', curves=curves)}"
    b = written.run(tmp_path / "b", curves=curves, alpha=0.5)
    found = groups(a, b)
    assert chart_figure.save(CHARTS["losses"], found, tmp_path / "x.png")
    with PIL.Image.open(tmp_path / "x.png") as image:
        assert image.size == (1260, 885)
    panel = CHARTS["losses"].panels[0]
    text = chart_figure.svg(panel, found, 61)
    assert text == chart_figure.svg(panel, found, 61)
    assert len(text) < 100_000  # of 6,000 points
    assert chart_figure.words(panel, found) == (
        f"total, loss, over steps. Last: {name} 2999; b 2999."
    )
