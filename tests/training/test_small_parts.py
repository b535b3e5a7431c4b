"""Progress, signals, allocator."""

import os
import signal
import threading

import pytest
from absl import logging

from simmatch_tf.training import allocator, interruption, progress


def test_plain_lines_where_there_is_no_terminal(capsys):
    before = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    try:
        shown = progress.Progress(5, 10, bar=True)
        shown.advance(6, None)
        shown.advance(
            7, {"loss/total": 1.5, "pseudo_label/mask_rate": 0.25, "x": 1.0}
        )
        shown.close()
    finally:
        logging.set_verbosity(before)
    line = capsys.readouterr().err.strip()
    assert line.startswith("step 7/10: total 1.500, mask_rate 0.250 (")
    assert line.endswith("s left)") and "steps/s" in line


def test_quiet(capsys):
    before = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        shown = progress.Progress(0, 10, bar=True)
        shown.advance(1, {"loss/total": 1.5})
        shown.say("nothing")
        shown.close()
    finally:
        logging.set_verbosity(before)
    assert capsys.readouterr().err == ""


def test_a_signal_is_noted_once():
    handler = signal.getsignal(signal.SIGINT)
    with interruption.watch() as request:
        assert request.signal is None
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == "SIGINT"
        with pytest.raises(KeyboardInterrupt):  # the second acts as ever
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is handler


def test_no_handlers_outside_the_main_thread():
    found = []

    def work():
        with interruption.watch() as request:
            found.append(request.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_allocator_elsewhere(monkeypatch):
    monkeypatch.setattr(allocator.ctypes.util, "find_library", lambda _: None)
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda _: object())
    assert allocator.keep_memory() is False
