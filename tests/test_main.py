"""The command `simmatch`, which lists the others and runs them."""

import subprocess
import sys

import pytest

import simmatch_tf
from simmatch_tf import __main__


def simmatch(*words):
    code = (
        "import sys\n"
        "sys.modules['tensorflow'] = sys.modules['keras'] = None\n"
        "from simmatch_tf import __main__\n"
        "__main__.main()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True
    )


def test_lists_the_commands():
    for words in ((), ("--help",)):
        done = simmatch(*words)
        assert done.returncode == 0, done.stderr
        for name in ("train", "evaluate", "predict", "export_pytorch"):
            assert f"\n  {name} " in done.stdout
        assert "Trains an image classifier" in done.stdout
    assert "runtime" not in __main__.commands()


def test_runs_one():
    done = simmatch("train", "--labels=7", "--steps=1")
    assert done.returncode == 1
    assert "--labels=7: not divisible by the 10 classes" in done.stderr
    words = ("--init_from=imagenet", "--labels=40", "--steps=1")
    done = simmatch("train", *words)
    assert done.returncode == 1
    assert "--backbone=wrn_28_2: there are no published" in done.stderr
    done = simmatch("evaluate", "--help")
    assert done.returncode == 0 and "--workdir" in done.stdout


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trian", "error: trian: unknown command; did you mean train"),
        ("--workdir=x", "error: --workdir=x: unknown command; known: "),
    ],
)
def test_unknown_commands(word, message):
    done = simmatch(word)
    assert done.returncode == 1 and message in done.stderr


def test_version():
    assert simmatch("--version").stdout.strip() == simmatch_tf.__version__
