"""Imports point down the list of layers, never up or sideways."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "simmatch_tf"
LEVELS = {
    "ops": 0,
    "networks": 1,
    "modules": 1,
    "data": 1,
    "algorithms": 2,
    "training": 3,
    "exchange": 4,
    "experiments": 5,
    "protocols": 5,
    "reporting": 4,
    "serving": 4,
}
# Flags and their machinery: at the bottom, for everyone.
EVERYWHERE = {
    "availability",
    "backbones",
    "checks",
    "cluster",
    "command_flags",
    "commandline",
    "config",
    "datasets",
    "errors",
    "flagfiles",
    "operation_flags",
    "preflight",
    "pytorch_flags",
    "runtime",
    "terminal",
    "texts",
    "transfer_flags",
}


def imports(path):
    """(line, module) of every import of this package's own modules."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            parts = node.module.split(".")
            if parts[0] == "simmatch_tf":
                names = (
                    [parts[1]] if parts[1:] else [a.name for a in node.names]
                )
                for name in names:
                    yield node.lineno, name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                if parts[0] == "simmatch_tf" and parts[1:]:
                    yield node.lineno, parts[1]


def wrong(path, folder):
    found = []
    for line, target in imports(path):
        if target in EVERYWHERE or target == folder:
            continue
        if LEVELS[target] >= LEVELS[folder]:
            found.append(f"{path.name}:{line} imports {target}/ from {folder}/")
    return found


@pytest.mark.parametrize("folder", LEVELS)
def test_imports_point_down(folder):
    assert not [
        message
        for path in (PACKAGE / folder).rglob("*.py")
        for message in wrong(path, folder)
    ]


def test_every_folder_has_a_level():
    folders = {
        p.name for p in PACKAGE.iterdir() if (p / "__init__.py").exists()
    }
    assert folders == set(LEVELS)


def test_an_import_that_points_up_is_found(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("from simmatch_tf.training import loop\n")
    assert wrong(path, "ops") == ["x.py:1 imports training/ from ops/"]
    path.write_text("from simmatch_tf import data\n")
    assert wrong(path, "modules") == ["x.py:1 imports data/ from modules/"]
    path.write_text("import simmatch_tf.ops.losses\n")
    assert wrong(path, "modules") == []


def test_only_the_bottom_knows_no_tensorflow():
    """Flags and workdir are checked before TensorFlow is imported."""
    for name in (
        "__init__.py",
        "backbones.py",
        "checks.py",
        "command_flags.py",
        "commandline.py",
        "config.py",
        "datasets.py",
        "errors.py",
        "flagfiles.py",
        "terminal.py",
        "transfer_flags.py",
        "texts.py",
        "data/fingerprint.py",
        "data/listing.py",
        "data/selection.py",
        "data/shards.py",
        "training/workdir.py",
        "training/results.py",
        "training/patterns.py",
        "reporting/chart_figure.py",
        "reporting/charts.py",
        "reporting/confusion_figure.py",
        "reporting/description.py",
        "reporting/predictions.py",
        "reporting/report_page.py",
        "reporting/report_tables.py",
        "reporting/runs.py",
        "reporting/scalars.py",
        "reporting/tables.py",
        "reporting/transfer_figure.py",
        "reporting/transfer_table.py",
        "protocols/knn.py",
        "protocols/linear.py",
        "protocols/scores.py",
        "serving/mistakes.py",
        "serving/outputs.py",
        "serving/review.py",
        "serving/versions.py",
    ):
        text = (PACKAGE / name).read_text()
        assert "import tensorflow" not in text and "import keras" not in text


def test_only_replica_talks_to_the_others():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if path.name != "replica.py":
            assert "get_replica_context" not in text, path
        if path.parts[-2] != "training":
            assert "strategy.run(" not in text, path


def test_only_commandline_declares_flags():
    for path in PACKAGE.rglob("*.py"):
        if path.name != "commandline.py":
            assert "flags.DEFINE" not in path.read_text(), path
