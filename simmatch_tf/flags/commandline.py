"""Flags of the commands, declared as frozen dataclasses.

A configuration is a frozen dataclass whose fields are made by `flag`. absl
parses the command line and the flagfiles; the dataclass checks the values.
Nothing here imports TensorFlow: a wrong flag is answered at once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import pathlib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from absl import flags

from simmatch_tf.flags import flagfiles
from simmatch_tf.flags.errors import InputError, close, nearest

# Type of a flag → what its value must be, for messages.
_KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    tuple: "a tuple of texts",
}
_DEFINE = {
    str: flags.DEFINE_string,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    bool: flags.DEFINE_boolean,
    tuple: flags.DEFINE_multi_string,
}
# absl's own flags that every command has.
_OF_ABSL = ("flagfile", "verbosity", "v")
# Names of flags of some command that say which run or model is meant.
_OF_A_RUN = ("workdir", "model", "runs", "export")


def flag(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
    rare: bool = False,
    operational: bool = False,
    required: str = "",
) -> Any:
    """Declares a flag: a field of a dataclass that derives from `Values`.

    Args:
        default: The default value. The type comes from the annotation: int,
            float, str or bool, one of these "| None", or tuple[str, ...] for a
            flag that may be repeated.
        text: Help text.
        low: Smallest value, itself allowed.
        high: Largest value, itself allowed.
        choices: The values that a string may have.
        rare: Whether the flag is listed by --helpfull only.
        operational: Whether the flag leaves the trained weights as they are,
            so that it may differ when a run is resumed.
        required: What to name if the flag is left out or blank, such as "the
            folder of a run"; "" if it may be left out.
    """
    rule = {
        "help": text,
        "low": low,
        "high": high,
        "choices": tuple(choices),
        "rare": rare,
        "operational": operational,
        "required": required,
    }
    return dataclasses.field(default=default, metadata=rule)


rare = functools.partial(flag, rare=True)
operational = functools.partial(flag, operational=True)
rare_operational = functools.partial(flag, rare=True, operational=True)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A declared flag; for the rest of its attributes see `flag`.

    Attributes:
        name: Its name on the command line, without "--".
        owner: The class that declares it.
        field: Name of the field.
        type: int, float, str, bool, or tuple of a flag that may be repeated.
    """

    name: str
    owner: type
    field: str
    type: type
    default: Any
    help: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    rare: bool
    operational: bool
    required: str

    def with_defaults(self, names: Mapping[Any, Sequence[str]]) -> Flag:
        """Returns the flag with several defaults in its help text.

        Args:
            names: Default → the algorithms that have it.
        """
        usual, *others = sorted(names, key=lambda value: -len(names[value]))
        text = shown(usual) + "".join(
            f"; {shown(value)} for {', '.join(names[value])}"
            for value in others
        )
        return dataclasses.replace(
            self, default=None, help=f"{self.help} Default: {text}."
        )

    def word(self, value: Any) -> str:
        """Returns the word of a command line that gives the flag a value."""
        if self.type is bool:
            return f"--{'' if value else 'no'}{self.name}"
        return f"--{self.name}={value}"

    def check(self, value: Any) -> Any:
        """Checks a value.

        Returns:
            The value, a whole number of a float flag as a float.

        Raises:
            InputError: The value has another type, or is out of range.
        """
        blank = isinstance(value, str) and not value.strip()
        if self.required and (blank or value in (None, ())):
            raise InputError(f"--{self.name} is missing: name {self.required}")
        if value is None and self.default is None:
            return None
        if self.type is float and type(value) is int:
            value = float(value)
        elif type(value) is not self.type:
            raise InputError(
                f"--{self.name}={value!r}: must be {_KINDS[self.type]}"
            )
        if self.choices and value not in self.choices:
            raise InputError(
                f"--{self.name}={value} is unknown"
                + nearest(value, self.choices)
            )
        if self.type in (int, float):
            self._check_range(value)
        return value

    def _check_range(self, value: float) -> None:
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if not (low <= value <= high and math.isfinite(value)):
            room = (
                f"at least {low}" if high == math.inf else f"in [{low}, {high}]"
            )
            raise InputError(f"--{self.name}={value}: must be {room}")


def shown(default: Any) -> str:
    """Returns a default value as --help shows it, "" for none."""
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "" if default in (None, ()) else str(default)


