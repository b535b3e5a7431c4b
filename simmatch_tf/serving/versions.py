"""Folders of versions, as TensorFlow Serving polls them.

Nothing here imports TensorFlow.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from simmatch_tf.commandline import InputError

_UNFINISHED = ".unfinished-"


class Aside:
    """A folder that becomes a version once it is complete.

    Attributes:
        path: Where it is written; then where it is.
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Names the folder."""
        self.path = path


@contextlib.contextmanager
def new(output: str | os.PathLike) -> Iterator[Aside]:
    """Writes a version: whole, under the next number, or not at all.

    A server that polls `output` looks at numbers only, so it never sees the
    folder before its content is complete.

    Args:
        output: The folder of versions; made if it is not there.

    Yields:
        The folder to fill. Behind the block its `path` is the version's.

    Raises:
        InputError: The folder cannot be written.
    """
    output = pathlib.Path(output).expanduser()
    aside, stack = None, contextlib.ExitStack()
    try:
        output.mkdir(parents=True, exist_ok=True)
        _remove_dead(output)
        aside = Aside(
            pathlib.Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=output))
        )
        # The system frees a dead process's lock.
        lock = stack.enter_context(_opened(aside.path))
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield aside
        # For the server, which may run as another user.
        mask = os.umask(0)
        os.umask(mask)
        aside.path.chmod(0o777 & ~mask)
        aside.path = _rename(aside.path, output)
    except OSError as error:
        raise InputError(
            f"--output={output}: cannot be written ({error.strerror or error})"
        ) from error
    finally:
        if aside is not None and aside.path.name.startswith(_UNFINISHED):
            shutil.rmtree(aside.path, ignore_errors=True)
        stack.close()


@contextlib.contextmanager
def _opened(folder: pathlib.Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _remove_dead(output: pathlib.Path) -> None:
    """Removes what exports left that were killed."""
    for folder in output.glob(_UNFINISHED + "*"):
        with contextlib.suppress(OSError), _opened(folder) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _rename(aside: pathlib.Path, output: pathlib.Path) -> pathlib.Path:
    """Gives the folder the next free number."""
    while True:
        version = output / str(1 + max(numbers(output), default=0))
        try:
            return aside.rename(version)
        except OSError:
            # Another export took the number in between.
            if not version.exists():
                raise


def numbers(output: pathlib.Path) -> list[int]:
    """The versions that are there, in no order."""
    return [int(p.name) for p in output.iterdir() if p.name.isdecimal()]
