"""Exports a run: a SavedModel for TensorFlow Serving, LiteRT or ONNX.

python -m simmatch_tf.export --workdir=runs/digits_40 --output=exports/digits_40
"""

import dataclasses

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, signals
from simmatch_tf.data import selection
from simmatch_tf.flags import command
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError
from simmatch_tf.serving import versions
from simmatch_tf.training import workdir as workdir_lib


@dataclasses.dataclass(frozen=True)
class ExportConfig(config_lib.ImageFolders):
    """The flags of `python -m simmatch_tf.export`."""

    workdir: str | None = flag(
        None, "Folder of the run to export.", required="the folder of a run"
    )
    output: str | None = flag(
        None,
        "Folder of the model's versions; the export becomes the next number "
        "in it.",
        required="the folder of versions to export to",
    )
    replace_model: bool = flag(
        False,
        "Write the next version even if the folder holds the model of another "
        "run.",
    )
    weights: str | None = flag(
        None,
        "Weights to export; baseline = the frozen baseline of a run with "
        "--init_from, which needs no checkpoint. Default: those that the "
        "run's result was measured with.",
        choices=workdir_lib.WEIGHTS,
    )
    format: str = flag(
        "saved_model",
        "Format of the export. litert and onnx give probabilities only.",
        choices=("saved_model", "litert", "onnx"),
    )
    input_dtype: str = flag(
        "uint8",
        "Type of the pixel values, from 0 to 255, that the export takes.",
        choices=("uint8", "float32"),
    )
    neighbors: int = flag(
        5,
        "Number of labeled images that the signature `explain` lists for each "
        "image.",
        low=1,
        high=1000,
    )
    thumbnails: bool = flag(
        True,
        "Keep small pictures of the labeled images in the export for predict "
        "--html. A model server does not hand them out.",
    )
    images: str | None = flag(
        None,
        "Images to compare the export with the training network on: a folder, "
        "a pattern or a list. Default: images of the run's dataset.",
    )

    def check(self) -> None:
        """Flags must be those of the format, and the output a folder."""
        for name in ("neighbors", "thumbnails"):
            value = getattr(self, name)
            default = type(self).__dataclass_fields__[name].default
            if self.format != "saved_model" and value != default:
                raise InputError(
                    f"--{name}={value}: is for --format=saved_model, not "
                    f"{self.format}"
                )
        if io.expand(self.output).is_file():
            raise InputError(
                f"--output={self.output}: is a file, but must be a folder"
            )


def main(flags: ExportConfig) -> None:
    """Exports the last checkpoint of a run, or its baseline."""
    signals.sigterm_as_ctrl_c()
    preflight.check_format(flags.format)
    folder = workdir_lib.Workdir(flags.workdir)
    if not flags.replace_model:
        versions.check_model(
            flags.output, folder.read_config(), folder.images()
        )
    if flags.weights == workdir_lib.BASELINE:
        run = folder.with_baseline()
    else:
        run = folder.trained()
    if flags.images is not None:
        selection.find(flags.images)
    else:
        try:
            preflight.check_images(run.moved(flags.data_dir, flags.tfds_dir))
        except InputError as error:
            raise InputError(f"{error}{preflight.GIVE_IMAGES}") from None

    # TensorFlow is imported after all cheap checks.
    preflight.start(fast=False)
    from simmatch_tf.serving import exporting

    written = exporting.write(
        flags.workdir,
        flags.output,
        weights=flags.weights,
        kind=flags.format,
        input_dtype=flags.input_dtype,
        neighbors=flags.neighbors,
        keep_thumbnails=flags.thumbnails,
        images=flags.images,
        data_dir=flags.data_dir,
        tfds_dir=flags.tfds_dir,
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
    command.run(main, ExportConfig)
