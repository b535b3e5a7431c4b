"""How a command reads its flags: frozen dataclasses as absl flags.

A configuration is a frozen dataclass whose fields are made by `flag`. absl
parses the command line and the flagfiles; the dataclass checks the values.
Nothing here imports TensorFlow: a wrong flag is answered at once.
"""

import dataclasses
import difflib
import functools
import logging
import math
import os
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from absl import app, flags

PACKAGE = pathlib.Path(__file__).resolve().parent
_type_hints = functools.cache(typing.get_type_hints)


class InputError(ValueError):
    """Something the user can put right; commands print it bare."""


def flag(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    rare: bool = False,
    operational: bool = False,
) -> Any:
    """Declares one flag, its range (both ends allowed) and its kind.

    `rare` flags are listed by --helpfull only; `operational` ones do not change
    the weights, so they may differ when a run is resumed.
    """
    return dataclasses.field(
        default=default,
        metadata={
            "help": text,
            "low": low,
            "high": high,
            "choices": tuple(choices),
            "rare": rare,
            "operational": operational,
        },
    )


def _value_type(cls: type, name: str) -> type:
    """The flag's own type: `int` for a field declared `int | None`."""
    declared = _type_hints(cls)[name]
    union = isinstance(declared, types.UnionType)
    return typing.get_args(declared)[0] if union else declared


