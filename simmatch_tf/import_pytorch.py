"""Turns a PyTorch file into a run, or into first weights for one.

python -m simmatch_tf.import_pytorch FILE.pth --workdir=runs/published

for a SimMatch checkpoint, which then evaluates and trains on as any run;

python -m simmatch_tf.import_pytorch FILE.pth --output=encoder.keras

for a ResNet in torchvision's layout or a MoCo v2 encoder, for --init_from.
"""

import pathlib

from simmatch_tf import availability, preflight, pytorch_flags, terminal
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError


def main(flags: pytorch_flags.ImportPytorchConfig) -> None:
    """Imports one file."""
    from simmatch_tf.pytorch import files, layout

    terminal.say(f"reading {flags.file}")
    content = files.read(pathlib.Path(flags.file).expanduser())
    try:
        is_run = layout.is_simmatch(content)
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
        availability.check_images(flags)
    # TensorFlow is imported only now that all that is cheap is checked.
    preflight.start(fast=False)
    from simmatch_tf.pytorch import incoming, plain_encoders

    try:
        lines = (incoming.run if is_run else plain_encoders.convert)(
            content, flags
        )
    except InputError as error:
        raise InputError(f"{flags.file}: {error}") from None
    except (AttributeError, IndexError, KeyError, TypeError) as error:
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
    commandline.run(main, pytorch_flags.ImportPytorchConfig)
