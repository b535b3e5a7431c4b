"""Starts all workers of a run on this machine, to try distributed training.

    python tools/local_workers.py -- --flagfile=configs/digits_40.cfg

The flags of simmatch_tf.train follow after --, the same for each worker. Prints
the output of the chief. The output of the others is kept, and printed if one
ends with another status than the chief. Signals are passed on to all of them.
Ends with the chief's status.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile


def free_ports(count: int) -> list[int]:
    """Returns `count` ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("localhost", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def start(
    count: int,
    words: list[str],
    *,
    module: str = "simmatch_tf.train",
    **popen,
) -> list[subprocess.Popen]:
    """Starts a module `count` times, as workers of one run.

    Args:
        count: Number of workers.
        words: Flags of the run.
        module: Module of the command, or one that calls it.
        **popen: Arguments of subprocess.Popen; a callable is called with the
            worker's index.

    Returns:
        The processes, the chief first.
    """
    hosts = [f"localhost:{port}" for port in free_ports(count)]
    processes = []
    for index in range(count):
        task = {"type": "worker", "index": index}
        content = {"cluster": {"worker": hosts}, "task": task}
        environment = dict(os.environ, TF_CONFIG=json.dumps(content))
        if count == 1:
            del environment["TF_CONFIG"]
        options = {
            name: value(index) if callable(value) else value
            for name, value in popen.items()
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", module, *words],
                env=environment,
                **options,
            )
        )
    return processes


def main() -> int:
    """Starts the workers and waits for them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("words", nargs="*", help="flags of the run, after --")
    given = parser.parse_args()
    if given.workers < 1:
        parser.error(f"--workers={given.workers}: must be at least 1")
    with tempfile.TemporaryDirectory() as folder:
        logs = [
            open(os.path.join(folder, str(index)), "w+", encoding="utf-8")
            for index in range(1, given.workers)
        ]
        processes, early = [], []

        def pass_on(number: int, frame: object) -> None:
            del frame
            early.append(number)
            for process in processes:
                process.send_signal(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        processes += start(
            given.workers,
            given.words,
            stdout=lambda index: logs[index - 1] if index else None,
            stderr=lambda index: logs[index - 1] if index else None,
        )
        if early:  # it came before there were processes to pass it on to
            pass_on(early[0], None)
        # As in a shell: 128 plus the number of the signal.
        statuses = [process.wait() for process in processes]
        statuses = [s if s >= 0 else 128 - s for s in statuses]
        for index, (log, status) in enumerate(
            zip(logs, statuses[1:], strict=True), start=1
        ):
            if status not in (0, statuses[0]):
                log.seek(0)
                print(
                    f"worker {index} ended with status {status}:\n{log.read()}",
                    file=sys.stderr,
                )
            log.close()
    return statuses[0]


if __name__ == "__main__":
    sys.exit(main())
