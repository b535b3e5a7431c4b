"""Runs the cells of a plan, some at once; each is a process of `train`.

Nothing here imports TensorFlow.
"""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from simmatch_tf import io, signals
from simmatch_tf.experiments import finished, identity, plan
from simmatch_tf.flags.commandline import InputError

_LOOK_EVERY_SECONDS = 0.1
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux' prctl


@contextlib.contextmanager
def claim(folder: pathlib.Path) -> Iterator[TextIO]:
    """Takes a folder for an experiment.

    Yields:
        What holds it; runs that outlive the experiment hold it, too.

    Raises:
        InputError: It cannot be written, or an experiment is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"--workdir={folder}: cannot be written ({error.strerror})"
        ) from None
    with lock:
        io.claim(lock, folder, "a live experiment, or runs that it left")
        yield lock


class Running:
    """A cell that is being trained.

    Attributes:
        cell: The cell.
        workdir: Its run's folder.
        log: What its process says.
        gpus: Those that it has, where they are divided.
    """

    def __init__(
        self,
        cell: plan.Cell,
        folder: pathlib.Path,
        gpus: tuple[int, ...] | None,
        lock: TextIO,
    ) -> None:
        """Starts the process; a run that was begun goes on.

        It saves and ends when the experiment dies (on Linux).
        """
        name = identity.name(cell.config).removesuffix(".json")
        self.cell, self.gpus = cell, gpus
        self.workdir = folder / name
        self.log = folder / f"{name}.log"
        environment = dict(os.environ)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        command = [sys.executable, "-m", "simmatch_tf.train", *cell.words]
        command += [f"--workdir={self.workdir}", "--noprogress"]
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    # Ctrl-C is for the experiment, which hands it on.
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                    preexec_fn=_end_with_parent(),
                )
        except OSError as error:
            raise InputError(
                f"{self.log}: cannot be written ({error.strerror})"
            ) from None

    def why(self) -> str:
        """Why it failed: its signal, or the last line of its log."""
        status = self.process.returncode
        if status < 0:
            killed = f"killed by {signal.Signals(-status).name}"
            return killed + " (out of memory?)" * (-status == signal.SIGKILL)
        lines = self.log.read_text("utf-8", errors="replace").split("\n")
        lines = [line for line in lines if line.strip()]
        return lines[-1] if lines else "it said nothing"


def _end_with_parent() -> Callable[[], None] | None:
    """What a child calls first; None where the system has no such thing."""
    if sys.platform != "linux":
        return None
    system = ctypes.CDLL(None)  # not to be loaded between fork and exec
    return lambda: system.prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)


def run(
    cells: Sequence[plan.Cell],
    store: finished.Store,
    folder: pathlib.Path,
    *,
    jobs: int,
    gpus: Sequence[int],
    lock: TextIO,
    done: Callable[[plan.Cell, finished.Finished], None],
) -> dict[plan.Cell, str]:
    """Trains cells and puts each into the store when it is finished.

    Args:
        cells: To train, in this order.
        store: Of finished runs.
        folder: For the runs' own folders and logs.
        jobs: Runs at once.
        gpus: Divided among these; empty: each sees all.
        lock: See `claim`.
        done: Called after each.

    Returns:
        What failed → why. The others were trained all the same.

    Raises:
        Interrupted: By a signal: the runs have saved where they were.
        InputError: The folder cannot be made, or a log not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror})"
        ) from None
    free = (
        [tuple(gpus[i::jobs]) for i in range(jobs)] if gpus else [None] * jobs
    )
    waiting, running, failed = list(cells), [], {}
    with signals.watch("its runs save, and it stops") as request:
        try:
            while waiting or running:
                if request.signal:
                    _stop(running, request.signal)
                while waiting and free:
                    cell, share = waiting.pop(0), free.pop()
                    running.append(Running(cell, folder, share, lock))
                for each in [
                    r for r in running if r.process.poll() is not None
                ]:
                    running.remove(each)
                    free.append(each.gpus)
                    why = _finish(each, store, jobs, done)
                    if why is not None:
                        failed[each.cell] = why
                time.sleep(_LOOK_EVERY_SECONDS)
        finally:
            for each in running:
                each.process.terminate()
    return failed


def _finish(
    ended: Running,
    store: finished.Store,
    jobs: int,
    done: Callable[[plan.Cell, finished.Finished], None],
) -> str | None:
    """Keeps a run that has ended, or says why it failed."""
    if ended.process.returncode:
        return f"{ended.why()} ({ended.log})"
    try:
        found = store.keep(ended.cell.config, ended.workdir, jobs)
    except InputError as error:
        # The run is as it should be; the next start takes it from there.
        return str(error)
    done(ended.cell, found)
    return None


def _stop(running: list[Running], name: str) -> None:
    """Has all save and leave.

    Raises:
        Interrupted: Always.
    """
    for each in running:
        each.process.send_signal(signal.SIGTERM)
    statuses = [each.process.wait() for each in running]
    saved = sum(s in (0, signals.RESUME_ME) for s in statuses)
    logs = [r.log for r, s in zip(running, statuses, strict=True)
            if s not in (0, signals.RESUME_ME)]  # fmt: skip
    text = f"{name}: {saved} of {len(running)} runs have saved where they were"
    for log in logs:
        text += f"; one had not begun to, or failed ({log})"
    raise signals.Interrupted(f"{text}; the same command goes on")
