"""The notebooks in examples/ run from top to bottom."""

import os
import pathlib
import sys

import pytest

from tests.docs import pages

nbformat = pytest.importorskip(
    "nbformat", reason="pip install -e '.[examples]'"
)
nbclient = pytest.importorskip(
    "nbclient", reason="pip install -e '.[examples]'"
)
NOTEBOOKS = sorted((pages.ROOT / "examples").glob("*.ipynb"))
_MOST_BYTES = 300_000


def read(path: pathlib.Path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_committed_and_small(path):
    assert path.stat().st_size < _MOST_BYTES
    outputs = [
        output
        for cell in read(path).cells
        for output in cell.get("outputs", [])
    ]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(pages.ROOT))
    # `!python` is the environment of the tests, activated or not.
    folder = pathlib.Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    # Its own folder for caches and settings, so that nothing is found finished.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = read(path)
    nbclient.NotebookClient(
        notebook,
        timeout=1800,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
