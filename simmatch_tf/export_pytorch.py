"""Writes the last checkpoint of a run as a PyTorch file.

python -m simmatch_tf.export_pytorch --workdir=runs/published --output=run.pth
"""

import pathlib

from simmatch_tf import availability, preflight, pytorch_flags
from simmatch_tf.flags import commandline
from simmatch_tf.training import workdir


def main(flags: pytorch_flags.ExportPytorchConfig) -> None:
    """Exports one run."""
    availability.trained(workdir.Workdir(flags.workdir))
    preflight.start(fast=False)
    from simmatch_tf.pytorch import files, outgoing

    content = outgoing.run(pathlib.Path(flags.workdir).expanduser())
    files.write(pathlib.Path(flags.output).expanduser(), content)
    print(
        f"Written to {flags.output}: {len(content['state_dict'])} tensors, "
        f"step {content['step']}."
    )


if __name__ == "__main__":
    commandline.run(main, pytorch_flags.ExportPytorchConfig)
