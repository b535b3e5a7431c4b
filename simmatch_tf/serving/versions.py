"""Folders of versions, as TensorFlow Serving polls them.

Nothing here imports TensorFlow.
"""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from simmatch_tf.commandline import InputError


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
    aside = None
    try:
        output.mkdir(parents=True, exist_ok=True)
        aside = Aside(
            pathlib.Path(tempfile.mkdtemp(prefix=".unfinished-", dir=output))
        )
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
        if aside is not None and aside.path.name.startswith(".unfinished-"):
            shutil.rmtree(aside.path, ignore_errors=True)


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
