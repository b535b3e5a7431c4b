"""Evaluates a run: accuracy, confusion, calibration; student and EMA.

python -m simmatch_tf.evaluate --workdir=runs/digits_40
"""

import pathlib

from simmatch_tf import command_flags, commandline
from simmatch_tf.commandline import InputError
from simmatch_tf.reporting import tables
from simmatch_tf.training import results, workdir


def main(config: command_flags.EvaluateConfig) -> None:
    """Evaluates the last checkpoint on the test split."""
    folder = workdir.Workdir(config.workdir)
    run = folder.read_config()
    output = pathlib.Path(config.output or folder.evaluation).expanduser()
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(
            f"--output={output}: must be a file in a folder that exists"
        )

    from simmatch_tf.data import splits
    from simmatch_tf.training import assembly, evaluation, inputs

    custom = assembly.Custom()
    custom.check(run)
    algorithm, strategy, step = assembly.restore(folder.path, custom)
    source = inputs.make_source(run)
    split = splits.read(folder.split, source)
    scored_on, images, places = inputs.scored_images(source, split.validation)
    evaluator = evaluation.Evaluator(
        strategy,
        algorithm.networks(),
        config.batch_size,
        side=source.image_shape[0],
        resize=run.eval_resize,
        parallel_calls=run.parallel_calls,
    )
    logits = evaluator.logits(images, places)
    labels = images.labels[places]
    report = {
        "step": step,
        "weights_of_record": algorithm.weights_of_record,
        "class_names": list(source.class_names),
        "scored_on": scored_on,
        "test_images": len(places),
        **{
            name: evaluation.describe(values, labels, bins=config.bins)
            for name, values in logits.items()
        },
    }
    print(tables.evaluation(report))
    results.write_json(output, report)
    print(f"\nWritten to {output}.")


if __name__ == "__main__":
    commandline.run(main, command_flags.EvaluateConfig)
