"""Prepares training batches for other processes, on this machine's cores.

python -m simmatch_tf.serve_data --role=dispatcher
python -m simmatch_tf.serve_data --role=worker --dispatcher=HOST:5050

Then train with --data_service=grpc://HOST:5050. Runs until Ctrl-C or SIGTERM.
"""

import dataclasses
import threading
from typing import Any

from simmatch_tf import preflight, signals, terminal
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError


@dataclasses.dataclass(frozen=True)
class ServeDataConfig(commandline.Flags):
    """The flags of `python -m simmatch_tf.serve_data`."""

    role: str | None = flag(
        None,
        "Role of this process: one dispatcher distributes the work to any "
        "number of workers.",
        choices=("dispatcher", "worker"),
        required="dispatcher or worker",
    )
    dispatcher: str | None = flag(
        None, "Address of the dispatcher, HOST:PORT; for workers."
    )
    host: str = flag(
        "localhost",
        "Name of this machine under which other machines reach it.",
    )
    port: int | None = flag(
        None,
        "Port to listen on; 0 takes any free port. Default: 5050 for a "
        "dispatcher, 0 for a worker.",
        low=0,
        high=65535,
    )

    def check(self) -> None:
        """A worker needs its dispatcher."""
        if (self.role == "worker") != (self.dispatcher is not None):
            raise InputError(
                f"--role={self.role} and --dispatcher={self.dispatcher}: a "
                "worker, and only that, needs --dispatcher=HOST:PORT"
            )
        if self.dispatcher is not None:
            commandline.check_address("dispatcher", self.dispatcher)
        if self.port is None:
            port = 5050 if self.role == "dispatcher" else 0
            object.__setattr__(self, "port", port)
        commandline.check_address("host", self.host, f"{self.host}:1")


def _start(config: ServeDataConfig) -> tuple[Any, str]:
    """The server, which ends with the last reference to it; its address."""
    # TensorFlow is imported only now that the flags are checked.
    terminal.say("loading TensorFlow")
    preflight.load_tensorflow()
    from tensorflow.data.experimental import service

    if config.role == "dispatcher":
        server = service.DispatchServer(
            service.DispatcherConfig(port=config.port, protocol="grpc")
        )
        port = server.target.rpartition(":")[2]
        return server, f"{config.host}:{port}"
    server = service.WorkerServer(
        service.WorkerConfig(
            dispatcher_address=config.dispatcher,
            worker_address=f"{config.host}:%port%",
            port=config.port,
            protocol="grpc",
        )
    )
    return server, server._address  # no public name for a port it chose


def main(config: ServeDataConfig) -> None:
    """Serves until it is told to stop."""
    signals.sigterm_as_ctrl_c()
    try:
        preflight.check_port("port", config.port)
        if config.role == "worker":
            preflight.check_reachable("dispatcher", config.dispatcher)
        server, address = _start(config)
        print(f"{config.role} listens at grpc://{address}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:  # the way to end it
        pass


if __name__ == "__main__":
    command.run(main, ServeDataConfig)
