"""Commands: --help, errors before TensorFlow is imported, and their end."""

import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from simmatch_tf import config as config_lib
from simmatch_tf.data import layout
from simmatch_tf.training import workdir
from tests import runs

Config = config_lib.Config
ROOT = pathlib.Path(__file__).resolve().parents[2]
# A thread that the interpreter's own exit would wait for, for ever.
_WAITING = """
import runpy, sys, threading
threading.Thread(target=threading.Event().wait).start()
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(f"simmatch_tf.{module}", run_name="__main__")
"""
# A command of a few lines, called with the lines to run.
_FAKE = """
import atexit, dataclasses, sys, threading
from simmatch_tf.flags import command, commandline, errors

@dataclasses.dataclass(frozen=True)
class Flags(commandline.Flags):
    pass

def main(flags):
    atexit.register(print, "registered", flush=True)
    wait = threading.Event().wait
    threading.Thread(target=wait).start()
    exec(lines)

*_, lines = sys.argv
del sys.argv[1:]
command.run(main, Flags)
"""


def python(program, *words, options=(), **environment):
    return subprocess.run(
        [sys.executable, *options, "-c", program, *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    "words",
    [
        "train --labels=7 --steps=1",
        "train --dataset=folder --data_dir=NO --labels=4 --steps=1",
        "predict --model=NO --images=NO --output=NO.csv",
        "evaluate --workdir=NO",
        "export --workdir=NO --output=NO",
        "transfer NO --datasets=digits",
        "experiment NO.cfg",
        "report NO --output=NO.html",
        "import_pytorch NO.pth",
        # Imports TensorFlow first.
        pytest.param(
            "export_pytorch --workdir=NO --output=NO.pth",
            marks=pytest.mark.slow,
        ),
        "serve_data --role=worker --dispatcher=localhost:1",
    ],
)
def test_an_error_ends_each_command(words, tmp_path):
    words = words.replace("NO", str(tmp_path / "nowhere")).split()
    process = python(_WAITING, *words, PYTHONPATH=str(ROOT))
    assert process.returncode == 1, process.stderr
    assert "error: " in process.stderr and "Traceback" not in process.stderr


def test_a_port_in_use_ends_the_service():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        words = ["serve_data", "--role=dispatcher", f"--port={port}"]
        assert python(_WAITING, *words).returncode == 1


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("", 0),
        ("sys.exit(42)", 42),
        ("raise KeyboardInterrupt", 130),
        ("raise errors.InputError('wrong')", 1),
        ("sys.exit('wrong')", 1),
        ("raise ValueError('wrong')", 1),
    ],
)
def test_the_status_is_what_it_was(lines, status):
    process = python(_FAKE, lines)
    assert process.returncode == status, process.stderr
    assert ("wrong" in process.stderr) == (status == 1)
    assert ("Traceback" in process.stderr) == ("ValueError" in lines)
    assert process.stdout == "registered\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device")
def test_what_cannot_be_printed_is_no_success():
    lines = "atexit._clear(); sys.stdout = open('/dev/full', 'w'); print('x')"
    process = python(_FAKE, lines)
    assert process.returncode == 120
    assert "cannot print (No space left on device)" in process.stderr


def test_a_reader_that_has_gone_is_no_traceback():
    """Such as head, when it has its lines."""
    reader, writer = os.pipe()
    os.close(reader)
    lines = "atexit._clear(); print('x', flush=True)"
    process = subprocess.run(
        [sys.executable, "-c", _FAKE, lines],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
    )
    os.close(writer)
    assert process.returncode == 120
    assert "Traceback" not in process.stderr


