"""Output of commands on standard error, in any encoding, without noise.

Nothing here imports TensorFlow.
"""

import contextlib
import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags, logging

if TYPE_CHECKING:
    import tqdm

# Runs in a process of its own, so that the last words of an import that crashes
# are not lost.
_FILTER = """
import re, sys
noise = re.compile(sys.argv[1].encode())
for line in sys.stdin.buffer:
    if not noise.match(line):
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
"""
# Lines of TensorFlow's C++ code below level FATAL, before and after it has set
# up its log.
_NOISE = (
    r"WARNING: All log messages before absl::InitializeLog|"
    r"To enable the following instructions: |"
    r"[IWE]\d{4} [\d:.]+ +\d+ [\w.]+\.cc:\d+\] |"
    r"[\d-]+ [\d:.]+: [IWE] \S+\.cc:\d+\] "
)
# Folder of a GPU driver. Where it exists, errors of CUDA are not noise.
_DRIVER = "/proc/driver/nvidia"
_silencing = threading.Lock()


def _verbosity() -> int:
    """Returns the --verbosity of a command; from Python, that of progress."""
    if not flags.FLAGS.is_parsed():
        return logging.INFO
    return logging.get_verbosity()


def quiet() -> bool:
    """Returns whether --verbosity is below 0, the level of progress."""
    return _verbosity() < logging.INFO


def warns() -> bool:
    """Returns whether --verbosity is at least -1, the level of warnings."""
    return _verbosity() >= logging.WARNING


def say(text: str) -> None:
    """Prints what a command does next, unless --verbosity is below 0."""
    if not quiet():
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """Prints a warning as a plain line, unless --verbosity is below -1."""
    if warns():
        print(f"Warning: {text}", file=sys.stderr, flush=True)


def progress(
    total: int,
    unit: str,
    *,
    done: int = 0,
    title: str | None = None,
    shown: bool = True,
    **look: Any,
) -> "tqdm.tqdm":
    """Returns a progress bar on standard error, to be closed by the caller.

    It shows nothing where standard error is no terminal, or below
    --verbosity=0.

    Args:
        total: Units of work in all.
        unit: Name of a unit, such as "image".
        done: Units that were done before.
        title: Text in front of the bar.
        shown: False shows nothing anywhere.
        **look: Further arguments of `tqdm.tqdm`.
    """
    import tqdm  # not needed by --help

    hidden = not shown or quiet() or not sys.stderr.isatty()
    return tqdm.tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=title,
        dynamic_ncols=True,
        disable=hidden,
        **look,
    )


def never_fail() -> None:
    r"""Makes both streams write \xd7 for what their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def use_utf8() -> None:
    """Restarts the command in UTF-8 mode if file names have another encoding.

    In ASCII or Latin-1 (such as LC_ALL=C with PYTHONUTF8=0) a folder called
    café would be another class than the one in the run's own files. The
    encoding of the output stays that of the terminal.
    """
    if sys.flags.utf8_mode or sys.getfilesystemencoding() == "utf-8":
        return
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    os.environ["PYTHONUTF8"] = "1"  # also for child processes
    os.environ.setdefault("PYTHONIOENCODING", encoding)
    words = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execv(sys.executable, words)


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Suppresses messages of TensorFlow's C++ code on file descriptor 2.

    Everything else that is written there meanwhile, by Python, other threads or
    a crash, is passed on. With --verbosity=1 nothing is suppressed.
    """
    shown = sys.stderr is None or _verbosity() >= logging.DEBUG
    if shown or not _silencing.acquire(blocking=False):
        yield
        return
    noise = _NOISE
    if os.path.exists(_DRIVER):
        noise = f"(?!.*cuInit)(?:{noise})"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _FILTER, noise],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # so that Ctrl-C does not reach it
    )
    before = os.dup(2)
    try:
        print(end="", file=sys.stderr, flush=True)
        os.dup2(process.stdin.fileno(), 2)
        process.stdin.close()
        yield
    finally:
        print(end="", file=sys.stderr, flush=True)
        os.dup2(before, 2)
        os.close(before)
        # A process that inherited the descriptor may keep the pipe open.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)
        _silencing.release()
