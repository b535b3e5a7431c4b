"""A folder that one process at a time works in.

Nothing here imports TensorFlow.
"""

import contextlib
import fcntl
import os
from typing import TextIO

from simmatch_tf.flags.commandline import InputError


def hold(lock: TextIO, folder: os.PathLike, who: str = "a live run") -> None:
    """Locks until the file is closed by all that have it open.

    The system frees the lock of a process that died; child processes that were
    handed the file keep it.

    Args:
        lock: A file, open for appending and reading.
        folder: What it locks, for a message.
        who: Likewise.

    Raises:
        InputError: Another process holds it.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        raise InputError(
            f"--workdir={folder}: in use by {who} (process {holder})"
        ) from None
    lock.truncate(0)
    # On a full disk the lock holds all the same. Unbuffered: nothing is left
    # to be written when the file is closed.
    with contextlib.suppress(OSError):
        os.write(lock.fileno(), f"{os.getpid()}\n".encode())
