"""The flags of benchmarks: their own ones beside those of a run."""

import pathlib
import re
import sys
from collections.abc import Sequence

from absl import flags

from simmatch_tf import config as config_lib
from simmatch_tf.flags.errors import InputError


def read(text: str, own: Sequence[flags.FlagHolder]) -> list[str]:
    """Reads a tool's own flags from the command line; --help prints them.

    Args:
        text: The tool's docstring.
        own: The tool's own flags.

    Returns:
        The other words of the command line.
    """
    known = {holder.name: flags.FLAGS[holder.name] for holder in own}
    if {"-h", "--help", "-help", "--helpfull"} & set(sys.argv[1:]):
        print(text)
        for name, flag in known.items():
            if "Internal:" not in flag.help:
                print(f"  --{name}: {flag.help} (default: {flag.default})")
        sys.exit(0)
    mine, rest, words = [], [], sys.argv[1:]
    while words:
        word = words.pop(0)
        name, equals, _ = word.lstrip("-").partition("=")
        off = name.removeprefix("no")
        if not word.startswith("-") or {name, off}.isdisjoint(known):
            rest.append(word)
            continue
        mine.append(word)
        if name in known and not equals and not known[name].boolean and words:
            mine.append(words.pop(0))
    try:
        flags.FLAGS([sys.argv[0], *mine])
    except flags.Error as error:
        sys.exit(f"error: {error}")
    return rest


def nothing_else(rest: Sequence[str]) -> None:
    """Ends a tool that takes no flags of a run if any are left over."""
    if rest:
        sys.exit(f"error: {rest[0]}: is no flag of this tool; see --help")


def run(rest: Sequence[str]) -> config_lib.Config:
    """Returns a run's flags from the words that `read` leaves."""
    try:
        return config_lib.Config.from_argv([sys.argv[0], *rest])
    except InputError as error:
        sys.exit(f"error: {error}")


def refuse(rest: Sequence[str], names: Sequence[str], why: str) -> None:
    """Ends the tool if one of these flags is given."""
    pattern = re.compile(rf"--?(?:no)?(?:{'|'.join(names)})(?:=|$)")
    for word in rest:
        if pattern.match(word):
            sys.exit(f"error: {word}: {why}")


def check_file(name: str, value: str | None, ending: str) -> None:
    """Checks the name of a file to write, before anything is measured."""
    if value is None:
        return
    path = pathlib.Path(value)
    if path.suffix != ending or not path.parent.is_dir() or path.is_dir():
        sys.exit(
            f"error: --{name}={value}: must be a {ending} file in a folder "
            "that exists"
        )
