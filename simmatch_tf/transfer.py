r"""Measures what a backbone's features are worth on other datasets.

python -m simmatch_tf.transfer runs/digits_40 --datasets=fashion_mnist
python -m simmatch_tf.transfer mine=runs/imagenet_10pct \
    keras_applications:ResNet50 --datasets=cifar10,cifar100,dtd
"""

import os
import pathlib
import sys

from simmatch_tf import preflight, terminal, transfer_flags
from simmatch_tf.flags import commandline
from simmatch_tf.reporting import transfer_table
from simmatch_tf.training import signals


def main(flags: transfer_flags.TransferConfig) -> int | None:
    """Measures, prints the table; 42 if it was interrupted."""
    signals.sigterm_as_ctrl_c()
    try:
        outcomes = _measure(flags)
    except KeyboardInterrupt as stop:
        again = "interrupted: started again with the same flags, it goes on"
        print(str(stop) or again, file=sys.stderr)
        return signals.RESUME_ME
    folder = pathlib.Path(os.path.expanduser(flags.output))
    table = transfer_table.Table(outcomes)
    written = transfer_table.write(table, folder, flags.protocol)
    if flags.protocol == "linear":
        # Seconds to import, and wanted here only.
        from simmatch_tf.reporting import figures

        written.append("linear.png")
        figures.save_strengths(outcomes, folder / written[-1])
    print(f"\n{table.text()}\n\nIn {folder}: {', '.join(written)}.")
    return None


def _measure(flags: transfer_flags.TransferConfig) -> tuple:
    """Every model on every dataset."""
    # TensorFlow is imported only now that all that is cheap is checked.
    preflight.start()  # by the kernels of training
    from simmatch_tf.probes import encoders, measuring, tasks

    measurer = measuring.Measurer(flags)
    terminal.say(f"loading {', '.join(flags.model)}")
    models = encoders.find(flags)
    outcomes = []
    for name in flags.dataset_names():
        terminal.say(f"reading the images of {name}")
        task = tasks.load(name, flags)
        for model in models:
            outcomes.append(measurer.measure(model, task))
            print(transfer_table.line(outcomes[-1]), flush=True)
    return tuple(outcomes)


if __name__ == "__main__":
    commandline.run(main, transfer_flags.TransferConfig)