def test_a_profiler_around_a_command_has_its_turn(tmp_path):
    path = tmp_path / "fake.py"
    path.write_text(_FAKE)
    process = subprocess.run(
        [sys.executable, "-m", "cProfile", path, "raise SystemExit(3)"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=100,
        check=False,
    )
    assert "function calls" in process.stdout, process.stderr


def test_what_is_registered_may_not_wait_for_ever():
    lines = "command._EXIT_SECONDS = 0.2; atexit.register(wait)"
    process = python(_FAKE, f"{lines}; sys.exit(42)")
    assert process.returncode == 42, process.stderr


def test_sigterm_ends_what_is_registered():
    lines = (
        "command._EXIT_SECONDS = 1000; atexit.register(wait);"
        "atexit.register(print, 'waits', flush=True)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", _FAKE, lines],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == -signal.SIGTERM
    process.stdout.close()


_TENSORFLOW = """
import tensorflow as tf
def generator():
    yield 0
    wait()
spec = tf.TensorSpec([], tf.int32)
dataset = tf.data.Dataset.from_generator(generator, output_signature=spec)
iterator = iter(dataset.prefetch(2))
next(iterator)
raise errors.InputError("wrong")
"""


@pytest.mark.slow
def test_threads_of_tensorflow_s_are_not_waited_for():
    process = python(_FAKE, _TENSORFLOW)
    assert process.returncode == 1 and "error: wrong" in process.stderr


_IMPATIENT = """
import runpy, sys
from simmatch_tf.data import service
service.PATIENCE = 2.0
runpy.run_module("simmatch_tf.train", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_loop", [1, 3])
def test_a_data_service_without_a_worker(steps_per_loop, tmp_path):
    """A run ends that gets no batch, and so does the service at SIGTERM."""
    dispatcher = subprocess.Popen(
        [sys.executable, "-m", "simmatch_tf.serve_data", "--role=dispatcher"]
        + ["--port=0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        line = dispatcher.stdout.readline()
        address = re.search(r"grpc://\S+", line)[0]
        flags = runs.argv(
            tmp_path, data_service=address, steps_per_loop=steps_per_loop
        )
        process = python(_IMPATIENT, *flags)
        assert process.returncode == 1, process.stderr
        assert "the data service sent no batch for 2 s" in process.stderr
        dispatcher.send_signal(signal.SIGTERM)
        assert dispatcher.wait(timeout=60) == 0
    finally:
        dispatcher.kill()
        dispatcher.communicate()


# TensorFlow takes seconds to import: a command that answers without it is one
# that never loads it.
_WITHOUT_TENSORFLOW = """
import runpy, sys
sys.modules["tensorflow"] = sys.modules["keras"] = None
sys.argv = ["{0}", *sys.argv[1:]]
runpy.run_module("simmatch_tf.{0}", run_name="__main__")
"""


def answer(command, *words, cwd=None):
    return subprocess.run(
        [sys.executable, "-c", _WITHOUT_TENSORFLOW.format(command), *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "import_pytorch", "export_pytorch"]
)
def test_help_needs_no_tensorflow_and_is_not_long(command):
    process = answer(command, "--help")
    assert process.returncode == 0, process.stderr
    assert "--workdir" in process.stdout
    assert process.stdout.count("\n") <= 130
    full = answer(command, "--helpfull")
    assert full.returncode == 0
    if command in ("train", "import_pytorch"):
        assert "--randaugment_levels" not in process.stdout
        assert "--randaugment_levels" in full.stdout


def test_help_of_serve_data():
    process = answer("serve_data", "--help")
    assert process.returncode == 0 and "--dispatcher" in process.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--role is missing: name dispatcher or worker"),
        (["--role=boss"], "--role=boss is unknown"),
        (["--role=worker"], "--role=worker and --dispatcher=None: a worker,"),
        (["--role=dispatcher", "--dispatcher=a:1"], "and only that, needs"),
        (["--role=worker", "--dispatcher=a"], "--dispatcher=a: must be HOST:"),
        (["--role=dispatcher", "--port=99999"], "--port=99999: must be in"),
        (["--role=dispatcher", "--host=a b"], "--host=a b: must be HOST"),
        (
            ["--role=worker", "--dispatcher=localhost:1"],
            "--dispatcher=localhost:1: cannot be reached (Connection refused)",
        ),
    ],
)
def test_serve_data_checks_its_flags_without_tensorflow(words, message):
    process = answer("serve_data", *words)
    assert process.returncode == 1
    assert message in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels=0", "--steps=5"], "error: --labels=0: must be at least 1"),
        (
            ["--labels=40"],
            "error: --steps is missing: give --steps, --epochs or --minutes",
        ),
        (["--labels=40", "--steps=5", "--alpha=2"], "error: --alpha=2.0"),
        (["--steps=ten"], "error: --steps=ten: must be a whole number"),
        (["--overwrite=maybe"], "--overwrite=maybe: must be true or false"),
        (["--nothing"], "error: --nothing: unknown"),
        (["word"], "error: 'word' is not a flag"),
        (
            ["configs/x.cfg"],
            "'configs/x.cfg' is not a flag: did you mean "
            "--flagfile=configs/x.cfg?",
        ),
        (
            ["--flagfile=configs/imagenet_1pct.cfg", "--backbone=resnet51"],
            "--backbone=resnet51: the depth must be 18, 34, 50",
        ),
        (
            ["--labels=40", "--steps=5", "--dataset=CIFAR10"],
            "--dataset=CIFAR10 is unknown (names are in lower case); did you m",
        ),
        (
            ["--labels=40", "--steps=5", "--dataset=custom"],
            "--dataset=custom is for simmatch_tf.fit only",
        ),
    ],
)
def test_errors_need_no_tensorflow_and_leave_nothing(tmp_path, words, message):
    process = answer("train", *words, cwd=tmp_path)
    assert process.returncode == 1
    assert message in process.stderr and "Traceback" not in process.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predict --workdir=a", "--workdir: unknown; here --model names the"),
        ("evaluate --model=a", "--model: unknown; here --workdir or --export"),
        ("report --workdir=a", "here --runs names the run"),
        ("evaluate --workdir=a --log_dir=zzz", "--log_dir: unknown"),
        ("evaluate --workdir=a --pdb", "--pdb: unknown"),
        ("experiment configs/digits_40.cfg", "digits_40.cfg: is a recipe; a "),
    ],
)
def test_flags_of_other_commands_and_of_absl_are_refused(words, message):
    command, *words = words.split()
    process = answer(command, *words)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert message in process.stderr
    assert "did you mean --log_dir" not in process.stderr


def test_an_error_in_a_plugin_is_said_once_and_without_help(tmp_path):
    (tmp_path / "bad.py").write_text("x = = 1\n")
    for name, message in (
        ("bad.py", "--plugin=bad.py, line 1: SyntaxError: invalid syntax"),
        ("none.py", "--plugin=none.py: no such file"),
    ):
        process = answer("train", f"--plugin={name}", cwd=tmp_path)
        assert process.stderr == f"error: {message}\n"


def test_help_marks_required_flags_and_keeps_examples_on_lines():
    process = subprocess.run(
        [sys.executable, "-m", "simmatch_tf.predict", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert "must end in .csv, .jsonl or .parquet. (required)" in " ".join(
        process.stdout.split()
    )
    assert "--images=photos \\\n    --output=predictions.csv" in process.stdout


def test_a_folder_s_errors_need_no_tensorflow(tmp_path):
    words = ["--dataset=folder", "--data_dir=photos", "--steps=5"]

    def says(message):
        process = answer("train", *words, cwd=tmp_path)
        assert process.returncode == 1 and "Traceback" not in process.stderr
        assert message in process.stderr

    says("--data_dir=photos: no such folder")
    for name in ("a/1.png", "b/1.tif"):
        (tmp_path / "photos/labeled" / name).parent.mkdir(parents=True)
        (tmp_path / "photos/labeled" / name).write_bytes(b"x")
    says("there are no images in labeled/b but files that are no .jpg")
    (tmp_path / "photos/labeled/b/1.tif").rename(
        tmp_path / "photos/labeled/b/1.png"
    )
    says("there are no images in unlabeled/")
    words.append("--algorithm=supervised")
    # A finished run, on images that have changed since.
    config = Config.from_argv(["train", *words])
    assert config.workdir == "runs/default-photos"
    config = dataclasses.replace(
        config,
        workdir=str(tmp_path / config.workdir),
        data_dir=str(tmp_path / "photos"),
    )
    with workdir.claim(config) as folder:
        listing = layout.Listing(config.data_dir)
        folder.begin(config, listing.fingerprint)
        folder.results.write_text("{}")
    (tmp_path / "photos/labeled/b/2.png").write_bytes(b"x")
    says("1 is new (labeled/b/2.png)")
