"""How a command reads its flags: frozen dataclasses as absl flags.

A configuration is a frozen dataclass whose fields are made by `flag`. absl
parses the command line and the flagfiles; the dataclass checks the values.
Nothing here imports TensorFlow: a wrong flag is answered at once.
"""

import atexit
import contextlib
import dataclasses
import functools
import logging
import math
import os
import pathlib
import signal
import sys
import threading
import time
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

from absl import app, flags

from simmatch_tf import preflight, terminal
from simmatch_tf.flags import flagfiles
from simmatch_tf.flags.errors import InputError, nearest

# Seconds for what is registered to run at the end of a process.
_EXIT_SECONDS = 5.0
# Python's own status for output that could not be written.
_NOT_WRITTEN = 120

_type_hints = functools.cache(typing.get_type_hints)


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
    """The flag's own type: `int` for a field declared `int | None`.

    `tuple` for one declared `tuple[str, ...]`, a flag that may come many times.
    """
    declared = _type_hints(cls)[name]
    if isinstance(declared, types.UnionType):
        return typing.get_args(declared)[0]
    return typing.get_origin(declared) or declared


class Flags:
    """What every command's configuration can do.

    Attributes:
        alternatives: Groups of flags of which one is given.
        usual: Flags that --help lists, where these are not all but the rare.
        positional: Flags that may stand without their name, in this order; the
            last, if it is one of many words, takes all that are left.
        argv: The command line that it was read from, where there was one.
        exact: Whether the command gives a run's numbers, to the last bit.
    """

    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    usual: ClassVar[tuple[str, ...]] = ()
    positional: ClassVar[tuple[str, ...]] = ()
    argv: ClassVar[tuple[str, ...]] = ()
    exact: ClassVar[bool] = True

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
        _check_home(field.name, value)
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
            tuple: flags.DEFINE_multi_string,
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
        found = {f.name: values[f.name].value for f in dataclasses.fields(cls)}
        return cls(
            **{
                name: tuple(value) if isinstance(value, list) else value
                for name, value in found.items()
            }
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
        words = values(flagfiles.expand(argv, cls.alternatives))[1:]
        names = list(cls.positional)
        if names and _value_type(cls, names[-1]) is tuple:
            names += names[-1:] * (len(words) - len(names))
        if len(words) > len(names):
            word = words[len(names)]
            raise InputError(f"{word!r} is not a flag: flags begin with --")
        for name, word in zip(names, words, strict=False):
            values[name].parse(word)
        found = cls.from_flags(values).named_after(flagfiles.last(argv))
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
    def from_flagfile(cls, path: str | os.PathLike, **values: Any) -> Self:
        """Reads a .cfg flagfile (found in the folder or beside the package).

        Args:
            path: The file.
            **values: Flags behind it, such as `data_dir="photos", steps=100`.
                They replace what the file says, and what excludes them.

        Raises:
            InputError: The file, what stands in it, or a value is not right.
        """
        words = [f"--flagfile={os.fspath(path)}"]
        types_of = {f.name: f for f in dataclasses.fields(cls)}
        for name, value in values.items():
            if name not in types_of:
                raise InputError(f"--{name}: unknown" + nearest(name, types_of))
            if value is None:
                raise InputError(
                    f"--{name}=None: leave it out, and the flagfile decides"
                )
            wanted = _value_type(cls, name)
            if wanted is bool and isinstance(value, bool):
                words.append(f"--{'' if value else 'no'}{name}")
            elif wanted is tuple and isinstance(value, list | tuple):
                words += [f"--{name}={word}" for word in value]
            else:
                if isinstance(value, os.PathLike):
                    value = os.fspath(value)
                words.append(f"--{name}={value}")
        return cls.from_argv(["config", *words])

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
            elif isinstance(value, tuple):
                lines += [f"--{field.name}={word}" for word in value]
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
    # Each run that is evaluated has functions of its own, traced once.
    quiet = ("functional_saver", "polymorphic_function")
    return record.module not in quiet and not (
        of_a_file and record.levelno <= logging.INFO
    )


def _check_home(name: str, value: Any) -> None:
    """Refuses ~ where the user has no home: no HOME, no such user."""
    words = value if isinstance(value, tuple) else (value,)
    for word in words:
        if isinstance(word, str) and word.startswith("~"):
            if os.path.expanduser(word) == word:
                raise InputError(
                    f"--{name}={word}: there is no home folder for ~ to stand "
                    "for; write the folder out"
                )


def _filter_logs() -> None:
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).addFilter(_is_of_interest)
    # It tells of its cache of fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)


def run(command: Callable[[Any], int | None], kind: type[Flags]) -> None:
    """Runs a command: reads the flags, then calls `command(config)`.

    Args:
        command: The command; what it returns is the exit status.
        kind: The command's configuration.
    """
    terminal.use_utf8()
    terminal.never_fail()
    kind.define_flags(flags.FLAGS)
    _filter_logs()
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
            preflight.check(exact=kind.exact)
            return command(found["config"])
        except InputError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:  # before there was anything to save
            sys.exit(130)

    def parse_and_run() -> None:
        try:
            app.run(main, flags_parser=parse)
        except BrokenPipeError:  # the reader, such as head, has gone
            sys.exit(_NOT_WRITTEN)

    try:
        parse_and_run()
    except BaseException as error:  # SystemExit, if all is well
        _end_without_waiting(error)
        raise


def _end_without_waiting(error: BaseException) -> None:
    """Has the process end as soon as the interpreter is left.

    The interpreter's own exit waits for all threads, and destroys objects of
    TensorFlow's that wait for threads of theirs: up to a minute for a tuner of
    iterators, for ever for a machine that never answers, and deaf to SIGTERM.

    Args:
        error: With what the command ended. It is kept, and so is what its
            frames refer to: that is not destroyed either.
    """
    status = getattr(error, "code", 1)
    if isinstance(error, KeyboardInterrupt):
        status = 130
    elif not isinstance(status, int):
        status = 0 if status is None else 1
    leaving = threading.Event()

    def cut_short() -> None:
        leaving.wait()
        time.sleep(_EXIT_SECONDS)
        os._exit(status)

    def leave(kept: BaseException = error) -> None:
        del kept
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        leaving.set()
        atexit._run_exitfuncs()
        os._exit(status if _flushed() else _NOT_WRITTEN)

    threading.Thread(target=cut_short, daemon=True).start()
    # As the standard library's own pools: before threads are waited for, and
    # after a profiler or debugger around the command has had its turn.
    threading._register_atexit(leave)


def _flushed() -> bool:
    """Writes out what was printed; False, and says so, if that fails."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"error: cannot print ({error.strerror})\n".encode())
        return False
    return True
