"""Labels images: their classes, and the labeled images these rest on.

python -m simmatch_tf.predict --model=runs/digits_40 --images=photos \
    --output=labels.csv --explain --html=report.html
"""

import os
import pathlib
import sys

from simmatch_tf import (
    availability,
    command_flags,
    commandline,
    preflight,
    terminal,
)
from simmatch_tf.commandline import InputError
from simmatch_tf.data import selection
from simmatch_tf.reporting import predictions
from simmatch_tf.serving import outputs
from simmatch_tf.training import interruption, workdir


def _check(flags: command_flags.PredictConfig) -> selection.Selection:
    """Checks all that needs no TensorFlow; finds the images."""
    kind, path = availability.kind_of_model("model", flags.model)
    if kind == "workdir":
        availability.trained(workdir.Workdir(path))
    else:
        availability.exported(path)
    for name in ("weights", "neighbors", "data_dir", "tfds_dir"):
        value = getattr(flags, name)
        if kind != "workdir" and value is not None:
            raise InputError(
                f"--{name}={value}: is for a run; an export has what it was "
                "made with"
            )
    output = pathlib.Path(flags.output).expanduser()
    outputs.check_free(output, overwrite=flags.overwrite)
    chosen = selection.find(flags.images)
    images = os.path.expanduser(flags.images)
    if output.exists() and os.path.exists(images):
        if os.path.samefile(output, images):
            raise InputError(
                f"--output={flags.output}: is what --images names; give "
                "another file"
            )
    return chosen


def main(flags: command_flags.PredictConfig) -> int:
    """Labels the images and writes file, page and table.

    Returns:
        0; 1 if not one image could be read; 42 if it was interrupted, with
        what is done kept.
    """
    interruption.sigterm_as_ctrl_c()
    chosen = _check(flags)
    try:
        return _predict(flags, chosen)
    except KeyboardInterrupt:
        if not outputs.partial(
            pathlib.Path(flags.output).expanduser()
        ).exists():
            raise
        print(
            "interrupted; what is done is kept: start it again, without "
            "--overwrite, to go on",
            file=sys.stderr,
        )
        return interruption.RESUME_ME


def _predict(
    flags: command_flags.PredictConfig, chosen: selection.Selection
) -> int:
    # TensorFlow is imported only now that all that is cheap is checked.
    preflight.start(fast=False)
    from simmatch_tf.serving import prediction, review, thumbnails

    terminal.say(f"loading {flags.model}")
    model = prediction.load(flags)

    def show(found: review.Review) -> None:
        if flags.html is None:
            return
        slots = {
            neighbor["slot"]
            for _, row in found.least
            for neighbor in row.get("neighbors", ())
        }
        text = predictions.page(
            found,
            flags.model,
            thumbnails.of_files(
                {place: chosen.paths[place] for place, _ in found.least}
            ),
            model.thumbnails(sorted(slots)),
        )
        predictions.write(pathlib.Path(flags.html).expanduser(), text)

    found = prediction.predict(model, chosen, flags, show)
    print(predictions.summary(found, pathlib.Path(flags.output)))
    if flags.html is not None:
        print(f"The least certain images are shown in {flags.html}.")
    if found.unreadable == found.images:
        sys.exit("error: not one image could be read")
    return 0


if __name__ == "__main__":
    commandline.run(main, command_flags.PredictConfig)
