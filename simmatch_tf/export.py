"""Exports a run: a SavedModel for TensorFlow Serving, LiteRT or ONNX.

python -m simmatch_tf.export --workdir=runs/digits_40 --output=exports/digits_40
"""

from simmatch_tf import availability, command_flags, preflight, signals
from simmatch_tf.data import selection
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import versions
from simmatch_tf.training import workdir


def main(flags: command_flags.ExportConfig) -> None:
    """Exports the last checkpoint of a run."""
    signals.sigterm_as_ctrl_c()
    availability.check_format(flags.format)
    folder = workdir.Workdir(flags.workdir)
    if not flags.replace_model:
        versions.check_model(
            flags.output, folder.read_config(), folder.images()
        )
    run = availability.trained(folder)
    if flags.images is not None:
        selection.find(flags.images)
    else:
        try:
            availability.check_images(flags.moved(run))
        except InputError as error:
            raise InputError(f"{error}{availability.GIVE_IMAGES}") from None

    # TensorFlow is imported after all cheap checks.
    preflight.start(fast=False)
    from simmatch_tf.serving import exporting

    written = exporting.write(
        flags.workdir,
        flags.output,
        weights=flags.weights,
        format=flags.format,
        input_dtype=flags.input_dtype,
        neighbors=flags.neighbors,
        keep_thumbnails=flags.thumbnails,
        images=flags.images,
        moved=flags.moved,
    )
    for note in written.notes:
        print(f"Note: {note}.")
    verified = written.card["verified"]
    largest = max(verified["largest_difference"].values())
    for name in written.card["interface"]:
        print(f"  {name}")
    print(
        f"Written to {written.path}: loaded again, it agrees with the "
        f"{written.card['model']['weights']} network of step "
        f"{written.card['model']['step']} on {verified['images']} images "
        f"(largest difference {largest:.1g})."
    )


if __name__ == "__main__":
    commandline.run(main, command_flags.ExportConfig)
