"""The folder of a run: its files, its lock, and whether it may be resumed.

    flags.cfg      the flags; `--flagfile=` of it starts the same run again
    split.json     which images are labeled, in slot order
    checkpoints/   step_00000400.index …
    cooldown/      the checkpoint before the cool-down, of --schedule=cooldown
    extension/     a longer run that goes on from it, until that has finished
    labels_alone/  a short run on the labels alone, see --labels_alone
    tensorboard/   event files
    model.keras    the network with the evaluation weights of the result
    results.json   the result, once the run is finished
    baselines.json what scikit-learn reaches on the same labels
    baselines.npz  the classifier of baseline.keras, until that is written
    baseline.keras a linear classifier on the weights of --init_from
    data.json      the files of its images, to detect changes
    timing.json    duration and speed of each session
    imported.json  origin of an imported run
    lock           held while a process trains here

Nothing here imports TensorFlow.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, registry, terminal
from simmatch_tf.data import fingerprint
from simmatch_tf.distributed import cluster
from simmatch_tf.flags import flagfiles
from simmatch_tf.flags.errors import InputError

FLAGFILE = flagfiles.OF_RUN
EVALUATION = "evaluation.json"
# Name of the weights of baseline.keras, beside "student" and "ema".
BASELINE = "baseline"
# The weights of a run that images can be classified with.
WEIGHTS = ("student", "ema", BASELINE)
NO_MEMORY = (
    f"the weights {BASELINE} have no memory of labeled images: nothing can be "
    "explained by them"
)
# Flags of a command that are not kept: where the run is, what to do with it.
_OF_THE_CALL = ("workdir", "overwrite", "describe")
_NOT_COMPARED = (*_OF_THE_CALL, "extend_minutes", "extend_steps")
# Flags that a run writes itself, once its length is known.
_OF_LENGTH = ("measured_steps", "extended_steps")
EXTENSION = "extension"
LABELS_ALONE = "labels_alone"
# Head of flags.cfg.
_HEAD = """\
# The flags of this run. To resume it, or (with --workdir=OTHER) to
# start it again elsewhere:
#   python -m simmatch_tf.train --flagfile={}
"""
_OWN = (
    FLAGFILE,
    "split.json",
    "checkpoints",
    "cooldown",
    EXTENSION,
    LABELS_ALONE,
    "measuring",
    "tensorboard",
    "model.keras",
    "results.json",
    "baselines.json",
    "baselines.npz",
    "baseline.keras",
    "timing.json",
    "data.json",
    EVALUATION,
    "imported.json",
)
# Folders and plugins of which a command has said that these have changed.
_warned: set[tuple[pathlib.Path, str]] = set()


class Workdir:
    """Paths and state of one run's files.

    Attributes:
        anew: The files are of another run, and `begin` removes them.
        compared: The images have been compared with those of its start.
        unread: The run is finished, and its images must be read to compare
            them: their source has no fingerprint.
        extends: The folder of the run that this one, in extension/ of it,
            makes longer; else None.
    """

    anew: bool = False
    compared: bool = False
    unread: bool = False
    extends: "Workdir | None" = None

    def __init__(self, path: str | os.PathLike | None) -> None:
        """Names the folder, default runs/default; creates nothing."""
        path = path or os.path.join("runs", "default")
        self.path = io.expand(path)
        self.flagfile = self.path / FLAGFILE
        self.split = self.path / "split.json"
        self.checkpoints = self.path / "checkpoints"
        self.cooldown = self.path / "cooldown"
        self.measuring = self.path / "measuring"
        self.tensorboard = self.path / "tensorboard"
        self.model = self.path / "model.keras"
        self.results = self.path / "results.json"
        self.baselines = self.path / "baselines.json"
        self.baseline = self.path / "baseline.keras"
        self.timing = self.path / "timing.json"
        self.data = self.path / "data.json"
        self.evaluation = self.path / EVALUATION
        self.imported = self.path / "imported.json"

    def read_config(self) -> config_lib.Config:
        """Returns the flags of the run in this folder.

        Warns, once, of each plugin that has changed since the run began.

        Raises:
            InputError: There is no run, or its flagfile cannot be used.
        """
        config = self._read_config()
        then = None
        if config.plugin:
            # `data_changes` tells what is wrong with the file.
            with contextlib.suppress(OSError, ValueError):
                then = fingerprint.read(self.data)
        if then is not None:
            for path in fingerprint.changed_plugins(config, then).values():
                if (self.path, path) not in _warned:
                    _warned.add((self.path, path))
                    terminal.warn(
                        f"{self.path}: {path} has changed since the run began"
                    )
        return config

    def _read_config(self) -> config_lib.Config:
        if not self.path.exists():
            raise InputError(f"--workdir={self.path}: no such folder")
        if not self.flagfile.is_file():
            raise InputError(
                f"--workdir={self.path}: no run here ({FLAGFILE} is missing)"
            )
        try:
            return config_lib.Config.from_flagfile(self.flagfile.absolute())
        except InputError as error:
            reason = " (damaged, or of another version of simmatch_tf)"
            if "--plugin" in str(error):  # that says by itself what to do
                reason = ""
            raise InputError(f"{self.flagfile}: {error}{reason}") from None

    def trained(self) -> config_lib.Config:
        """Returns the flags of the run in this folder, if it has a checkpoint.

        Raises:
            InputError: There is no run or no checkpoint.
        """
        config = self.read_config()
        kept = f"; {self.baseline.name} is there: predict and export take "
        preflight.check_checkpoint(
            self.checkpoints,
            f"{kept}--weights={BASELINE}" * self.baseline.is_file(),
        )
        return config

    def with_baseline(self) -> config_lib.Config:
        """Returns the flags of the run, if its baseline is kept as a model.

        Raises:
            InputError: There is no run or no such model.
        """
        config = self.read_config()
        if self.baseline.is_file():
            return config
        if config.init_from is None:
            turn = (
                "it is made of the weights of --init_from, which this run does "
                "not have"
            )
        elif not config.baselines:
            turn = (
                "the run has --nobaselines; start it again with --baselines "
                "to make it"
            )
        else:
            turn = (
                "the run has not come to it, or its baselines were left out "
                "or failed; start it again, and it says why or makes it"
            )
        raise InputError(
            f"--weights={BASELINE}: {self.baseline} does not exist: {turn}"
        )

    def with_side(self, config: config_lib.Config) -> config_lib.Config:
        """Returns a run's flags with the side of its images if none is given.

        The side that suits a backbone may be another in other versions; that
        of a run stays.

        Args:
            config: The flags of the run.
        """
        facts = registry.sources.find(config.dataset)[0].facts
        side, *_ = self._read_split().get("image_shape", [None])
        if config.image_size or not (side and facts.get("sized_by_backbone")):
            return config
        return dataclasses.replace(config, image_size=side)

    def planned(self, config: config_lib.Config) -> config_lib.Config:
        """Returns a run's flags with the length that is known of it.

        Args:
            config: The flags of this command.

        Returns:
            With --minutes, the steps that were measured when the run was first
            started, and what follows from them; and the steps that a run was
            extended to. The flags as they are for a run with other flags.
        """
        measured = config.minutes is not None or config.schedule == "cooldown"
        if config.overwrite or not (measured and self.flagfile.is_file()):
            return config
        try:
            then = self.read_config()
        except InputError:
            if self.started():
                raise
            return config
        changed = then.differences(config.absolute())
        if any(
            not operational and name not in _OF_LENGTH
            for name, (_, _, operational) in changed.items()
        ):
            return config
        names = (*_OF_LENGTH, "eval_every", "checkpoint_every")
        return dataclasses.replace(
            config,
            **{
                name: getattr(then, name)
                for name in names
                if getattr(config, name) is None
            },
        )

    def images(self) -> dict[str, Any]:
        """Returns what identifies the run's training images, as far as known.

        Returns:
            `class_names` and `train_sha256`, or less.
        """
        content = self._read_split()
        names = ("class_names", "train_sha256")
        return {name: content[name] for name in names if name in content}

    def _read_split(self) -> dict[str, Any]:
        """Returns what split.json holds; {} if it is missing or damaged."""
        try:
            return dict(json.loads(self.split.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def started(self) -> bool:
        """Returns whether a run has left checkpoints or a result."""
        return self.results.is_file() or any(self.checkpoints.glob("*.index"))

    def resumed(self) -> bool:
        """Returns whether a run was started here and goes on."""
        return self.started() and not self.anew

    def finished(self) -> bool:
        """Returns whether the run has its result."""
        return self.results.is_file() and not self.anew

    def warn_unfinished(self, step: int) -> None:
        """Warns if the run's last checkpoint is not that of its end.

        Args:
            step: Step of the last checkpoint.
        """
        if self.finished():
            return
        steps = length(self.read_config(), self._read_split())
        if steps is None or step < steps:
            rest = " and not finished" if steps is None else f" of {steps}"
            terminal.warn(f"{self.path}: the run is at step {step}{rest}")

    def check_available(self, config: config_lib.Config) -> None:
        """Checks that the files that the flags name exist, as far as needed.

        Raises:
            InputError: One of them does not.
        """
        if config.overwrite or not self.finished():
            resumed = self.started() and not config.overwrite
            preflight.check_available(config, resumed=resumed)
        else:
            preflight.check_folder("data_dir", config.data_dir)

    def check_data(
        self,
        config: config_lib.Config,
        now: fingerprint.Fingerprint | None = None,
    ) -> None:
        """Checks that the run's images are those that it began with.

        Args:
            config: The flags.
            now: The images; None: those that the flags name.

        Raises:
            InputError: They are others, or a plugin has changed.
        """
        changes = self.data_changes(config, now)
        if changes:
            raise InputError(
                f"--workdir={self.path} holds a run on other data than "
                f"{_where(config)} has now: {changes}. For a new run give "
                "another --workdir, or --overwrite; with its former data the "
                "run can go on"
            )

    def data_changes(
        self,
        config: config_lib.Config,
        now: fingerprint.Fingerprint | None = None,
        *,
        images_only: bool = False,
    ) -> str:
        """Describes how the run's data have changed since it began.

        Args:
            config: See `check_data`.
            now: See `check_data`.
            images_only: Leave out lists and initial weights that flags name: a
                trained run does not need them any more.

        Returns:
            The changes, for a message; "" if none are known.

        Raises:
            InputError: A plugin has changed.
        """
        if not self.data.is_file():
            terminal.warn(
                f"{self.path}: has no list of its images (data.json), because "
                "it was imported or begun by an older version; whether they "
                "are the same is not checked"
            )
            return ""
        try:
            then = fingerprint.read(self.data)
        except (OSError, ValueError) as error:
            terminal.warn(
                f"{self.data}: cannot be read ({error}); whether the run's "
                "images are the same is not checked"
            )
            return ""
        now = now or fingerprint.of_config(config, then)
        known = now is not None
        if not known:
            facts = registry.sources.find(config.dataset)[0].facts
            if self.finished() and config.dataset != "custom":
                self.unread = not (images_only or "is_prepared" in facts)
                if "is_prepared" in facts:
                    terminal.warn(
                        f"{self.path}: --dataset={config.dataset} is not "
                        "prepared here now; whether its images are still those "
                        "of this result is not checked"
                    )
            now = then.images()
        if images_only:
            then = then.images()
        else:
            self.compared = known
            now = now.join(fingerprint.of_flags(config, then))
            for name in fingerprint.changed_plugins(config, then):
                raise InputError(  # it is part of the method
                    f"--workdir={self.path}: its {name} has changed since the "
                    "run began. For a new run give another --workdir, or "
                    "--overwrite; with the file as it was the run can go on"
                )
        changes = fingerprint.compare(then, now)
        if changes.touched:
            terminal.warn(
                f"{self.path}: {len(changes.touched)} files of its dataset "
                f"have been written since it began, such as "
                f"{changes.touched[0]}; their sizes are the same"
            )
        return changes.text()

    def begin(
        self,
        config: config_lib.Config,
        data: Callable[[], fingerprint.Fingerprint] | None = None,
    ) -> None:
        """Writes the flags of a new run, once all is checked.

        Only this removes files, and only those of a run: a run that is refused
        leaves the folder as it was.

        Args:
            config: The flags.
            data: Computes the fingerprint of its images; None for an imported
                run, which has none yet.

        Raises:
            InputError: The folder cannot be written, or a run that goes on
                began with other images.
        """
        try:
            if self.anew:
                for name in _OWN:
                    if name == LABELS_ALONE and config.labels_alone:
                        continue  # it comes first, so it is this run's
                    path = self.path / name
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
                self.anew = False
            if not (self.flagfile.is_file() and self.started()):
                self.write_flags(config)
            if data is not None and not self.data.is_file():
                data().join(fingerprint.of_flags(config)).write(self.data)
            elif data is not None and not self.compared:
                self.check_data(config, data())
        except OSError as error:
            raise InputError(
                f"--workdir={self.path}: cannot be written ({error.strerror})"
            ) from None

    def write_flags(self, config: config_lib.Config) -> None:
        """Writes flags.cfg.

        Raises:
            InputError: It cannot be written.
        """
        # Without the workdir: it is where this file is, wherever that is moved.
        flags = config.absolute().to_flagfile(without=_OF_THE_CALL)
        head = _HEAD.format(self.flagfile)
        io.write_text(self.flagfile, head + flags)


@contextlib.contextmanager
def claim(config: config_lib.Config) -> Iterator[Workdir]:
    """Locks a workdir for training: a new run, or one to resume.

    Args:
        config: The flags of this command.

    Yields:
        The folder, locked until the end; nothing in it is changed. Workers
        other than the chief take no lock: the chief holds it for all of them.

    Raises:
        InputError: The folder cannot be written, another process trains in
            it, or the run in it was started with other flags.
    """
    folder = Workdir(config.workdir)
    if not cluster.chief(config):
        folder.anew = config.overwrite
        yield folder
        return
    existed = folder.path.exists()
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        lock = open(folder.path / "lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"--workdir={folder.path}: cannot be written ({error.strerror})"
        ) from None
    with lock:
        io.claim(lock, folder.path, "a live run")
        if config.overwrite:
            folder.anew = True
        elif folder.started():
            if not folder.flagfile.is_file():
                raise InputError(
                    f"--workdir={folder.path}: checkpoints of a run whose "
                    f"{FLAGFILE} is missing; restore it, or --overwrite"
                )
            _check_same(folder, config)
            folder.check_data(config)
        elif folder.flagfile.is_file():
            # It ended before its first checkpoint, so nothing is lost.
            folder.anew = True
            if folder.timing.is_file():
                terminal.warn(
                    f"{folder.path}: the run's checkpoints are gone; it starts "
                    "anew"
                )
        try:
            yield folder
        except InputError:
            if not existed:
                _remove_if_empty(folder)
            raise


def _where(config: config_lib.Config) -> str:
    """Names the flag that says where the images are, for a message."""
    if config.data_dir is not None:
        return f"--data_dir={config.data_dir}"
    return f"--dataset={config.dataset}"


def _remove_if_empty(folder: Workdir) -> None:
    """Removes the folder of a run that could not start."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.path.iterdir()] == ["lock"]:
            (folder.path / "lock").unlink()
            folder.path.rmdir()