class Values:
    """Base of frozen dataclasses whose fields are flags.

    Attributes:
        prefix: What stands before the fields' names on the command line.
    """

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for each in _declared(type(self)).values():
            value = getattr(self, each.field)
            object.__setattr__(self, each.field, each.check(value))
        self.check()

    def check(self) -> None:
        """Checks what concerns several flags at once.

        Raises:
            InputError: The message names the flags and their values.
        """

    @classmethod
    def declared(cls) -> Mapping[str, Flag]:
        """Returns all flags that a command line may give, by name."""
        return _declared(cls)

    def fields(self) -> Mapping[str, Flag]:
        """Returns the flags that this configuration has, by name."""
        return self.declared()

    def values(self) -> dict[str, Any]:
        """Returns the value of each flag, by its name."""
        return {
            name: getattr(self, each.field)
            for name, each in self.fields().items()
        }


@functools.cache
def _declared(cls: type[Values]) -> Mapping[str, Flag]:
    """The fields of a class that are flags, in their order.

    Raises:
        TypeError: A class declares flags and is no dataclass, or a field is
            not made by `flag` or has another type than a flag may have.
    """
    for base in cls.__mro__:
        values = vars(base).values()
        if any(isinstance(value, dataclasses.Field) for value in values):
            raise TypeError(
                f"{base.__qualname__} declares flags: decorate it with "
                "@dataclasses.dataclass(frozen=True)"
            )
    hints = typing.get_type_hints(cls)
    declared_flags = {}
    for field in dataclasses.fields(cls):
        if "help" not in field.metadata:
            if issubclass(cls, HyperParameters):
                raise TypeError(
                    f"{cls.__qualname__}.{field.name}: make each field by "
                    'commandline.flag(default, "help text"), or annotate it '
                    "as ClassVar"
                )
            continue
        # A field that a base declared keeps its name there.
        owner = next(
            base
            for base in reversed(cls.__mro__)
            if field.name in vars(base).get("__annotations__", ())
        )
        declared = hints[field.name]
        if typing.get_origin(declared) in (types.UnionType, typing.Union):
            declared = typing.get_args(declared)[0]
        if declared not in (int, float, str, bool, tuple[str, ...]):
            raise TypeError(
                f"{cls.__qualname__}.{field.name} is of type {declared}: must "
                "be int, float, str or bool, one of these | None, or "
                "tuple[str, ...]"
            )
        name = f"{owner.prefix}{field.name}"
        declared_flags[name] = Flag(
            name=name,
            owner=owner,
            field=field.name,
            type=typing.get_origin(declared) or declared,
            default=field.default,
            **field.metadata,
        )
    return types.MappingProxyType(declared_flags)


@dataclasses.dataclass(frozen=True)
class HyperParameters(Values):
    """Base of the flags that belong to one algorithm, source or backbone.

    A subclass is a frozen dataclass nested in what it belongs to:

        @registry.algorithms.register("comatch")
        class CoMatch(algorithm.Algorithm):
            @dataclasses.dataclass(frozen=True)
            class HyperParameters(pseudo_labeling.HyperParameters):
                queue_size: int = commandline.flag(2560, "…", low=1)

    Its own fields become flags with the registered name in front of them,
    --comatch.queue_size, unless the class says `prefix = ""`. A field that a
    base declares keeps its flag, and may have another default here.

    Attributes:
        defaults: Name → default of flags of every run for which another
            default is right here, such as {"unlabeled_ratio": 1}.
    """

    prefix: ClassVar[str] = ""
    defaults: ClassVar[Mapping[str, Any]] = types.MappingProxyType({})

    @classmethod
    def prepare(cls, words: list[str]) -> list[str]:
        """Drops words of flagfiles that do not go with others.

        A recipe may be followed by flags that make one of its own void.

        Args:
            words: The words of a command line; see `flagfiles.expand`.

        Returns:
            The words to parse; by default all of them.
        """
        return words

    def notes(self, steps: int) -> list[str]:
        """Returns lines on values that do not suit the length of the run.

        Args:
            steps: The length, which is not known before --minutes is measured.
        """
        del steps
        return []

    def check_run(self, config: Flags) -> None:
        """Checks flags of every run that must fit these; none by default.

        Args:
            config: The run's flags, a `config.Config`.

        Raises:
            InputError: The message names the flags and their values.
        """


