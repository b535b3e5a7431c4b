"""The flags of `export_pytorch` and `import_pytorch`."""

import dataclasses
import pathlib
from typing import ClassVar, Self

from simmatch_tf import config as config_lib
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError, flag


@dataclasses.dataclass(frozen=True)
class ExportPytorchConfig(commandline.Flags):
    """What `python -m simmatch_tf.export_pytorch` takes."""

    exact: ClassVar[bool] = False

    workdir: str | None = flag(None, "folder of the run to export.")
    output: str | None = flag(None, "the PyTorch file to write, such as a.pth.")

    def check(self) -> None:
        """Both are needed."""
        if self.workdir is None:
            raise InputError("--workdir=None: name the folder of a run")
        output = pathlib.Path(self.output or ".").expanduser()
        if output.is_dir() or not output.parent.is_dir():
            raise InputError(
                f"--output={self.output}: must be a file in a folder that "
                "exists"
            )


@dataclasses.dataclass(frozen=True)
class ImportPytorchConfig(config_lib.Config):
    """What `python -m simmatch_tf.import_pytorch` takes: FILE, and a run's.

    The run's flags say what the file does not: data, views, schedule.
    """

    usual: ClassVar[tuple[str, ...]] = (
        "file",
        "workdir",
        "output",
        "labeled_list",
        "finished_steps",
        "dataset",
        "data_dir",
        "overwrite",
    )
    positional: ClassVar[tuple[str, ...]] = ("file",)

    file: str | None = flag(
        None, "the PyTorch file; may stand without its name."
    )
    output: str | None = flag(
        None,
        "for an encoder (torchvision ResNet, MoCo v2): the .keras file to "
        "write, which --init_from takes.",
    )
    finished_steps: int | None = flag(
        None,
        "steps that a SimMatch run was trained for; default: what the file "
        "says, or all.",
        low=0,
    )
    workdir: str | None = flag(
        None,
        "folder of the run that a SimMatch checkpoint becomes.",
        operational=True,
    )
    labeled_list: str | None = flag(
        None,
        "which image each slot of the memory holds, in its order: a file with "
        "one file name or index a line; without it the run cannot train on.",
    )
    dataset: str | None = flag(
        None, "as for train; default: ImageNet, the published runs' recipes."
    )

    def check(self) -> None:
        """A file is needed, and a place for what it becomes."""
        if self.file is None:
            raise InputError("no file is named: import_pytorch FILE …")
        if not pathlib.Path(self.file).expanduser().is_file():
            raise InputError(f"{self.file}: no such file")
        if (self.workdir is None) == (self.output is None):
            raise InputError(
                f"--workdir={self.workdir} and --output={self.output}: give "
                "exactly one; --workdir for a SimMatch checkpoint, --output "
                "for an encoder"
            )
        for name in ("describe", "init_from"):
            if value := getattr(self, name):
                raise InputError(f"--{name}={value}: is for train")
        if self.output is None:
            return
        for field in dataclasses.fields(self):
            if field.name in ("file", "output"):
                continue
            if (value := getattr(self, field.name)) != field.default:
                raise InputError(
                    f"--{field.name}={value}: says nothing of an encoder; give "
                    "FILE and --output alone"
                )
        output = pathlib.Path(self.output).expanduser()
        if output.suffix != ".keras" or not output.parent.is_dir():
            raise InputError(
                f"--output={self.output}: must be a .keras file in a folder "
                "that exists"
            )

    def named_after(self, flagfile: pathlib.Path | None) -> Self:
        """The workdir is always given."""
        del flagfile
        return self

    def run(self, **decided: object) -> config_lib.Config:
        """The flags of the run that the file becomes.

        Args:
            **decided: What the file decides, instead of the flags.

        Raises:
            InputError: They do not go together.
        """
        values = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(config_lib.Config)
        }
        return config_lib.Config(**{**values, **decided})