def length(config: config_lib.Config, content: Any) -> int | None:
    """Returns the number of steps of a run, whether it has finished or not.

    Args:
        config: The run's flags.
        content: What its split.json holds.

    Returns:
        The number; None if the run is measured in epochs and the split file is
        missing or damaged.
    """
    if config.length() is not None:
        return config.length()
    try:
        return config.with_durations(content["unlabeled_images"]).steps
    except (InputError, KeyError, TypeError):
        return None


def _check_same(folder: Workdir, config: config_lib.Config) -> None:
    """Refuses flags that would change the result; prints others that differ."""
    wrong = []
    config = folder.planned(config)
    for name, (old, new, operational) in (
        folder._read_config().differences(config.absolute()).items()
    ):
        if name in _NOT_COMPARED:
            continue
        if operational:
            terminal.say(f"--{name} is now {new} (before: {old})")
            continue
        reason = ""
        if name in ("steps", "epochs", "minutes", *_OF_LENGTH):
            reason = " (the learning rate was planned for the run's length"
            if config.schedule == "cooldown":
                reason += "; --extend_minutes makes a finished run longer"
            reason += ")"
        wrong.append(f"--{name} is {old} there and {new} here{reason}")
    if wrong:
        raise InputError(
            f"--workdir={folder.path} holds a run with other flags: "
            + "; ".join(wrong)
            + ". Use another --workdir, or --overwrite to start anew"
        )
