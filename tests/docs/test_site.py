"""mkdocs builds the pages without a warning."""

import subprocess
import sys

import pytest

from tests.docs import pages

pytest.importorskip("mkdocs", reason="pip install -e '.[docs]'")


def test_the_site_builds(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path],
        cwd=pages.ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
