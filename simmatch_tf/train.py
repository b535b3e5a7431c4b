"""Trains an image classifier from few labels and many unlabeled images.

python -m simmatch_tf.train --flagfile=configs/digits_40.cfg

Started again with the same --workdir, it resumes.
"""

import sys
import time

from simmatch_tf import config as config_lib
from simmatch_tf import preflight, signals, terminal
from simmatch_tf.distributed import cluster
from simmatch_tf.flags import command
from simmatch_tf.flags.errors import InputError
from simmatch_tf.training import extension, results, workdir


def _train(
    folder: workdir.Workdir, config: config_lib.Config, began: float
) -> results.Result:
    with signals.watch():
        # TensorFlow is imported only now that all that is cheap is checked.
        preflight.start(loud=cluster.chief(config))
        from simmatch_tf.training import loop

        return loop.fit_in(folder, config, began=began)


def _describe(config: config_lib.Config) -> None:
    preflight.start()
    from simmatch_tf.reporting import description

    print(description.of_flags(config))


def main(config: config_lib.Config) -> None:
    """Trains, prints the result; exits with 42 if interrupted and saved."""
    began = time.monotonic()
    workdir.Workdir(config.workdir).check_available(config)
    if config.dataset == "custom":
        raise InputError("--dataset=custom is for simmatch_tf.fit only")
    if config.describe:
        _describe(config)
        return
    with workdir.claim(config) as folder:
        folder, config = extension.target(folder, config)
        if folder.finished() and not folder.unread:
            result = results.read(folder.results)
            terminal.say(
                f"{folder.path} holds a finished run: nothing is trained; "
                "--overwrite trains anew, another --workdir beside it"
            )
        else:
            try:
                result = _train(folder, config, began)
            except signals.Interrupted as stop:
                print(stop, file=sys.stderr)
                # Not returned: that would destroy what still waits for data.
                sys.exit(signals.RESUME_ME)
            except FloatingPointError as error:
                sys.exit(f"error: {error}")
        if not cluster.chief(config):
            return
        from simmatch_tf.reporting import printed_tables

        folder = folder.extends or folder
        config = folder.planned(config)  # its minutes may be extended ones
        print(printed_tables.result(result, config), end="\n\n")
        print(printed_tables.next_steps(folder.path, config, result))


if __name__ == "__main__":
    command.run(main, config_lib.Config)
