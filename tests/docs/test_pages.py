"""README.md and docs/: links, names and tables agree with the repository."""

import importlib
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import readme_command

from simmatch_tf.experiments import plan
from tests.docs import pages

TABLES = [
    (path.relative_to(pages.ROOT).as_posix(), name)
    for path in pages.PAGES
    for name in re.findall(r"<!-- (\w+) -->", path.read_text("utf-8"))
    if (pages.ROOT / "configs" / "plans" / f"{name}.cfg").is_file()
]
LINKED = (
    *pages.PAGES,
    pages.ROOT / "CONTRIBUTING.md",
    pages.ROOT / "CHANGELOG.md",
)


def test_the_readme_is_short():
    assert len(pages.README.read_text("utf-8").splitlines()) < 220


def test_the_first_screen_has_the_two_commands():
    train, test = readme_command.commands()
    assert "simmatch_tf.train --flagfile=configs/digits_40.cfg" in train
    assert test.endswith("-m pytest -n auto")


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path):
    for link in re.findall(r"\]\(([^)\s]+)\)", pages.prose(path)):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), f"{path.name}: {link}"
        if anchor:
            assert anchor in pages.anchors(target), f"{path.name}: {link}"


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_files_and_functions_that_a_page_names_exist(path):
    text = path.read_text("utf-8")
    for name in re.findall(
        r"`((?:configs|tests|tools|docs|examples)/[\w/.]+\w/?)[` ]", text
    ):
        assert (pages.ROOT / name).exists(), name
    for dotted in re.findall(
        r"`((?:ops|modules|algorithms|registry)\.[\w.]+\w)`", text
    ):
        if dotted.endswith((".py", ".register")):
            continue
        value = importlib.import_module("simmatch_tf")
        name = "simmatch_tf"
        for part in dotted.split("."):
            name += f".{part}"
            if hasattr(value, part):
                value = getattr(value, part)
            else:
                value = importlib.import_module(name)


def test_every_departure_in_the_code_is_listed():
    method = (pages.ROOT / "docs" / "method.md").read_text("utf-8")
    listed = len(
        re.findall(r"^\* ", method.split("## Where the code")[1], re.M)
    )
    marks = sum(
        path.read_text("utf-8").count("Differs:")
        for path in (pages.ROOT / "simmatch_tf").rglob("*.py")
    )
    assert 0 < marks <= listed + 1  # teacher and student have a mark each


@pytest.mark.slow
@pytest.mark.parametrize(("page", "name"), TABLES)
def test_tables_are_written_by_experiment(page, name, tmp_path):
    """From the finished runs in tools/results/, not by hand."""
    copy = shutil.copy(pages.ROOT / page, tmp_path)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "simmatch_tf.experiment",
            f"configs/plans/{name}.cfg",
            "--only_tables",
            "--results=tools/results",
            f"--page={copy}",
            f"--workdir={tmp_path / 'plan'}",
        ],
        cwd=pages.ROOT,
        check=True,
        capture_output=True,
    )
    assert pathlib.Path(copy).read_text("utf-8") == (
        pages.ROOT / page
    ).read_text("utf-8")


def test_the_example_plan_is_valid(tmp_path):
    (text,) = (
        block.text for block in pages.ALL_BLOCKS if block.language == "ini"
    )
    path = tmp_path / "mine.cfg"
    path.write_text(text)
    assert len(plan.read(str(path)).cells()) == 3 * 3 * 2
