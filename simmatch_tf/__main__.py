"""Lists the commands and runs one of them.

simmatch train --flagfile=configs/digits_40.cfg

`python -m simmatch_tf train` and `python -m simmatch_tf.train` do the same.
"""

import ast
import pathlib
import runpy
import sys

import simmatch_tf
from simmatch_tf import terminal
from simmatch_tf.flags import errors


def commands() -> dict[str, str]:
    """Returns each command's name and the first line of its docstring.

    A command is a module of this folder that can be run. None is imported.
    """
    descriptions = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("[!_]*.py")):
        text = path.read_text("utf-8")
        if '\nif __name__ == "__main__":\n' in text:
            about = ast.get_docstring(ast.parse(text)) or ""
            descriptions[path.stem] = about.partition("\n")[0]
    return descriptions


def help_text() -> str:
    """Returns the list of commands."""
    lines = ["usage: simmatch COMMAND [--flag=value …]", ""]
    lines += [f"  {name:<16}{about}" for name, about in commands().items()]
    lines += [
        "",
        "simmatch COMMAND --help lists the flags of a command.",
        "simmatch --version prints the version.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Runs the command that the first word names, with the words behind it."""
    terminal.never_fail()
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "--helpfull", "help"):
        print(help_text())
        return
    if name == "--version":
        print(simmatch_tf.__version__)
        return
    known = commands()
    if name not in known:
        sys.exit(
            f"error: {name}: unknown command{errors.nearest(name, known)}\n"
            "See simmatch --help."
        )
    sys.argv[1:] = words
    runpy.run_module(f"simmatch_tf.{name}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
