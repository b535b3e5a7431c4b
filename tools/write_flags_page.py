"""Writes docs/flags.md: every flag of every command, from their declarations.

python tools/write_flags_page.py

The page has what each command prints by --helpfull.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "flags.md"
# Modules of the package that can be run, in the order of a run's life.
_FIRST = ("train", "evaluate", "report", "predict", "export", "experiment")
COMMANDS = sorted(
    (
        path.stem
        for path in (ROOT / "simmatch_tf").glob("*.py")
        if not path.stem.startswith("_")
        and '__name__ == "__main__"' in path.read_text("utf-8")
    ),
    key=lambda name: (
        _FIRST.index(name) if name in _FIRST else len(_FIRST),
        name,
    ),
)
# A command that shares more flags than these with train has all of them.
_MANY = 20
_HEAD = """\
# Flags

Written by `python tools/write_flags_page.py` from the declarations; do not
edit.

`--flag=value` sets a flag; `--flag` and `--noflag` switch a boolean one.
`--flagfile=FILE` reads flags from a file, one a line. Later flags win. `--help`
lists the usual flags of a command, `--helpfull` all of them. Each command also
takes `--verbosity`: 0 by default, -1 for warnings only, -2 for nothing, 1 for
TensorFlow's own messages.
"""


@dataclasses.dataclass
class _Flag:
    """A flag as --helpfull lists it."""

    topic: str
    name: str
    switch: bool
    meaning: str


@functools.cache
def _help(command: str) -> tuple[str, list[_Flag]]:
    """Reads a command's --helpfull.

    Returns:
        Its first paragraph, and its flags in the order of the help.
    """
    lines = subprocess.run(
        [sys.executable, "-m", f"simmatch_tf.{command}", "--helpfull"],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    summary = " ".join(lines[: lines.index("")])
    topic, flags = None, []
    for line in lines:
        if title := re.fullmatch(r"(\S.*):", line):
            topic = title[1]
        elif flag := re.match(r"  --(\[no\])?([\w.]+)(?:\s+(.*))?$", line):
            switch, name, meaning = flag.groups()
            flags.append(_Flag(topic, name, bool(switch), meaning or ""))
        elif line.startswith("   ") and flags:
            flags[-1].meaning += " " + line.strip()
    return summary, [flag for flag in flags if flag.topic != "Also"]


def names(command: str) -> set[str]:
    """Returns the names of a command's flags, `no…` of the switches included.

    Args:
        command: A name in `COMMANDS`.
    """
    own = {"help", "helpfull", "flagfile", "verbosity"}
    for flag in _help(command)[1]:
        own.add(flag.name)
        if flag.switch:
            own.add(f"no{flag.name}")
    return own


def page() -> str:
    """Returns the text of the page."""
    lines = [_HEAD]
    for command in COMMANDS:
        summary, flags = _help(command)
        lines += [f"## {command}", "", summary, ""]
        shared = [flag for flag in flags if flag in _help("train")[1]]
        if command != "train" and len(shared) > _MANY:
            flags = [flag for flag in flags if flag not in shared]
            lines += ["It also takes the flags of [train](#train).", ""]
        for topic, group in itertools.groupby(flags, lambda flag: flag.topic):
            lines += [f"### {topic}", ""] if topic != "Flags" else []
            lines += ["| flag | meaning |", "|---|---|"]
            for flag in group:
                name = f"`--{'[no]' if flag.switch else ''}{flag.name}`"
                meaning = re.sub(r"([|*<\[])", r"\\\1", flag.meaning.strip())
                lines.append(f"| {name} | {meaning} |")
            lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
