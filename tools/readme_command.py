"""Prints one of the README's two commands for a fresh machine.

python tools/readme_command.py 1

1 trains on real images, 2 runs the tests. They are printed as they are written.
"""

import pathlib
import re
import sys

README = pathlib.Path(__file__).resolve().parents[1] / "README.md"


def commands() -> list[str]:
    """Returns the one-line commands of the README's first screen, in order."""
    first_screen = README.read_text(encoding="utf-8").split("\n## ")[0]
    return re.findall(r"```\n(.*)\n```", first_screen)


if __name__ == "__main__":
    print(commands()[int(sys.argv[1]) - 1])
