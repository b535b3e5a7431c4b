"""What stands on standard error: no noise, nothing lost, any encoding."""

import io
import os
import subprocess
import sys

import pytest
from absl import logging

from simmatch_tf import terminal

NOISE = [
    "WARNING: All log messages before absl::InitializeLog() is called are "
    "written to STDERR",
    "I0000 00:00:1795944555.849547    5352 port.cc:153] oneDNN custom "
    "operations are on.",
    "E0000 00:00:1795944557.060771    5352 cuda_platform.cc:52] failed call "
    "to cuInit: INTERNAL: CUDA error",
    "2026-01-01 00:00:00.123456: W tensorflow/compiler/tf2tensorrt/"
    "py_utils.cc:38] TF-TRT Warning: Could not find TensorRT",
]
OTHER = [
    "F0000 00:00:1795944555.849547    5352 cpu_feature_guard.cc:36] The "
    "TensorFlow library was compiled to use AVX instructions",
    "W1129 09:29:18.303531 140545223904128 mine.py:18] a warning of Python's",
    "café",
]


def child(*lines, end="", expect=0):
    """What a process shows of lines that its C library writes in the block."""
    code = f"""
import os, sys, threading
from simmatch_tf import terminal
try:
    with terminal.without_noise():
        os.write(2, {chr(10).join(lines)!r}.encode() + b"\\n")
        thread = threading.Thread(target=print, args=("another thread",),
                                  kwargs=dict(file=sys.stderr))
        thread.start()
        thread.join()
        {end or "pass"}
except ImportError as error:
    print("failed:", error, file=sys.stderr)
print("behind", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == expect, done.stderr.decode()
    return done.stderr.decode().splitlines()


def test_noise_is_held_back_and_all_else_passes():
    assert child(*NOISE, *OTHER) == [*OTHER, "another thread", "behind"]


def test_an_import_that_fails():
    lines = child(*OTHER, end="raise ImportError('no such symbol')")
    assert lines[-2:] == ["failed: no such symbol", "behind"]
    assert set(OTHER) < set(lines)


def test_the_last_words_of_a_process_that_dies():
    """As an import does on a processor without what TensorFlow needs."""
    lines = child(*NOISE, OTHER[0], end="os.abort()", expect=-6)
    assert set(lines) == {OTHER[0], "another thread"}


def test_noise_is_shown_with_verbosity_1(capfd, monkeypatch):
    monkeypatch.setattr(terminal, "_verbosity", lambda: logging.DEBUG)
    with terminal.without_noise():
        os.write(2, b"I0000 00:00:1 5 port.cc:153] on\n")
    assert "port.cc" in capfd.readouterr().err


def test_inside_itself(capfd):
    with terminal.without_noise(), terminal.without_noise():
        os.write(2, f"{NOISE[1]}\nsaid\n".encode())
    os.write(2, b"behind\n")
    assert capfd.readouterr().err.splitlines() == ["said", "behind"]


def test_say(capsys, monkeypatch):
    terminal.say("one")
    monkeypatch.setattr(terminal, "_verbosity", lambda: -1)
    terminal.say("two")
    assert capsys.readouterr().err == "one\n"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("ascii", rb"2 \xd7 caf\xe9 \udcff"),
        ("latin-1", b"2 \xd7 caf\xe9 \\udcff"),
        ("utf-8", "2 × café ".encode() + rb"\udcff"),
    ],
)
def test_output_never_fails(encoding, written, monkeypatch):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    terminal.never_fail()
    for stream in streams:
        print("2 × café \udcff", end="", file=stream, flush=True)
        assert stream.buffer.getvalue() == written


def test_output_that_is_no_stream_of_python_s(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    terminal.never_fail()


def test_a_command_starts_again_in_utf8():
    code = "from simmatch_tf import terminal; terminal.use_utf8(); import sys;"
    code += r"print(sys.getfilesystemencoding(), sys.argv[1], '\xd7')"
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0"}
    env["PYTHONPATH"] = os.getcwd()
    # What is printed is in the terminal's own encoding, ASCII.
    code = code.replace("import sys;", "terminal.never_fail(); import sys;")
    done = subprocess.run(
        [sys.executable, "-c", code, "café".encode()],
        env=env,
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"utf-8 caf\\xe9 \\xd7\n"


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["0", "1"])
def test_a_network_runs_without_noise(kernels):
    """Of itself, oneDNN says as an error that it does not take bytes."""
    code = """
import sys
from absl import flags, logging
flags.FLAGS(["x"])
from simmatch_tf import preflight
preflight.start(loud=False)
from simmatch_tf.distributed import strategies
import tensorflow as tf
strategies.one()
turn = tf.function(lambda images: tf.transpose(images, [0, 3, 1, 2]))
turn(tf.zeros([1, 2, 2, 3], tf.uint8))
print("done", file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SIMMATCH_TF_ONEDNN": kernels},
        stderr=subprocess.PIPE,
        check=True,
    )
    assert done.stderr == b"done\n"
