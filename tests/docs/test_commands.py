"""Every command in README.md and docs/ is run, or its page says why not.

A code block of shell commands or Python is run here in a folder of its own,
with runs of two steps, unless the line before it says otherwise:

    <!-- not run: needs ImageNet -->
    <!-- run by tests/serving/test_exporting.py -->
    <!-- file: mine.py -->

The last one is the content of a file that commands read.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import write_flags_page

from tests.docs import pages

_LANGUAGES = {"bash", "python", "ini", "text", "bibtex"}
# Flags of tools, and of TensorFlow Serving.
_OTHER_PROGRAMS = {
    "batching_parameters_file",
    "competitors",
    "draws",
    "enable_batching",
    "model_config_file",
    "noallocator",
    "set_aside",
    "strict",
}
_SHORT = " --steps=2 --nosummaries"
# Seconds. None takes a tenth of that, unless it trains what it should not.
_LONGEST = 600
# What a command reads, and the command of the pages that makes it.
_MADE_BY = {
    "runs/digits_40": "python -m simmatch_tf.train "
    "--flagfile=configs/digits_40.cfg",
    "runs/second": "python -m simmatch_tf.train "
    "--flagfile=configs/digits_40.cfg --workdir=runs/second "
    "--init_from=runs/digits_40",
    "photos": "python tools/make_photo_folder.py photos",
    "runs/folder-photos": "python -m simmatch_tf.train "
    "--flagfile=configs/folder.cfg --data_dir=photos",
    "exports/digits_40": "python -m simmatch_tf.export "
    "--workdir=runs/digits_40 --output=exports/digits_40",
    "digits.pth": "python -m simmatch_tf.export_pytorch "
    "--workdir=runs/digits_40 --output=digits.pth",
}
_PREAMBLE = """
import simmatch_tf

_from_flagfile = simmatch_tf.Config.from_flagfile
simmatch_tf.Config.from_flagfile = lambda path, **flags: _from_flagfile(
    path, **{"steps": 2, "summaries": False, **flags}
)
"""
TO_RUN = [
    block
    for block in pages.ALL_BLOCKS
    if block.not_run is None and block.run_by is None and block.file is None
]
FILES = [block for block in pages.ALL_BLOCKS if block.file is not None]
COMMANDS = list(
    dict.fromkeys(
        command
        for block in TO_RUN
        if block.language == "bash"
        for command in block.commands()
    )
)
PYTHON = {
    f"{block.page}:{block.line}": block.text
    for block in TO_RUN
    if block.language == "python"
}


class Workplace:
    """A folder that looks like the checkout, in which commands are run once."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self._finished = set()
        (folder / "configs").symlink_to(pages.ROOT / "configs")
        for name in ("docs", "tools"):  # commands may write to these
            shutil.copytree(pages.ROOT / name, folder / name)
        shutil.copy(pages.README, folder)
        (folder / "home").mkdir()
        for block in FILES:
            (folder / block.file).write_text(block.text, "utf-8")

    def run(self, command: str) -> None:
        """Runs a command, after those that make what it reads."""
        if command in self._finished:
            return
        for name, maker in _MADE_BY.items():
            if command != maker and re.search(rf"\b{name}\b", command):
                self.run(maker)
        short = command
        if "simmatch_tf.train" in command or (
            "import_pytorch" in command and "--flagfile" in command
        ):
            short += _SHORT if "train" in command else " --steps=2"
        self.call(["bash", "-c", short])
        self._finished.add(command)

    def call(self, words: list[str]) -> None:
        """Runs a program with this checkout's package and a home of its own."""
        path = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
        result = subprocess.run(
            words,
            cwd=self.folder,
            env=os.environ
            | {
                "PATH": path,
                "PYTHONPATH": str(pages.ROOT),
                "HOME": str(self.folder / "home"),
            },
            capture_output=True,
            text=True,
            timeout=_LONGEST,
        )
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    return Workplace(tmp_path_factory.mktemp("workplace"))


@pytest.mark.parametrize(
    "block", pages.ALL_BLOCKS, ids=lambda block: f"{block.page}:{block.line}"
)
def test_each_block_says_what_it_is(block):
    if block.language == "":  # the two commands of the README's first screen
        assert block.page == "README.md" and len(block.text.splitlines()) == 1
        return
    assert block.language in _LANGUAGES
    if block.run_by is not None:
        assert (pages.ROOT / block.run_by).is_file()


@pytest.mark.parametrize("command", write_flags_page.COMMANDS)
def test_each_flag_in_a_command_exists(command):
    known = write_flags_page.names(command)
    for path in [*pages.PAGES, *pages.ROOT.glob("configs/**/*.cfg")]:
        text = path.read_text("utf-8").replace("\\\n", " ")
        for name, words in pages.simmatch_commands(text):
            if name != command:
                continue
            for word in words:
                match = re.match(r"--([\w.]+)(?:=(.*))?$", word)
                if match is None or "." in match[1]:  # of a plugin
                    continue
                assert match[1] in known, f"{path.name}: {word}"
                if match[1] == "flagfile" and match[2].startswith("configs/"):
                    if "…" not in match[2]:
                        assert (pages.ROOT / match[2]).is_file(), word


@pytest.mark.parametrize("path", pages.PAGES, ids=lambda path: path.name)
def test_each_flag_in_the_text_exists(path):
    if path == write_flags_page.PAGE:  # see below
        return
    known = {"full", "published", "version", *_OTHER_PROGRAMS}
    for command in write_flags_page.COMMANDS:
        known |= write_flags_page.names(command)
    flags = re.findall(r"`[^`\n]*?--(\w[\w.]+)", pages.prose(path))
    # Those with a dot are of a method or source that the page adds.
    assert {x for x in flags if "." not in x} <= known


def test_the_page_of_flags_is_current():
    """In a process of its own: other tests register further names."""
    code = "import write_flags_page; print(write_flags_page.page(), end='')"
    page = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ
        | {"PYTHONPATH": f"{pages.ROOT / 'tools'}{os.pathsep}{pages.ROOT}"},
        check=True,
        capture_output=True,
        encoding="utf-8",
    )
    message = "run python tools/write_flags_page.py"
    current = write_flags_page.PAGE.read_text("utf-8")
    assert current == page.stdout, message


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_runs(command, workplace):
    if "pytorch" in command:
        pytest.importorskip("torch")
    workplace.run(command)


@pytest.mark.slow
@pytest.mark.parametrize("place", PYTHON)
def test_each_python_example_runs(place, workplace):
    workplace.run(_MADE_BY["photos"])
    code = PYTHON[place].replace("steps=200", "steps=2")
    workplace.call([sys.executable, "-c", _PREAMBLE + code])
