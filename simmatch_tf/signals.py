"""Ctrl-C and SIGTERM: finish the step, save, then leave."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

from simmatch_tf import terminal

# The status with which TensorFlow's own preemption handler asks to be resumed.
RESUME_ME = 42


def asked() -> str | None:
    """Name of the signal that `watch` has noted."""
    return _watching[0].signal if _watching else None


def sigterm_as_ctrl_c() -> None:
    """For commands with something to tidy up: SIGTERM is Ctrl-C to them."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


class Interrupted(KeyboardInterrupt):
    """A run was stopped from outside; its state is in its last checkpoint."""


class Request:
    """Whether someone asked to stop.

    Attributes:
        signal: Name of the signal, or None.
        reading: What a signal breaks off at once, or None.
    """

    signal: str | None = None
    reading: str | None = None

    def check(self) -> None:
        """Leaves what may be broken off, if someone asked to.

        Raises:
            Interrupted: So it is.
        """
        if self.signal and self.reading:
            raise Interrupted(
                f"{self.signal} while reading {self.reading}; nothing is lost: "
                "start it again to go on"
            )

    def watch_again(self) -> None:
        """Takes the signals back, where something else has taken them."""


_watching: list[Request] = []


@contextlib.contextmanager
def watch(what: str = "the run saves and stops") -> Iterator[Request]:
    """Notes SIGINT and SIGTERM instead of dying of them, and says so.

    A second signal of a kind acts as ever. Outside the main thread, where
    Python allows no handlers, nothing is caught. Inside another watch this is
    that one: a command watches while TensorFlow is imported, too.

    Args:
        what: What happens after a signal, as soon as it can.
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
        _say(f"{name}: {what} as soon as it can; a second {name} stops it now")

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
    """Has a signal break off a block in which there is nothing to save.

    Args:
        reading: What the block reads, for the message.

    Raises:
        Interrupted: A signal came, in the block or before it.
    """
    for request in _watching:
        request.reading = reading
        request.check()
    try:
        yield
        # Python loses what a handler raises in a destructor.
        for request in _watching:
            request.check()
    finally:
        for request in _watching:
            request.reading = None


def _say(text: str) -> None:
    """From a handler, which may have interrupted a print to the same stream."""
    if terminal.quiet():
        return
    # A terminal has shown ^C, maybe behind a bar.
    line = "\n" * os.isatty(2) + text + "\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())


@contextlib.contextmanager
def held(seconds: int) -> Iterator[None]:
    """Keeps SIGINT and SIGTERM for later; ends the process after so long.

    For a call of TensorFlow's that holds Python's lock while it waits, so that
    no handler and no thread of Python's can run, and that takes the signals for
    itself: they come to `watch` once it has returned. Nothing is to be saved
    yet, so when the time is over the process dies of SIGALRM.
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
