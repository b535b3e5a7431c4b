"""Evaluates a run or an export: accuracy, confusion matrix, calibration.

python -m simmatch_tf.evaluate --workdir=runs/digits_40
python -m simmatch_tf.evaluate --export=exports/digits_40
"""

import dataclasses
import pathlib

from simmatch_tf import config as config_lib
from simmatch_tf import io, preflight, terminal
from simmatch_tf.flags import command
from simmatch_tf.flags.commandline import flag
from simmatch_tf.flags.errors import InputError
from simmatch_tf.reporting import printed_tables
from simmatch_tf.training import workdir


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(config_lib.ImageFolders):
    """The flags of `python -m simmatch_tf.evaluate`."""

    workdir: str | None = flag(None, "Folder of the run to evaluate.")
    export: str | None = flag(
        None,
        "Export to evaluate instead of a run: the folder of one version, or "
        "of several, of which the newest is evaluated.",
    )
    output: str | None = flag(
        None,
        "JSON file to write. Default: evaluation.json in the run's folder, or "
        "next to the export's model card.",
    )
    batch_size: int = flag(256, "Batch size for evaluation, in images.", low=1)
    bins: int = flag(
        15, "Number of bins of the calibration error.", low=1, high=10000
    )

    def check(self) -> None:
        """Exactly one of a run and an export is needed."""
        if self.workdir is None and self.export is None:
            raise InputError(
                "--workdir is missing: name the folder of a run, or an export "
                "by --export"
            )
        if None not in (self.workdir, self.export):
            raise InputError(
                f"--workdir={self.workdir} and --export={self.export}: name "
                "the folder of a run, or an export"
            )


def _changes(folder: workdir.Workdir, config: EvaluateConfig) -> dict[str, str]:
    """Entries for the report if the images have changed since training."""
    if not folder.data.is_file():
        return {}
    changes = folder.data_changes(
        folder.read_config().moved(config.data_dir, config.tfds_dir),
        images_only=True,
    )
    if not changes:
        return {}
    terminal.warn(
        f"{folder.path}: its images are not those that it began with: {changes}"
    )
    return {"images_changed": changes}


def main(config: EvaluateConfig) -> None:
    """Evaluates a run's last checkpoint, or an export, on the test split."""
    if config.export is not None:
        kind, path = preflight.kind_of_model("export", config.export)
        if kind != "saved_model":
            raise InputError(
                f"--export={config.export}: is a run; evaluate it by --workdir"
            )
        run = preflight.exported(path)
        output = pathlib.Path(config.output or path / workdir.EVALUATION)
    else:
        folder = workdir.Workdir(config.workdir)
        run = folder.trained()
        output = pathlib.Path(config.output or folder.evaluation)
    output = io.expand(output)
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(
            f"--output={output}: must be a file in a folder that exists"
        )
    changes = {} if config.export is not None else _changes(folder, config)

    run = run.moved(config.data_dir, config.tfds_dir)
    preflight.check_images(run)

    # With the kernels of training, a run's figures are those of its results.
    preflight.start(fast=config.export is None)
    from simmatch_tf.serving import scoring

    if config.export is not None:
        scores = scoring.of_export(path, run, config.batch_size)
    else:
        scores = scoring.of_run(folder, run, config.batch_size)
    report = {
        **scores.about,
        **changes,
        **{name: scores.describe(name, config.bins) for name in scores.logits},
    }
    io.write_json(output, report)
    print(printed_tables.evaluation(report))
    print(f"\nWritten to {output}.")


if __name__ == "__main__":
    command.run(main, EvaluateConfig)
