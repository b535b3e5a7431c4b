"""Writes docs/flags.md: every flag of every command, from their declarations.

python tools/write_flags_page.py

The page has what --helpfull prints.
"""

import importlib
import pathlib
import re

from simmatch_tf import __main__, config
from simmatch_tf.flags import command as command_lib
from simmatch_tf.flags import commandline

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "flags.md"
# The order of a run's life; further commands follow by name.
_FIRST = ("train", "evaluate", "report", "predict", "export", "experiment")
COMMANDS = (*_FIRST, *sorted(set(__main__.commands()) - {*_FIRST}))
_HEAD = """\
# Flags

Written by `python tools/write_flags_page.py` from the declarations; do not
edit.

`--flag=value` sets a flag; `--flag` and `--noflag` switch a boolean one.
`--flagfile=FILE` reads flags from a file, one a line. Later flags win. `--help`
lists the usual flags of a command, `--helpfull` all of them. Each command also
takes `--verbosity`: 0 by default, -1 for no progress, -2 for no warnings either
(results and errors are always printed), 1 for
TensorFlow's own messages.
"""


def _kind(command: str) -> type[commandline.Flags]:
    """Returns the class that declares a command's flags."""
    module = importlib.import_module(f"simmatch_tf.{command}")
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, commandline.Flags)
        and value.__module__ == module.__name__
    ]
    return own[0] if own else config.Config


def names(command: str) -> set[str]:
    """Returns the names of a command's flags, `no…` of the booleans included.

    Args:
        command: A name in `COMMANDS`.
    """
    own = {"help", "helpfull", "flagfile", "verbosity"}
    for flag in _kind(command).declared().values():
        own.add(flag.name)
        if flag.type is bool:
            own.add(f"no{flag.name}")
    return own


def _row(flag: commandline.Flag) -> str:
    """Returns a flag's row in the table of its topic."""
    default = commandline.shown(flag.default)
    default = default and f"`{default}`"
    text = flag.help
    if flag.choices:
        text += f" One of: {', '.join(flag.choices)}."
    text = re.sub(r"([|*<\[])", r"\\\1", text)
    switch = "[no]" if flag.type is bool else ""
    return f"| `--{switch}{flag.name}` | {default} | {text} |"


def page() -> str:
    """Returns the text of the page."""
    lines = [_HEAD]
    for command in COMMANDS:
        lines += [f"## {command}", "", __main__.commands()[command], ""]
        kind, shared = _kind(command), set()
        if kind is not config.Config and issubclass(kind, config.Config):
            lines += ["It also takes the flags of [train](#train).", ""]
            shared = {_row(x) for x in config.Config.declared().values()}
        for title, flags in command_lib.topics(kind).items():
            rows = [row for row in map(_row, flags) if row not in shared]
            if rows:
                lines += [f"### {title}", ""] if title != "Flags" else []
                lines += ["| flag | default | meaning |", "|---|---|---|"]
                lines += [*rows, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
