"""Evaluates a run or an export: accuracy, confusion, calibration.

python -m simmatch_tf.evaluate --workdir=runs/digits_40
python -m simmatch_tf.evaluate --export=exports/digits_40
"""

import pathlib

from absl import logging

from simmatch_tf import availability, command_flags, io, preflight
from simmatch_tf.flags import commandline
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.reporting import printed_tables
from simmatch_tf.training import workdir


def _changes(
    folder: workdir.Workdir, config: command_flags.EvaluateConfig
) -> dict[str, str]:
    """For the report: how the run's images have changed since it began."""
    if not folder.data.is_file():
        return {}
    changes = folder.data_changes(
        config.moved(folder.read_config()), images_only=True
    )
    if not changes:
        return {}
    logging.warning(
        "%s: its images are not those that it began with: %s",
        folder.path,
        changes,
    )
    return {"images_changed": changes}


def main(config: command_flags.EvaluateConfig) -> None:
    """Evaluates a run's last checkpoint, or an export, on the test split."""
    if config.export is not None:
        kind, path = availability.kind_of_model("export", config.export)
        if kind != "saved_model":
            raise InputError(
                f"--export={config.export}: is a run; evaluate it by --workdir"
            )
        run = availability.exported(path)
        output = pathlib.Path(config.output or path / workdir.EVALUATION)
    else:
        folder = workdir.Workdir(config.workdir)
        run = availability.trained(folder)
        output = pathlib.Path(config.output or folder.evaluation)
    output = output.expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(
            f"--output={output}: must be a file in a folder that exists"
        )
    changes = {} if config.export is not None else _changes(folder, config)

    availability.check_images(config.moved(run))

    # A run's figures are by the kernels of training.
    preflight.start(fast=config.export is None)
    from simmatch_tf.evaluation import evaluator
    from simmatch_tf.serving import scoring

    if config.export is not None:
        scores = scoring.of_export(path, config)
    else:
        scores = scoring.of_run(folder, config)
    report = {
        **scores.about,
        **changes,
        **{
            name: evaluator.describe(values, scores.labels, bins=config.bins)
            for name, values in scores.logits.items()
        },
    }
    io.write_json(output, report)
    print(printed_tables.evaluation(report))
    print(f"\nWritten to {output}.")


if __name__ == "__main__":
    commandline.run(main, command_flags.EvaluateConfig)