class Flags(Values):
    """Base of the configuration of a command.

    Attributes:
        alternatives: Groups of flags that exclude each other.
        usual: Flags that --help lists; by default, all that are not rare.
        positional: Flags that may be given without their name, in this order;
            the last, if it may be repeated, takes all words that are left.
        topics: First flag of a group in --help → title of the group.
        argv: The command line that the flags were read from, if any.
    """

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    usual: ClassVar[tuple[str, ...]] = ()
    positional: ClassVar[tuple[str, ...]] = ()
    topics: ClassVar[Mapping[str, str]] = types.MappingProxyType({})
    argv: ClassVar[tuple[str, ...]] = ()

    def named_after(self, flagfile: pathlib.Path | None) -> Self:
        """Returns the flags with what the name of the last flagfile decides."""
        del flagfile
        return self

    @classmethod
    def topic(cls, each: Flag, title: str) -> str:
        """Returns the title of the group that lists a flag in --help.

        Args:
            each: The flag.
            title: By `topics`.
        """
        del each
        return title

    @classmethod
    def shortly(
        cls, each: Flag, title: str, words: Sequence[str]
    ) -> tuple[Flag, str] | None:
        """Returns how the short --help lists a flag; None to leave it out.

        Args:
            each: The flag.
            title: Title of its group.
            words: The command line.

        Returns:
            The flag, and the title of its group.
        """
        del words
        return each, title

    @classmethod
    def prepare(cls, words: list[str]) -> list[str]:
        """Looks at the words of a command line before flags are declared.

        Args:
            words: The words; see `flagfiles.expand`.

        Returns:
            The words to parse.
        """
        return words

    @classmethod
    def from_argv(cls, argv: Sequence[str]) -> Self:
        """Reads a command line, `argv[0]` being the program's name.

        Raises:
            InputError: A flag is unknown, a value is out of its range, or two
                do not go together.
        """
        try:
            return cls.parse(flags.FlagValues(), argv)
        except flags.Error as error:
            raise InputError(str(error)) from None

    @classmethod
    def parse(cls, values: flags.FlagValues, argv: Sequence[str]) -> Self:
        """Declares the flags in `values`, and reads a command line.

        Raises:
            InputError: See `from_argv`.
            flags.Error: A flag has no value.
        """
        words = flagfiles.expand(argv[1:], cls.alternatives)
        words = cls.prepare([argv[0], *words])
        declared = cls.declared()
        for name, each in declared.items():
            _DEFINE[each.type](name, None, each.help, flag_values=values)
        words = cls._read(values, words)[1:]
        names = list(cls.positional)
        if names and declared[names[-1]].type is tuple:
            names += names[-1:] * (len(words) - len(names))
        if len(words) > len(names):
            word = words[len(names)]
            hint = "flags begin with --"
            if word.endswith(".cfg"):
                hint = f"did you mean --flagfile={word}?"
            raise InputError(f"{word!r} is not a flag: {hint}")
        for name, word in zip(names, words, strict=False):
            values[name].parse(word)
        given = {}
        for name in declared:
            if values[name].present:
                value = values[name].value
                given[name] = tuple(value) if type(value) is list else value
        config = cls(**given).named_after(flagfiles.last(argv))
        object.__setattr__(config, "argv", tuple(argv))
        return config

    @classmethod
    def unknown(cls, name: str) -> InputError:
        """Returns the error of a flag that does not exist."""
        declared = cls.declared()
        others = [f"--{each}" for each in _OF_A_RUN if each in declared]
        positive = name.removeprefix("no")
        dotted = [f"--{each}" for each in declared if each.endswith(f".{name}")]
        if dotted:
            hint = f"; did you mean {' or '.join(dotted)}?"
        elif name in (*_OF_A_RUN, "run") and others:
            hint = f"; here {' or '.join(others)} names the run"
        elif close(positive, [*declared], cutoff=0.5):
            hint = nearest(positive, declared, prefix="--")
        else:
            hint = "; --helpfull lists all flags"
        return InputError(f"--{name}: unknown{hint}")

    @classmethod
    def _read(cls, values: flags.FlagValues, words: list[str]) -> list[str]:
        """Lets absl parse the words; returns those that are no flags."""
        declared = cls.declared()
        try:
            rest = values(words)
        except flags.UnrecognizedFlagError as error:
            raise cls.unknown(error.flagname) from None
        except flags.IllegalFlagValueError as error:
            match = re.match(r"flag --([\w.]+)=(.*?): ", str(error), re.DOTALL)
            if match is None or match[1] not in declared:
                raise
            kind = _KINDS[declared[match[1]].type]
            raise InputError(
                f"--{match[1]}={match[2]}: must be {kind}"
            ) from None
        for name in map(flagfiles.name_of, words):
            if name in values and name not in (*declared, *_OF_ABSL):
                raise cls.unknown(name)  # a flag of absl's own
        return rest

    def below(self, flagfile: str) -> Self:
        """Reads the same command line with a flagfile in front of it.

        Raises:
            InputError: See `from_argv`; or there was no command line.
        """
        if not self.argv:
            raise InputError(f"give the flags of {flagfile}, or your own")
        program, *words = self.argv
        return self.from_argv([program, f"--flagfile={flagfile}", *words])

    @classmethod
    def from_flagfile(cls, path: str | os.PathLike, **values: Any) -> Self:
        """Reads a flagfile from the current folder or the package.

        Args:
            path: The file.
            **values: Flags after it, such as `data_dir="photos", steps=100`.
                They replace those in the file, and flags that exclude them.

        Raises:
            InputError: The file cannot be read, or a flag is wrong.
        """
        flagfile = f"--flagfile={os.fspath(path)}"
        parts = []
        for name, value in values.items():
            if value is None:
                raise InputError(
                    f"--{name}=None: leave it out, and the flagfile decides"
                )
            several = value if isinstance(value, list | tuple) else [value]
            parts += [(name, part) for part in several]
        words = [f"--{name}={part}" for name, part in parts]
        if words:  # plugins declare flags that `values` may name
            expanded = flagfiles.expand([flagfile, *words], cls.alternatives)
            cls.prepare(["config", *expanded])
        declared = cls.declared()
        for place, (name, part) in enumerate(parts):
            if name not in declared:
                raise cls.unknown(name)
            if isinstance(part, bool):
                words[place] = declared[name].word(part)
        return cls.from_argv(["config", flagfile, *words])

    def to_flagfile(self, *, without: Sequence[str] = ()) -> str:
        """Returns the text of a flagfile with the same flags.

        Args:
            without: Names of flags to leave out.
        """
        lines = []
        fields = self.fields()
        for name, value in self.values().items():
            if value is not None and name not in without:
                parts = value if isinstance(value, tuple) else (value,)
                lines += [fields[name].word(part) for part in parts]
        return "\n".join(lines) + "\n"

    def differences(self, other: Self) -> dict[str, tuple[Any, Any, bool]]:
        """Returns flags that differ: name → (own, other's, operational).

        Left out are flags that only one of the two has.
        """
        others = other.values()
        return {
            name: (value, others[name], self.fields()[name].operational)
            for name, value in self.values().items()
            if name in others and others[name] != value
        }


