"""Runs the cells of a plan, some at once; each is a process of `train`.

Nothing here imports TensorFlow.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from simmatch_tf import io, signals
from simmatch_tf.experiments import identity, plan
from simmatch_tf.experiments import store as store_lib
from simmatch_tf.flags.errors import InputError

_POLL_SECONDS = 0.1


@contextlib.contextmanager
def claim(folder: pathlib.Path) -> Iterator[TextIO]:
    """Locks a folder for an experiment, and creates it if needed.

    Yields:
        The lock. Runs that outlive the experiment hold it, too.

    Raises:
        InputError: It cannot be written, or another experiment uses it.
    """
    io.make_folder(folder, f"--workdir={folder}")
    with open(folder / "lock", "a+", encoding="utf-8") as lock:
        io.claim(lock, folder, "a live experiment, or runs that it left")
        yield lock


class Running:
    """A cell that is being trained.

    Attributes:
        cell: The cell.
        workdir: The folder of its run.
        log: The output of its process.
        gpus: The numbers of its GPUs; None if it sees all.
        process: Its process.
    """

    def __init__(
        self,
        cell: plan.Cell,
        folder: pathlib.Path,
        gpus: tuple[int, ...] | None,
        lock: TextIO,
    ) -> None:
        """Starts the process; it resumes a run that was interrupted.

        On Linux it saves and ends when the experiment dies.
        """
        name = identity.name(cell.config).removesuffix(".json")
        self.cell, self.gpus = cell, gpus
        self.workdir = folder / name
        self.log = folder / f"{name}.log"
        environment = dict(os.environ)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        own = cell.config.to_flagfile(without=("workdir", "progress"))
        command = [sys.executable, "-m", "simmatch_tf.train"]
        command += own.splitlines()
        command += [f"--workdir={self.workdir}", "--noprogress"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                # Ctrl-C is for the experiment, which passes it on.
                start_new_session=True,
                pass_fds=(lock.fileno(),),
                preexec_fn=signals.follower(signal.SIGTERM),
            )

    def failure(self) -> str:
        """Says why it failed: its signal, or the last line of its log."""
        status = self.process.returncode
        if status < 0:
            return signals.killed_by(-status)
        lines = self.log.read_text("utf-8", errors="replace").split("\n")
        lines = [line for line in lines if line.strip()]
        return lines[-1] if lines else "it printed nothing"


def run(
    cells: Sequence[plan.Cell],
    store: store_lib.Store,
    folder: pathlib.Path,
    *,
    jobs: int,
    gpus: Sequence[int],
    lock: TextIO,
    done: Callable[[plan.Cell, store_lib.Finished], None],
) -> dict[plan.Cell, str]:
    """Trains cells, and adds each to the store when it is finished.

    Args:
        cells: The cells, in the order to train them.
        store: The store of finished runs.
        folder: The folder for the runs' own folders and logs.
        jobs: Number of runs at once.
        gpus: GPUs to divide among these; if empty, each run sees all.
        lock: The lock of `claim`.
        done: Called after each run.

    Returns:
        Cell → why it failed. The others were trained all the same.

    Raises:
        Interrupted: A signal came; the runs have saved their state.
        InputError: The folder cannot be written.
    """
    io.make_folder(folder)
    free = [tuple(gpus[i::jobs]) if gpus else None for i in range(jobs)]
    waiting, running, failed = list(cells), [], {}
    with signals.watch("its runs save, and it stops") as request:
        try:
            while waiting or running:
                if request.signal:
                    _stop(running, request.signal)
                while waiting and free:
                    cell, share = waiting.pop(0), free.pop()
                    running.append(Running(cell, folder, share, lock))
                for each in list(running):
                    if each.process.poll() is None:
                        continue
                    running.remove(each)
                    free.append(each.gpus)
                    failure = _finish(each, store, jobs, done)
                    if failure is not None:
                        failed[each.cell] = failure
                time.sleep(_POLL_SECONDS)
        finally:
            for each in running:
                each.process.terminate()
    return failed


def _finish(
    ended: Running,
    store: store_lib.Store,
    jobs: int,
    done: Callable[[plan.Cell, store_lib.Finished], None],
) -> str | None:
    """Adds a run that has ended to the store, or says why it failed."""
    if ended.process.returncode:
        return f"{ended.failure()} ({ended.log})"
    try:
        finished = store.add(ended.cell.config, ended.workdir, jobs)
    except InputError as error:
        # The run itself is complete; the next start adds it.
        return str(error)
    done(ended.cell, finished)
    return None


def _stop(running: list[Running], name: str) -> None:
    """Makes all runs save and end.

    Raises:
        Interrupted: Always.
    """
    for each in running:
        each.process.send_signal(signal.SIGTERM)
    statuses = [each.process.wait() for each in running]
    unsaved = [
        each.log
        for each, status in zip(running, statuses, strict=True)
        if status not in (0, signals.RESUME_ME)
    ]
    saved = len(running) - len(unsaved)
    text = f"{name}: {saved} of {len(running)} runs have saved their state"
    for log in unsaved:
        text += f"; one had not begun to train, or failed ({log})"
    raise signals.Interrupted(f"{text}; the same command resumes them")
