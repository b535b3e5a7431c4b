"""Prepares training batches for other processes, on this machine's cores.

python -m simmatch_tf.serve_data --role=dispatcher
python -m simmatch_tf.serve_data --role=worker --dispatcher=HOST:5050

Then train with --data_service=grpc://HOST:5050. Runs until Ctrl-C or SIGTERM.
"""

import threading
from typing import Any

from simmatch_tf import (
    availability,
    command_flags,
    preflight,
    signals,
    terminal,
)
from simmatch_tf.flags import commandline


def _start(config: command_flags.ServeDataConfig) -> tuple[Any, str]:
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


def main(config: command_flags.ServeDataConfig) -> None:
    """Serves until it is told to stop."""
    signals.sigterm_as_ctrl_c()
    try:
        availability.check_port("port", config.port)
        if config.role == "worker":
            availability.check_reachable("dispatcher", config.dispatcher)
        server, address = _start(config)
        print(f"{config.role} listens at grpc://{address}", flush=True)
        threading.Event().wait()
    except KeyboardInterrupt:  # the way to end it
        pass


if __name__ == "__main__":
    commandline.run(main, command_flags.ServeDataConfig)
