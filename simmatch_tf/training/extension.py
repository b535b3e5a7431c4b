"""A finished run that is made longer, from the checkpoint before its cool-down.

The extension is a run of its own in extension/ of the run's folder, which is
complete until the extension ends: only then its files take the place of the
run's. Nothing here imports TensorFlow.
"""

import contextlib
import dataclasses
import os
import shutil

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, terminal
from simmatch_tf.distributed import cluster
from simmatch_tf.flags import errors
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import results
from simmatch_tf.training import workdir as workdir_lib

# Folders whose contents the extension replaces; it adds to tensorboard/.
_REPLACED = ("checkpoints", "cooldown")


def target(
    folder: workdir_lib.Workdir, config: config_lib.Config
) -> tuple[workdir_lib.Workdir, config_lib.Config]:
    """Returns what to train: the run, or its extension that flags ask for.

    An extension that was interrupted goes on, whether or not it is asked for
    again.

    Args:
        folder: The run's folder, claimed.
        config: The run's flags.

    Returns:
        The folder and its flags. Where the extension has just come to its end,
        the run's folder, which has its result.

    Raises:
        InputError: The run cannot be extended.
    """
    own = workdir_lib.Workdir(folder.path / workdir_lib.EXTENSION)
    own.extends, own.compared = folder, folder.compared
    asked = _asked(config)
    if config.overwrite or not (asked or own.path.exists()):
        return folder, config
    preflight.check_available(config, resumed=True)
    chief = cluster.chief(config)
    if own.results.is_file():  # it ended, and was killed right then
        if chief:
            promote(folder)
        return folder, folder.planned(_unasked(config))
    if not own.flagfile.is_file():
        if chief and own.path.exists():  # it was killed before its first step
            shutil.rmtree(own.path)
        if not asked:
            return folder, config
        steps = _check(folder, asked)
        if chief:
            _prepare(folder, own)
        if config.extend_steps is not None:
            steps += config.extend_steps
            config = dataclasses.replace(config, extended_steps=steps)
        elif config.extended_steps is not None:  # of the extension before
            config = dataclasses.replace(config, extended_steps=None)
        return own, _with_intervals(folder.read_config(), config)
    then = own.read_config()
    if asked and _asked(then) != asked:
        raise InputError(
            f"{asked}: the run in --workdir={folder.path} is being extended by "
            f"{_asked(then)}; start it without {asked} to go on with that, or "
            f"remove {own.path} to give it up"
        )
    terminal.say(
        f"going on with the extension of {folder.path} to "
        f"{then.extended_steps} steps"
    )
    config = dataclasses.replace(
        config,
        extended_steps=then.extended_steps,
        extend_minutes=then.extend_minutes,
        extend_steps=then.extend_steps,
    )
    return own, _with_intervals(then, config)


def _asked(config: config_lib.Config) -> str:
    """Returns the flag that asks for an extension, "" for none."""
    for name in ("extend_minutes", "extend_steps"):
        value = getattr(config, name)
        if value is not None:
            return f"--{name}={value}"
    return ""


def _unasked(config: config_lib.Config) -> config_lib.Config:
    return dataclasses.replace(config, extend_minutes=None, extend_steps=None)


def _with_intervals(
    then: config_lib.Config, config: config_lib.Config
) -> config_lib.Config:
    """Returns the flags with measured values that they leave open."""
    names = ("measured_steps", "eval_every", "checkpoint_every")
    left_open = [name for name in names if getattr(config, name) is None]
    return dataclasses.replace(
        config, **{name: getattr(then, name) for name in left_open}
    )


def _check(folder: workdir_lib.Workdir, asked: str) -> int:
    """Checks that a run can be extended; returns its steps.

    Raises:
        InputError: It cannot.
    """
    if not folder.finished():
        state = "has not finished" if folder.started() else "has not begun"
        raise InputError(
            f"{asked}: the run in --workdir={folder.path} {state}; start it "
            f"without {asked}, and extend it when it has its result"
        )
    if not any(folder.cooldown.glob("step_*.index")):
        raise InputError(
            f"{asked}: {folder.cooldown} has no checkpoint from before the "
            "cool-down, so the run cannot be extended; restore it, or start a "
            "longer run in another --workdir"
        )
    return results.read(folder.results).steps


def _prepare(folder: workdir_lib.Workdir, own: workdir_lib.Workdir) -> None:
    """Makes the folder of an extension, which begins before the cool-down.

    Raises:
        InputError: It cannot be written.
    """
    try:
        own.path.mkdir()
        for path in (folder.split, folder.data, folder.timing):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy2(path, own.path / path.name)
        shutil.copytree(folder.cooldown, own.checkpoints)
    except OSError as error:
        shutil.rmtree(own.path, ignore_errors=True)
        raise InputError(
            f"{own.path}: cannot be written ({errors.reason(error)}); the run "
            f"in {folder.path} is as it was"
        ) from None


def promote(folder: workdir_lib.Workdir) -> None:
    """Puts a finished extension in the place of the run.

    Killed at any point, it can be called again: the extension's results.json
    moves last, and until then the run has none.

    Args:
        folder: The run's folder.

    Raises:
        InputError: The folder cannot be written.
    """
    own = workdir_lib.Workdir(folder.path / workdir_lib.EXTENSION)
    try:
        if folder.results.is_file():
            folder.evaluation.unlink(missing_ok=True)
            if not own.model.is_file():  # it could not be saved
                folder.model.unlink(missing_ok=True)
            folder.results.unlink()
        for name in _REPLACED:
            if (own.path / name).is_dir():
                shutil.rmtree(folder.path / name, ignore_errors=True)
                os.replace(own.path / name, folder.path / name)
        for path in sorted(own.tensorboard.rglob("*")):
            place = folder.tensorboard / path.relative_to(own.tensorboard)
            if path.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, place)
        for path in (own.model, own.split, own.data, own.timing):
            if path.is_file():
                os.replace(path, folder.path / path.name)
        if own.flagfile.is_file():
            folder.write_flags(_unasked(own.read_config()))
            own.flagfile.unlink()
        os.replace(own.results, folder.results)
        shutil.rmtree(own.path, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"{folder.path}: cannot be written ({errors.reason(error)}); put "
            "it right and start again: the extension takes the run's place"
        ) from None