class Flags:
    """What every command's configuration can do.

    Attributes:
        alternatives: Groups of flags of which one is given.
        usual: Flags that --help lists, where these are not all but the rare.
        positional: Flags that may stand without their name, in this order.
        argv: The command line that it was read from, where there was one.
    """

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    usual: ClassVar[tuple[str, ...]] = ()
    positional: ClassVar[tuple[str, ...]] = ()
    argv: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            self._check_field(field)
        self.check()

    def check(self) -> None:
        """Checks what concerns several flags at once."""

    def named_after(self, flagfile: pathlib.Path | None) -> Self:
        """Fills in what the last flagfile's name decides: nothing."""
        del flagfile
        return self

    def _check_field(self, field: dataclasses.Field) -> None:
        value, rule = getattr(self, field.name), field.metadata
        if value is None and field.default is None:
            return
        wanted = _value_type(type(self), field.name)
        if wanted is float and type(value) is int:
            value = float(value)
            object.__setattr__(self, field.name, value)
        elif type(value) is not wanted:
            raise InputError(
                f"--{field.name}={value!r} is not of type {wanted.__name__}"
            )
        if rule["choices"] and value not in rule["choices"]:
            raise InputError(
                f"--{field.name}={value} is unknown"
                + nearest(value, rule["choices"])
            )
        low, high = rule["low"], rule["high"]
        if wanted in (int, float) and not (
            math.isfinite(value)
            and (low is None or value >= low)
            and (high is None or value <= high)
        ):
            room = f"at least {low}" if high is None else f"in [{low}, {high}]"
            if low is None and high is None:
                room = "a finite number"
            raise InputError(f"--{field.name}={value}: must be {room}")

    @classmethod
    def define_flags(cls, values: flags.FlagValues) -> None:
        """Declares every field as an absl flag in `values`."""
        define = {
            str: flags.DEFINE_string,
            int: flags.DEFINE_integer,
            float: flags.DEFINE_float,
            bool: flags.DEFINE_boolean,
        }
        for field in dataclasses.fields(cls):
            text = field.metadata["help"]
            if field.metadata["choices"]:
                text = "|".join(field.metadata["choices"]) + ": " + text
            define[_value_type(cls, field.name)](
                field.name,
                field.default,
                text,
                flag_values=values,
                module_name=cls.__module__,
            )
            usual = not field.metadata["rare"]
            if cls.usual:
                usual = field.name in cls.usual
            if usual:
                values.register_key_flag_for_module(
                    sys.argv[0], values[field.name]
                )

    @classmethod
    def from_flags(cls, values: flags.FlagValues) -> Self:
        """Reads parsed flags.

        Raises:
            InputError: A value is out of its range, or two do not go together.
        """
        return cls(
            **{f.name: values[f.name].value for f in dataclasses.fields(cls)}
        )

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> Self:
        """Reads a command line, `argv[0]` being the program's name."""
        values = flags.FlagValues()
        cls.define_flags(values)
        try:
            return cls.parse(values, argv)
        except flags.Error as error:
            raise InputError(str(error)) from None

    @classmethod
    def parse(cls, values: flags.FlagValues, argv: Sequence[str]) -> Self:
        """Reads a command line into flags that `define_flags` declared.

        Raises:
            InputError: See `from_flags`.
            flags.Error: A flag is unknown, or a value of another type.
        """
        words = values(expand_flagfiles(argv, cls.alternatives))[1:]
        if len(words) > len(cls.positional):
            word = words[len(cls.positional)]
            raise InputError(f"{word!r} is not a flag: flags begin with --")
        for name, word in zip(cls.positional, words, strict=False):
            values[name].parse(word)
        found = cls.from_flags(values).named_after(last_flagfile(argv))
        object.__setattr__(found, "argv", tuple(argv))
        return found

    def below(self, flagfile: str) -> Self:
        """The same command line with a flagfile in front of it.

        Raises:
            InputError: See `from_argv`; or it was read from no command line.
        """
        if not self.argv:
            raise InputError(f"give the flags of {flagfile}, or your own")
        program, *words = self.argv
        return self.from_argv([program, f"--flagfile={flagfile}", *words])

    @classmethod
    def from_flagfile(cls, path: str | os.PathLike) -> Self:
        """Reads a .cfg flagfile (found in the folder or beside the package).

        Raises:
            InputError: The file, or what stands in it, is not right.
        """
        return cls.from_argv(["config", f"--flagfile={os.fspath(path)}"])

    def to_flagfile(self, *, without: Sequence[str] = ()) -> str:
        """The text of a flagfile that says the same.

        Args:
            without: Names of flags to leave out.
        """
        lines = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None or field.name in without:
                continue
            if isinstance(value, bool):
                lines.append(f"--{'' if value else 'no'}{field.name}")
            else:
                lines.append(f"--{field.name}={value}")
        return "\n".join(lines) + "\n"

    def differences(self, other: Self) -> dict[str, tuple[Any, Any, bool]]:
        """Flags that differ: name → (own, other's, operational)."""
        values = {
            field.name: (
                getattr(self, field.name),
                getattr(other, field.name),
                field.metadata["operational"],
            )
            for field in dataclasses.fields(self)
        }
        return {k: v for k, v in values.items() if v[0] != v[1]}


