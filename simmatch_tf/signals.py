"""Ctrl-C and SIGTERM: the run finishes its step, saves and stops.

Nothing here imports TensorFlow.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from simmatch_tf import terminal

# Exit status that asks to be resumed, as of TensorFlow's preemption handler.
RESUME_ME = 42
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl


def asked() -> str | None:
    """Returns the name of the signal that `watch` has noted, or None."""
    return _watching[0].signal if _watching else None


def sigterm_as_ctrl_c() -> None:
    """Makes SIGTERM raise KeyboardInterrupt, for commands that tidy up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def follower(number: int) -> Callable[[], None]:
    """Returns a function that makes a process get a signal with its parent.

    A new process calls it, on Linux; elsewhere the function does nothing.

    Args:
        number: The signal it gets when its parent ends, however that ends.
    """
    if sys.platform != "linux":
        return lambda: None
    system = ctypes.CDLL(None)  # must not be loaded between fork and exec
    return lambda: system.prctl(_PARENT_DEATH_SIGNAL, number)


def killed_by(number: int) -> str:
    """Says which signal ended a process, and why it may have been sent."""
    text = f"killed by {signal.Signals(number).name}"
    return text + " (out of memory?)" * (number == signal.SIGKILL)


class Interrupted(KeyboardInterrupt):
    """A run was stopped by a signal; its state is in its last checkpoint."""


class Request:
    """A request to stop, if a signal has come.

    Attributes:
        signal: Name of the signal, or None.
        reading: What is being read, which a signal interrupts at once; None
            while a signal must wait.
    """

    signal: str | None = None
    reading: str | None = None

    def check(self) -> None:
        """Interrupts reading, if a signal has come.

        Raises:
            Interrupted: It has.
        """
        if self.signal and self.reading:
            raise Interrupted(
                f"{self.signal} while reading {self.reading}; nothing is lost: "
                "start it again to go on"
            )

    def watch_again(self) -> None:
        """Installs the handlers again, where others have replaced them."""


_watching: list[Request] = []


@contextlib.contextmanager
def watch(reaction: str = "the run saves and stops") -> Iterator[Request]:
    """Notes SIGINT and SIGTERM in the body instead of dying, and says so.

    A second signal of a kind has its usual effect. Outside the main thread,
    where Python allows no handlers, nothing is caught. A watch inside another
    yields the request of the outer one: a command watches already while
    TensorFlow is imported.

    Args:
        reaction: What happens after a signal, for the message.

    Yields:
        The request, whose attribute `signal` tells whether a signal has come.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Request()
        return
    if _watching:
        yield _watching[0]
        return
    request = Request()
    _watching.append(request)
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: object) -> None:
        del frame
        request.signal = name = signal.Signals(number).name
        signal.signal(number, before[number])
        request.check()
        _say(
            f"{name}: {reaction} as soon as it can; a second {name} stops it "
            "now"
        )

    def take() -> None:
        for number in before:
            signal.signal(number, note)

    request.watch_again = take
    try:
        take()
        yield request
    finally:
        _watching.clear()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def at_once(reading: str) -> Iterator[None]:
    """Lets a signal interrupt the body, in which there is nothing to save.

    Args:
        reading: What the body reads, for the message.

    Raises:
        Interrupted: A signal came, in the body or before it.
    """
    for request in _watching:
        request.reading = reading
        request.check()
    try:
        yield
        # Python ignores what a handler raises within a destructor.
        for request in _watching:
            request.check()
    finally:
        for request in _watching:
            request.reading = None


def _say(text: str) -> None:
    """Prints from a handler, which may have interrupted a print."""
    if terminal.quiet():
        return
    # A terminal has shown ^C, perhaps behind a progress bar.
    line = "\n" * os.isatty(2) + text + "\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


@contextlib.contextmanager
def held(seconds: int) -> Iterator[None]:
    """Delays SIGINT and SIGTERM to the end of the body.

    For a call of TensorFlow that holds Python's global lock while it waits, so
    that no handler and no thread can run, and that replaces the handlers. The
    signals come to `watch` once it has returned. Nothing is to be saved yet,
    so the process dies of SIGALRM when the time is over.

    Args:
        seconds: Longest duration of the body.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = {signal.SIGINT, signal.SIGTERM}
    alarm = signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, alarm)
        for request in _watching:
            request.watch_again()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
