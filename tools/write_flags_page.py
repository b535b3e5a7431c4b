"""Writes docs/flags.md: every flag of every command, from their declarations.

python tools/write_flags_page.py

The commands are asked by --helpxml, so the page has what --helpfull prints.
"""

import ast
import functools
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree

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


@functools.cache
def _flags(command: str) -> list[dict[str, str]]:
    """Asks a command for its flags, in the order of their names."""
    text = subprocess.run(
        [sys.executable, "-m", f"simmatch_tf.{command}", "--helpxml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    root = xml.etree.ElementTree.fromstring(text[text.index("<?xml") :])
    flags = [
        {item.tag: item.text or "" for item in flag}
        for flag in root.iter("flag")
    ]
    return [
        flag
        for flag in flags
        if flag["file"] == "__main__" or flag["file"].startswith("simmatch_tf")
    ]


def names(command: str) -> set[str]:
    """Returns the names of a command's flags, `no…` of the booleans included.

    Args:
        command: A name in `COMMANDS`.
    """
    own = {"help", "helpfull", "flagfile", "verbosity"}
    for flag in _flags(command):
        own.add(flag["name"])
        if flag["type"] == "bool":
            own.add(f"no{flag['name']}")
    return own


def _row(flag: dict[str, str]) -> str:
    """Returns a flag's row of its command's table."""
    default = flag["default"]
    if flag["type"] == "bool":
        default = default.lower()
    if flag["type"] == "multi string":
        default = ""
    default = f"`{default}`" if default not in ("", "None") else ""
    meaning = " ".join(flag["meaning"].split())
    meaning = re.sub(r"([|*<\[])", r"\\\1", meaning)
    return f"| `--{flag['name']}` | {default} | {meaning} |"


def page() -> str:
    """Returns the text of the page."""
    lines = [_HEAD]
    for command in COMMANDS:
        source = (ROOT / "simmatch_tf" / f"{command}.py").read_text("utf-8")
        summary = ast.get_docstring(ast.parse(source)).split("\n\n")[0]
        lines += [f"## {command}", "", " ".join(summary.split()), ""]
        for title, usual in (("", "yes"), ("Further flags:", None)):
            rows = [_row(x) for x in _flags(command) if x.get("key") == usual]
            if rows:
                lines += [title, ""] if title else []
                lines += ["| flag | default | meaning |", "|---|---|---|"]
                lines += [*rows, ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