def check_output_file(
    name: str, value: str, endings: tuple[str, ...] = ()
) -> None:
    """Checks the name of a file that a command will write.

    Args:
        name: Name of the flag.
        value: Its value.
        endings: Endings that the file may have, in lower case; () for any.

    Raises:
        InputError: The name has another ending, names a folder, or the folder
            that would hold the file does not exist.
    """
    path = pathlib.Path(value).expanduser()
    if endings and path.suffix.lower() not in endings:
        raise InputError(
            f"--{name}={value}: must end in {' or '.join(endings)}"
        )
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(
            f"--{name}={value}: must be a file in a folder that exists"
        )


def check_output_folder(name: str, value: str | None) -> None:
    """Checks the name of a folder that a command will write to.

    Args:
        name: Name of the flag.
        value: Its value; None is accepted.

    Raises:
        InputError: The name is blank, or that of a file.
    """
    if value is None:
        return
    if not value.strip() or pathlib.Path(value).expanduser().is_file():
        raise InputError(f"--{name}={value}: must be a folder")


def numbers(given: str, value: str) -> tuple[int, ...]:
    """Reads whole numbers from 0, with commas or spaces between them.

    Args:
        given: What to call them in a message, such as "--seeds".
        value: The text.

    Raises:
        InputError: There is none, one is no such number, or is there twice.
    """
    words = value.replace(",", " ").split()
    # Python refuses longer ones, and no seed is that large.
    if not words or not all(w.isdecimal() and len(w) < 19 for w in words):
        raise InputError(
            f"{given}={value}: must be numbers from 0, such as 0,1,2"
        )
    values = tuple(map(int, words))
    if len(set(values)) < len(values):
        raise InputError(f"{given}={value}: one of them is twice")
    return values


def address(text: str) -> tuple[str, int] | None:
    """Reads host and port of HOST:PORT; None if the text is not that."""
    match = re.fullmatch(r"([\w.-]+|\[[0-9A-Fa-f:]+\]):([0-9]{1,5})", text)
    if not match or not 0 < int(match[2]) < 2**16:
        return None
    return match[1].strip("[]"), int(match[2])


def check_address(
    name: str, value: str, text: str | None = None, *, scheme: str = ""
) -> tuple[str, int]:
    """Reads host and port of a flag's address.

    Args:
        name: Name of the flag.
        value: Its value.
        text: The address, if it is more than the value.
        scheme: What the address must begin with.

    Raises:
        InputError: It is no address.
    """
    host_and_port = address((text or value).removeprefix(scheme))
    if not host_and_port or not (text or value).startswith(scheme):
        wanted = "HOST" if text else f"{scheme}HOST:PORT"
        raise InputError(f"--{name}={value}: must be {wanted}")
    return host_and_port
