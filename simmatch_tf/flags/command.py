"""Runs a command: reads its flags, prints its help, ends the process."""

import atexit
import contextlib
import inspect
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags

from simmatch_tf import terminal
from simmatch_tf.flags import commandline
from simmatch_tf.flags.errors import InputError, PluginError

# Seconds that functions registered to run at the end of a process may take.
_EXIT_SECONDS = 5.0
# Python's own status for output that could not be written.
_NOT_WRITTEN = 120
_HELP = re.compile(r"-h|-\?|--?help(short|full)?")
# Column at which the help texts of flags begin.
_INDENT = 26


def run(
    command: Callable[[Any], int | None], kind: type[commandline.Flags]
) -> None:
    """Runs a command: reads the flags, then calls `command(config)`.

    Args:
        command: The command; what it returns is the exit status.
        kind: Class of the command's configuration.
    """
    terminal.use_utf8()
    terminal.never_fail()
    _filter_logs()
    parsed = {}

    def parse(argv: list[str]) -> list[str]:
        try:
            words = argv[: argv.index("--")] if "--" in argv else argv
            asked = [w for w in words[1:] if _HELP.fullmatch(w)]
            if asked:
                words = kind.prepare([w for w in words if w not in asked])
                print(help_text(kind, words, full="full" in asked[0]))
                sys.exit(0)
            parsed["config"] = kind.parse(flags.FLAGS, argv)
        except PluginError as error:
            sys.exit(f"error: {error}")
        except (InputError, flags.Error) as error:
            sys.exit(f"error: {error}\nSee --help, or --helpfull for all.")
        return argv[:1]

    def main(argv: list[str]) -> int | None:
        del argv
        try:
            return command(parsed["config"])
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


def help_text(
    kind: type[commandline.Flags],
    words: Sequence[str] = (),
    *,
    full: bool = False,
) -> str:
    """Returns the text of --help.

    Args:
        kind: Class of the command's configuration.
        words: The other words of the command line.
        full: Whether rarely needed flags, and those of other algorithms, are
            listed, too.
    """
    about = inspect.cleandoc(sys.modules["__main__"].__doc__ or "")
    width = max(60, min(100, shutil.get_terminal_size().columns))
    lines, left_out, groups = [about], 0, {}
    for title, members in topics(kind).items():
        for each in members:
            listed = each, title
            if not full:
                listed = kind.shortly(each, title, words)
                rare = bool(kind.usual) or (listed and listed[0].rare)
                if rare and each.name not in kind.usual:
                    listed = None
            if listed is None:
                left_out += 1
                continue
            groups.setdefault(listed[1], []).append(listed[0])
    for title, members in groups.items():
        lines += ["", f"{title}:"]
        lines += [line for each in members for line in _entry(each, width)]
    lines += ["", "Also:"]
    also = [
        ("--flagfile=FILE", "Read flags from a file, one a line."),
        (
            "--verbosity=N",
            "-1: no progress; -2: only results and errors; 1: more.",
        ),
        ("--helpfull", f"List all flags ({left_out} more)."),
    ]
    for name, text in also[: 3 if left_out else 2]:
        lines += _columns(name, text, width)
    return "\n".join(lines)


def topics(
    kind: type[commandline.Flags],
) -> dict[str, list[commandline.Flag]]:
    """Returns flags by the title of their group in --help.

    A command's own flags come before those of its base classes.
    """
    title, groups = "Flags", {}
    declared = list(kind.declared().values())
    if not kind.topics:
        declared.sort(key=lambda each: each.owner is not kind)
    for each in declared:
        title = kind.topics.get(each.name, title)
        groups.setdefault(kind.topic(each, title), []).append(each)
    return groups


def _entry(each: commandline.Flag, width: int) -> Iterator[str]:
    text = each.help
    if each.choices:
        text += f" One of: {', '.join(each.choices)}."
    if each.required:
        text += " (required)"
    name = f"--{'[no]' if each.type is bool else ''}{each.name}"
    if default := commandline.shown(each.default):
        text += f" Default: {default}."
    return _columns(name, text, width)


def _columns(name: str, text: str, width: int) -> list[str]:
    """Lines with a flag's name on the left and its help on the right."""
    lines = textwrap.wrap(text, width - _INDENT) or [""]
    first = f"  {name}"
    if len(first) >= _INDENT - 1:
        return [first, *(" " * _INDENT + line for line in lines)]
    return [
        first.ljust(_INDENT) + lines[0],
        *(" " * _INDENT + line for line in lines[1:]),
    ]


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Returns False for what TensorFlow and TFDS log of each file and step."""
    of_a_file = any(
        part in record.pathname
        for part in (
            "tensorflow_datasets",
            "tensorflow/python/distribute",
            "tensorflow/python/saved_model",
        )
    )
    # These log each function that is traced, once for every evaluated run.
    quiet = ("functional_saver", "polymorphic_function")
    return record.module not in quiet and not (
        of_a_file and record.levelno <= logging.INFO
    )


def _filter_logs() -> None:
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).addFilter(_is_of_interest)
    # It logs its cache of fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)


def _end_without_waiting(error: BaseException) -> None:
    """Makes the process end as soon as the interpreter shuts down.

    The interpreter's own shutdown waits for all threads, and destroys objects
    of TensorFlow that wait for their own threads: up to a minute for a tuner of
    iterators, for ever for a machine that does not answer, and meanwhile
    SIGTERM has no effect.

    Args:
        error: The exception that ended the command. It is kept, so that the
            objects in its frames are not destroyed either.
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
    # As the thread pools of the standard library do: this runs before threads
    # are joined, and after a profiler or debugger around the command.
    threading._register_atexit(leave)


def _flushed() -> bool:
    """Flushes both streams; if that fails, says so and returns False."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(2, f"error: cannot print ({error.strerror})\n".encode())
        return False
    return True
