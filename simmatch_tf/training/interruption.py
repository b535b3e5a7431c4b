"""Ctrl-C and SIGTERM: finish the step, save, then leave."""

import contextlib
import signal
import threading
from collections.abc import Iterator

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
    """

    signal: str | None = None

    def watch_again(self) -> None:
        """Takes the signals back, where something else has taken them."""


_watching: list[Request] = []


@contextlib.contextmanager
def watch() -> Iterator[Request]:
    """Notes SIGINT and SIGTERM instead of dying of them.

    A second signal of a kind acts as ever. Outside the main thread, where
    Python allows no handlers, nothing is caught. Inside another watch this is
    that one: a command watches while TensorFlow is imported, too.
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
        request.signal = signal.Signals(number).name
        signal.signal(number, before[number])

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
