import os
import signal
import subprocess
import sys
import threading

import pytest

from simmatch_tf import signals, terminal


@pytest.fixture
def interrupts():
    """Python's own SIGINT handler, which a background shell takes away."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_a_signal_is_noted_once(interrupts):
    with signals.watch() as request:
        assert request.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == "SIGINT"
        with pytest.raises(KeyboardInterrupt):  # the second acts as ever
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is interrupts


def test_a_watch_inside_another_is_the_same(interrupts):
    with signals.watch() as outer:
        os.kill(os.getpid(), signal.SIGINT)
        with signals.watch() as inner:
            assert inner is outer and inner.signal == "SIGINT"
    assert signal.getsignal(signal.SIGINT) is interrupts


def test_a_signal_says_what_happens_next(interrupts, capfd, monkeypatch):
    with signals.watch():
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == (
        "SIGTERM: the run saves and stops as soon as it can; a second SIGTERM "
        "stops it now\n"
    )
    monkeypatch.setattr(terminal, "quiet", lambda: True)
    with signals.watch():
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_a_signal_amid_a_print_to_the_same_stream(interrupts):
    """A handler that prints there itself would fail."""
    lines = """
import io, os, signal, sys
from simmatch_tf import signals
class Raw(io.FileIO):
    def write(self, data):
        if request.signal is None:
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(data)
with signals.watch() as request:
    raw = Raw(2, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw), write_through=True)
    print("printed", file=sys.stderr, flush=True)
    assert request.signal == "SIGINT"
"""
    process = subprocess.run(
        [sys.executable, "-c", lines],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert "SIGINT: the run saves" in process.stderr
    assert "printed" in process.stderr


def test_a_signal_breaks_off_what_may_be_broken_off(interrupts, capfd):
    with signals.watch() as request:
        with pytest.raises(
            signals.Interrupted, match="^SIGINT while reading images; "
        ):
            with signals.at_once("images"):
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("went on")
        # One that came before, or was lost in a destructor, counts, too.
        with pytest.raises(signals.Interrupted):
            with signals.at_once("images"):
                pytest.fail("began")
        request.signal = None
        with pytest.raises(signals.Interrupted):
            with signals.at_once("images"):
                request.signal = "SIGINT"
        request.signal = None
        os.kill(os.getpid(), signal.SIGTERM)  # outside it is noted
        assert request.signal == "SIGTERM"
    assert "SIGTERM: the run saves" in capfd.readouterr().err
    with signals.at_once("images"):  # nobody watches
        pass


def test_no_handlers_outside_the_main_thread():
    seen_signals = []

    def work():
        with signals.watch() as request:
            seen_signals.append(request.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen_signals == [None]
