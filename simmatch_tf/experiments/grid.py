"""Runs the cells of a plan, some at once; each is a process of `train`.

Nothing here imports TensorFlow.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

from simmatch_tf.commandline import InputError
from simmatch_tf.experiments import finished, plan
from simmatch_tf.training import interruption

_LOOK_EVERY_SECONDS = 0.1


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
        gpus: tuple[str, ...] | None,
    ) -> None:
        """Starts the process; a run that was begun goes on."""
        name = finished.name(cell.config).removesuffix(".json")
        self.cell, self.gpus = cell, gpus
        self.workdir = folder / name
        self.log = folder / f"{name}.log"
        environment = dict(os.environ)
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
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
                )
        except OSError as error:
            raise InputError(
                f"{self.log}: cannot be written ({error.strerror})"
            ) from None

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text("utf-8", errors="replace").split("\n")
        lines = [line for line in lines if line.strip()]
        return lines[-1] if lines else "it said nothing"


def run(
    cells: Sequence[plan.Cell],
    store: finished.Store,
    folder: pathlib.Path,
    *,
    jobs: int,
    gpus: Sequence[str],
    done: Callable[[plan.Cell, finished.Finished], None],
) -> dict[plan.Cell, str]:
    """Trains cells and puts each into the store when it is finished.

    Args:
        cells: To train, in this order.
        store: Of finished runs.
        folder: For the runs' own folders and logs.
        jobs: Runs at once.
        gpus: Divided among these; empty: each sees all.
        done: Called after each.

    Returns:
        What failed → why. The others were trained all the same.

    Raises:
        Interrupted: By a signal: the runs have saved where they were.
        InputError: A file cannot be written.
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
    with interruption.watch() as request:
        try:
            while waiting or running:
                if request.signal:
                    _stop(running, request.signal)
                while waiting and free:
                    running.append(Running(waiting.pop(0), folder, free.pop()))
                for each in [
                    r for r in running if r.process.poll() is not None
                ]:
                    running.remove(each)
                    free.append(each.gpus)
                    if each.process.returncode:
                        failed[each.cell] = f"{each.last_words()} ({each.log})"
                        continue
                    found = store.keep(each.cell.config, each.workdir, jobs)
                    done(each.cell, found)
                time.sleep(_LOOK_EVERY_SECONDS)
        finally:
            for each in running:
                each.process.kill()
    return failed


def _stop(running: list[Running], name: str) -> None:
    """Has all save and leave.

    Raises:
        Interrupted: Always.
    """
    for each in running:
        each.process.send_signal(signal.SIGTERM)
    for each in running:
        each.process.wait()
    raise interruption.Interrupted(
        f"{name}: {len(running)} runs have saved where they were; the same "
        "command goes on"
    )
