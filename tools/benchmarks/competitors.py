"""Processes that are measured by turns, so that all see the same machine."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any


def resident(kind: str, pid: int | str = "self") -> int:
    """Returns the memory of a process in bytes: VmRSS now, VmHWM at peak."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(re.search(rf"{kind}:\s*(\d+) kB", status)[1])


def setting(threads: int | None) -> dict[str, Any]:
    """Returns the setting of a measurement: threads and versions.

    A package that is not installed, as PyTorch need not be, has version None.
    """
    versions: dict[str, str | None] = {}
    for name in ("tensorflow", "keras", "torch", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "threads": threads or len(os.sched_getaffinity(0)),
        "versions": versions,
    }


class Competitor:
    """A process that answers each line of JSON by another.

    Attributes:
        name: Name of the competitor.
        process: Its process.
    """

    def __init__(self, name: str, words: Sequence[str]) -> None:
        """Starts this tool again, with --serve=NAME."""
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, sys.argv[0], *words, f"--serve={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )

    def ask(self, task: Any = None) -> Any:
        """Returns its answer to a task."""
        print(json.dumps(task), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"error: {self.name}: status {self.process.wait()}")
        return json.loads(line)


def serve(answer: Callable[[Any], Any]) -> None:
    """Answers each line of stdin until its end, as a competitor."""
    # Output of a library must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
