"""The tools run, and print what they measured."""

import importlib.util
import json
import pathlib
import sys

import pytest
from absl import flags

from tests import runs

TOOLS = pathlib.Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch):
    """Loads a tool by name; its flags are gone after the test."""
    before = set(flags.FLAGS)

    def load(name, *words):
        spec = importlib.util.spec_from_file_location(
            name, TOOLS / f"{name}.py"
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [name, *words])
        return module

    yield load
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


@pytest.mark.slow
def test_benchmark_step(tool, tmp_path, capsys):
    output = tmp_path / "x.json"
    words = runs.argv(tmp_path / "run")
    tool(
        "benchmark_step", "--rounds=2", "--noallocator", *words,
        f"--output={output}",
    ).main()  # fmt: skip
    medians = json.loads(output.read_text())["median_seconds"]
    assert set(medians) == {
        "step",
        "network",
        "matching and losses",
        "optimizer",
        "EMA",
        "memory",
        "input (in parallel)",
    }
    assert all(seconds > 0 for seconds in medians.values())
    assert "matching, losses, EMA, memory" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_tuning_source_holds_no_test_image(tool):
    from simmatch_tf.data import digits

    source = tool("tune_digits").source(8)
    full = digits.load(8)
    assert len(source.train) == 1200 and len(source.test) == 200
    test = {image.tobytes() for image in full.test.images}
    seen = [i.tobytes() for i in source.train.images]
    held = [i.tobytes() for i in source.test.images]
    train = sorted(i.tobytes() for i in full.train.images)
    assert sorted(seen + held) == train
    assert len(test & set(held)) <= 2  # images that are equal by chance


def test_digits_table(tool):
    def cell(seed, top1):
        return {
            "seed": seed,
            "top1": top1,
            "student_top1": top1 - 0.01,
            "ema_top1": top1,
            "weights_of_record": "ema",
            "steps": 400,
            "wall_seconds": 100.0,
        }

    module = tool("digits_table")
    cells = {name: [cell(0, 0.97), cell(1, 0.99)] for name in module.ROWS}
    line = module.markdown(cells).splitlines()[2]
    assert "| 400 | **98.0 ± 1.4** | 97.0 | 97.0 / 98.0 | 100 |" in line


def test_check_wheel(tool, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("simmatch_tf/odd.py", "")
    with pytest.raises(SystemExit, match="missing .*unexpected .*odd.py"):
        tool("check_wheel", str(tmp_path / "x.whl")).main()
