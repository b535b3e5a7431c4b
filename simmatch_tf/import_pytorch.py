"""Turns a PyTorch file into a run, or into first weights for one.

python -m simmatch_tf.import_pytorch FILE.pth --workdir=runs/published

for a SimMatch checkpoint, which then evaluates and trains on as any run;

python -m simmatch_tf.import_pytorch FILE.pth --output=encoder.keras

for a ResNet in torchvision's layout or a MoCo v2 encoder, for --init_from.
"""

import dataclasses
import pathlib
import types
from collections.abc import Callable, Mapping
from typing import ClassVar, Self

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, registry, terminal
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError


@dataclasses.dataclass(frozen=True, init=False)
class ImportPytorchConfig(config_lib.Config):
    """The flags of `python -m simmatch_tf.import_pytorch`: FILE, and a run's.

    The flags of a run give what the file does not hold: data, augmentation,
    schedule.
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
    topics: ClassVar[Mapping[str, str]] = types.MappingProxyType(
        {**config_lib.Config.topics, "file": "Import"}
    )

    file: str | None = flag(
        None,
        "The PyTorch file. May be given without --file=.",
        required="the PyTorch file: import_pytorch FILE",
    )
    output: str | None = flag(
        None,
        "For an encoder (torchvision ResNet, MoCo v2): the .keras file to "
        "write, for train --init_from.",
    )
    finished_steps: int | None = flag(
        None,
        "Number of steps that a SimMatch run was trained for. Default: the "
        "number in the file, or the whole run.",
        low=0,
    )
    workdir: str | None = flag(
        None,
        "For a SimMatch checkpoint: folder to write the run to.",
        operational=True,
    )
    labeled_list: str | None = flag(
        None,
        "The labeled images in the order of the memory bank: a file with one "
        "file name or index a line. Without it the run can be evaluated but "
        "not trained further.",
    )
    dataset: str | None = flag(
        None,
        "Dataset, as for train. Default: ImageNet with the recipe of the "
        "published runs.",
    )

    def check(self) -> None:
        """The file must exist, and what it becomes needs a place."""
        if not io.expand(self.file).is_file():
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
        for name, value in self.values().items():
            given = value != self.fields()[name].default
            if given and name not in ("file", "output"):
                raise InputError(
                    f"--{name}={value}: says nothing of an encoder; give "
                    "FILE and --output alone"
                )
        commandline.check_output_file("output", self.output, (".keras",))

    def named_after(self, flagfile: pathlib.Path | None) -> Self:
        """The workdir is always given."""
        del flagfile
        return self

    def run(
        self, recipe: Callable[[], str], **values: object
    ) -> config_lib.Config:
        """Returns the flags of the run that the file becomes.

        Args:
            recipe: Names the flagfile to start from where the flags name no
                dataset.
            **values: Flags that the file decides.

        Raises:
            InputError: They do not go together.
        """
        flags = self.below(recipe()) if self.dataset is None else self
        if flags.labeled_list is None:
            # The memory says by itself what is labeled.
            own = io.expand(flags.workdir) / "split.json"
            values |= {
                "labels": None,
                "label_fraction": None,
                "split_file": str(own.absolute()),
                "validation_fraction": 0.0,
            }
        names = {*config_lib.Config.__dataclass_fields__}
        names.update(flags.hyper.declared())
        entry, _ = registry.networks.find(str(values["backbone"]))
        if entry.flags is not None:
            names.update(entry.flags.declared())
        taken = {n: v for n, v in flags.values().items() if n in names}
        return config_lib.Config(**{**taken, **values})


def main(flags: ImportPytorchConfig) -> None:
    """Imports one file."""
    from simmatch_tf.pytorch import checkpoint

    terminal.say(f"reading {flags.file}")
    content = checkpoint.read(io.expand(flags.file))
    try:
        is_run = checkpoint.is_simmatch(content)
    except InputError as error:
        raise InputError(f"{flags.file}: {error}") from None
    if is_run != (flags.output is None):
        raise InputError(
            f"{flags.file}: is a SimMatch checkpoint: give --workdir=DIR"
            if is_run
            else f"{flags.file}: is an encoder without a SimMatch run: give "
            "--output=NAME.keras, then train with --init_from=NAME.keras"
        )
    if is_run and flags.dataset is not None:
        preflight.check_images(flags)
    # TensorFlow is imported only now that all that is cheap is checked.
    preflight.start(fast=False)
    from simmatch_tf.pytorch import conversion

    try:
        if is_run:
            lines = conversion.import_run(
                content,
                flags.run,
                file=io.expand(flags.file),
                finished_steps=flags.finished_steps,
            )
        else:
            lines = conversion.import_encoder(content, io.expand(flags.output))
    except InputError as error:
        raise InputError(f"{flags.file}: {error}") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # Tensors may be misshapen in any way, and say so in any way.
        raise InputError(
            f"{flags.file}: its tensors are not of the form that is known "
            f"({error!r})"
        ) from error
    print("\n".join(lines))
    if is_run:
        print(f"Next: python -m simmatch_tf.evaluate --workdir={flags.workdir}")
    else:
        print(f"Next: train with --init_from={flags.output}")


if __name__ == "__main__":
    command.run(main, ImportPytorchConfig)