def nearest(value: str, names: Sequence[str]) -> str:
    """The end of a message on an unknown name: what may have been meant."""
    close = difflib.get_close_matches(value, names, 3, 0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known: {', '.join(names)}"


def find_flagfile(
    name: str, given: str = "", folder: str = "configs"
) -> pathlib.Path:
    """Finds a flagfile in the current folder or beside the package.

    Args:
        name: Its path.
        given: How to call it in a message; default: the flag.
        folder: Where those lie that come with the package.

    Raises:
        InputError: It is in neither.
    """
    path = pathlib.Path(name).expanduser()
    # A checkout has configs/ beside the package, a wheel inside it.
    for candidate in (path, PACKAGE.parent / path, PACKAGE / path):
        if candidate.is_file():
            return candidate
    shipped = [
        f"{folder}/{p.name}"
        for place in (PACKAGE.parent, PACKAGE)
        for p in sorted((place / folder).glob("*.cfg"))
    ]
    given = given or f"--flagfile={name}"
    raise InputError(f"{given}: no such file" + nearest(name, shipped))


def expand_flagfiles(
    argv: Sequence[str],
    alternatives: Sequence[Sequence[str]] = (),
    inside: tuple[pathlib.Path, ...] = (),
) -> list[str]:
    """Replaces every --flagfile=FILE by what stands in FILE.

    absl's own reader knows the current folder only; this one also finds the
    files that came with the package. As with absl's, what comes later wins,
    also over its alternatives in the files before: --epochs replaces a
    recipe's --steps.

    Args:
        argv: The words of a command line.
        alternatives: Groups of flags of which one is given.
        inside: Files that are being read.

    Raises:
        InputError: A file is missing, unreadable, or names itself.
    """
    result, files, rest = [], [], list(argv)
    while rest:
        word = rest.pop(0)
        match = re.fullmatch(r"--?flagfile(?:=(.*))?", word)
        if not match or "--" in result:
            dropped = _alternatives(word, alternatives)
            files = [w for w in files if _name(w) not in dropped]
            result.append(word)
            continue
        name = match[1] if match[1] is not None else (rest or [""]).pop(0)
        words, path = _read_flagfile(name, inside)
        words = expand_flagfiles(words, alternatives, (*inside, path))
        # What stands before a file is as what stands in an earlier one.
        files, result = files + result, []
        for later in words:
            dropped = _alternatives(later, alternatives)
            files = [w for w in files if _name(w) not in dropped]
        files += words
    return files + result


def _name(word: str) -> str:
    match = re.match(r"--?(\w+)", word)
    return match[1] if match else ""


def _alternatives(word: str, groups: Sequence[Sequence[str]]) -> set[str]:
    """The flags that `word` stands in for."""
    name = _name(word)
    return {other for g in groups if name in g for other in g} - {name}


def _read_flagfile(
    name: str, inside: tuple[pathlib.Path, ...]
) -> tuple[list[str], pathlib.Path]:
    """The flags in a file, and its path."""
    path = find_flagfile(name)
    if path.resolve() in inside:
        raise InputError(f"--flagfile={name}: the file includes itself")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--flagfile={name}: {error}") from None
    words = [line.strip() for line in lines]
    words = [w for w in words if w and not w.startswith(("#", "//"))]
    for line in words:
        if not line.startswith("-"):
            raise InputError(
                f"--flagfile={name}: {line!r} is neither a flag nor a "
                "comment (comments stand on lines of their own)"
            )
    return words, path.resolve()


def last_flagfile(argv: Sequence[str]) -> pathlib.Path | None:
    """The last flagfile in `argv`."""
    names = re.findall(r"(?:^|\0)--?flagfile[=\0]([^\0]*)", "\0".join(argv))
    return pathlib.Path(names[-1]) if names else None


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Leaves out what TensorFlow and TFDS say of each file and collective."""
    of_a_file = any(
        part in record.pathname
        for part in (
            "tensorflow_datasets",
            "tensorflow/python/distribute",
            "tensorflow/python/saved_model",
        )
    )
    return record.module != "functional_saver" and not (
        of_a_file and record.levelno <= logging.INFO
    )


def run(command: Callable[[Any], int | None], kind: type[Flags]) -> None:
    """Runs a command: reads the flags, then calls `command(config)`.

    Args:
        command: The command; what it returns is the exit status.
        kind: The command's configuration.
    """
    kind.define_flags(flags.FLAGS)
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).addFilter(_is_of_interest)
    found = {}

    def parse(argv: list[str]) -> list[str]:
        try:
            found["config"] = kind.parse(flags.FLAGS, argv)
        except (InputError, flags.Error) as error:
            sys.exit(f"error: {error}\nSee --help, or --helpfull for all.")
        except SystemExit:  # absl ends --help with status 1
            sys.exit(0)
        return argv[:1]

    def main(argv: list[str]) -> int | None:
        del argv
        try:
            return command(found["config"])
        except InputError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:  # before there was anything to save
            sys.exit(130)

    app.run(main, flags_parser=parse)
