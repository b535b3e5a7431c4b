"""Writes the last checkpoint of a run as a PyTorch file.

python -m simmatch_tf.export_pytorch --workdir=runs/published --output=run.pth
"""

import dataclasses

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight
from simmatch_tf.flags import command, commandline
from simmatch_tf.flags.commandline import flag
from simmatch_tf.training import workdir


@dataclasses.dataclass(frozen=True)
class ExportPytorchConfig(config_lib.Plugins):
    """The flags of `python -m simmatch_tf.export_pytorch`."""

    workdir: str | None = flag(
        None, "Folder of the run to export.", required="the folder of a run"
    )
    output: str | None = flag(
        None,
        "PyTorch file to write, such as run.pth.",
        required="a file, such as run.pth",
    )

    def check(self) -> None:
        """The file must be one that can be written."""
        commandline.check_output_file("output", self.output)


def main(flags: ExportPytorchConfig) -> None:
    """Exports one run."""
    workdir.Workdir(flags.workdir).trained()
    preflight.start(fast=False)
    from simmatch_tf.pytorch import checkpoint, conversion

    content = conversion.export_run(io.expand(flags.workdir))
    checkpoint.write(io.expand(flags.output), content)
    print(
        f"Written to {flags.output}: {len(content['state_dict'])} tensors, "
        f"step {content['step']}."
    )


if __name__ == "__main__":
    command.run(main, ExportPytorchConfig)
