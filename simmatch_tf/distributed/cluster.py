"""The workers of a run on several machines: who they are, and how they meet.

The environment variable TF_CONFIG names them, as TensorFlow defines it:

    {"cluster": {"worker": ["host0:12345", "host1:12345"]},
     "task": {"type": "worker", "index": 0}}

TensorFlow waits up to an hour for a worker that is missing, and ignores signals
meanwhile. Therefore the workers meet before TensorFlow connects them: the chief
listens at its own address, each other worker connects there, and once all have,
the chief tells them to go on.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import socket
import time
import typing
from collections.abc import Iterable
from typing import Any

from simmatch_tf import signals, terminal
from simmatch_tf.flags import commandline
from simmatch_tf.flags.errors import InputError

if typing.TYPE_CHECKING:
    from simmatch_tf import config as config_lib

_EXAMPLE = (
    '{"cluster": {"worker": ["host0:12345", "host1:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
# The chief's answers: go on, or stop with the error that follows.
_GO, _STOP = b"go\n", b"no "
_MAX_MESSAGE_BYTES = 2**16


# ------------------------------------------------------------- TF_CONFIG --
@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers, and which of them this process is.

    Attributes:
        workers: host:port of each. The first is the chief, which writes the
            run's files.
        index: Index of this process among them.
    """

    workers: tuple[str, ...]
    index: int

    @property
    def chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.index == 0


def read() -> Cluster | None:
    """Reads TF_CONFIG.

    Returns:
        The workers; None if the variable is not set or names one worker.

    Raises:
        InputError: Its value is not of the form wanted.
    """
    text = os.environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        content = json.loads(text)
        jobs = content.get("cluster") or {}
        task = content.get("task") or {}
        chiefs = _hosts(jobs, "chief")
        workers = [*chiefs, *_hosts(jobs, "worker")]
        kind, index = task.get("type"), task.get("index")
    except (json.JSONDecodeError, AttributeError) as error:
        raise _wrong(f"is not JSON of the form wanted ({error})") from None
    others = sorted(jobs.keys() - {"chief", "worker"})
    if others:
        raise _wrong(f"has a job {others[0]!r}: only workers train")
    if len(chiefs) > 1:
        raise _wrong(f"has {len(chiefs)} chiefs: must be at most one")
    if len(set(workers)) < len(workers):
        raise _wrong(f"names an address twice: {', '.join(workers)}")
    if len(workers) < 2:
        return None
    if kind not in [*jobs]:
        raise _wrong(f"has the task type {kind!r}, which is not in its cluster")
    if index not in range(len(jobs[kind])):
        raise _wrong(
            f"has the task index {index!r}: must be in "
            f"[0, {len(jobs[kind]) - 1}]"
        )
    offset = len(chiefs) if kind == "worker" else 0
    return Cluster(tuple(workers), offset + index)


def _hosts(jobs: dict[str, Any], job: str) -> list[str]:
    """Returns the addresses of a job."""
    hosts = jobs.get(job, [])
    if not isinstance(hosts, list):
        raise _wrong(f"has a {job} that is no list: {hosts!r}")
    for host in hosts:
        if commandline.address(str(host)) is None:
            raise _wrong(f"has the address {host!r}: must be host:port")
    return hosts


def of(config: config_lib.Config) -> Cluster | None:
    """Returns the workers that a run uses; None if it is this process alone."""
    if config.strategy not in ("multi_worker", "auto") or config.tpu:
        return None
    cluster = read()
    if config.strategy == "multi_worker" and cluster is None:
        raise InputError(
            "--strategy=multi_worker: TF_CONFIG must name two workers or "
            "more, and which of them this one is"
        )
    return cluster


def chief(config: config_lib.Config) -> bool:
    """Returns whether this process writes the run's files."""
    cluster = of(config)
    return cluster is None or cluster.chief


def _wrong(problem: str) -> InputError:
    return InputError(f"TF_CONFIG {problem}; such as {_EXAMPLE}")


