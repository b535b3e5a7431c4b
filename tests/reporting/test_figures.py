import dataclasses
import math
import warnings

import PIL.Image
import pytest

from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import charts, figures
from tests.reporting import test_comparison, test_transfer_table, written

CHARTS = {chart.name: chart for chart in charts.CHARTS}
COMPARED = test_comparison.COMPARED
NAN = math.nan


def drawn(monkeypatch):
    """Records steps, values and style of each plotted line."""
    seen = []
    monkeypatch.setattr(
        figures, "_plot", lambda axes, curve, **look: seen.append(
            (curve.steps, curve.values, look)
        )
    )  # fmt: skip
    return seen


def test_lines_of_a_group(tmp_path, monkeypatch):
    """Runs are thin, their mean is thick, and of finished runs alone."""
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
    figures.panel_svg(panel, written.groups(*folders), 3)
    lines = [values for _, values, _ in seen]
    assert lines == [
        pytest.approx([20, 40]),
        pytest.approx([40, 80]),
        pytest.approx([90]),
        pytest.approx([30, 60]),
    ]
    widths = [look["linewidth"] for _, _, look in seen]
    assert max(widths[:3]) < widths[3]
    assert {look["color"] for _, _, look in seen} == {figures.COLORS[0]}


def test_colors_and_styles(tmp_path, monkeypatch):
    one = written.run(tmp_path / "a")
    other = written.run(tmp_path / "b", alpha=0.5)
    panel = CHARTS["accuracy"].panels[0]
    seen = drawn(monkeypatch)
    figures.panel_svg(panel, written.groups(one, other), 1)
    looks = [(look["color"], look["linestyle"]) for *_, look in seen]
    first, second = figures.COLORS[:2]
    assert looks == [(first, "-"), (second, "-"), (first, "--"), (second, "--")]
    seen.clear()
    figures.panel_svg(panel, written.groups(one), 1)
    looks = [(look["color"], look["linestyle"]) for *_, look in seen]
    assert looks == [(first, "-"), (second, "-")]


def test_panels_without_values_are_left_out(tmp_path):
    curves = {"loss/total": {1: 2.0}, "loss/s": {1: NAN, 2: math.inf}}
    groups = written.groups(written.run(tmp_path / "a", curves=curves))
    panels = figures.present(CHARTS["losses"], groups)
    assert [panel.title for panel in panels] == ["total"]
    assert figures.present(CHARTS["memory"], groups) == []
    assert not figures.save_chart(CHARTS["memory"], groups, tmp_path / "x.png")
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
    groups = written.groups(a, b)
    assert figures.save_chart(CHARTS["losses"], groups, tmp_path / "x.png")
    with PIL.Image.open(tmp_path / "x.png") as image:
        assert image.size == (1260, 885)
    panel = CHARTS["losses"].panels[0]
    text = figures.panel_svg(panel, groups, 61)
    assert text == figures.panel_svg(panel, groups, 61)
    assert len(text) < 100_000  # of 6,000 points


@pytest.mark.parametrize("curves", [False, True])
def test_a_comparison(curves, tmp_path):
    path = tmp_path / "x.svg"
    compared = dataclasses.replace(COMPARED, curves=curves)
    figures.save_comparison(compared, path)
    text = path.read_text()
    for word in ("digits", "FixMatch", "SimMatch", "top-1, %"):
        assert f"<!-- {word} -->" in text  # matplotlib's note of each text


def test_names_are_not_read_as_formulas(tmp_path):
    name = r"$\badmacro$"
    for curves in (False, True):
        compared = dataclasses.replace(
            COMPARED,
            title=name,
            curves=curves,
            places=((name, name),),
            scores=(test_comparison.score(name, 0, 0.5, name),),
        )
        figures.save_comparison(compared, tmp_path / "x.svg")
        assert name in (tmp_path / "x.svg").read_text()


def test_names_that_would_break_a_confusion_matrix():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = figures.confusion_svg([[1, 2], [3, 4]], ["a\tb", "c\nd$x$"])
    assert picture.startswith(b"<?xml")


def test_regularization_strengths(tmp_path):
    fits = [
        {"strength": 10.0**n, "score": 0.1 * n, "converged": n > 1}
        for n in range(5)
    ]
    details = {
        **test_transfer_table.STRENGTH,
        "strength": 1e4,
        "strengths": fits,
    }
    outcomes = [
        test_transfer_table.outcome(f"m{m} $x", f"d{d}", details=details)
        for m in range(2)
        for d in range(4)
    ]
    figures.save_strengths(outcomes, tmp_path / "a.png")
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 1000 and len(image.convert("L").getcolors()) > 9
    with pytest.raises(InputError, match="a.png: cannot be written"):
        figures.save_strengths(outcomes, tmp_path / "no" / "a.png")
