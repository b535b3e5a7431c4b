"""What the README says is so."""

import dataclasses
import importlib
import pathlib
import re

import numpy as np
import PIL.Image
import pytest
import readme_command

import simmatch_tf
from simmatch_tf import config as config_lib
from simmatch_tf import (
    evaluate,
    experiment,
    export,
    export_pytorch,
    import_pytorch,
    predict,
    report,
    serve_data,
    transfer,
)
from simmatch_tf.experiments import plan, summary
from simmatch_tf.experiments import store as store_lib
from simmatch_tf.reporting import comparison

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


SMALL = "steps=2, batch_size=4, unlabeled_ratio=2, image_size=8"


@pytest.mark.slow
def test_the_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe, *own = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len(own) == 2
    for example in own:
        assert len([x for x in example.splitlines() if x]) < 15
        exec(example.replace("steps=200", SMALL), {})
    assert (tmp_path / "runs" / "mine" / "results.json").is_file()
    assert (tmp_path / "runs" / "default" / "results.json").is_file()
    # The first with its recipe's run made short.
    made = simmatch_tf.Config.from_flagfile
    monkeypatch.setattr(
        simmatch_tf.Config,
        "from_flagfile",
        lambda path: dataclasses.replace(
            made(path), steps=2, batch_size=4, backbone="wrn_10_1"
        ),
    )
    (tmp_path / "photos").mkdir()
    pixels = np.arange(3 * 40 * 30, dtype=np.uint32).reshape(40, 30, 3) % 251
    image = PIL.Image.fromarray(pixels.astype(np.uint8))
    image.save(tmp_path / "photos" / "a.jpg")
    names = {}
    exec(recipe, names)
    assert capsys.readouterr().out.startswith("a.jpg  ")
    assert names["result"].steps == 2
    assert "logits" in names["model"].output


def test_every_flag_it_names_exists():
    names = set(re.findall(r"`--(\w+)", TEXT))
    names -= {"flagfile", "help", "helpfull", "full", "verbosity"}
    # TensorFlow Serving's own.
    names -= {"enable_batching", "model_config_file"}
    fields = {
        name
        for kind in (
            config_lib.Config,
            evaluate.EvaluateConfig,
            experiment.ExperimentConfig,
            export.ExportConfig,
            export_pytorch.ExportPytorchConfig,
            import_pytorch.ImportPytorchConfig,
            predict.PredictConfig,
            report.ReportConfig,
            serve_data.ServeDataConfig,
            transfer.TransferConfig,
        )
        for name in kind.__dataclass_fields__
    }
    fields |= {f"no{name}" for name in fields}
    assert names <= fields, names - fields


@pytest.mark.parametrize("name", re.findall(r"<!-- (slides\w+) -->", TEXT))
def test_its_tables_are_the_tool_s(name):
    """Written from the finished runs in tools/results/, not by hand."""
    what = plan.read(f"configs/plans/{name}.cfg")
    store = store_lib.Store(ROOT / "tools" / "results")
    found = summary.compare(what, what.cells(), store)
    assert found.scores
    start, end = summary.place(TEXT, name)
    assert TEXT[start:end].strip() == comparison.markdown(found)


def test_its_plan_is_one(tmp_path):
    (text,) = re.findall(r"```\n(\[plan\]\n.*?)```", TEXT, re.S)
    path = tmp_path / "mine.cfg"
    path.write_text(text)
    assert len(plan.read(str(path)).cells()) == 3 * 3 * 2


def test_every_file_and_function_it_names_exists():
    for path in re.findall(r"`((?:configs|tests|tools)/[\w/.]+)`", TEXT):
        assert (ROOT / path).exists(), path
    for dotted in re.findall(r"`((?:ops|modules|algorithms)\.[\w.]+)`", TEXT):
        names = dotted.split(".")
        found = importlib.import_module(".".join(["simmatch_tf", *names[:2]]))
        for name in names[2:]:
            found = getattr(found, name)


def test_the_first_screen_has_the_two_commands():
    commands = readme_command.commands()
    assert len(commands) == 2
    assert "simmatch_tf.train --flagfile=configs/digits_40.cfg" in commands[0]
    assert commands[1].endswith("-m pytest")