# ---------------------------------------------------------------- meeting --
def meet(cluster: Cluster, seconds: float, flags: str) -> None:
    """Waits until all workers are there.

    Args:
        cluster: The workers.
        seconds: How long to wait for them.
        flags: The flags that must be the same for all, as a flagfile.

    Raises:
        Interrupted: A worker did not come in time, or a signal came first.
        InputError: The chief cannot listen at its address, or a worker has
            other flags.
    """
    until = time.monotonic() + seconds
    terminal.say(
        f"worker {cluster.index} waits until all workers have started: "
        + ", ".join(cluster.workers)
    )
    chief = commandline.address(cluster.workers[0])
    if cluster.chief:
        _gather(cluster, chief[1], until, flags)
    else:
        message = json.dumps({"index": cluster.index, "flags": flags})
        _call(message.encode() + b"\n", chief, until)


def _check_wait(until: float, missing: str) -> None:
    """Raises Interrupted when the wait is over."""
    if name := signals.asked():
        raise signals.Interrupted(
            f"{name} while waiting for {missing}; start it again"
        )
    if time.monotonic() > until:
        raise signals.Interrupted(
            f"waited in vain for {missing} (--worker_timeout); start all "
            "workers again"
        )


def _gather(cluster: Cluster, port: int, until: float, flags: str) -> None:
    """The chief's part: waits until all have called, then answers them."""
    calls: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(cluster.workers[0], port))
        while missing := [
            f"worker {index} ({name})"
            for index, name in enumerate(cluster.workers)
            if index and not (index in calls and _is_open(calls[index]))
        ]:
            _check_wait(until, ", ".join(missing))
            try:
                call, _ = listener.accept()
            except TimeoutError:
                continue
            stack.enter_context(call)
            index, theirs = _read_call(call)
            if index is None:
                continue  # not a worker of ours
            # Of a worker that was started again the last call counts.
            calls[index] = call
            if difference := _difference(flags, theirs):
                message = f"worker {index} and the chief: {difference}"
                _answer(calls.values(), _STOP + message.encode() + b"\n")
                raise InputError(message)
        _answer(calls.values(), _GO)


def _read_call(call: socket.socket) -> tuple[int | None, str]:
    """Reads a worker's index and flags; the index is None of anyone else."""
    try:
        call.settimeout(2.0)
        with call.makefile("rb") as file:
            message = json.loads(file.readline(_MAX_MESSAGE_BYTES))
        return int(message["index"]), str(message["flags"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def _difference(chief: str, worker: str) -> str:
    """Names the first flag that differs, with both values; "" if none does."""
    ours, theirs = (text.splitlines() for text in (chief, worker))
    only = [
        next((line for line in a if line not in b), "the default")
        for a, b in ((theirs, ours), (ours, theirs))
    ]
    if only == ["the default"] * 2:
        return ""
    return f"{only[0]} there and {only[1]} here; all need the same flags"


def _answer(calls: Iterable[socket.socket], message: bytes) -> None:
    for call in calls:
        with contextlib.suppress(OSError):
            call.settimeout(2.0)
            call.sendall(message)


def _listen(name: str, port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    try:
        listener = socket.create_server(
            ("", port),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
        )
    except OSError as error:
        raise InputError(
            f"TF_CONFIG: the chief cannot listen at {name} ({error.strerror})"
        ) from None
    listener.settimeout(0.2)
    return listener


def _is_open(call: socket.socket) -> bool:
    """Whether the worker still waits: it has nothing more to send."""
    return not select.select([call], [], [], 0)[0]


def _call(message: bytes, chief: tuple[str, int], until: float) -> None:
    """Another worker's part: calls the chief until it answers."""
    missing = f"the chief ({chief[0]}:{chief[1]})"
    reason = ""
    while True:
        _check_wait(until, missing + reason)
        try:
            with socket.create_connection(chief, timeout=2.0) as connection:
                connection.sendall(message)
                answer = _wait_for_answer(connection, until)
        except OSError as error:
            reason, answer = f": {error.strerror or error}", b""
        if answer == _GO:
            return
        if answer.startswith(_STOP):
            raise InputError(answer.removeprefix(_STOP).decode().strip())
        time.sleep(0.2)  # the chief is not there yet, or has gone: call again


def _wait_for_answer(connection: socket.socket, until: float) -> bytes:
    """Returns the chief's answer; b"" if the chief goes."""
    while not select.select([connection], [], [], 0.2)[0]:
        _check_wait(until, "the other workers")
    with connection.makefile("rb") as file:
        return file.readline()
