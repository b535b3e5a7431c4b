"""What networks say of the images that results are measured on."""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from simmatch_tf import config as config_lib
from simmatch_tf import io, terminal
from simmatch_tf.data import pipeline, splits
from simmatch_tf.data.sources import source as source_lib
from simmatch_tf.evaluation import evaluator as evaluator_lib
from simmatch_tf.flags.commandline import InputError
from simmatch_tf.serving import classifier, loading
from simmatch_tf.training import inputs, state, workdir


@dataclasses.dataclass(frozen=True)
class Scores:
    """Logits, and what they are of.

    Attributes:
        logits: "student" and "ema" of a run, the one that an export has;
            float32 [N, L], of an export up to a constant in each row.
        labels: [N].
        about: For the report: step, weights of record, classes, images.
    """

    logits: dict[str, np.ndarray]
    labels: np.ndarray
    about: dict[str, Any]


def of_run(
    folder: workdir.Workdir, run: config_lib.Config, batch_size: int
) -> Scores:
    """Scores of a run's last checkpoint.

    Args:
        folder: Of the run.
        run: Its flags, with the present folders of its images.
        batch_size: Images at once.

    Raises:
        InputError: The run or its images cannot be loaded.
    """
    custom = state.Custom()
    custom.check(run)
    terminal.say(f"loading {folder.path}")
    algorithm, strategy, step = state.restore(folder.path, custom)
    terminal.say(f"reading the images of {run.dataset}")
    source = inputs.make_source(run)
    split = splits.read(folder.split, source)
    scored_on, images, places = inputs.scored_images(source, split.validation)
    evaluator = evaluator_lib.Evaluator(
        strategy,
        algorithm.networks(),
        batch_size,
        side=source.image_shape[0],
        resize=run.eval_resize,
        parallel_calls=run.parallel_calls,
    )
    terminal.say(f"scoring {len(places)} {scored_on} images")
    about = {
        "step": step,
        "weights_of_record": algorithm.weights_of_record,
        "class_names": list(source.class_names),
        "scored_on": scored_on,
        "test_images": len(places),
    }
    return Scores(
        evaluator.logits(images, places), images.labels[places], about
    )


def of_export(
    path: pathlib.Path, run: config_lib.Config, batch_size: int
) -> Scores:
    """Scores of an export on its run's test images.

    Args:
        path: The version's folder.
        run: The flags of its run, with the present folders of its images.
        batch_size: Images at once.

    Raises:
        InputError: The export or the images cannot be loaded, or these have
            other classes.
    """
    terminal.say(f"loading {path}")
    export = loading.export(path)
    terminal.say(f"reading the images of {run.dataset}")
    source = inputs.make_source(run)
    here, there = (
        [io.nfc(str(name)) for name in names]
        for names in (source.class_names, export.class_names)
    )
    if here != there:
        raise InputError(
            f"--export={path}: has the classes {export.class_names}, but "
            f"{source.name} has {list(source.class_names)}"
        )
    changes = _changes(export, source)
    if source.test is None:
        raise InputError(
            f"--export={path}: {source.name} has no test images to evaluate "
            "it on"
        )
    places = np.arange(len(source.test))
    terminal.say(f"scoring {len(places)} test images")
    batches = pipeline.evaluation_dataset(
        source.test,
        places,
        min(batch_size, len(places)),
        side=export.preprocessing.image_shape[0],
        resize=export.preprocessing.resize,
        parallel_calls=run.parallel_calls,
    )
    classify = export.signatures[classifier.SERVED]
    found = [
        classify(images=tf.cast(batch, export.input_dtype))["probabilities"]
        for batch in batches
    ]
    probabilities = np.concatenate([p.numpy() for p in found])[: len(places)]
    about = {
        "step": export.card["model"]["step"],
        "weights_of_record": export.card["model"]["weights"],
        "class_names": export.class_names,
        "scored_on": "test",
        "test_images": len(places),
        **changes,
    }
    # The logarithm of a softmax has that softmax.
    tiny = np.finfo(np.float32).tiny
    return Scores(
        {
            export.card["model"]["weights"]: np.log(
                np.maximum(probabilities, tiny)
            )
        },
        source.test.labels,
        about,
    )


def _changes(
    export: loading.Export, source: source_lib.Source
) -> dict[str, str]:
    """For the report: that an export was trained on other images."""
    then = export.card["data"]
    if splits.is_of(then, source):
        return {}
    logging.warning(
        "%s: the training images of %s are not those that it was trained on "
        "(%d then, %d now, or other names or classes): images that are test "
        "images now may have been among them, and the result too good",
        *(export.path, source.name),
        *(then["train_images"], len(source.train)),
    )
    return {
        "images_changed": "the training images' names or classes are not those "
        "of the export"
    }
