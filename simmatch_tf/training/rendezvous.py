"""Where workers meet before TensorFlow joins them.

TensorFlow waits for a missing worker for an hour, deaf to signals. So the chief
listens at its own address first, each other worker calls there, and once all
have, the chief sends them on. Nothing here imports TensorFlow.
"""

import contextlib
import socket
import time

from absl import logging

from simmatch_tf import cluster as cluster_lib
from simmatch_tf.commandline import InputError
from simmatch_tf.training import interruption

_GO = b"go"


def meet(cluster: cluster_lib.Cluster, seconds: float) -> None:
    """Returns once all workers are there.

    Args:
        cluster: Who they are, and which this one is.
        seconds: How long to wait for them.

    Raises:
        Interrupted: Somebody did not come in time, or a signal came first.
        InputError: The chief cannot listen at its address.
    """
    until = time.monotonic() + seconds
    logging.info(
        "worker %d waits for the others of %s",
        cluster.index,
        ", ".join(cluster.workers),
    )
    host, _, port = cluster.workers[0].rpartition(":")
    if cluster.chief:
        _gather(cluster, int(port), until)
    else:
        _call(cluster.index, (host.strip("[]"), int(port)), until)


def _check(until: float, missing: str) -> None:
    """Ends the wait if it is over."""
    if name := interruption.asked():
        raise interruption.Interrupted(
            f"{name} while waiting for {missing}; start it again"
        )
    if time.monotonic() > until:
        raise interruption.Interrupted(
            f"waited in vain for {missing} (--worker_timeout); start all "
            "workers again"
        )


def _gather(cluster: cluster_lib.Cluster, port: int, until: float) -> None:
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
            caller.settimeout(2.0)
            with contextlib.suppress(OSError, ValueError):
                # Of a worker that was started again the last call counts.
                there[int(caller.recv(16))] = caller
        for caller in there.values():
            with contextlib.suppress(OSError):
                caller.sendall(_GO)


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


def _call(index: int, chief: tuple[str, int], until: float) -> None:
    """Another worker's part: calls the chief until it is sent on."""
    missing = f"the chief ({chief[0]}:{chief[1]})"
    while True:
        _check(until, missing)
        try:
            with socket.create_connection(chief, timeout=2.0) as line:
                line.sendall(str(index).encode())
                line.settimeout(0.2)
                while True:
                    _check(until, "the other workers")
                    try:
                        answer = line.recv(len(_GO))
                    except TimeoutError:
                        continue
                    if answer == _GO:
                        return
                    break  # the chief has gone: call again
        except OSError:
            pass
        time.sleep(0.2)
