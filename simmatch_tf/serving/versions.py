"""Folders of versions, as TensorFlow Serving polls them.

Nothing here imports TensorFlow.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf import io
from simmatch_tf.flags.commandline import InputError

# Of an export: what it is, for programs.
CARD = "model_card.json"
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


def check_model(
    output: str | os.PathLike,
    config: config_lib.Config,
    images: Mapping[str, Any],
) -> None:
    """Checks that a folder of versions has no other run's model.

    A server takes the newest version for the same model. A run is the same in
    the same workdir, however often it was trained there on its dataset with
    its classes; or where flags and training images are the same, wherever it
    lies.

    Args:
        output: The folder of versions.
        config: The run's flags.
        images: What tells its training images from others, see
            `workdir.Workdir.images`.

    Raises:
        InputError: The newest version there is another run's.
    """
    output = pathlib.Path(output).expanduser()
    if not output.is_dir():
        return
    there = (output / str(n) for n in sorted(numbers(output), reverse=True))
    newest = next((p for p in there if p.is_dir() and any(p.iterdir())), None)
    if newest is None:
        return
    try:
        card = json.loads((newest / CARD).read_text("utf-8"))
        flags, data = card["flags"], card["data"]
        if _is_same(flags, data, config, images):
            return
        whose = f"run {flags['workdir']}, {flags['algorithm']} on "
        whose += f"{flags.get('data_dir') or data['dataset']}, exported "
        whose += card["date"]
    except (OSError, ValueError, KeyError, TypeError):
        whose = f"none that export wrote: {newest.name}/ has no {CARD}"
    name = pathlib.Path(os.path.realpath(config.workdir)).name
    raise InputError(
        f"--output={output}: holds another model (version {newest.name}: "
        f"{whose}), and a server would take this one for its next version; "
        f"name a folder of its own, such as {output / name}, or give "
        "--replace_model"
    )


def _is_same(
    flags: dict[str, Any],
    data: dict[str, Any],
    config: config_lib.Config,
    images: Mapping[str, Any],
) -> bool:
    """Whether a model card is of this run; see `check_model`."""
    train_sha256 = images.get("train_sha256")
    here, there = map(os.path.realpath, (config.workdir, flags["workdir"]))
    if here == there:
        names = images.get("class_names", data["class_names"])
        # Another folder may have become this workdir's, as its name is the
        # default's; one that was moved has the same images.
        moved = flags.get("data_dir") != config.data_dir
        return (
            data["dataset"] == config.dataset
            and list(map(io.nfc, names))
            == list(map(io.nfc, data["class_names"]))
            and not (moved and data["train_sha256"] != train_sha256)
        )
    then = config_lib.Config.from_recorded(flags).values()
    return data["train_sha256"] == train_sha256 and all(
        then.get(name) == value
        for name, value in config.values().items()
        if not config.fields()[name].operational
    )
