"""Labels images: their classes, and the labeled images these rest on.

python -m simmatch_tf.predict --model=runs/digits_40 --images=photos \
    --output=labels.csv --explain --html=report.html
"""

import pathlib

from simmatch_tf import checks, command_flags, commandline
from simmatch_tf.reporting import predictions


def main(flags: command_flags.PredictConfig) -> None:
    """Labels the images and writes file, page and table."""
    checks.kind_of_model("model", flags.model)  # at once, if there is none

    from simmatch_tf.data import selection
    from simmatch_tf.serving import prediction, thumbnails

    chosen = selection.find(flags.images)
    model = prediction.load(flags)
    review = prediction.predict(model, chosen, flags)
    print(predictions.summary(review, pathlib.Path(flags.output)))
    if flags.html is None:
        return
    slots = {
        found["slot"]
        for _, row in review.least
        for found in row.get("neighbors", ())
    }
    text = predictions.page(
        review,
        flags.model,
        thumbnails.of_files(
            {place: chosen.paths[place] for place, _ in review.least}
        ),
        model.thumbnails(sorted(slots)),
    )
    path = pathlib.Path(flags.html).expanduser()
    predictions.write(path, text)
    print(f"The least certain images are shown in {path}.")


if __name__ == "__main__":
    commandline.run(main, command_flags.PredictConfig)
