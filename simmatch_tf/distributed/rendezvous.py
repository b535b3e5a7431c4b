"""Where workers meet before TensorFlow joins them.

TensorFlow waits for a missing worker for an hour, deaf to signals. So the chief
listens at its own address first, each other worker calls there, and once all
have, the chief sends them on. Nothing here imports TensorFlow.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterable

from absl import logging

from simmatch_tf import signals
from simmatch_tf.distributed import cluster as cluster_lib
from simmatch_tf.flags.commandline import InputError

# The chief's answers: go on, or end with the error that follows.
_GO, _NO = b"go\n", b"no "
_LONGEST = 2**16  # of a message


def meet(cluster: cluster_lib.Cluster, seconds: float, flags: str) -> None:
    """Returns once all workers are there.

    Args:
        cluster: Who they are, and which this one is.
        seconds: How long to wait for them.
        flags: A flagfile of what must be the same for all.

    Raises:
        Interrupted: Somebody did not come in time, or a signal came first.
        InputError: The chief cannot listen at its address, or a worker has
            other flags.
    """
    until = time.monotonic() + seconds
    logging.info(
        "worker %d waits for the others of %s",
        cluster.index,
        ", ".join(cluster.workers),
    )
    chief = cluster_lib.address(cluster.workers[0])
    if cluster.chief:
        _gather(cluster, chief[1], until, flags)
    else:
        said = json.dumps({"index": cluster.index, "flags": flags})
        _call(said.encode() + b"\n", chief, until)


def _check(until: float, missing: str) -> None:
    """Ends the wait if it is over."""
    if name := signals.asked():
        raise signals.Interrupted(
            f"{name} while waiting for {missing}; start it again"
        )
    if time.monotonic() > until:
        raise signals.Interrupted(
            f"waited in vain for {missing} (--worker_timeout); start all "
            "workers again"
        )


def _gather(
    cluster: cluster_lib.Cluster, port: int, until: float, flags: str
) -> None:
    """The chief's part: waits until all have called, and sends them on."""
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(cluster.workers[0], port))
        while missing := [
            f"worker {index} ({name})"
            for index, name in enumerate(cluster.workers)
            if index and not (index in there and _alive(there[index]))
        ]:
            _check(until, ", ".join(missing))
            try:
                caller, _ = listener.accept()
            except TimeoutError:
                continue
            stack.enter_context(caller)
            index, theirs = _said(caller)
            if index is None:
                continue  # a stranger
            # Of a worker that was started again the last call counts.
            there[index] = caller
            if wrong := _difference(flags, theirs):
                message = f"worker {index} and the chief: {wrong}"
                _answer(there.values(), _NO + message.encode() + b"\n")
                raise InputError(message)
        _answer(there.values(), _GO)


def _said(caller: socket.socket) -> tuple[int | None, str]:
    """Which worker calls, and its flags; None if it is none."""
    caller.settimeout(2.0)
    try:
        said = json.loads(_line(caller))
        return int(said["index"]), str(said["flags"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def _difference(chief: str, worker: str) -> str:
    """The first flag that differs, with both values; or nothing."""
    ours, theirs = (text.splitlines() for text in (chief, worker))
    only = [
        next((line for line in a if line not in b), "the default")
        for a, b in ((theirs, ours), (ours, theirs))
    ]
    if only == ["the default"] * 2:
        return ""
    return f"{only[0]} there and {only[1]} here; all need the same flags"


def _answer(callers: Iterable[socket.socket], message: bytes) -> None:
    for caller in callers:
        with contextlib.suppress(OSError):
            caller.settimeout(2.0)
            caller.sendall(message)


def _line(connection: socket.socket) -> bytes:
    """What is said up to the end of a line; empty, if the other end goes."""
    found = b""
    while not found.endswith(b"\n") and len(found) < _LONGEST:
        more = connection.recv(4096)
        if not more:
            return b""
        found += more
    return found


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


def _alive(caller: socket.socket) -> bool:
    """Whether the other end is still there: it has nothing more to say."""
    caller.setblocking(False)
    try:
        return caller.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _call(said: bytes, chief: tuple[str, int], until: float) -> None:
    """Another worker's part: calls the chief until it is sent on."""
    missing = f"the chief ({chief[0]}:{chief[1]})"
    reason = ""
    while True:
        _check(until, missing + reason)
        try:
            with socket.create_connection(chief, timeout=2.0) as line:
                line.sendall(said)
                answer = _wait(line, until)
        except OSError as error:
            reason, answer = f": {error.strerror or error}", b""
        if answer == _GO:
            return
        if answer.startswith(_NO):
            raise InputError(answer.removeprefix(_NO).decode().strip())
        time.sleep(0.2)  # the chief is not there yet, or has gone: call again


def _wait(line: socket.socket, until: float) -> bytes:
    """The chief's answer; empty, if it goes."""
    line.settimeout(0.2)
    found = b""
    while not found.endswith(b"\n"):
        _check(until, "the other workers")
        try:
            more = line.recv(4096)
        except TimeoutError:
            continue
        if not more:
            return b""
        found += more
    return found
